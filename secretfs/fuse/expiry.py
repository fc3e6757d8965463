"""What the kernel has in its caches and is to ask for again, before a program uses it.

Where the kernel opens files by itself nothing else keeps it from leading to what an entry stood for before: another
store may be shown at that place by now, or have another value since the process before us has looked. And wherever a
store refuses what it gave before, an entry would lead to that for the rest of its ttl.

Nor does anything else tell whether somebody still reads a file of which the kernel has the bytes (`secretfs.fs.uses`).
"""

import logging
from collections.abc import Iterable
from typing import Final

import trio

from secretfs.fs.changes import Changes
from secretfs.fs.uses import Uses
from secretfs.fuse.connection import Connection
from secretfs.fuse.notifications import drop_pages, expire_entry, send
from secretfs.linux.syscall_helper import SyscallHelper

SOON: Final = 0.05
"""Seconds until bytes are dropped: those of several files at once, and not while their readers need the processor."""

log = logging.getLogger(__name__)


class Expiry:
    """Has entries expire, and the bytes of files."""

    def __init__(self, connection: Connection, helper: SyscallHelper, changes: Changes, uses: Uses) -> None:
        self._connection = connection
        self._helper = helper
        self._changes = changes
        self._uses = uses
        self.done = trio.Event()
        """Set when what is to be confirmed has expired once."""

    async def run(self) -> None:
        """Have those entries expire that are to be confirmed."""
        if self._connection.warm_reads.by_kernel:
            await self.expire(self._changes.entries())
        self.done.set()

    async def expire(self, entries: Iterable[tuple[int, bytes]]) -> None:
        """Have entries expire: inode of the directory, and name."""
        try:
            await send(self._helper, self._connection.descriptor, (expire_entry(*entry) for entry in entries))
        except OSError as error:
            log.warning("what the kernel knows of files is used until its ttl is over: %s", error.strerror)

    async def confirm_uses(self) -> None:
        """Have the bytes of files expire of which nothing else tells whether they are still used. Runs forever."""
        while True:
            files = await self._uses.unconfirmed()
            await trio.sleep(SOON)
            try:
                await send(self._helper, self._connection.descriptor, (drop_pages(file.number) for file in files))
            except OSError as error:
                log.warning("files that nobody uses stay in memory: %s", error.strerror)
                for file in files:
                    file.cached = True
