"""The place in the file system where we mount: what is there now, and how to clear it."""

import ctypes
import errno
import logging
import os
import re
import shutil
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

from secretfs.errors import MountError

FSTYPE = "fuse.secretfs"
"""Type of our mounts in /proc/self/mountinfo."""

T = TypeVar("T")

log = logging.getLogger(__name__)

_FUSE_DEVICE = Path("/dev/fuse")
_MNT_DETACH = 2  # linux/fs.h
_UMOUNT_NOFOLLOW = 8
_LINKS = 40  # as many as the kernel follows (path_resolution(7))
_PATIENCE = 2.0  # seconds until a mount that does not answer counts as hung


class MountedAt(NamedTuple):
    """A line of /proc/self/mountinfo."""

    path: str
    fstype: str


def mounts() -> Iterator[MountedAt]:
    """Yield the mounts of this mount namespace, bottom first (proc_pid_mountinfo(5))."""
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        before, _, after = line.partition(b" - ")
        path = re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), before.split(b" ")[4])
        yield MountedAt(os.fsdecode(path), os.fsdecode(after.split(b" ", 1)[0]))


def is_mounted(path: Path) -> bool:
    """Whether a secretfs, alive or dead, is what one sees at ``path``."""
    there = [mount.fstype for mount in mounts() if mount.path == str(path)]
    return bool(there) and there[-1] == FSTYPE


def resolve(path: Path) -> Path:
    """Make a mount point absolute as mountinfo has it, without a call to what may be mounted there: it may hang."""
    for _ in range(_LINKS):
        if path.name in ("", ".."):
            return Path(os.path.realpath(path))
        path = Path(os.path.realpath(path.parent), path.name)
        try:
            path = path.parent / path.readlink()
        except OSError:  # what is mounted there, dead or alive, is no link either
            return path
    raise MountError(f"{path} is a link in a circle")


def prepare(path: Path) -> None:
    """Make sure that we can mount at ``path``. Raises `MountError` with the reason and, where known, the way out."""
    _require_fuse()
    if is_mounted(path):
        _require_dead(path)
        return
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise MountError(f"cannot mount at {path}: {error.strerror}") from None
    if not stat.S_ISDIR(mode):
        raise MountError(f"cannot mount at {path}: it is not a directory")
    if os.geteuid() != 0 and not os.access(path, os.W_OK):
        raise MountError(f"cannot mount at {path}: fusermount3 mounts only on a directory you may write to")


def clear(path: Path) -> None:
    """Unmount what a daemon that was killed has left at ``path``. Raises `MountError` if it is alive or hangs.

    For the last moment before a new mount: until then readers had better get ENOTCONN than an empty directory.
    """
    while is_mounted(path):
        _require_dead(path)
        unmount(path, lazy=True)
        log.info("cleared a dead mount at %s", path)


def unmount(path: Path, *, lazy: bool = False) -> None:
    """Unmount ``path``; lazily means that files still open stay readable. Raises `MountError` if it is in use."""
    failed = _umount(path, lazy=lazy) if os.geteuid() == 0 else _fusermount(path, lazy=lazy)
    if failed:
        hint = f" (who uses it: fuser -vm {path})" if os.strerror(errno.EBUSY) in failed else ""
        raise MountError(f"cannot unmount {path}: {failed}{hint}")


def _umount(path: Path, *, lazy: bool) -> str:
    """Unmount as root. Returns why not."""
    libc = ctypes.CDLL(None, use_errno=True)
    failed = libc.umount2(os.fsencode(path), _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0)) != 0
    return os.strerror(ctypes.get_errno()) if failed else ""


def _fusermount(path: Path, *, lazy: bool) -> str:
    """Unmount as a user, which takes a setuid program. Returns why not."""
    _require_fusermount()
    command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - no shell
    if done.returncode == 0:
        return ""
    said = done.stderr.strip().removeprefix("fusermount3: ")
    return said.removeprefix(f"failed to unmount {path}: ") or f"fusermount3 ended with status {done.returncode}"


def _require_dead(path: Path) -> None:
    """Accept only a mount whose daemon is gone, which the kernel tells with ENOTCONN."""
    try:
        ask(path, lambda: os.statvfs(path))
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            return
    raise MountError(f"{path} has a secretfs mounted already; unmount it first: secretfs unmount {path}")


def ask(path: Path, question: Callable[[], T], *, while_alive: bool = False) -> T:
    """Put a question to what is mounted at ``path``, which may hang. Raises `MountError` if it does.

    With ``while_alive`` the answer may take its time as long as other questions are answered. The thread that hangs is
    left behind: it ends with the process.
    """
    answers: list[T] = []
    errors: list[OSError] = []

    def put() -> None:
        try:
            answers.append(question())
        except OSError as error:
            errors.append(error)

    asking = threading.Thread(target=put, daemon=True)
    asking.start()
    asking.join(_PATIENCE)
    while asking.is_alive() and while_alive:
        ask(path, lambda: os.statvfs(path))
        asking.join(_PATIENCE)
    if errors:
        raise errors[0]
    if not answers:
        raise MountError(f"{path} has a secretfs mounted that does not answer; kill it, then mount again")
    return answers[0]


def _require_fuse() -> None:
    """Give the reasons that libfuse would only hint at, or print where nobody looks."""
    if not _FUSE_DEVICE.exists():
        raise MountError(f"{_FUSE_DEVICE} is missing: load the module fuse (modprobe fuse), or pass the device in")
    if not os.access(_FUSE_DEVICE, os.R_OK | os.W_OK):
        raise MountError(f"{_FUSE_DEVICE} may not be opened by this user (its usual mode is 0666)")
    if os.geteuid() != 0:
        _require_fusermount()


def _require_fusermount() -> None:
    find_fusermount()


def find_fusermount() -> str:
    """Return the path of the program that mounts for users. Raises `MountError` if it is missing."""
    found = shutil.which("fusermount3")
    if found is None:
        raise MountError("fusermount3 is missing, which mounts for users other than root: install the package fuse3")
    return found


def explain(said: str, path: Path) -> str:
    """Return why fusermount3 does not mount, and the way out."""
    return said.strip() or "fusermount3 gives no reason"
