"""Paths that are followed without a way out: over no link and no ``..``, with openat2(2) (Linux 5.6).

Whoever may rename a directory of a path, or answers for a file system, chooses where links lead. Where there is no
openat2(2), or a filter of system calls keeps us from it, each directory is opened from the one before.
"""

import ctypes
import errno
import os
import struct
from typing import Final

_OPENAT2: Final = 437  # asm-generic/unistd.h; the same on every architecture but alpha
_HOW: Final = struct.Struct("=QQQ")  # struct open_how of linux/openat2.h: flags, mode, resolve
_NO_XDEV, _NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH = 0x01, 0x02, 0x04, 0x08
_FLAGS: Final = os.O_PATH | os.O_CLOEXEC

_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def open_beneath(directory: int, path: bytes) -> int:
    """Return a descriptor of a directory below another one, in the same mount, without rights to read or write.

    Without openat2(2) it may be in another mount: ask for its device. Raises OSError.
    """
    return _open(directory, path, _FLAGS | os.O_DIRECTORY, _BENEATH | _NO_SYMLINKS | _NO_MAGICLINKS | _NO_XDEV)


def open_without_links(path: bytes) -> int:
    """Return a descriptor of what is at an absolute path, or mounted there. It triggers no automount. Raises OSError.

    Of a link it may be one of the link itself.
    """
    return _open(-1, path, _FLAGS, _NO_SYMLINKS | _NO_MAGICLINKS)


def _open(directory: int, path: bytes, flags: int, resolve: int) -> int:
    how = _HOW.pack(flags, 0, resolve)
    opened: int = _LIBC.syscall(_OPENAT2, directory, path, how, ctypes.c_size_t(len(how)))
    if opened >= 0:
        return opened
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EPERM):
        return walk(directory, path, flags)
    raise OSError(code, os.strerror(code))


def walk(directory: int, path: bytes, flags: int) -> int:
    """Open what is at a path, one name after the other. Raises OSError."""
    names = [name for name in path.split(b"/") if name not in (b"", b".")]
    if b".." in names:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
    start = b"/" if path.startswith(b"/") else b"."
    opened = os.open(start, _FLAGS | os.O_DIRECTORY, dir_fd=None if start == b"/" else directory)
    for name in names:
        above = opened
        last = name is names[-1]
        try:
            opened = os.open(name, (flags if last else _FLAGS | os.O_DIRECTORY) | os.O_NOFOLLOW, dir_fd=above)
        finally:
            os.close(above)
    return opened
