"""The system calls that `secretfs.fs.publish` has made on our own mount, as the kernel asks us about them. Pure."""

import errno
import secrets
from enum import Enum
from typing import Final, NamedTuple

from secretfs.fs.inode import Inode, Version
from secretfs.fs.names import CONTROL


class Call(Enum):
    """The system calls that publish."""

    RENAME = "rename"
    MKDIR = "mkdir"
    UNLINK = "unlink"
    RMDIR = "rmdir"
    EVICT = "lstat"
    """Finds an entry gone, which it is for this call only: so the kernel forgets what nobody holds."""
    FIND = "statvfs"
    """Finds an inode at a name, where it is for this call only: so the kernel moves a directory there, or is told
    that a file is empty now."""


FINDS_IT: Final = (Call.UNLINK, Call.RMDIR, Call.FIND)
"""The calls that find at their name what they are about."""
OVERTAKEN: Final = (errno.ENOENT, errno.EEXIST, errno.ENOTCONN, errno.ECONNABORTED)
"""A call that fails so was not needed: a reader has looked and the kernel knows already, or the mount is gone."""
SHOWS_NOTHING: Final = (Call.EVICT, Call.FIND)
"""The calls that nobody sees."""


class PendingSyscall(NamedTuple):
    """A system call of ours that is under way, as the kernel will ask about it."""

    call: Call
    parent: int
    segment: bytes
    inode: Inode
    pending: bytes = b""
    """The name a new version is renamed from."""
    replaced: Version | None = None
    """The version it is renamed over: the one that programs know, whatever has been found since. A watch on that file
    itself hears of it then."""


def pending_name() -> bytes:
    """Return a name that nobody can guess."""
    return CONTROL + b"-" + secrets.token_hex(16).encode()
