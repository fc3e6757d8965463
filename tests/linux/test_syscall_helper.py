"""The process that makes system calls for us: it does what it is told, holds nothing of ours, and ends with us."""

import errno
import os
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from subprocess import PIPE, Popen

import pytest

from secretfs.linux.syscall_helper import SyscallHelper


@pytest.fixture
def helper() -> Iterator[SyscallHelper]:
    helper = SyscallHelper.fork()
    process = os.pidfd_open(helper.pid)
    yield helper
    helper.close()
    assert select.select([process], [], [], 10)[0], "it does not end with us"
    os.close(process)
    with suppress(ChildProcessError):
        os.waitpid(helper.pid, 0)


def kill(pid: int) -> None:
    """Kill a child, and wait until its end can be noticed."""
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


async def test_it_makes_the_call(helper: SyscallHelper, tmp_path: Path) -> None:
    path = os.fsencode(tmp_path)
    await helper.call("mkdir", path + b"/one")
    await helper.call("rename", path + b"/one", path + b"/\xfftwo")
    assert os.listdir(path) == [b"\xfftwo"]  # noqa: PTH208 - bytes
    await helper.call("statvfs", path)
    await helper.call("rmdir", path + b"/\xfftwo")
    assert os.listdir(path) == []  # noqa: PTH208


async def test_what_fails_raises_here(helper: SyscallHelper, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file") as raised:
        await helper.call("unlink", os.fsencode(tmp_path) + b"/nothing")
    assert raised.value.errno == errno.ENOENT


async def test_a_hand_that_is_gone_is_an_error(tmp_path: Path) -> None:
    helper = SyscallHelper.fork()
    kill(helper.pid)
    with pytest.raises(OSError, match="Broken pipe"):
        await helper.call("mkdir", os.fsencode(tmp_path) + b"/one")
    helper.close()


async def test_it_holds_nothing_of_ours(helper: SyscallHelper, tmp_path: Path) -> None:
    await helper.call("statvfs", os.fsencode(tmp_path))  # it has come so far
    assert looked_at(helper.pid) == ({"/dev/null", "socket"}, "/", "secretfs-helper")


def looked_at(pid: int) -> tuple[set[str], str, str]:
    process = Path(f"/proc/{pid}")
    links = {os.readlink(path) for path in (process / "fd").iterdir()}  # noqa: PTH115
    kinds = {link.partition(":")[0] for link in links}
    return kinds, os.readlink(process / "cwd"), (process / "comm").read_text().strip()  # noqa: PTH115


def test_it_ends_when_the_daemon_is_killed() -> None:
    script = (
        "from secretfs.linux.syscall_helper import SyscallHelper; import time\n"
        "print(SyscallHelper.fork().pid, flush=True); time.sleep(60)"
    )
    with Popen([sys.executable, "-c", script], stdout=PIPE, cwd=Path(__file__).parents[2]) as daemon:
        assert daemon.stdout is not None
        process = os.pidfd_open(int(daemon.stdout.readline()))
        daemon.kill()
    assert select.select([process], [], [], 10)[0]
    os.close(process)
