"""The process that makes system calls for us: it does what it is told, holds nothing of ours, and ends with us."""

import errno
import os
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from subprocess import PIPE, Popen

import pytest

from secretfs.linux import syscall_helper
from secretfs.linux.syscall_helper import SyscallHelper, start_program
from secretfs.linux.syscall_server import HELD
from tests.conftest import ExpectLog
from tests.support.canary import secret
from tests.support.command import ROOT, environment, run
from tests.support.mounted import Mounted
from tests.support.open_fixtures import group, mount
from tests.support.seccomp import filtered

__all__ = ["group", "mount"]


@contextmanager
def helper_of(mountpoint: Path) -> Iterator[SyscallHelper]:
    """Fork the helper of a mount point."""
    helper = SyscallHelper.fork(mountpoint)
    yield helper
    process = os.pidfd_open(helper.pid)
    helper.close()
    assert select.select([process], [], [], 10)[0], "it does not end with us"
    os.close(process)
    with suppress(ChildProcessError):
        os.waitpid(helper.pid, 0)


@pytest.fixture
def helper(tmp_path: Path) -> Iterator[SyscallHelper]:
    """Fork the helper of a mount point where nothing is mounted."""
    with helper_of(tmp_path) as helper:
        yield helper


def kill(pid: int) -> None:
    """Kill a child, and wait until its end can be noticed."""
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


@pytest.mark.mount
async def test_it_makes_the_call(mount: Mounted) -> None:
    with helper_of(mount.path) as helper:
        path = os.fsencode(mount.path)
        await helper.call("statvfs", path)
        await helper.call("lstat", path + b"/env/A")
        with pytest.raises(FileNotFoundError):
            await helper.call("lstat", path + b"/env/\xff")
        with pytest.raises(OSError, match="Read-only"):
            await helper.call("mkdir", path + b"/env/new")


