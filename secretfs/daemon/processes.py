"""The processes that serve a mount: how to find them, how to unmount when they hang, and why the last of them ended.

They are found by process name: all that other processes of the same user see of a process that holds secrets
(`secretfs.linux.process`). A forked process inherits the name, so workers have that of their supervisor.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Final

from secretfs.errors import MountError
from secretfs.linux.mountinfo import MountInfo, is_mounted, require_mounted
from secretfs.linux.mountpoint import abort, is_dead, unmount
from secretfs.linux.process import set_name
from secretfs.linux.runtime_directory import make_runtime_directory, runtime_file

_PATIENCE: Final = 2.0  # seconds that they have to end by themselves when forced, and that the kernel has to end them
_HELPER_IN_USE: Final = 0.5  # seconds; a helper of the daemon has the mount in use for much less
_UNHURRIED: Final = 10.0  # seconds that they have when nobody forces them: the machine may be busy


def set_process_name(mountpoint: Path) -> int:
    """Name this process, and those that it forks from now on, after the mount at ``mountpoint``, which it serves.

    Returns the minor device number of the mount. Raises `MountError` if there is none.
    """
    mount = require_mounted(mountpoint)
    set_name(_name(mount))
    return mount.minor


def daemon_pids(mount: MountInfo, among: Collection[int] | None = None) -> list[int]:
    """Return the ids of the processes that serve a mount, a supervisor before its workers.

    ``among`` has those that served it before it was unmounted: only they count, and their children. From then on the
    kernel may give the number, by which processes are found, to another mount.
    """
    parents = {}
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended
            status = _status(directory)
            if _serves(status, mount):
                pid, parent = int(directory.name), int(status["PPid"])
                if among is None or pid in among or parent in among:
                    parents[pid] = parent
    return sorted(parents, key=lambda pid: (parents[pid] in parents, pid))


def unmount_and_wait(path: Path) -> None:
    """Unmount the secretfs at ``path`` and wait until its processes have ended. Raises `MountError` if it is in use."""
    mount = _require_own(path)
    pids = daemon_pids(mount)
    unmount(path, patience=_HELPER_IN_USE)
    clear_failure(str(path))
    _end(mount, pids, _UNHURRIED)


def force_unmount(path: Path) -> None:
    """Unmount the secretfs at ``path``, whatever its state, and end its processes.

    Programs that wait for an answer get an error, open files are lost, and the processes that serve the mount are
    killed unless they end by themselves. Makes no call on the mount that could hang. Raises `MountError`.
    """
    require_mounted(path)
    while is_mounted(path):  # there may be dead ones below
        mount = _require_own(path)
        pids = daemon_pids(mount)
        _signal(pids, signal.SIGINT)
        nobody_waits = _abort(path) or bool(pids) or _seems_dead(path)
        unmount(path, lazy=True)
        clear_failure(str(path))
        _end(mount, pids)
        if not nobody_waits:
            raise MountError(
                f"{path} is unmounted, but its process was not found: programs that wait for it may go on waiting",
                "find it with ps -ef, and kill it",
            )


def _require_own(path: Path) -> MountInfo:
    mount = require_mounted(path)
    if os.geteuid() not in (0, mount.user):
        raise MountError(f"the secretfs at {path} was mounted by user {mount.user}", "become that user, or root")
    return mount


def _name(mount: MountInfo) -> str:
    return f"secretfs:{mount.minor:x}"  # 15 bytes at most: a minor number has 20 bits


def _status(directory: Path) -> dict[str, str]:
    lines = (directory / "status").read_text("ascii", "replace").splitlines()
    return {field: value.strip() for field, _, value in (line.partition(":") for line in lines)}


def _serves(status: Mapping[str, str], mount: MountInfo) -> bool:
    """Whether a process has the name of the mount and the user id of its owner, and has not ended.

    The owner of /proc/PID does not tell: it is root for a process that is not dumpable.
    """
    return (
        status["Name"] == _name(mount)
        and int(status["Uid"].split()[0]) == mount.user
        and not status["State"].startswith(("Z", "X"))
    )


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _abort(path: Path) -> bool:
    """Abort the connection, so that nobody waits for the mount. Returns whether that was possible: see `abort`."""
    try:
        abort(path)
    except MountError:
        return False
    return True


def _seems_dead(path: Path) -> bool:
    try:
        return is_dead(path)
    except MountError:  # it hangs
        return False


def _end(mount: MountInfo, served: Collection[int], within: float = _PATIENCE) -> None:
    """Wait until the processes that served a mount have ended; kill them after so many seconds."""
    if not _comes_true(lambda: not daemon_pids(mount, served), within) and not _comes_true(
        lambda: not _kill(mount, served)
    ):
        left = ", ".join(map(str, daemon_pids(mount, served)))
        raise MountError(f"killed, process {left} does not end", "see what it waits for: /proc/PID/stack")


def _kill(mount: MountInfo, served: Collection[int]) -> list[int]:
    """Kill the processes that served a mount. Returns their ids.

    The supervisor is killed first: otherwise it would start another worker.
    """
    pids = daemon_pids(mount, served)
    _signal(pids, signal.SIGKILL)
    return pids


def _comes_true(condition: Callable[[], bool], within: float = _PATIENCE) -> bool:
    end = time.monotonic() + within
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def record_failure(mountpoint: str, reason: str) -> None:
    """Write down why a mount is not served any more. If that fails, only the log has the reason."""
    path = runtime_file(mountpoint)
    with contextlib.suppress(OSError):
        make_runtime_directory(path)
        path.write_text(reason, encoding="utf-8", errors="backslashreplace")


def last_failure(mountpoint: str) -> str:
    """Return why a mount is not served any more; empty if no reason is known."""
    try:
        return runtime_file(mountpoint).read_text(encoding="utf-8")
    except OSError:
        return ""


def clear_failure(mountpoint: str) -> None:
    """Remove the reason, when a mount is served again or unmounted."""
    path = runtime_file(mountpoint)
    with contextlib.suppress(OSError):
        path.unlink()
