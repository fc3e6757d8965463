"""What is opened, as the kernel reports it: of a real mount, and of nothing else."""

import os
import subprocess
from pathlib import Path

import pytest

from secretfs.linux.fanotify import OVERFLOW, Open, mark_opens, opens
from tests.support.mounted import Mounted
from tests.support.open_fixtures import group, mount
from tests.support.shell import run

__all__ = ["group", "mount"]

pytestmark = pytest.mark.mount


def opened(group: int) -> set[int]:
    """Read all that is reported."""
    numbers: set[int] = set()
    while (some := opens(group)) is not None:
        numbers |= {inode for inode, _ in some}
    return numbers


def number(path: Path) -> int:
    return path.stat().st_ino


def test_an_open_is_reported_with_the_number_of_the_file(mount: Mounted, group: int) -> None:
    mark_opens(group, os.fsencode(mount.path / "env"))
    (mount.path / "env/A").read_bytes()
    (mount.path / "env/B").open("rb").close()
    assert opened(group) == {number(mount.path / "env/A"), number(mount.path / "env/B")}
    assert opened(group) == set()


def test_nothing_else_is_reported(mount: Mounted, group: int) -> None:
    mark_opens(group, os.fsencode(mount.path / "env"))
    run("find", mount.path, "-size", "+0", "-ls")
    run("ls", "-la", mount.path / "env")
    os.getxattr(mount.path / "env/A", "user.secretfs.fetched")
    os.close(os.open(mount.path / "env/A", os.O_PATH))
    (mount.path / ".secretfs/status.json").read_bytes()  # of another directory
    assert opened(group) == set()


def test_equal_opens_are_one_until_they_are_read(mount: Mounted, group: int) -> None:
    mark_opens(group, os.fsencode(mount.path / "env"))
    for _ in range(1000):
        (mount.path / "env/A").open("rb").close()
    assert opens(group) == [Open(number(mount.path / "env/A"), os.getpid())]


@pytest.mark.root("only a group of root is told which process it was")
def test_the_process_is_told(mount: Mounted, group: int) -> None:
    mark_opens(group, os.fsencode(mount.path / "env"))
    path = mount.path / "env/A"
    with subprocess.Popen(["cat", str(path)], stdout=subprocess.DEVNULL) as reader:
        path.read_bytes()
        reader.wait()
    assert set(opens(group) or ()) == {Open(number(path), pid) for pid in (os.getpid(), reader.pid)}


def test_who_opens_does_not_matter(mount: Mounted, group: int, tmp_path: Path) -> None:
    """Through a bind mount, from another mount and process namespace, and by another user's process."""
    mark_opens(group, os.fsencode(mount.path / "env"))
    script = 'mount --bind "$1/env" "$2" && exec cat "$2/A"'
    (tmp_path / "bound").mkdir()
    run("unshare", "-m", "-p", "-f", "sh", "-c", script, "sh", mount.path, tmp_path / "bound")
    assert opened(group) == {number(mount.path / "env/A")}


def test_events_do_not_keep_a_mount_busy(mount: Mounted, group: int) -> None:
    mark_opens(group, os.fsencode(mount.path / "env"))
    (mount.path / "env/A").read_bytes()
    assert run("umount", mount.path).returncode == 0


def test_a_queue_that_overflows_says_so_and_other_file_systems_do_not_count(group: int, tmp_path: Path) -> None:
    mark_opens(group, os.fsencode(tmp_path))
    limit = int(Path("/proc/sys/fs/fanotify/max_queued_events").read_text("ascii"))
    for name in range(limit + 1):
        (tmp_path / str(name)).touch()
    assert opened(group) == {OVERFLOW}
