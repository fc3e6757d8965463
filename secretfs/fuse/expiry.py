"""Entries that are to expire at once: before a program uses them again, the kernel looks the name up.

Where the kernel opens files by itself nothing else keeps it from leading to what an entry stood for before: another
store may be shown at that place by now, or have another value since the process before us has looked. And wherever a
store refuses what it gave before, an entry would lead to that for the rest of its ttl.
"""

import logging
import struct
from collections.abc import Iterable, Iterator
from typing import Final

import trio

from secretfs.fs.changes import Changes
from secretfs.fuse.connection import Connection
from secretfs.linux.syscall_helper import SyscallHelper
from secretfs.linux.syscall_server import LARGEST

log = logging.getLogger(__name__)

_HEADER: Final = struct.Struct("=IiQ")  # len, error, unique: linux/fuse.h
_ENTRY: Final = struct.Struct("=QII")  # parent, length of the name, flags
_NOTIFY_INVAL_ENTRY: Final = 3
_EXPIRE_ONLY: Final = 1 << 0  # Linux 6.2; before, the entry is dropped, also from those who watch it

_ROOM: Final = LARGEST // 2  # bytes of messages in one request to the helper


class Expiry:
    """Has entries expire."""

    def __init__(self, connection: Connection, helper: SyscallHelper, changes: Changes) -> None:
        self._connection = connection
        self._helper = helper
        self._changes = changes
        self.done = trio.Event()
        """Set when what is to be confirmed has expired once."""

    async def run(self) -> None:
        """Have those expire that are to be confirmed."""
        if self._connection.warm_reads.by_kernel:
            await self.expire(self._changes.entries())
        self.done.set()

    async def expire(self, entries: Iterable[tuple[int, bytes]]) -> None:
        """Have entries expire: inode of the directory, and name.

        The kernel waits for the lock of the directory, which somebody may hold who waits for us. Only a process that
        nobody waits for may wait so; should we be killed meanwhile, our successor lets it go on.
        """
        try:
            for messages in _batches(entries):
                await self._helper.call("write_each", *messages, descriptor=self._connection.descriptor)
        except OSError as error:
            log.warning("what the kernel knows of files is used until its ttl is over: %s", error.strerror)


def _batches(entries: Iterable[tuple[int, bytes]]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    size = 0
    for parent, name in entries:
        body = _ENTRY.pack(parent, len(name), _EXPIRE_ONLY) + name + b"\0"
        message = (_HEADER.pack(_HEADER.size + len(body), _NOTIFY_INVAL_ENTRY, 0) + body).hex().encode()
        if size + len(message) > _ROOM:
            yield batch
            batch, size = [], 0
        batch.append(message)
        size += len(message)
    if batch:
        yield batch
