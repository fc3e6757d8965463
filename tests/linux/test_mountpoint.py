"""The mount point: what is there, why not, and how it is cleared."""

import os
import signal
import time
from pathlib import Path

import pytest

from secretfs.errors import MountError
from secretfs.linux.mountinfo import is_mounted, mounts
from secretfs.linux.mountpoint import prepare, resolve, unmount
from secretfs.linux.preflight import explain
from tests.support.command import Done, background, end_daemons, in_namespace, secretfs
from tests.support.manifests import component
from tests.support.mount_fixtures import components, point
from tests.support.mounted import daemons, fuse_mounts, mounted, wait_for_end
from tests.support.shell import stop
from tests.support.waiting import PATIENCE, wait_until

__all__ = ["components", "point"]

COMPONENT = """
    mkdir m
    env_component
    chown 65534 m
"""


def mount(components: Path, point: Path) -> Done:
    return secretfs("mount", "--resources-path", components, "--log-file", point.with_name("log"), point)


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


class TestRefusals:
    """Each says why, and where there is one, the way out. Nothing is mounted afterwards."""

    def test_missing(self, components: Path, point: Path) -> None:
        point.rmdir()
        assert mount(components, point) == Done(
            3, "", f"secretfs: cannot mount at {point}: there is no such directory; make it: mkdir -p {point}\n"
        )

    def test_a_file(self, components: Path, point: Path) -> None:
        point.rmdir()
        point.write_text("x", encoding="utf-8")
        assert mount(components, point) == Done(
            3, "", f"secretfs: cannot mount at {point}: it is not a directory; name another one, or make it one\n"
        )
        assert secretfs("mount", "--resources-path", components, point / "below").lines == [
            f"secretfs: cannot mount at {point}/below: Not a directory; name another directory"
        ]

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
            "3\n",
            [
                (
                    "secretfs: /dev/fuse is missing; load the module fuse (modprobe fuse), or pass the device in"
                    " (--device /dev/fuse, DeviceAllow=/dev/fuse rw)"
                )
            ],
        )

    def test_a_fuse_device_for_root_alone(self) -> None:
        done = in_namespace(
            COMPONENT + "chmod 600 /dev/fuse; as_nobody secretfs mount --resources-path c m || echo $?; ls m"
        )
        assert (done.out, done.lines) == (
            "3\n",
            [
                (
                    "secretfs: /dev/fuse may not be opened by this user: its mode is 0600;"
                    " as root: chmod 0666 /dev/fuse; or mount as root"
                )
            ],
        )

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
        message = "secretfs: fusermount3 is missing, which mounts for users other than root; install the package fuse3"
        assert (done.out, done.lines) == ("3\n3\n", [message] * 2)

    def test_a_directory_of_somebody_else(self) -> None:
        done = in_namespace(COMPONENT + "chown 0 m; as_nobody secretfs mount --resources-path c m || echo $?; ls m")
        assert (done.out, done.lines) == (
            "3\n",
            [
                (
                    "secretfs: cannot mount at /mnt/nobody/m: fusermount3 mounts only on a directory you may write to;"
                    " as root: chown 65534 /mnt/nobody/m; or name another directory"
                )
            ],
        )

    @pytest.mark.parametrize(
        ("setting", "program", "reason", "fix"),
        [
            (
                "",
                "as_nobody setpriv --no-new-privs secretfs",
                "/usr/bin/fusermount3 cannot mount for a user here: this process runs with no_new_privs",
                "run it without NoNewPrivileges=",
            ),
            (
                "mkdir bin; cp /bin/fusermount3 bin/; PATH=/mnt/nobody/bin:$PATH",
                "as_nobody secretfs",
                "/mnt/nobody/bin/fusermount3 is not setuid, so it cannot mount for a user",
                "as root: chmod u+s /mnt/nobody/bin/fusermount3",
            ),
            (
                "mkdir bin; mount -t tmpfs -o nosuid none bin; cp -p /bin/fusermount3 bin/; PATH=/mnt/nobody/bin:$PATH",
                "as_nobody secretfs",
                "/mnt/nobody/bin/fusermount3 cannot mount for a user: it lies on a file system with nosuid",
                "mount that file system without nosuid",
            ),
            (
                "",
                "setpriv --bounding-set -sys_admin --inh-caps -sys_admin secretfs",
                "root may not mount here: it lacks CAP_SYS_ADMIN",
                "give it CAP_SYS_ADMIN (docker run --cap-add SYS_ADMIN, CapabilityBoundingSet=CAP_SYS_ADMIN)",
            ),
            (
                "chmod 755 .; mkdir -m 700 p; mv m p/; ln -s p/m m",
                "as_nobody secretfs",
                "cannot mount at /mnt/nobody/p/m: it cannot be reached by this user",
                "every directory on the way needs an x for this user",
            ),
            (
                "chmod 1777 m; chown 0 m",
                "as_nobody secretfs",
                "cannot mount at /mnt/nobody/m: fusermount3: mountpoint /mnt/nobody/m not owned by user",
                "make it yours (chown), or name another directory",
            ),
            (
                "echo 'mount_max = 0' > fuse.conf; mount --bind fuse.conf /etc/fuse.conf",
                "as_nobody secretfs",
                "cannot mount at /mnt/nobody/m: fusermount3: too many FUSE filesystems mounted",
                "unmount some of yours, or raise mount_max in /etc/fuse.conf as root",
            ),
            (
                "mount -t mqueue none m; chown 65534 m; chmod 700 m",
                "as_nobody secretfs",
                "cannot mount at /mnt/nobody/m: fusermount3: mounting over filesystem type 0x19800202 is forbidden",
                "name a directory on an ordinary file system",
            ),
        ],
        ids=[
            "no_new_privs",
            "no-setuid",
            "nosuid",
            "root-without-rights",
            "unreachable",
            "sticky",
            "too-many",
            "forbidden",
        ],
    )
    def test_what_the_machine_refuses(self, setting: str, program: str, reason: str, fix: str) -> None:
        done = in_namespace(f"{COMPONENT}\n{setting}\n{program} mount --resources-path c m || echo $?; ls m")
        assert done.out == "3\n"
        (line,) = done.lines
        assert line.startswith(f"secretfs: {reason}")
        assert f"; {fix}" in line

    @pytest.mark.parametrize("conf", ["rm -f fuse.conf", "echo '#user_allow_other' > fuse.conf"])
    def test_to_let_others_in_as_a_user(self, conf: str) -> None:
        done = in_namespace(
            COMPONENT
            + f"""
            mkdir etc; cp -a /etc/passwd /etc/ld.so.cache etc/
            (cd etc; {conf})
            mount --bind etc /etc
            as_nobody secretfs mount --allow-other --resources-path c m || echo $?
            echo 'user_allow_other ' > etc/fuse.conf
            as_nobody secretfs mount --allow-other --resources-path c m
            ls m
            secretfs unmount m
        """
        )
        assert done.out == "3\nenv\n"
        assert done.lines == [
            (
                "secretfs: /etc/fuse.conf does not let users share their mounts (--allow-other); as root, put the line"
                " user_allow_other into /etc/fuse.conf; or do without --allow-other"
            )
        ]

    def test_to_let_others_in_where_that_cannot_be_looked_up(self) -> None:
        done = in_namespace(
            COMPONENT
            + """
            echo user_allow_other > fuse.conf; chmod 600 fuse.conf; mount --bind fuse.conf /etc/fuse.conf
            as_nobody secretfs mount --allow-other --resources-path c m || echo $?
        """
        )
        assert (done.out, done.lines) == (
            "3\n",
            ["secretfs: /etc/fuse.conf cannot be read: Permission denied; as root: chmod 644 /etc/fuse.conf"],
        )


