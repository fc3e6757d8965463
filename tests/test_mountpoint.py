"""The mount point: what is there, why not, and how it is cleared."""

import os
import signal
import time
from pathlib import Path

import pytest

from secretfs.errors import MountError
from secretfs.mountpoint import is_mounted, mounts, prepare, resolve, unmount
from tests.support.command import Done, background, end_daemons, in_namespace, secretfs
from tests.support.manifests import component
from tests.support.mounted import fuse_mounts, mounted, wait_for_end

COMPONENT = """
    mkdir c m
    printf '%s\\n' 'apiVersion: dapr.io/v1alpha1' 'kind: Component' 'metadata: {name: env}' \
        'spec: {type: secretstores.local.env}' > c/env.yaml
    chown 65534 m
"""


@pytest.fixture
def components(tmp_path: Path) -> Path:
    return component(tmp_path / "components", "env", "local.env").parent


@pytest.fixture
def point(tmp_path: Path) -> Path:
    path = tmp_path / "mnt"
    path.mkdir()
    return path


def mount(components: Path, point: Path) -> Done:
    return secretfs("mount", "--resources-path", components, point)


class TestResolve:
    def test_what_is_there_as_the_kernel_names_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        real = tmp_path / "real" / "mnt"
        real.mkdir(parents=True)
        (tmp_path / "dir").symlink_to("real")
        (tmp_path / "link").symlink_to("dir/mnt")
        (tmp_path / "chain").symlink_to(tmp_path / "link")
        monkeypatch.chdir(real)
        for path in (
            real, tmp_path / "dir/mnt", tmp_path / "link", tmp_path / "chain",
            *(Path(text) for text in (".", "", "../mnt", "../../link", "../../real/./mnt/", "../mnt/../mnt")),
        ):  # fmt: skip
            assert resolve(path) == real, path
        assert resolve(Path("..")) == real.parent
        assert resolve(Path("/")) == Path("/")

    def test_what_is_not_there_stays_what_it_is(self, tmp_path: Path) -> None:
        assert resolve(tmp_path / "a" / "b") == tmp_path / "a" / "b"
        (tmp_path / "dangling").symlink_to("nowhere")
        assert resolve(tmp_path / "dangling") == tmp_path / "nowhere"

    def test_a_circle_of_links(self, tmp_path: Path) -> None:
        (tmp_path / "a").symlink_to("b")
        (tmp_path / "b").symlink_to("a")
        with pytest.raises(MountError, match="is a link in a circle"):
            resolve(tmp_path / "a")


class TestMountinfo:
    @pytest.mark.mount
    @pytest.mark.parametrize(
        "name", ["a - b\ttab\nline\\slash", r"grün \040", b"\xff".decode(errors="surrogateescape")], ids=ascii
    )
    def test_awkward_names(self, components: Path, tmp_path: Path, name: str) -> None:
        point = tmp_path / name
        with mounted(components, mountpoint=point):
            assert is_mounted(point)
            assert str(point) in [mount.path for mount in mounts()]

    def test_what_is_mounted_last_is_what_one_sees(self) -> None:
        done = in_namespace("""
            cat > look.py <<-'END'
from pathlib import Path
from secretfs.mountpoint import is_mounted
print(is_mounted(Path("/mnt/nobody/m")), is_mounted(Path("/mnt/nobody")), is_mounted(Path("/mnt/nobody/m/x")))
END
            mkdir m
            look() { /mnt/python/bin/python look.py; }
            sfs() { exec 3<>/dev/fuse; mount -i -t fuse.secretfs -o fd=3,rootmode=40000,user_id=0,group_id=0 sfs m; }
            look; sfs; look; mount -t tmpfs none m; look; umount m; look; umount m; look
        """)
        assert done.err == ""
        assert done.out.splitlines() == [f"{seen} False False" for seen in (False, True, False, True, False)]


