"""Messages to the kernel that answer no request: what it must not take for right any more. See linux/fuse.h.

The kernel may wait for a lock that somebody holds who waits for us. Only a process that nobody waits for may wait so:
`send` has the helper write them. Should we be killed meanwhile, our successor lets it go on.
"""

import struct
from collections.abc import Iterable, Iterator
from typing import Final

from secretfs.linux.syscall_helper import SyscallHelper
from secretfs.linux.syscall_server import LARGEST

_HEADER: Final = struct.Struct("=IiQ")  # len, code of the message, unique: 0
_INVAL_INODE_OUT: Final = struct.Struct("=Qqq")  # inode, offset (negative: only attributes), length (0: all)
_INVAL_ENTRY_OUT: Final = struct.Struct("=QII")  # parent, length of the name, flags
_INVAL_INODE: Final = 2
_INVAL_ENTRY: Final = 3
_RESEND: Final = 7
_EXPIRE_ONLY: Final = 1 << 0  # Linux 6.2; before, the entry is dropped, also from those who watch it

_ROOM: Final = LARGEST // 2  # bytes of messages in one request to the helper


def resend() -> bytes:
    """Have it send again what was read and not answered."""
    return _message(_RESEND)


def expire_entry(parent: int, name: bytes) -> bytes:
    """Have it look a name up again before anybody uses it."""
    return _message(_INVAL_ENTRY, _INVAL_ENTRY_OUT.pack(parent, len(name), _EXPIRE_ONLY) + name + b"\0")


def forget_attributes(inode: int) -> bytes:
    """Have it ask for the attributes of an inode again. It waits for nothing."""
    return _message(_INVAL_INODE, _INVAL_INODE_OUT.pack(inode, -1, 0))


def drop_pages(inode: int) -> bytes:
    """Have it ask for the bytes of a file again, and for its attributes."""
    return _message(_INVAL_INODE, _INVAL_INODE_OUT.pack(inode, 0, 0))


async def send(helper: SyscallHelper, connection: int, messages: Iterable[bytes]) -> None:
    """Have the helper write messages to the connection of a mount. Raises OSError if it cannot.

    One about what the kernel does not know does nothing.
    """
    for batch in _batches(messages):
        await helper.call("write_each", *batch, descriptor=connection)


def _message(code: int, body: bytes = b"") -> bytes:
    return _HEADER.pack(_HEADER.size + len(body), code, 0) + body


def _batches(messages: Iterable[bytes]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    size = 0
    for message in messages:
        digits = message.hex().encode()
        if size + len(digits) > _ROOM:
            yield batch
            batch, size = [], 0
        batch.append(digits)
        size += len(digits)
    if batch:
        yield batch
