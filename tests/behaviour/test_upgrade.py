"""A mount that the version before made, while another version is installed in its place."""

import errno
import json
import mmap
import os
import select
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.canary import secret
from tests.support.command import ROOT, secretfs
from tests.support.lacking import cannot_test
from tests.support.manifests import component
from tests.support.mounted import Mounted, fuse_mounts, mounted
from tests.support.readers import Readers
from tests.support.secrets_file import SecretsFile, file
from tests.support.shell import down, errno_of, wait_until
from tests.support.waiting import PATIENCE
from tests.support.watching import watching

__all__ = ["file"]

pytestmark = pytest.mark.mount

BEFORE = "9540ca8f962c28ac643b983edb4b6b3f9f8a4035"
"""The last commit in which all modules were in one package; 0.1.0 was like that."""
OLD, NEW = secret("old"), secret("new, and longer")
ASKED = {"SECRETFS_KERNEL_ANSWERS": "0"}
"""Of a mount that the version before takes over: one in which the kernel answers by itself it mounts anew."""


class Site:
    """A directory that Python imports secretfs from, as site-packages is: one version after the other is in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._link = path / "secretfs"
        self.environment = {"PYTHONPATH": str(path), "PYTHONSAFEPATH": "1", "UPGRADE_KEY": OLD}

    def install(self, package: Path) -> None:
        """Put a version in the place of the one that is installed."""
        new = self.path / "new"
        new.symlink_to(package)
        new.replace(self._link)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Install the version before. It is in the history of this repository."""
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", BEFORE, "secretfs"], capture_output=True, check=False)
    if archive.returncode:
        cannot_test(f"this clone does not have commit {BEFORE:.7}, which is the version to upgrade from")
    (tmp_path / "before").mkdir()
    subprocess.run(["tar", "-x", "-C", str(tmp_path / "before")], input=archive.stdout, check=True)
    (tmp_path / "site").mkdir()
    site = Site(tmp_path / "site")
    site.install(tmp_path / "before/secretfs")
    return site


@pytest.fixture
def components(file: SecretsFile, tmp_path: Path) -> Path:
    """Declare a secrets file, looked at every 200 ms."""
    file.write({"token": OLD, "other": OLD, "team": {f"member-{n}": OLD for n in range(50)}})
    component(tmp_path / "components", "env", "local.env", {"prefix": "UPGRADE_"})
    return file.declare(tmp_path / "components", "200ms", nestedSeparator="/")


def stop(mount: Mounted) -> None:
    os.kill(mount.worker, signal.SIGTERM)


def kill(mount: Mounted) -> None:
    os.kill(mount.worker, signal.SIGKILL)


@pytest.mark.parametrize("end", [stop, kill], ids=["stopped", "killed"])
def test_an_upgrade_of_a_live_mount(
    components: Path, file: SecretsFile, site: Site, tmp_path: Path, end: Callable[[Mounted], None]
) -> None:
    """takeover-20: An upgrade takes over the live mounts of the version before; what is open in them stays open."""
    env = site.environment
    with mounted(components, expect_log=[r"process \d+ ended"], env=env) as mount:
        directory = mount.path / "file"
        assert helpers(mount.worker) == {"secretfs-hand"}
        with (directory / "token").open("rb", buffering=0) as token, (directory / "other").open("rb") as mapped:
            memory = mmap.mmap(mapped.fileno(), 0, prot=mmap.PROT_READ)
            number, listing = os.fstat(token.fileno()).st_ino, os.scandir(directory / "team")
            first = next(listing).name
            woken = polled(token.fileno())

            def read() -> None:
                assert (mount.path / "env/KEY").read_text() == OLD
                assert (directory / "team/member-7").read_text() == OLD

            def look() -> None:
                assert len(os.listdir(directory / "team")) == 50  # noqa: PTH208
                assert (directory / "token").stat().st_size == len(OLD)

            with Readers(read, look) as readers:
                site.install(ROOT / "secretfs")
                end(mount)
                mount.said("took over")
                again = readers.done + 50
                wait_until(lambda: readers.done > again)
            assert readers.failures == []
            assert helpers(mount.worker) == {"secretfs-helper", "secretfs-mount"}
            assert token.read() == OLD.encode()
            assert os.fstat(token.fileno()).st_ino == number == (directory / "token").stat().st_ino
            assert memory[:] == OLD.encode()
            memory.close()
            assert len({first, *(entry.name for entry in listing)}) == 50
            with watching(tmp_path / "watch", directory) as watch:
                file.write({"token": NEW, "team": {f"member-{n}": OLD for n in range(50)}})
                watch.wait_for(f"token MOVED_TO {directory}/", f"other DELETE {directory}/")
            assert woken() & select.POLLPRI
            assert (directory / "token").read_text() == NEW
        status = json.loads((mount.path / ".secretfs/status.json").read_text())["mount"]
        assert status["takeovers"] == 1
        os.kill(mount.worker, signal.SIGKILL)  # what took over is taken over like any other
        mount.said("took over", 2)
        assert (directory / "token").read_text() == NEW
        assert secretfs("status", mount.path).status == 0
        assert secretfs("unmount", mount.path).status == 0
        mount.process.wait(PATIENCE)


