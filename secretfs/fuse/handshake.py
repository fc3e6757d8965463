"""FUSE_INIT: what the kernel offers when a mount begins, and what we take of it. Pure. See linux/fuse.h.

We answer it ourselves, for the first process that serves a mount and for every one that takes over: libfuse 3.14 never
asks for FUSE_PARALLEL_DIROPS, takes FUSE_ATOMIC_O_TRUNC, and leaves the number of reads under way at 12. Then it is
shown an offer of nothing but what we have taken, and the kernel ignores its answer, which comes second.

Where the kernel is to open files and directories by itself, the accepted offer says so: the kernel knows of it when
OPEN and OPENDIR are first answered with ENOSYS, and whoever takes the mount over must know as well.
"""

import struct
from typing import Final

from secretfs.errors import MountError

_FUSE_INIT: Final = 26
_IN_HEADER: Final = struct.Struct("=IIQQIIII")  # len, opcode, unique, nodeid, uid, gid, pid, total_extlen
_INIT_IN: Final = struct.Struct("=IIIII")  # major, minor, max_readahead, flags, flags2
_OUT_HEADER: Final = struct.Struct("=IiQ")  # len, error, unique
_INIT_OUT: Final = struct.Struct("=IIIIHHIIHHIIH22x")
# major, minor, max_readahead, flags, max_background, congestion_threshold, max_write, time_gran, max_pages,
# map_alignment, flags2, max_stack_depth, request_timeout

_MAJOR, _MINOR = 7, 38  # what libfuse 3.14 speaks
_ASYNC_READ: Final = 1 << 0  # several reads of one file at a time
_ATOMIC_O_TRUNC: Final = 1 << 3
_KERNEL_OPENS: Final = 1 << 17 | 1 << 24  # NO_OPEN_SUPPORT, NO_OPENDIR_SUPPORT
_WANTED: Final = (
    _ASYNC_READ
    | 1 << 5  # BIG_WRITES: a request to refresh comes in one piece
    | 1 << 12  # AUTO_INVAL_DATA: a directory whose time has changed is listed anew
    | 1 << 13  # DO_READDIRPLUS: a listing has the attributes with the names
    | 1 << 15  # ASYNC_DIO
    | 1 << 18  # PARALLEL_DIROPS: look-ups of several names in one directory at a time
    | 1 << 30  # INIT_EXT: there are more flags, in flags2
    | 1
    << 22  # MAX_PAGES: libfuse's buffer is then too large for its pipe, and it reads a request with one call, not two
)  # without ATOMIC_O_TRUNC: truncating is a request of its own, which can be refused
_FLAGS2_HAS_RESEND: Final = 1 << (39 - 32)

_MAX_WRITE: Final = 128 << 10  # bytes
_PAGES: Final = 256  # of one request to read: 1 MB
_BACKGROUND: Final = 512  # reads ahead that may be under way: one store that hangs must not keep others from reading


def require_init(message: bytes) -> None:
    """Raise `MountError` if a message is not FUSE_INIT."""
    if len(message) < _IN_HEADER.size + _INIT_IN.size or _IN_HEADER.unpack_from(message)[1] != _FUSE_INIT:
        raise MountError("the kernel did not begin with FUSE_INIT, as Linux 5.4 and newer do")


def accept(offer: bytes, *, kernel_opens: bool = False) -> bytes:
    """Return the kernel's offer with nothing in it but what we take: if it can, also that it opens files by itself.

    Then it must not read ahead for nobody (ASYNC_READ). Linux from 6.9 on, without the fix "fuse: fix readahead reclaim
    deadlock" (6.19, and stable releases from January 2026 on), holds no reference to the inode meanwhile: if the file
    is closed and memory is short, whoever reclaims the inode waits for a page that we have yet to fill, and that may
    be us. Without ASYNC_READ a program waits for each request to read, and has the file open as long. So there is
    nothing to find out about a kernel, whose number does not tell what a distribution has put in.
    """
    major, minor, readahead, flags, flags2 = _INIT_IN.unpack_from(offer, _IN_HEADER.size)
    wanted = _WANTED
    if kernel_opens and flags & _KERNEL_OPENS == _KERNEL_OPENS:
        wanted = _WANTED & ~_ASYNC_READ | _KERNEL_OPENS
    taken = bytearray(offer)
    _INIT_IN.pack_into(taken, _IN_HEADER.size, major, minor, readahead, flags & wanted, flags2)
    return bytes(taken)


def kernel_opens(offer: bytes) -> bool:
    """Whether an accepted offer says that the kernel may be told to open files and directories by itself."""
    flags = _INIT_IN.unpack_from(offer, _IN_HEADER.size)[3]
    return is_accepted(offer) and flags & (_KERNEL_OPENS | _ASYNC_READ) == _KERNEL_OPENS


def is_accepted(offer: bytes) -> bool:
    """Whether an offer is what `accept` returned; else libfuse has answered it, in a version of secretfs before."""
    return not _INIT_IN.unpack_from(offer, _IN_HEADER.size)[3] & _ATOMIC_O_TRUNC


def answer(offer: bytes) -> bytes:
    """Return our answer to an accepted offer."""
    unique = _IN_HEADER.unpack_from(offer)[2]
    _, minor, readahead, flags, _ = _INIT_IN.unpack_from(offer, _IN_HEADER.size)
    limits = (_BACKGROUND, _BACKGROUND * 3 // 4, _MAX_WRITE, 1, _PAGES)
    body = _INIT_OUT.pack(_MAJOR, min(minor, _MINOR), readahead, flags, *limits, 0, 0, 0, 0)
    return _OUT_HEADER.pack(_OUT_HEADER.size + len(body), 0, unique) + body


def knows_resend(offer: bytes) -> bool:
    """Whether the kernel sends again what was read and not answered (FUSE_NOTIFY_RESEND, Linux 6.9)."""
    if len(offer) < _IN_HEADER.size + _INIT_IN.size:
        return False
    return bool(_INIT_IN.unpack_from(offer, _IN_HEADER.size)[4] & _FLAGS2_HAS_RESEND)
