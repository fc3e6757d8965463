"""The processes that serve a mount: how they are known, and how a mount is taken away from them when they hang.

They are known by the name of the process, which is all that others of the same user see of a process that holds secrets
(`secretfs.linux.process`), and which is inherited by those that it forks: a supervisor signs for its workers, too.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from secretfs.errors import MountError
from secretfs.linux.mountinfo import MountInfo, is_mounted, require_mounted
from secretfs.linux.mountpoint import abort, is_dead, unmount
from secretfs.linux.process import set_name
from secretfs.linux.runtime_directory import runtime_file

_PATIENCE: Final = 2.0  # seconds that they have to end by themselves, and that the kernel has to end them


def set_process_name(mountpoint: Path) -> int:
    """Make this process, and those that it forks from now on, known as serving what is mounted at ``mountpoint``.

    Returns the minor device number of that. Raises `MountError` if no secretfs is.
    """
    mount = require_mounted(mountpoint)
    set_name(_name(mount))
    return mount.minor


def daemon_pids(mount: MountInfo) -> list[int]:
    """Return the ids of the processes that serve a mount, a supervisor before the workers that it has forked."""
    parents = {}
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended
            status = _status(directory)
            if _serves(status, mount):
                parents[int(directory.name)] = int(status["PPid"])
    return sorted(parents, key=lambda pid: (parents[pid] in parents, pid))


def unmount_and_wait(path: Path) -> None:
    """Unmount the secretfs at ``path`` and wait until nobody serves it. Raises `MountError` if it is in use."""
    mount = _require_own(path)
    unmount(path)
    clear_failure(str(path))
    _end(mount)


def force_unmount(path: Path) -> None:
    """Unmount the secretfs at ``path`` in whatever state it is, and leave nobody behind: neither reader nor daemon.

    Who waits for an answer gets an error, files that are open are lost, and the processes that serve the mount are
    killed unless they end by themselves. Asks the mount nothing that could hang. Raises `MountError`.
    """
    require_mounted(path)
    while is_mounted(path):  # there may be dead ones below
        mount = _require_own(path)
        pids = daemon_pids(mount)
        _signal(pids, signal.SIGTERM)
        nobody_waits = _abort(path) or bool(pids) or _seems_dead(path)
        _detach(path)
        clear_failure(str(path))
        _end(mount)
        if not nobody_waits:
            raise MountError(
                f"{path} is unmounted, but the process behind it was not found: who waits for it may wait on",
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
    """Whether a process has the name, belongs to who mounted, and is not just waiting for its parent to notice its end.

    The owner of /proc/PID is no help: it is root for a process that lets nobody look into its memory.
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
    """Free who waits for the mount. Returns whether that was possible: see `abort`."""
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


def _detach(path: Path) -> None:
    try:
        unmount(path, lazy=True)
    except MountError:
        if is_mounted(path):  # else the daemon was faster
            raise


def _end(mount: MountInfo) -> None:
    """Wait until the processes that serve a mount have ended, and kill them after a while."""
    if not _comes_true(lambda: not daemon_pids(mount)) and not _comes_true(lambda: not _kill(mount)):
        left = ", ".join(map(str, daemon_pids(mount)))
        raise MountError(f"killed, process {left} does not end", "look what it waits for: /proc/PID/stack")


def _kill(mount: MountInfo) -> list[int]:
    """Kill the processes that serve a mount. Returns their ids.

    A supervisor is killed first: one that survived its worker would start another one.
    """
    pids = daemon_pids(mount)
    _signal(pids, signal.SIGKILL)
    return pids


def _comes_true(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + _PATIENCE
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def record_failure(mountpoint: str, reason: str) -> None:
    """Keep a reason. Where that cannot be done the log has it alone."""
    path = runtime_file(mountpoint)
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, exist_ok=True)
        path.write_text(reason, encoding="utf-8", errors="backslashreplace")


def last_failure(mountpoint: str) -> str:
    """Return the reason; nothing if there is none."""
    try:
        return runtime_file(mountpoint).read_text(encoding="utf-8")
    except OSError:
        return ""


def clear_failure(mountpoint: str) -> None:
    """Forget the reason."""
    path = runtime_file(mountpoint)
    with contextlib.suppress(OSError):
        path.unlink()
        path.parent.rmdir()  # the last one
