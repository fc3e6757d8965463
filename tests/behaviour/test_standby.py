"""The process that stands by to be the next worker."""

import os
import shutil
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from tests.support.canary import leaked, secret
from tests.support.command import ROOT
from tests.support.manifests import component
from tests.support.mounted import Mounted, mounted, standby, stands_by
from tests.support.proc import opened
from tests.support.secrets_file import SecretsFile, file
from tests.support.shell import errno_of, wait_until

__all__ = ["file"]

pytestmark = pytest.mark.mount

OLD = secret("old")
ENDED = r"process \d+ ended"


@pytest.fixture
def components(file: SecretsFile, tmp_path: Path) -> Path:
    """Declare a secrets file."""
    file.write({"token": OLD})
    component(tmp_path / "components", "file", "local.file", {"secretsFile": file.path})
    return tmp_path / "components"


class Site:
    """A directory that Python imports secretfs from, as site-packages is."""

    def __init__(self, path: Path) -> None:
        path.mkdir()
        self._path = path
        # Python compiles what it imports, as it does with packages that uv installs.
        self.environment = {"PYTHONPATH": str(path), "PYTHONSAFEPATH": "1", "PYTHONDONTWRITEBYTECODE": ""}
        self.install()

    def install(self) -> None:
        """Put a copy of the package in the place of the one that is installed."""
        copy = self._path / f"of {time.monotonic_ns()}"
        shutil.copytree(ROOT / "secretfs", copy, ignore=shutil.ignore_patterns("__pycache__"))
        link = self._path / "new"
        link.symlink_to(copy)
        link.replace(self._path / "secretfs")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Install the package."""
    return Site(tmp_path / "site")


def next_worker(mount: Mounted) -> int:
    """Wait for a process that stands by, and that has imported all it needs: then it waits. Returns its id."""

    wait_until(partial(stands_by, mount.path))
    pid = standby(mount.path)
    assert pid is not None
    return pid


def test_the_next_daemon_has_started_before_the_last_one_ends(components: Path) -> None:
    """takeover-29: A process stands by to be the next daemon. It has no secret and no descriptor of the mount."""
    with mounted(components, expect_log=[ENDED]) as mount:
        assert (mount.path / "file/token").read_text() == OLD
        for takeovers in range(1, 3):
            pid = next_worker(mount)
            held = opened(pid).values()
            assert not [path for path in held if "fuse" in path or "memfd" in path or "secretmem" in path]
            assert not leaked(Path(f"/proc/{pid}/environ").read_text(errors="replace"))
            os.kill(mount.worker, signal.SIGKILL)
            mount.said("took over", takeovers)
            assert mount.worker == pid
            assert (mount.path / "file/token").read_text() == OLD


def test_what_is_edited_while_a_process_stands_by(components: Path) -> None:
    """takeover-30: The next daemon serves what is declared when it begins, not what was when its process started."""
    with mounted(components, expect_log=[ENDED]) as mount:
        pid = next_worker(mount)
        os.kill(mount.worker, signal.SIGSTOP)  # it does not hear of what follows
        component(components, "more", "local.env", {"prefix": "MORE_"})
        os.kill(mount.worker, signal.SIGKILL)
        mount.said("took over")
        assert mount.worker == pid
        assert sorted(os.listdir(mount.path)) == ["file", "more"]  # noqa: PTH208


def test_it_ends_with_the_mount(components: Path) -> None:
    """It ends when there is nothing left to serve, however its supervisor ends (takeover-29)."""
    with mounted(components) as mount:
        pid = next_worker(mount)
    assert not Path(f"/proc/{pid}").exists()
    with mounted(components) as mount:
        pid = next_worker(mount)
        mount.kill()
        wait_until(lambda: not Path(f"/proc/{pid}").exists())


def test_without_one_the_next_daemon_starts_as_the_first_one_did(components: Path) -> None:
    """If it is killed, a takeover takes a moment longer (takeover-29)."""
    with mounted(components, expect_log=[ENDED]) as mount:
        pid = next_worker(mount)
        os.kill(pid, signal.SIGKILL)
        os.kill(mount.worker, signal.SIGKILL)
        mount.said("took over")
        assert errno_of((mount.path / "file/token").read_bytes) == ""
        assert mount.worker != pid


def test_an_upgrade(components: Path, site: Site) -> None:
    """takeover-31: At SIGTERM the daemon serves until a process of the version that is installed now stands by."""
    with mounted(components, env=site.environment, expect_log=[ENDED]) as mount:
        before = next_worker(mount)
        site.install()
        worker = mount.worker
        os.kill(worker, signal.SIGTERM)
        wait_until(lambda: standby(mount.path) not in (None, before) or mount.worker != worker)
        after = standby(mount.path) or mount.worker
        mount.said("took over")
        assert mount.worker == after
        assert after != before
        assert not Path(f"/proc/{before}").exists()


def test_a_kill_after_an_upgrade(components: Path, site: Site) -> None:
    """takeover-32: A process of a version that is not installed any more never becomes the daemon."""
    with mounted(components, env=site.environment, expect_log=[ENDED]) as mount:
        before = next_worker(mount)
        site.install()
        os.kill(mount.worker, signal.SIGKILL)
        mount.said("took over")
        assert mount.worker != before
        assert (mount.path / "file/token").read_text() == OLD