@pytest.mark.parametrize(
    ("said", "reason", "fix"),
    [
        (
            "fuse: mount failed: Operation not permitted\n",
            "fuse: mount failed: Operation not permitted",
            "CAP_SYS_ADMIN",
        ),
        ("fuse: failed to open /dev/fuse: Permission denied", "failed to open /dev/fuse", "chmod 0666 /dev/fuse"),
        ("fusermount3: fuse device not found, try 'modprobe fuse' first\n", "not found", "modprobe fuse"),
        ("fuse: failed to exec fusermount3: No such file or directory", "failed to exec", "the package fuse3"),
        (
            "fusermount3: option allow_other only allowed if 'user_allow_other' is set in /etc/fuse.conf",
            "option allow_other",
            "the line user_allow_other",
        ),
        ("fuse: bad mount point `/mnt': Permission denied", "bad mount point", "needs an x"),
        ("one\n\n two\n", "cannot mount at /mnt: one; two", "secretfs doctor /mnt"),
        ("", "cannot mount at /mnt: no reason is given", "secretfs doctor /mnt"),
    ],
)
def test_what_is_said_is_passed_on_with_a_way_out(said: str, reason: str, fix: str) -> None:
    error = explain(said, Path("/mnt"))
    assert reason in error.reason
    assert fix in error.fix
    assert str(error) == f"{error.reason}; {error.fix}"


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
            stop(hung.worker)
            try:
                done = mount(components, point)
                assert done == Done(
                    3,
                    "",
                    f"secretfs: {point} has a secretfs mounted that does not answer;"
                    f" unmount it by force, which frees its readers: secretfs unmount --force {point}\n",
                )
            finally:
                os.kill(hung.worker, signal.SIGCONT)

    def test_unmounting_one_does_not_wait_for_it(self, components: Path, point: Path, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(point)
        with background(point, "--resources-path", components) as pid:
            stop(pid)
            assert secretfs("unmount", tmp_path / "link") == Done(0, "", "")
            wait_until(lambda: not daemons(point))  # what does not answer is ended, not left behind


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
                    f"secretfs: cannot unmount {point}: Device or resource busy;"
                    f" end the programs that use it (fuser -vm {point}), or add --force\n",
                )
                assert is_mounted(point)
            finally:
                os.close(descriptor)
            assert secretfs("unmount", point).status == 0
            assert mount.process.wait(PATIENCE) == 0

    def test_one_that_is_in_use_for_a_moment(
        self, components: Path, point: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As by a helper of the daemon, which nobody can end."""
        with mounted(components, mountpoint=point) as mount:
            descriptor = os.open(point / "env", os.O_RDONLY)
            with monkeypatch.context() as patched:
                patched.setattr(time, "sleep", lambda _: os.close(descriptor))  # after the first attempt
                unmount(point, patience=PATIENCE)
            assert not is_mounted(point)
            assert mount.process.wait(PATIENCE) == 0

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
            [
                (
                    "secretfs: cannot unmount /mnt/nobody/m: Device or resource busy;"
                    " end the programs that use it (fuser -vm /mnt/nobody/m), or add --force"
                )
            ],
        )

    def test_lazily_what_is_open_stays_readable(self, components: Path, point: Path) -> None:
        with mounted(components, mountpoint=point, env={"A": "b"}) as mount:
            with (point / "env/A").open(encoding="utf-8") as file:
                unmount(point, lazy=True)
                assert not is_mounted(point)
                assert file.read() == "b"
            wait_for_end(point)
            assert mount.process.wait(PATIENCE) == 0


@pytest.mark.mount
def test_prepare_accepts_an_empty_directory(point: Path) -> None:
    prepare(point)


@pytest.mark.parametrize("lazy", [True, False])
def test_unmounting_what_somebody_else_has_just_unmounted(tmp_path: Path, *, lazy: bool) -> None:
    """As the daemon and `secretfs unmount --force` may do at once."""
    unmount(tmp_path, lazy=lazy)


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
