"""The mount point: whether a mount can be made there, and how one is removed."""

import ctypes
import errno
import logging
import os
import stat
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from secretfs.errors import MountError
from secretfs.linux import fusectl
from secretfs.linux.beneath import open_without_links
from secretfs.linux.mountinfo import FSTYPE, is_mounted, mounts, require_mounted
from secretfs.linux.preflight import (
    may_mount,
    require_allow_other,
    require_device,
    require_fusermount,
    require_privilege,
)

T = TypeVar("T")

log = logging.getLogger(__name__)

_MNT_DETACH = 2  # linux/fs.h
_UMOUNT_NOFOLLOW = 8
_LINKS = 40  # as many as the kernel follows (path_resolution(7))
_TRY_AGAIN = 0.02  # seconds
_PATIENCE = 2.0  # seconds until a mount that does not answer counts as hung


def resolve(path: Path) -> Path:
    """Make a mount point absolute, as in mountinfo, without a call on what is mounted there, which may hang."""
    try:
        path = Path.cwd() / path  # "." gets a name this way
    except FileNotFoundError:
        raise MountError(f"{path} starts in the working directory, which is gone", "name it from the root") from None
    for _ in range(_LINKS):
        if path.name in ("", ".."):
            return Path(os.path.realpath(path))
        path = Path(os.path.realpath(path.parent), path.name)
        try:
            path = path.parent / path.readlink()
        except OSError:  # what is mounted there, dead or alive, is no link
            return path
    raise MountError(f"{path} is a link in a circle")


def prepare(path: Path, *, allow_other: bool = False, nonempty: bool = False) -> None:
    """Make sure that we can mount at ``path``. Raises `MountError` with the reason and, where known, the fix."""
    require_device()
    require_privilege()
    if allow_other:
        require_allow_other()
    if is_mounted(path):
        _require_dead(path)
    else:
        require_place(path, nonempty=nonempty)


def require_place(path: Path, *, nonempty: bool = False) -> None:
    """Make sure that ``path``, where no secretfs is mounted, is a place for one. Raises `MountError`."""
    require_directory(path, nonempty=nonempty)
    if not may_mount() and not os.access(path, os.W_OK):
        reason = f"cannot mount at {path}: fusermount3 mounts only on a directory you may write to"
        raise MountError(reason, f"as root: chown {os.getuid()} {path}; or name another directory")