class TestRefusals:
    """Each says why, and where there is one, the way out. Nothing is mounted afterwards."""

    def test_missing(self, components: Path, point: Path) -> None:
        point.rmdir()
        assert mount(components, point) == Done(
            3, "", f"secretfs: cannot mount at {point}: No such file or directory\n"
        )

    def test_a_file(self, components: Path, point: Path) -> None:
        point.rmdir()
        point.write_text("x", encoding="utf-8")
        assert mount(components, point) == Done(3, "", f"secretfs: cannot mount at {point}: it is not a directory\n")
        assert mount(components, point / "below").lines == [f"secretfs: cannot mount at {point}/below: Not a directory"]

    def test_a_circle_of_links(self, components: Path, point: Path) -> None:
        point.rmdir()
        point.symlink_to(point)
        assert mount(components, point) == Done(3, "", f"secretfs: {point} is a link in a circle\n")

    @pytest.mark.mount
    def test_mounted_already(self, components: Path, point: Path, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(point)
        with mounted(components, mountpoint=point):
            for path in (point, tmp_path / "link", point / ".." / "mnt"):
                assert mount(components, path) == Done(
                    3,
                    "",
                    f"secretfs: {point} has a secretfs mounted already; unmount it first: secretfs unmount {point}\n",
                )
            assert sum(mount.path == str(point) for mount in mounts()) == 1

    def test_no_fuse_device(self) -> None:
        done = in_namespace(
            COMPONENT + "mount -t tmpfs none /dev; secretfs mount --resources-path c m || echo $?; ls m"
        )
        assert (done.out, done.lines) == (
            "3\n", ["secretfs: /dev/fuse is missing: load the module fuse (modprobe fuse), or pass the device in"],
        )  # fmt: skip

    def test_a_fuse_device_for_root_alone(self) -> None:
        done = in_namespace(
            COMPONENT + "chmod 600 /dev/fuse; as_nobody secretfs mount --resources-path c m || echo $?; ls m"
        )
        assert (done.out, done.lines) == (
            "3\n", ["secretfs: /dev/fuse may not be opened by this user (its usual mode is 0666)"],
        )  # fmt: skip

    def test_a_user_without_fusermount3(self) -> None:
        done = in_namespace(
            COMPONENT
            + """
            mkdir bin; for program in setpriv sh ls cat mount umount; do ln -s "$(command -v $program)" bin/; done
            PATH=/mnt:/mnt/nobody/bin
            as_nobody secretfs mount --resources-path c m || echo $?
            ls m
            exec 3<>/dev/fuse
            mount -i -t fuse.secretfs -o fd=3,rootmode=40000,user_id=65534,group_id=0 sfs m
            as_nobody secretfs unmount m || echo $?
        """
        )
        message = "secretfs: fusermount3 is missing, which mounts for users other than root: install the package fuse3"
        assert (done.out, done.lines) == ("3\n3\n", [message] * 2)

    def test_a_directory_of_somebody_else(self) -> None:
        done = in_namespace(COMPONENT + "chown 0 m; as_nobody secretfs mount --resources-path c m || echo $?; ls m")
        assert (done.out, done.lines) == (
            "3\n",
            ["secretfs: cannot mount at /mnt/nobody/m: fusermount3 mounts only on a directory you may write to"],
        )

    def test_what_the_kernel_refuses(self) -> None:
        done = in_namespace(
            COMPONENT
            + """
            as_nobody setpriv --no-new-privs secretfs mount --resources-path c m || echo $?
            as_nobody secretfs mount --allow-other --resources-path c m || echo $?
            ls m
        """
        )
        assert done.out == "3\n3\n"
        refused, not_allowed = done.lines
        start = "secretfs: cannot mount at /mnt/nobody/m: fusermount3: "
        assert refused == start + "mount failed: Operation not permitted"
        assert not_allowed.startswith(start + "option allow_other only allowed if 'user_allow_other' is set")


@pytest.mark.mount
class TestDeadMounts:
    def test_one_is_replaced(self, components: Path, point: Path) -> None:
        with mounted(components, mountpoint=point) as dead:
            dead.kill()
            with pytest.raises(OSError, match="not connected"):
                list(point.iterdir())
            assert mount(components, point) == Done(0, "", f"INFO cleared a dead mount at {point}\n")
            assert [child.name for child in point.iterdir()] == ["env"]
            assert sum(mount.path == str(point) for mount in mounts()) == 1
            end_daemons(point)

    def test_several_are_replaced(self, components: Path, point: Path) -> None:
        done = in_namespace(
            COMPONENT
            + """
            for i in 1 2 3; do
                exec 3<>/dev/fuse
                mount -i -t fuse.secretfs -o fd=3,rootmode=40000,user_id=0,group_id=0 sfs m
                exec 3>&-
            done
            secretfs mount --resources-path c m
            ls m; grep -c "$PWD/m .*fuse.secretfs" /proc/self/mountinfo
            secretfs unmount m
        """
        )
        assert (done.status, done.out) == (0, "env\n1\n")

    def test_a_user_replaces_his_own(self) -> None:
        done = in_namespace(
            COMPONENT
            + """
            as_nobody secretfs mount --resources-path c m
            kill_daemon
            while as_nobody ls m 2> /dev/null; do :; done
            as_nobody secretfs mount --resources-path c m
            as_nobody ls m
            as_nobody secretfs unmount m
        """
        )
        assert (done.status, done.out) == (0, "env\n")

    def test_nothing_is_cleared_until_the_new_mount_can_take_its_place(self, components: Path, point: Path) -> None:
        """Readers had better see ENOTCONN than an empty directory, which would mean "no secrets"."""
        with mounted(components, mountpoint=point) as dead:
            dead.kill()
            assert mount(components / "missing", point).status == 2
            component(components, "file", "local.file", {"secretsFile": "missing.json"})
            assert mount(components, point).status == 2
            with pytest.raises(OSError, match="not connected"):
                list(point.iterdir())

    def test_unmounting_one(self, components: Path, point: Path) -> None:
        with mounted(components, mountpoint=point) as dead:
            dead.kill()
            assert secretfs("unmount", point) == Done(0, "", "")
            assert str(point) not in fuse_mounts()


@pytest.mark.mount
class TestHungMounts:
    def test_one_is_refused_within_seconds(self, components: Path, point: Path) -> None:
        with mounted(components, mountpoint=point) as hung:
            os.kill(hung.worker, signal.SIGSTOP)
            try:
                began = time.monotonic()
                done = mount(components, point)
                assert time.monotonic() - began < 5
                assert done == Done(
                    3, "", f"secretfs: {point} has a secretfs mounted that does not answer; kill it, then mount again\n"
                )
            finally:
                os.kill(hung.worker, signal.SIGCONT)

    def test_unmounting_one_does_not_wait_for_it(self, components: Path, point: Path, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(point)
        with background(point, "--resources-path", components) as pid:
            os.kill(pid, signal.SIGSTOP)
            try:
                assert secretfs("unmount", tmp_path / "link") == Done(0, "", "")
            finally:
                os.kill(pid, signal.SIGCONT)
            wait_for_end(point)


@pytest.mark.mount
class TestUnmounting:
    def test_what_is_not_mounted(self, point: Path) -> None:
        assert secretfs("unmount", point) == Done(3, "", f"secretfs: {point} has no secretfs mounted\n")
        assert secretfs("unmount", point / "x") == Done(3, "", f"secretfs: {point}/x has no secretfs mounted\n")

    def test_what_somebody_else_mounted_stays(self) -> None:
        done = in_namespace(
            "mkdir m; mount -t tmpfs none m; secretfs unmount m || echo $?; mountpoint -q m && echo there"
        )
        assert (done.out, done.lines) == ("3\nthere\n", ["secretfs: /mnt/nobody/m has no secretfs mounted"])

    def test_one_in_use_as_root(self, components: Path, point: Path) -> None:
        with mounted(components, mountpoint=point) as mount:
            descriptor = os.open(point / "env", os.O_RDONLY)
            try:
                assert secretfs("unmount", point) == Done(
                    3,
                    "",
                    f"secretfs: cannot unmount {point}: Device or resource busy (who uses it: fuser -vm {point})\n",
                )
                assert is_mounted(point)
            finally:
                os.close(descriptor)
            assert secretfs("unmount", point).status == 0
            assert mount.process.wait(10) == 0

    def test_one_in_use_as_a_user(self) -> None:
        done = in_namespace(
            COMPONENT
            + """
            as_nobody secretfs mount --resources-path c m
            as_nobody sh -c 'cd m; exec 3< env; cd ..; secretfs unmount m || echo $?'
            as_nobody secretfs unmount m
        """
        )
        assert (done.status, done.out, done.lines) == (
            0,
            "3\n",
            ["secretfs: cannot unmount /mnt/nobody/m: Device or resource busy (who uses it: fuser -vm /mnt/nobody/m)"],
        )

    def test_lazily_what_is_open_stays_readable(self, components: Path, point: Path) -> None:
        with mounted(components, mountpoint=point, env={"A": "b"}) as mount:
            with (point / "env/A").open(encoding="utf-8") as file:
                unmount(point, lazy=True)
                assert not is_mounted(point)
                assert file.read() == "b"
            wait_for_end(point)
            assert mount.process.wait(10) == 0


@pytest.mark.mount
def test_prepare_accepts_an_empty_directory(point: Path) -> None:
    prepare(point)


def test_root_unmounts_what_a_user_mounted() -> None:
    done = in_namespace(COMPONENT + "as_nobody secretfs mount --resources-path c m; secretfs unmount m; ls m")
    assert (done.status, done.out, done.err) == (0, "", "")


def test_a_users_mount_is_no_reason_to_hang_for_root() -> None:
    done = in_namespace(
        COMPONENT
        + "as_nobody secretfs mount --resources-path c m; secretfs mount --resources-path c m || echo $?"
        + "; as_nobody secretfs unmount m"
    )
    assert done.out == "3\n"
    assert "has a secretfs mounted already" in done.err
