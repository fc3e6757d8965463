"""The daemon goes before programs that flood it: its nice value, and that of its session."""

import os
from pathlib import Path

import pytest

from secretfs.linux.precedence import NICE, prefer_session
from tests.support.command import background, run
from tests.support.lacking import cannot_test
from tests.support.manifests import component
from tests.support.mounted import Mounted, named_children
from tests.support.open_fixtures import mount

__all__ = ["mount"]

pytestmark = [pytest.mark.mount, pytest.mark.root("another user may not")]

AUTOGROUP = Path("/proc/self/autogroup")


def nice_values(pid: int) -> set[int]:
    return {os.getpriority(os.PRIO_PROCESS, int(thread.name)) for thread in Path(f"/proc/{pid}/task").iterdir()}


def test_the_daemon_with_its_helpers(mount: Mounted) -> None:
    """And nothing else that runs in the session of who has started it."""
    before = AUTOGROUP.read_text() if AUTOGROUP.exists() else ""
    assert (mount.path / "env/A").read_text()
    assert nice_values(mount.worker) == {NICE}
    (mounter,) = named_children(mount.worker, "secretfs-mount")
    for pid in (mounter, *named_children(mount.worker, "secretfs-helper")):
        assert nice_values(pid) == {NICE}
    assert nice_values(mount.process.pid) == {0}
    assert not before or AUTOGROUP.read_text() == before


def test_one_that_has_a_session_of_its_own(tmp_path: Path) -> None:
    component(tmp_path / "c", "env", "local.env", {"prefix": "SFS_"})
    with background(tmp_path / "mnt", "--resources-path", tmp_path / "c") as pid:
        group = Path(f"/proc/{pid}/autogroup")
        if not group.exists():
            cannot_test("the kernel does not share out by sessions")
        assert group.read_text().endswith(f" nice {NICE}\n")


def test_one_that_was_given_another(tmp_path: Path) -> None:
    component(tmp_path / "c", "env", "local.env", {"prefix": "SFS_"})
    previous = os.getpriority(os.PRIO_PROCESS, 0)
    os.setpriority(os.PRIO_PROCESS, 0, 1)
    try:
        with background(tmp_path / "mnt", "--resources-path", tmp_path / "c") as pid:
            assert nice_values(pid) == {1}
            group = Path(f"/proc/{pid}/autogroup")
            assert not group.exists() or group.read_text().endswith(" nice 0\n")
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, previous)


def test_a_process_that_is_gone() -> None:
    done = run(["sh", "-c", "echo $$"])
    prefer_session(int(done.out))