async def test_it_does_nothing_where_no_mount_of_ours_is(helper: SyscallHelper, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in "unlink", "lstat", "statvfs", "rmdir", "mkdir":
        with pytest.raises(FileNotFoundError):
            await helper.call(name, os.fsencode(tmp_path / "file"))
    with pytest.raises(PermissionError):
        await helper.call("mkdir", os.fsencode(tmp_path.parent / "new"))
    assert os.listdir(tmp_path) == ["file"]  # noqa: PTH208


def test_it_shares_our_memory_after_a_collection_of_garbage() -> None:
    """Each of two helpers would cost as much as the interpreter and all modules."""
    code = """
import gc
from pathlib import Path
from secretfs.linux.syscall_helper import SyscallHelper

def of_our_own():
    lines = Path("/proc/self/smaps_rollup").read_text("ascii").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty:"))

helper = SyscallHelper.fork(Path("/nowhere"))
before = of_our_own()
gc.collect()
print(of_our_own() - before)
helper.close()
"""
    done = run([sys.executable, "-c", code], env=environment())
    assert int(done.out) < 2048, done  # KiB; without care it is 7 MiB


async def test_what_fails_raises_here(helper: SyscallHelper, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file") as raised:
        await helper.call("unlink", os.fsencode(tmp_path) + b"/nothing")
    assert raised.value.errno == errno.ENOENT


@pytest.mark.mount
async def test_one_that_has_ended_is_replaced(mount: Mounted, expect_log: ExpectLog) -> None:
    expect_log("helper process .* has ended")
    with helper_of(mount.path) as helper:
        for _ in range(2):
            before = helper.pid
            kill(before)
            await helper.call("statvfs", os.fsencode(mount.path))
            assert helper.pid != before
            assert not is_there(before)


async def test_the_replacement_holds_nothing_of_ours_either(
    helper: SyscallHelper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expect_log: ExpectLog
) -> None:
    expect_log("helper process .* has ended")
    monkeypatch.setenv("TOKEN", secret("token"))
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    kill(helper.pid)
    try:
        await helper.call("release")
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
    assert looked_at(helper.pid) == ({"/dev/null", "socket"}, "/", "secretfs-helper")
    assert secret("token") not in proc(helper.pid, "environ")
    assert "SigBlk:\t0000000000000000" in proc(helper.pid, "status")


async def test_one_that_cannot_be_replaced_is_an_error(
    helper: SyscallHelper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expect_log: ExpectLog
) -> None:
    expect_log("helper process .* has ended")
    monkeypatch.setattr(syscall_helper, "_PROGRAM", [str(tmp_path / "nothing")])
    kill(helper.pid)
    with pytest.raises(OSError, match="No such file"):
        await helper.call("release")
    monkeypatch.undo()
    await helper.call("release")


async def test_it_holds_nothing_of_ours(helper: SyscallHelper, tmp_path: Path) -> None:
    await helper.call("release")  # it has come so far
    assert looked_at(helper.pid) == ({"/dev/null", "socket"}, "/", "secretfs-helper")


def is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def proc(pid: int, name: str) -> str:
    return Path(f"/proc/{pid}", name).read_text("utf-8", "replace")


def looked_at(pid: int) -> tuple[set[str], str, str]:
    process = Path(f"/proc/{pid}")
    links = {os.readlink(path) for path in (process / "fd").iterdir()}  # noqa: PTH115
    kinds = {link.partition(":")[0] for link in links}
    return kinds, os.readlink(process / "cwd"), (process / "comm").read_text().strip()  # noqa: PTH115


@pytest.mark.root("of another user's process the owner shows whether it may be traced")
def test_no_other_process_of_a_user_gets_at_one(tmp_path: Path) -> None:
    """Neither at the first one nor at one that has taken its place: the files of root in /proc tell."""
    code = """
import logging, os, signal, trio
from pathlib import Path
from secretfs.linux.process import forbid_dumps
from secretfs.linux.syscall_helper import SyscallHelper
logging.disable()
os.setgid(65534)
os.setuid(65534)
forbid_dumps()

async def main():
    helper = SyscallHelper.fork(Path("/nowhere"))
    for _ in range(2):
        await helper.call("release")
        print(os.stat(f"/proc/{helper.pid}/environ").st_uid)
        os.kill(helper.pid, signal.SIGKILL)
        os.waitid(os.P_PID, helper.pid, os.WEXITED | os.WNOWAIT)
    helper.close()

trio.run(main)
"""
    done = run([sys.executable, "-c", code], env=environment())
    assert (done.out, done.err) == ("0\n0\n", "")


def test_it_ends_when_the_daemon_is_killed() -> None:
    script = (
        "from secretfs.linux.syscall_helper import SyscallHelper; import time; from pathlib import Path\n"
        "print(SyscallHelper.fork(Path('/nowhere')).pid, flush=True); time.sleep(60)"
    )
    with Popen([sys.executable, "-c", script], stdout=PIPE, cwd=Path(__file__).parents[2]) as daemon:
        assert daemon.stdout is not None
        process = os.pidfd_open(int(daemon.stdout.readline()))
        daemon.kill()
    assert select.select([process], [], [], 10)[0]
    os.close(process)


async def test_it_opens_a_descriptor_for_us(helper: SyscallHelper) -> None:
    group = await helper.call("open_group")
    assert group is not None
    assert not os.get_inheritable(group)
    os.close(group)
    assert await helper.call("release") is None


async def test_it_marks_only_what_is_in_the_mount(helper: SyscallHelper, tmp_path: Path, group: int) -> None:
    """Else whoever takes the daemon over learns who opens what (safe-7)."""
    for path in b"/etc", os.fsencode(tmp_path) + b"/..", os.fsencode(tmp_path):
        with pytest.raises((PermissionError, FileNotFoundError)):
            await helper.call("mark_opens", path, descriptor=group)


def minor(mount: Mounted) -> int:
    return os.minor(mount.path.stat().st_dev)


@pytest.mark.mount
@pytest.mark.root("only root mounts")
async def test_it_holds_a_directory_until_it_lets_go(mount: Mounted) -> None:
    helper = SyscallHelper.started_when_needed(partial(start_program, mount.path))
    directory, device = os.fsencode(mount.path / ".secretfs"), minor(mount)
    with pytest.raises(FileNotFoundError):
        await helper.call("hold_writable", directory, device=device + 1)
    for _ in range(2):
        await helper.call("hold_writable", directory, device=device)
    held = Path(f"/proc/{helper.pid}/fd/{HELD}")
    assert "status.json" in os.listdir(held)  # noqa: PTH208
    environ = Path(f"/proc/{helper.pid}/environ").read_bytes()  # noqa: ASYNC240 - of /proc
    assert {variable[:6] for variable in environ.split(b"\0") if variable} <= {b"PYTHON"}
    for _ in range(2):
        await helper.call("release")
        assert str(HELD) not in os.listdir(held.parent)  # noqa: PTH208
    kill(helper.pid)
    helper.close()


@pytest.mark.mount
@pytest.mark.root("only root mounts")
def test_who_may_not_trace_every_process_gets_into_what_it_holds(mount: Mounted) -> None:
    """As root in a container, and only while it holds that (control-12)."""
    code = """
import os, sys, trio
from functools import partial
from pathlib import Path
from secretfs.linux.process import forbid_dumps
from secretfs.linux.syscall_helper import SyscallHelper, start_program

def look(pid):
    try:
        print(os.readlink(f"/proc/{pid}/fd/0").partition(":")[0])
    except OSError as error:
        print(error.strerror)

async def main():
    helper = SyscallHelper.started_when_needed(partial(start_program, Path(sys.argv[1])))
    await helper.call("hold_writable", os.fsencode(sys.argv[1]) + b"/.secretfs", device=int(sys.argv[2]))
    look(helper.pid)
    await helper.call("release")
    look(helper.pid)
    helper.close()

trio.run(main)
"""
    without = ["setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace"]
    arguments = [str(mount.path), str(minor(mount))]
    done = run([*without, sys.executable, "-c", code, *arguments], env=environment())
    assert (done.out, done.err) == ("socket\nPermission denied\n", "")


def test_a_filter_of_system_calls_costs_a_helper_and_not_the_daemon() -> None:
    """SystemCallFilter= of a unit written for an older version kills the process that makes a newer call."""
    code = """
import trio
from pathlib import Path
from secretfs.linux.syscall_helper import SyscallHelper

async def main():
    helper = SyscallHelper.fork(Path("/nowhere"))
    try:
        await helper.call("open_group")
    except OSError as error:
        print(error.strerror)
    await helper.call("release")
    helper.close()

trio.run(main)
"""
    done = run(filtered("fanotify_init", "kill", sys.executable, "-c", code), cwd=ROOT)
    assert done.out == "Broken pipe\n"
