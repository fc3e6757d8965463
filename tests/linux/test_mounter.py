"""The process that keeps the right to mount: what it does, where, and for how long."""

import os
import select
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from secretfs.errors import MountError
from secretfs.linux.fuse_mount import connect
from secretfs.linux.mount_api import new_mount, place
from secretfs.linux.mounter import Mounter, _Server
from secretfs.linux.mountpoint import unmount
from tests.support.command import environment, run
from tests.support.mounted import fuse_mounts
from tests.support.shell import wait_until

pytestmark = [pytest.mark.mount, pytest.mark.root("only root mounts without fusermount3")]


@pytest.fixture
def mounter(tmp_path: Path) -> Iterator[Mounter]:
    (tmp_path / "m").mkdir()
    mounter = Mounter.fork(tmp_path / "m")
    process = os.pidfd_open(mounter.pid)
    yield mounter
    mounter.close()
    assert select.select([process], [], [], 10)[0], "it does not end with us"
    os.close(process)
    with suppress(ChildProcessError):
        os.waitpid(mounter.pid, 0)


def test_it_mounts_and_unmounts_at_its_place(mounter: Mounter, tmp_path: Path) -> None:
    descriptor, notice = mounter.mount("test", allow_other=False)
    assert (fuse_mounts()[str(tmp_path / "m")], notice) == ("fuse.secretfs", "")
    assert not os.get_inheritable(descriptor)
    mounter.unmount()
    assert str(tmp_path / "m") not in fuse_mounts()
    os.close(descriptor)


def test_it_mounts_nowhere_else(mounter: Mounter) -> None:
    """A request for another place is none that it knows: it ends, and with it the right to mount."""
    with pytest.raises(MountError, match="has ended"):
        mounter._ask("unmount", "/proc")
    assert Path("/proc/self").is_dir()


def test_a_link_that_has_come_to_its_place_leads_it_nowhere(mounter: Mounter, tmp_path: Path) -> None:
    """Made by whoever has taken the daemon over, or may write to the directory that the mount point is in."""
    (tmp_path / "m").rmdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "m").symlink_to("elsewhere")
    with pytest.raises(MountError, match=f"cannot mount at {tmp_path}/m: Too many levels of symbolic links"):
        mounter.mount("test", allow_other=False)
    assert str(tmp_path / "elsewhere") not in fuse_mounts()


def test_a_link_on_the_way_to_its_place_leads_it_nowhere(mounter: Mounter, tmp_path: Path) -> None:
    """It neither mounts nor unmounts anything that has come to be at the end of its path (safe-7)."""
    tmp_path.rename(moved := tmp_path.with_name("moved"))
    (elsewhere := tmp_path.with_name("elsewhere") / "m").mkdir(parents=True)
    tmp_path.symlink_to(elsewhere.parent)
    try:
        with pytest.raises(MountError, match=f"cannot mount at {tmp_path}/m: Too many levels of symbolic links"):
            mounter.mount("test", allow_other=False)
        descriptor, _ = connect(elsewhere, "test", allow_other=False)
        mounter.unmount()
        assert fuse_mounts()[str(elsewhere)] == "fuse.secretfs"
        unmount(elsewhere)
        os.close(descriptor)
    finally:
        tmp_path.unlink()
        moved.rename(tmp_path)


def test_it_unmounts_no_other_file_system(mounter: Mounter, tmp_path: Path) -> None:
    mount = new_mount("tmpfs", {})
    place(mount, os.fsencode(tmp_path / "m"))
    os.close(mount)
    mounter.unmount()
    assert (tmp_path / "m").is_mount()
    assert run(["umount", str(tmp_path / "m")]).status == 0


def test_what_fails_is_told_with_its_reason(mounter: Mounter, tmp_path: Path) -> None:
    (tmp_path / "m").rmdir()
    with pytest.raises(MountError, match=f"cannot mount at {tmp_path}/m: No such file or directory"):
        mounter.mount("test", allow_other=False)


def test_helpers_that_it_has_started_end_with_their_socket(mounter: Mounter) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        pid = mounter.start_helper(theirs)
    assert Path(f"/proc/{pid}").exists()
    ours.close()
    wait_until(lambda: not Path(f"/proc/{pid}").exists())  # it has been reaped, too


def test_what_fusermount3_says_of_a_path_that_is_no_text() -> None:
    """It ends neither this process nor the one that asks it."""
    code = """
import os
from pathlib import Path
from secretfs.linux.mounter import Mounter
os.setgid(65534)
os.setuid(65534)
mounter = Mounter.fork(Path(os.fsdecode(b"/nothing-\\xff")))
for _ in range(2):
    mounter.unmount()  # there is none, which is as good
mounter.close()
"""
    done = run([sys.executable, "-c", code], env=environment())
    assert (done.status, done.out, done.err) == (0, "", "")


def test_helpers_that_end_at_once_are_reaped_once(tmp_path: Path) -> None:
    """The signal of the second interrupts what the signal of the first has begun, which then finds nothing to reap."""
    server = _Server(tmp_path)
    pids = [os.posix_spawn("/bin/true", ["true"], {}) for _ in range(2)]
    for pid in pids:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    server._helpers = set(pids)
    os.waitpid(pids[0], 0)
    server.reap()
    assert server._helpers == set()


def test_when_it_has_been_killed(mounter: Mounter) -> None:
    os.kill(mounter.pid, signal.SIGKILL)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, pytest.raises(OSError, match="has ended"):
        mounter.start_helper(theirs)