def test_a_version_that_is_not_to_be_had(components: Path, file: SecretsFile, site: Site) -> None:
    """takeover-3: A file that is open at a version that nobody has kept, as at an upgrade, is ESTALE if it changed."""
    env = site.environment  # the version before kept no values for the next process
    with (
        mounted(components, expect_log=[r"process \d+ ended"], env=env) as mount,
        (mount.path / "file/token").open("rb", buffering=0) as token,
    ):
        site.install(ROOT / "secretfs")
        with down(mount):
            file.write({"token": NEW})
        assert errno_of(token.read) == "ESTALE"
        assert (mount.path / "file/token").read_text() == NEW


def test_a_downgrade_of_a_live_mount(components: Path, site: Site, tmp_path: Path) -> None:
    """takeover-21: If the new version is rolled back, the version before takes the live mounts back."""
    before = (site.path / "secretfs").resolve()
    site.install(ROOT / "secretfs")
    env = {**site.environment, **ASKED}
    with mounted(components, expect_log=[r"process \d+ ended"], env=env) as mount:
        with (mount.path / "file/token").open("rb", buffering=0) as token:
            site.install(before)
            os.kill(mount.worker, signal.SIGTERM)
            mount.said("took over")
            assert helpers(mount.worker) == {"secretfs-hand"}
            assert token.read() == OLD.encode()
        assert (mount.path / "env/KEY").read_text() == OLD
        assert errno_of((mount.path / "file/nothing").stat) == "ENOENT"
        assert secretfs("unmount", mount.path).status == 0
        assert mount.process.wait(PATIENCE) == 0  # what the version before does not know of is no reason to go on
        assert str(mount.path) not in fuse_mounts()


def test_a_rollback_while_a_version_is_held(file: SecretsFile, site: Site, tmp_path: Path) -> None:
    """It takes the mount back also if somebody holds a `..data`, which it does not know (takeover-21)."""
    before = (site.path / "secretfs").resolve()
    site.install(ROOT / "secretfs")
    file.write({"site": {"crt": OLD, "key": OLD}})
    component(tmp_path / "components", "file", "local.file", {"secretsFile": file.path, "multiValued": "true"})
    env = {**site.environment, **ASKED}
    with mounted(tmp_path / "components", expect_log=[r"process \d+ ended"], env=env) as mount:
        directory = mount.path / "file/site"
        held = os.open(directory / "..data", os.O_RDONLY | os.O_DIRECTORY)
        with (directory / "..data/crt").open("rb", buffering=0) as crt:
            for version, takeovers in ((before, 1), (ROOT / "secretfs", 2)):
                site.install(version)
                os.kill(mount.worker, signal.SIGTERM)
                mount.said("took over", takeovers)
                assert (directory / "key").read_text() == OLD
                assert os.pread(crt.fileno(), 100, 0) == OLD.encode()
                assert read_in(held, "crt") in (OLD, "ENOENT", "ESTALE")
        os.close(held)
        assert (directory / "..data/key").read_text() == OLD
        assert secretfs("unmount", mount.path).status == 0
        mount.process.wait(PATIENCE)


def read_in(directory: int, name: str) -> str:
    """Read a file in a directory that is open; returns its text, or the errno."""
    try:
        return Path(f"/proc/self/fd/{directory}", name).read_text(encoding="utf-8")
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def helpers(worker: int) -> set[str]:
    """Return the names of a daemon's helper processes, by which the two versions differ."""
    children = Path(f"/proc/{worker}/task/{worker}/children").read_text("ascii").split()
    return {Path(f"/proc/{child}/comm").read_text("ascii").strip() for child in children}


def polled(descriptor: int) -> Callable[[], int]:
    """Poll a file for POLLPRI from now on. Returns a function that waits for the events."""
    events: list[int] = []
    poll = select.poll()
    poll.register(descriptor, select.POLLPRI)
    thread = threading.Thread(target=lambda: events.extend(event for _, event in poll.poll(PATIENCE * 1000)))
    thread.start()

    def wait() -> int:
        thread.join()
        return sum(events)

    return wait
