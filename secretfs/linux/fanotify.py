"""Which files of a directory are opened, and by whom in what container or namespace does not matter: fanotify(7).

A group is of the kind that every user may have (Linux 5.13). It gets the inode number of each file that is opened, and
if it was made with CAP_SYS_ADMIN the process, which waits for nothing. On FUSE that takes Linux 6.8. Equal events are
merged until they are read.

What is marked is the inode of a directory. The mark is gone when the kernel forgets the inode, and neither mark nor
events keep a mount busy. (A mark on the whole superblock would take CAP_SYS_ADMIN. On FUSE it cannot have
FAN_REPORT_FID, and its events hold a reference to the mount until they are read: umount(8) says "target is busy".)
"""

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

# linux/fanotify.h
_CLOEXEC, _NONBLOCK, _UNLIMITED_MARKS, _REPORT_FID = 0x1, 0x2, 0x20, 0x200
_MARK_ADD, _MARK_ONLYDIR, _MARK_EVICTABLE = 0x1, 0x8, 0x200
_OPEN, _EVENT_ON_CHILD, _Q_OVERFLOW = 0x20, 0x08000000, 0x4000
_AT_FDCWD: Final = -100

_EVENT: Final = struct.Struct("=IBBHQii")  # event_len, vers, reserved, metadata_len, mask, fd, pid
_FID: Final = struct.Struct("=BBHQIi")  # info_type, pad, len, fsid, handle_bytes, handle_type; then the handle
_FUSE_FSID: Final = 0
_FILEID_INO64_GEN: Final = 0x81  # linux/exportfs.h: how FUSE names an inode (fuse_encode_fh in fs/fuse/inode.c)
_HANDLE: Final = struct.Struct("=III")  # the upper and the lower half of its number, generation

OVERFLOW: Final = -1
"""Stands for files that the kernel could not remember."""


class Open(NamedTuple):
    """An open of a file."""

    inode: int
    """Number of the FUSE inode, or `OVERFLOW`."""
    pid: int
    """The process, in our namespace; 0 for one outside it, and if the group has no right to know."""


_AT_ONCE: Final = 64 << 10  # bytes


def open_group() -> int:
    """Return the descriptor of a new group. Raises OSError where there are none, or no more for this user.

    With CAP_SYS_ADMIN it may have any number of marks, else as many as fs.fanotify.max_user_marks says.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    flags = _CLOEXEC | _NONBLOCK | _REPORT_FID
    group: int = libc.fanotify_init(flags | _UNLIMITED_MARKS, os.O_RDONLY | os.O_CLOEXEC)
    if group < 0 and ctypes.get_errno() == errno.EPERM:
        group = libc.fanotify_init(flags, os.O_RDONLY | os.O_CLOEXEC)
    if group < 0:
        _raise()
    return group


def mark_opens(group: int, directory: bytes, start: int = _AT_FDCWD) -> None:
    """Have a group told of each file in a directory that is opened from now on. Marking twice is no error.

    A relative path begins at the directory that ``start`` is a descriptor of.
    Looks the path up and reads its attributes, so for a directory of our own mount it is `SyscallHelper` that calls it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    flags, mask = _MARK_ADD | _MARK_ONLYDIR | _MARK_EVICTABLE, ctypes.c_uint64(_OPEN | _EVENT_ON_CHILD)
    if libc.fanotify_mark(group, flags, mask, start, directory) != 0:
        _raise()


def opens(group: int) -> list[Open] | None:
    """Return what FUSE inodes have been opened since the last call: not all at once, None when no more.

    Equal opens of one process are one until they are read.
    `OVERFLOW` means that more files have been opened than the kernel remembers, 16,384 by default.
    """
    try:
        events = os.read(group, _AT_ONCE)
    except BlockingIOError:
        return None
    return list(_parse(events))


def _parse(events: bytes) -> Iterator[Open]:
    place = 0
    while place < len(events):
        length, _, _, header, mask, _, pid = _EVENT.unpack_from(events, place)
        if mask & _Q_OVERFLOW:
            yield Open(OVERFLOW, 0)
        elif length >= header + _FID.size + _HANDLE.size:
            _, _, _, fsid, _, kind = _FID.unpack_from(events, place + header)
            if fsid == _FUSE_FSID and kind == _FILEID_INO64_GEN:  # else another file system has come to that path
                upper, lower, _ = _HANDLE.unpack_from(events, place + header + _FID.size)
                yield Open(upper << 32 | lower, pid)
        place += length


def _raise() -> None:
    code = ctypes.get_errno()
    raise OSError(code, os.strerror(code))
