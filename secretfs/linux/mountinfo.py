"""What is mounted: the table of mounts as the kernel shows it (proc_pid_mountinfo(5))."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from secretfs.errors import MountError

FSTYPE = "fuse.secretfs"
"""Type of our mounts in /proc/self/mountinfo."""


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


def mounts() -> Iterator[MountInfo]:
    """Yield the mounts of this mount namespace, bottom first (proc_pid_mountinfo(5))."""
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        before, _, after = line.partition(b" - ")
        _, _, device, _, point, own_options, *propagation = before.split(b" ")
        path = re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), point)
        fstype, _, rest = after.partition(b" ")
        options = rest.rpartition(b" ")[2]  # of the file system; what is before them is its user's to choose
        user, group = (re.search(rb"\b%s_id=(\d+)" % kind, options) for kind in (b"user", b"group"))
        yield MountInfo(
            os.fsdecode(path),
            os.fsdecode(fstype),
            int(device.partition(b":")[2]),
            int(user[1]) if user else None,
            any(field.startswith(b"shared:") for field in propagation),
            int(group[1]) if group else None,
            b"allow_other" in options.split(b","),
            b"ro" in own_options.split(b","),
        )


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


def secretfs_at(path: Path) -> MountInfo | None:
    """Return the topmost mount at ``path`` if it is a secretfs, alive or dead."""
    there = [mount for mount in mounts() if mount.path == str(path)]
    return there[-1] if there and there[-1].fstype == FSTYPE else None


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


def require_mounted(path: Path) -> MountInfo:
    """Return the secretfs at ``path``. Raises `MountError` if there is none."""
    mount = secretfs_at(path)
    if mount is None:
        raise MountError(f"{path} has no secretfs mounted")
    return mount
