"""One mount, composed: who may look, what the views are, what stays after which end."""

import grp
import os
import pwd
import signal
import subprocess
from pathlib import Path

import pytest
import trio

from secretfs.cache.freshness import Freshness
from secretfs.dapr.declaration import load
from secretfs.errors import NoSuchEntry
from secretfs.fs.content import views_of
from secretfs.linux.mountinfo import mounts
from secretfs.registry.opening import open_registry
from secretfs.registry.store_set import StoreSet
from tests.support.canary import secret
from tests.support.command import background, in_namespace
from tests.support.manifests import component, configuration, scope
from tests.support.mounted import mounted, supervisor
from tests.support.waiting import PATIENCE

ENV = {"SFS_A": secret("a"), "SFS_B": secret("b")}


@pytest.fixture
def components(tmp_path: Path) -> Path:
    directory = tmp_path / "components"
    component(directory, "env", "local.env", {"prefix": "SFS_"})
    component(directory, "empty", "local.env", {"prefix": "SFS_NOTHING_"}, annotations={"secretfs/ttl": "7s"})
    return directory


async def test_stores_join_cache_and_scope(
    components: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery
) -> None:
    for name, value in ENV.items():
        monkeypatch.setenv(name, value)
    config = configuration(tmp_path, scope("env", default="deny", allowed=["A"]))
    declaration = load([components], [config], "", {})
    async with open_registry(declaration.components, declaration.context, Freshness()) as registry:
        views = views_of(await StoreSet(registry, Freshness(), nursery).start(declaration))
        assert list(views) == ["empty", "env"]
        assert (await views["env"].secret("A")).value.values == {"A": secret("a").encode()}
        with pytest.raises(NoSuchEntry):
            await views["env"].secret("B")
        assert registry.stores["empty"].freshness == Freshness(ttl=7)


@pytest.mark.mount
class TestWhoMayLook:
    def test_the_owner_alone_unless_told_otherwise(self, components: Path) -> None:
        with mounted(components, env=ENV) as mount:
            status = (mount.path / "env/A").stat()
            assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (0o400, os.getuid(), os.getgid())

    @pytest.mark.parametrize(
        ("user", "group", "uid", "gid"),
        [
            ("4711", "4712", 4711, 4712),
            ("daemon", "games", pwd.getpwnam("daemon").pw_uid, grp.getgrnam("games").gr_gid),
        ],
    )
    def test_owner_and_mode(self, components: Path, user: str, group: str, uid: int, gid: int) -> None:
        options = ["--uid", user, "--gid", group, "--mode", "0440"]
        notice = f"user {uid} owns the files and cannot get at them without --allow-other"
        with mounted(components, env=ENV, options=options, expect_log=[notice]) as mount:
            status = (mount.path / "env/A").stat()
            assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (0o440, uid, gid)

    @pytest.mark.parametrize(
        ("options", "readable"),
        [("", False), ("--allow-other", False), ("--allow-other --uid 65534", True), ("--uid 65534", False)],
    )
    def test_another_user(self, options: str, *, readable: bool) -> None:
        done = in_namespace(f"""
            mkdir c m
            printf '%s\\n' 'apiVersion: dapr.io/v1alpha1' 'kind: Component' 'metadata: {{name: env}}' \
                'spec: {{type: secretstores.local.env}}' > c/env.yaml
            A=b secretfs mount --resources-path c {options} m
            if as_nobody cat m/env/A 2> /dev/null; then echo; else echo refused; fi
            secretfs unmount m
        """)
        assert (done.status, done.out.strip()) == (0, "b" if readable else "refused")
        warned = ["WARNING user 65534 owns the files and cannot get at them without --allow-other"]
        assert done.lines == (warned if options == "--uid 65534" else [])


def test_the_files_of_another_user_take_root() -> None:
    done = in_namespace("""
        as_nobody mkdir c m
        as_nobody secretfs mount --resources-path c --uid 4711 --allow-other m
    """)
    assert done.status == 2
    assert "--uid 4711: only root may give the files to another user" in done.err


@pytest.mark.mount
def test_the_mount_takes_no_programs_devices_or_setuid(components: Path) -> None:
    with mounted(components) as mount:
        line = next(
            line for line in Path("/proc/self/mountinfo").read_text("utf-8").splitlines() if str(mount.path) in line
        )
        assert {"nosuid", "nodev", "noexec"} <= set(line.split()[5].split(","))
        assert [point.fstype for point in mounts() if point.path == str(mount.path)] == ["fuse.secretfs"]
        assert line.split(" - ")[1].split()[1] == "secretfs"


@pytest.mark.mount
class TestTheEnd:
    def test_of_a_killed_daemon_is_an_error_and_no_empty_directory(self, components: Path) -> None:
        with mounted(components) as mount:
            mount.kill()
            with pytest.raises(OSError, match="not connected"):
                os.listdir(mount.path)  # noqa: PTH208

    def test_by_a_signal_while_something_hangs_is_clean(self, components: Path, tmp_path: Path) -> None:
        with background(tmp_path / "mnt", "--resources-path", components):
            pid = supervisor(tmp_path / "mnt")
            descriptor = os.open(tmp_path / "mnt" / "env", os.O_RDONLY)
            os.kill(pid, signal.SIGTERM)
            process = os.pidfd_open(pid)
            try:
                assert trio.run(_ended, process)
            finally:
                os.close(process)
                os.close(descriptor)
            assert str(tmp_path / "mnt") not in [mount.path for mount in mounts()]

    def test_by_unmounting_is_success(self, components: Path) -> None:
        with mounted(components) as mount:
            subprocess.run(["umount", str(mount.path)], check=True)
            assert mount.process.wait(PATIENCE) == 0


async def _ended(process: int) -> bool:
    with trio.move_on_after(10):
        await trio.lowlevel.wait_readable(process)
        return True
    return False
