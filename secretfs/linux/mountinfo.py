"""What is mounted: the table of mounts as the kernel shows it (proc_pid_mountinfo(5))."""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from secretfs.errors import MountError

FSTYPE = "fuse.secretfs"
"""Type of our mounts in /proc/self/mountinfo."""
IN_MEMORY: Final = ("tmpfs", "ramfs")
"""The types of file systems that nothing of is on a disk, but for swap."""

_OWNERS: Final = (re.compile(rb"\buser_id=(\d+)"), re.compile(rb"\bgroup_id=(\d+)"))


class MountInfo(NamedTuple):
    """A line of /proc/self/mountinfo."""

    path: str
    fstype: str
    minor: int
    """Minor number of its device, which names a FUSE connection."""
    user: int | None
    """User id of its owner, for FUSE."""
    shared: bool
    """Whether what is mounted below it is seen in other mount namespaces, too (mount_namespaces(7))."""
    group: int | None = None
    """Group id of its owner, for FUSE."""
    allow_other: bool = False
    """Whether the kernel lets other users in, for FUSE."""
    read_only: bool = False
    """Whether nothing can be written through this mount. Through another mount of the same file system it may."""
    number: int = 0
    """Its id. No two mounts of a kernel share one, in whatever namespace they are."""
    device: str = ""
    """Its device, MAJOR:MINOR."""
    root: str = "/"
    """The directory of the file system that is mounted: another one than / for a bind mount."""
    receives: bool = False
    """Whether it receives what is mounted in the mount that it is a copy of (a slave, mount_namespaces(7))."""


def mounts(pid: int | None = None) -> Iterator[MountInfo]:
    """Yield the mounts that a process sees, or this one, bottom first (proc_pid_mountinfo(5)). Raises OSError."""
    for line in Path(f"/proc/{pid or 'self'}/mountinfo").read_bytes().splitlines():
        before, _, after = line.partition(b" - ")
        number, _, device, root, point, own_options, *propagation = before.split(b" ")
        fstype, _, rest = after.partition(b" ")
        options = rest.rpartition(b" ")[2]  # of the file system; what is before them is its user's to choose
        user, group = (pattern.search(options) for pattern in _OWNERS)
        yield MountInfo(
            _unescaped(point),
            os.fsdecode(fstype),
            int(device.partition(b":")[2]),
            int(user[1]) if user else None,
            any(field.startswith(b"shared:") for field in propagation),
            int(group[1]) if group else None,
            b"allow_other" in options.split(b","),
            b"ro" in own_options.split(b","),
            int(number),
            os.fsdecode(device),
            _unescaped(root),
            any(field.startswith(b"master:") for field in propagation),
        )


def _unescaped(path: bytes) -> str:
    if b"\\" not in path:
        return os.fsdecode(path)
    return os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), path))


def binds(device: str, root: str) -> dict[int, int]:
    """Return the bind mounts of a directory of a file system in all mount namespaces: number to a process that sees it.

    One of a part of the directory counts as well. Processes that this user may not look into are passed over.
    """
    found: dict[int, int] = {}
    namespaces: set[int] = set()
    for pid in sorted(int(entry.name) for entry in Path("/proc").glob("[0-9]*")):
        with suppress(OSError):  # it has ended, or is somebody else's
            namespace = Path(f"/proc/{pid}/ns/mnt").stat().st_ino
            if namespace in namespaces:
                continue
            namespaces.add(namespace)
            found |= {m.number: pid for m in mounts(pid) if m.device == device and f"{m.root}/".startswith(f"{root}/")}
    return found


def mount_ids(pid: int) -> frozenset[bytes]:
    """Return the ids of the mounts that a process sees; none if it hides them. No two mounts of a kernel share one."""
    try:
        lines = Path(f"/proc/{pid}/mountinfo").read_bytes().splitlines()
    except OSError:
        return frozenset()
    return frozenset(line.split(b" ", 1)[0] for line in lines)


def surrounding(path: Path) -> MountInfo:
    """Return the mount that ``path`` is a directory of, or was before a secretfs was mounted there."""
    around = (
        mount
        for mount in mounts()
        if path.is_relative_to(mount.path) and not (mount.path == str(path) and mount.fstype == FSTYPE)
    )
    return max(around, key=lambda mount: len(mount.path))


def topmost(path: Path, table: Iterable[MountInfo]) -> MountInfo | None:
    """Return what is mounted at a path last."""
    there = [mount for mount in table if mount.path == str(path)]
    return there[-1] if there else None


def secretfs_at(path: Path, table: Iterable[MountInfo] | None = None) -> MountInfo | None:
    """Return the topmost mount at ``path`` if it is a secretfs, alive or dead. ``table``: all mounts as they are."""
    there = topmost(path, mounts() if table is None else table)
    return there if there and there.fstype == FSTYPE else None


def read_only_secretfs(path: Path) -> int | None:
    """Return the minor device number of the secretfs at ``path`` if it is a read-only mount; another may cover it."""
    there = [mount for mount in mounts() if (mount.path, mount.fstype) == (str(path), FSTYPE)]
    return there[-1].minor if there and there[-1].read_only else None


def is_mounted(path: Path) -> bool:
    """Whether the topmost mount at ``path`` is a secretfs, alive or dead."""
    return secretfs_at(path) is not None


def secretfs_mounts(user: int) -> list[MountInfo]:
    """Return what a user has mounted and one can see, for root what anybody has, by path."""
    seen = {mount.path: mount for mount in mounts()}  # the last one at a path covers the others
    return [mount for _, mount in sorted(seen.items()) if mount.fstype == FSTYPE and user in (0, mount.user)]


def require_mounted(path: Path, table: Iterable[MountInfo] | None = None) -> MountInfo:
    """Return the secretfs at ``path``. Raises `MountError` if there is none."""
    mount = secretfs_at(path, table)
    if mount is None:
        raise MountError(f"{path} has no secretfs mounted")
    return mount
