"""Which files are opened, as the kernel reports it to an audit log: where it opens them by itself, nothing else tells.

A directory is marked before the kernel learns of a version in it; until then it asks us for attributes.

Events stay in a descriptor that a supervisor keeps, so those from before a takeover are recorded as well.
"""

import errno
import logging
import os
from pathlib import Path
from typing import Final

import trio

from secretfs.fs.attributes import Attributes
from secretfs.fs.caller import Caller
from secretfs.fs.changes import Changes
from secretfs.fs.inode import Directory
from secretfs.fs.inodes import ROOT_INODE
from secretfs.fuse.open_events import OpenEvents
from secretfs.linux.syscall_helper import SyscallHelper

PATIENCE: Final = 1.0
"""Seconds for which a request waits until a directory is marked. The mark takes a path walk, and a rename that waits
for the request may be in the way."""

_UNREPORTED: Final = "the kernel does not report what is opened (fanotify): %s"
_GONE: Final = (errno.ENOENT, errno.ENOTCONN, errno.ECONNABORTED, errno.EXDEV)
"""There is no such directory any more, or no mount, or another file system is mounted over it."""

log = logging.getLogger(__name__)


async def group_for_opens(helper: SyscallHelper) -> int | None:
    """Return the descriptor of a new group for `OpenWatcher`; None where the kernel has none for us.

    The helper opens it: a unit whose SystemCallFilter= does not know fanotify kills the process that does.
    """
    try:
        return await helper.call("open_group")
    except OSError as error:
        log.warning(_UNREPORTED, error.strerror)
        return None


class Opens:
    """What the adapter tells of what the kernel knows, so that it reports all opens. This one has none reported."""

    reported = False
    """Whether the kernel reports all opens of files whose content it has."""

    async def watch(self, file: int) -> None:
        """Have opens of a file reported. Call it before the kernel learns of its size."""

    def begin_to_watch(self, number: int) -> None:
        """Begin to watch the files of a directory, as they will have to be: a mark takes as long as a fast store."""

    def forget(self, number: int) -> None:
        """Take note that the kernel has given up references to an inode."""

    def lookup(self, parent: int, segment: bytes, caller: Caller) -> Attributes | None:
        """Answer a look-up of ours that must not wait for a store; None for any other."""


class OpenWatcher(Opens):
    """Has all opens of files in the directories that it has marked reported, with fanotify(7)."""

    def __init__(
        self, changes: Changes, events: OpenEvents, mountpoint: Path, helper: SyscallHelper, nursery: trio.Nursery
    ) -> None:
        self._changes = changes
        self._events = events
        self._mountpoint = os.fsencode(mountpoint)
        self._helper = helper
        self._nursery = nursery
        self._marked: set[int] = set()
        """The directories that are marked, by number."""
        self._pending: dict[int, trio.Event] = {}
        """Those that are being marked; set when that is done."""
        self._one_at_a_time = trio.Lock()
        self._way: dict[tuple[int, bytes], Directory] = {}
        """The directories on the way to the one that is being marked."""
        self._refused = 0
        """The errno of the last mark that was refused, which has been logged."""

    async def run(self, *, inherited: bool = False) -> None:
        """Have opens reported. Runs forever, or returns if the kernel does not report them, which the log says.

        Marks first what the kernel knows from a process before us. Nothing waits for that if the group is ``inherited``
        with its marks.
        """
        root = self._changes.directory(ROOT_INODE)
        try:
            if root is None or not await self._mark(root):
                return
            self.reported = inherited
            for directory in self._changes.directories_in_use():
                await self._wait(directory)
            self.reported = True
            await trio.sleep_forever()
        finally:
            self._events.close()

    async def watch(self, file: int) -> None:
        """Mark the directory of a file, and wait until that is done."""
        directory = self._changes.directory_of(file)
        if directory and not self._is_marked(directory):
            with trio.move_on_after(PATIENCE):
                await self._wait(directory)

    def begin_to_watch(self, number: int) -> None:
        """Begin to mark a directory whose files will be watched."""
        directory = self._changes.directory(number)
        if directory:
            self._begin(directory)

    def forget(self, number: int) -> None:
        """Take note that the kernel has given up references to an inode: a mark of it is gone."""
        if number in self._marked:
            self._marked.remove(number)
            directory = self._changes.directory(number)
            if directory:
                self._begin(directory)  # it has been looked up again in the meantime

    def lookup(self, parent: int, segment: bytes, caller: Caller) -> Attributes | None:
        """Answer a look-up for a mark that is being made, without a store; None for any other."""
        directory = self._way.get((parent, segment)) if caller.pid == self._helper.pid else None
        return self._changes.entry_of(directory) if directory else None

    def _begin(self, directory: Directory) -> None:
        """Begin to mark a directory, unless it is marked or about to be."""
        if directory.number not in self._marked and directory.number not in self._pending:
            self._pending[directory.number] = trio.Event()
            self._nursery.start_soon(self._mark_and_tell, directory)

    async def _wait(self, directory: Directory) -> None:
        """Wait until a directory is marked, or cannot be: then the next request tries again."""
        self._begin(directory)
        if directory.number in self._pending:
            await self._pending[directory.number].wait()

    def _is_marked(self, directory: Directory) -> bool:
        return directory.number in self._marked and directory.number not in self._pending

    async def _mark_and_tell(self, directory: Directory) -> None:
        number, marked = directory.number, False
        try:
            while not marked:
                self._marked.add(number)
                if not await self._mark(directory):
                    self._marked.discard(number)
                    return
                marked = number in self._marked  # else the kernel has forgotten it meanwhile, and the mark with it
        finally:
            self._pending.pop(number).set()

    async def _mark(self, directory: Directory) -> bool:
        """Have the kernel report what is opened in a directory. Returns whether it does."""
        path = os.path.join(self._mountpoint, self._changes.path(directory.key))  # noqa: PTH118 - bytes
        async with self._one_at_a_time:
            self._way = self._changes.way(directory.key)
            try:
                await self._helper.call("mark_opens", path, descriptor=self._events.group)
            except OSError as error:
                level = logging.DEBUG if error.errno in (*_GONE, self._refused) else logging.WARNING
                if error.errno not in _GONE:
                    self._refused = error.errno or 0
                log.log(level, _UNREPORTED, error.strerror)
                return False
            finally:
                self._way = {}
        return True