def require_directory(path: Path, *, nonempty: bool) -> None:
    """Accept only an existing directory, and an empty one unless it may be ``nonempty``. Raises `MountError`."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise MountError(f"cannot mount at {path}: there is no such directory", f"make it: mkdir -p {path}") from None
    except PermissionError:
        fix = "every directory on the way needs an x for this user (ls -ld)"
        raise MountError(f"cannot mount at {path}: it cannot be reached by this user", fix) from None
    except OSError as error:
        raise MountError(f"cannot mount at {path}: {error.strerror}", "name another directory") from None
    if not stat.S_ISDIR(mode):
        raise MountError(f"cannot mount at {path}: it is not a directory", "name another one, or make it one")
    if not nonempty and not is_empty(path):
        fix = "name an empty directory, or hide what is in this one while secrets are mounted there: --nonempty"
        raise MountError(f"cannot mount at {path}: it is not empty", fix)


def is_empty(path: Path) -> bool:
    """Whether a directory has no entries, or none that this user may see: one may mount where one may not look."""
    try:
        return not any(path.iterdir())
    except OSError:
        return True


def clear(path: Path, unmount: Callable[[], object]) -> None:
    """Unmount what a killed daemon has left at ``path``. Raises `MountError` if the mount is alive or hangs.

    Call it just before a new mount: until then ENOTCONN serves readers better than an empty directory.
    """
    while is_mounted(path):
        _require_dead(path)
        unmount()
        log.info("cleared a dead mount at %s", path)


def unmount(path: Path, *, lazy: bool = False, patience: float = 0.0) -> None:
    """Unmount ``path``; lazily means that files still open stay readable. Raises `MountError` if it is in use.

    It is tried for ``patience`` seconds: for some microseconds a helper of the daemon itself has the mount in use.
    The daemon and ``secretfs unmount`` may both do so: who comes second finds that it is done.
    """
    end = time.monotonic() + patience
    while failed := _umount(path, lazy=lazy) if may_mount() else _fusermount(path, lazy=lazy):
        if not is_mounted(path):
            return
        busy = os.strerror(errno.EBUSY) in failed
        if busy and time.monotonic() < end:
            time.sleep(_TRY_AGAIN)
            continue
        fix = f"end the programs that use it (fuser -vm {path}), or add --force" if busy else ""
        raise MountError(f"cannot unmount {path}: {failed}", fix)


def detach(path: Path) -> None:
    """Unmount the secretfs at ``path`` lazily, as root. Over a link nothing is unmounted, nor anything else.

    Raises `MountError`. That there is none is none.
    """
    try:
        there = open_without_links(os.fsencode(path))
    except OSError:
        return
    try:
        number = _mount_id(there)
        if any((mount.number, mount.fstype) == (number, FSTYPE) for mount in mounts()):
            failed = _umount2(f"/proc/self/fd/{there}".encode(), _MNT_DETACH)
            if failed and is_mounted(path):
                raise MountError(f"cannot unmount {path}: {failed}")
    finally:
        os.close(there)


def _mount_id(descriptor: int) -> int:
    """Return the number of the mount that a descriptor is of, and ask no file system (proc_pid_fdinfo(5))."""
    lines = Path(f"/proc/self/fdinfo/{descriptor}").read_text("ascii").splitlines()
    return int(next(line for line in lines if line.startswith("mnt_id:")).split()[1])


def abort(path: Path) -> None:
    """Abort the FUSE connection of the secretfs at ``path``, alive, hung or dead. Unmounts nothing.

    Calls that wait for an answer end with ECONNABORTED at once, later ones with ENOTCONN. Takes root; where fusectl is
    mounted, the user who mounted will do. Raises `MountError`.
    """
    mount = require_mounted(path)
    try:
        fusectl.abort(mount.minor)
    except OSError as error:
        raise MountError(f"cannot abort the connection of {path}: {error.strerror}", "try it as root") from None


def _umount(path: Path, *, lazy: bool) -> str:
    """Unmount as root. Returns why not."""
    return _umount2(os.fsencode(path), _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0))


def _umount2(path: bytes, flags: int) -> str:
    libc = ctypes.CDLL(None, use_errno=True)
    return os.strerror(ctypes.get_errno()) if libc.umount2(path, flags) != 0 else ""


def _fusermount(path: Path, *, lazy: bool) -> str:
    """Unmount as a user, which takes a setuid program. Returns why not."""
    require_fusermount()
    command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", str(path)]
    done = subprocess.run(command, capture_output=True, errors="surrogateescape", check=False)  # noqa: S603 - no shell
    if done.returncode == 0:
        return ""
    said = done.stderr.strip().removeprefix("fusermount3: ")
    return said.removeprefix(f"failed to unmount {path}: ") or f"fusermount3 ended with status {done.returncode}"


def is_dead(path: Path) -> bool:
    """Whether the daemon of the mount at ``path`` is gone, for which the kernel returns ENOTCONN.

    Raises `MountError` if the mount does not answer.
    """
    try:
        call_with_timeout(path, lambda: os.statvfs(path))
    except OSError as error:
        return error.errno == errno.ENOTCONN
    return False


def _require_dead(path: Path) -> None:
    if not is_dead(path):
        raise MountError(f"{path} has a secretfs mounted already", f"unmount it first: secretfs unmount {path}")


def call_with_timeout(path: Path, call: Callable[[], T], *, while_alive: bool = False) -> T:
    """Put a call to what is mounted at ``path``, which may hang. Raises `MountError` if it does.

    With ``while_alive`` the answer may take its time as long as other calls are answered. The thread that hangs is
    left behind: it ends with the process.
    """
    answers: list[T] = []
    errors: list[OSError] = []

    def put() -> None:
        try:
            answers.append(call())
        except OSError as error:
            errors.append(error)

    asking = threading.Thread(target=put, daemon=True)
    asking.start()
    asking.join(_PATIENCE)
    while asking.is_alive() and while_alive:
        call_with_timeout(path, lambda: os.statvfs(path))
        asking.join(_PATIENCE)
    if errors:
        raise errors[0]
    if not answers:
        fix = f"unmount it by force, which frees its readers: secretfs unmount --force {path}"
        raise MountError(f"{path} has a secretfs mounted that does not answer", fix)
    return answers[0]
