"""The system calls about mounts that have no place yet: they are made, changed and used before, or without, being seen.

See fsopen(2), fsmount(2), move_mount(2), open_tree(2) and mount_setattr(2). All of them raise OSError. What is returned
is a descriptor of a mount that ends with its last user, unless it gets a place.
"""

import ctypes
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from secretfs.linux.beneath import open_without_links

# asm-generic/unistd.h; the same on every architecture but alpha
_OPEN_TREE, _MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT, _MOUNT_SETATTR = 428, 429, 430, 431, 432, 442

# linux/mount.h
_SET_FLAG, _SET_STRING, _CREATE = 0, 1, 6
_CLOEXEC: Final = 1  # FSOPEN_CLOEXEC and FSMOUNT_CLOEXEC
_CLONE: Final = 1
_FROM_EMPTY_PATH, _TO_EMPTY_PATH = 0x4, 0x40
_RDONLY, NOSUID, NODEV, NOEXEC = 0x1, 0x2, 0x4, 0x8
_ATTRIBUTES: Final = struct.Struct("=QQQQ")  # to set, to clear, propagation, user namespace

# linux/fcntl.h
_AT_FDCWD: Final = -100
_AT_EMPTY_PATH: Final = 0x1000


def new_mount(fstype: str, options: Mapping[str, str | None], attributes: int = 0) -> int:
    """Mount a file system. An option without a value is a flag. ``attributes`` are `NOSUID` and the like."""
    context = _call(_FSOPEN, fstype.encode(), _CLOEXEC)
    try:
        for name, value in options.items():
            if value is None:
                _call(_FSCONFIG, context, _SET_FLAG, name.encode(), None, 0)
            else:
                _call(_FSCONFIG, context, _SET_STRING, name.encode(), os.fsencode(value), 0)
        _call(_FSCONFIG, context, _CREATE, None, None, 0)
        return _call(_FSMOUNT, context, _CLOEXEC, attributes)
    finally:
        os.close(context)


def place(mount: int, path: bytes) -> None:
    """Give a mount its place: from now on it is seen there. No link is followed: it may lead anywhere by now."""
    target = open_without_links(path)
    try:
        _call(_MOVE_MOUNT, mount, b"", target, b"", _FROM_EMPTY_PATH | _TO_EMPTY_PATH)
    finally:
        os.close(target)


def make_read_only(mount: int) -> None:
    """Let nothing be written through a mount; through others of the same file system it may (Linux 5.12)."""
    _set_attributes(mount, _RDONLY, 0)


def bind_read_only(source: bytes, target: bytes) -> None:
    """Mount a directory once more at ``target``, read-only from the first moment on (Linux 5.12)."""
    mount = _call(_OPEN_TREE, _AT_FDCWD, source, _CLONE | os.O_CLOEXEC)
    try:
        _set_attributes(mount, _RDONLY | NOSUID | NODEV | NOEXEC, 0)
        place(mount, target)
    finally:
        os.close(mount)


@contextmanager
def writable(place: bytes | int) -> Iterator[int]:
    """Mount what is at a path once more, writable, for nobody but this process; yields its root (Linux 5.12).

    Or what a descriptor is of.
    """
    start, path = (_AT_FDCWD, place) if isinstance(place, bytes) else (place, b"")
    mount = _call(_OPEN_TREE, start, path, _CLONE | os.O_CLOEXEC | (0 if path else _AT_EMPTY_PATH))
    try:
        _set_attributes(mount, 0, _RDONLY)
        yield mount
    finally:
        os.close(mount)


def _set_attributes(mount: int, to_set: int, to_clear: int) -> None:
    attributes = _ATTRIBUTES.pack(to_set, to_clear, 0, 0)
    _call(_MOUNT_SETATTR, mount, b"", _AT_EMPTY_PATH, attributes, len(attributes))


def _call(number: int, *arguments: int | bytes | None) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    result: int = libc.syscall(number, *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
