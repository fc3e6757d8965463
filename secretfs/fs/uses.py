"""Which files programs use. A use is an open; a stat or a listing is none.

What is in use is kept fresh in the background, and leaves memory only ``idle`` after its last use.

Where the kernel opens files by itself no request tells of an open, but the first one to read does. From then on the
kernel has the bytes. For as long as it may use them without asking us, they count as used. When it asks where the path
leads, and has not asked for the bytes for a part of ``idle``, they are taken from it: whoever uses the file has it ask
for them again. (Idle page tracking, as in the kernel. Marks of fanotify(7) would report each open, but then a read
takes 1.3 times as long, and 1.4 times if there are several at once.)
"""

from collections.abc import Callable, Collection
from typing import Final

import trio

from secretfs.fs.content import Contents
from secretfs.fs.inode import Version
from secretfs.fs.inodes import Tree
from secretfs.fs.keys import ControlKey, FileKey

CONFIRM_PART: Final = 0.25
"""Of the time after which what nobody uses is dropped: for so long a use need not be confirmed."""


class Uses:
    """Takes note of opens, by the requests that tell of them.

    ``kernel_opens`` is whether the kernel opens files by itself.
    """

    def __init__(self, tree: Tree, contents: Contents, kernel_opens: Callable[[], bool]) -> None:
        self._tree = tree
        self._contents = contents
        self._kernel_opens = kernel_opens
        self.unasked = kernel_opens()
        """Whether it has opened one by itself. Kept here because a listing wants to know it for each entry."""
        self._unconfirmed: set[Version] = set()
        self._some_are_unconfirmed = trio.Event()
        for version in tree.bound():
            if version.opened:  # and its bytes were read from the process before us
                version.used, version.cached = trio.current_time(), True

    def note(self, number: int) -> None:
        """Take note that a file has been opened. One that is not known any more, and a control file, do not count."""
        inode = self._tree.inode(number) if number in self._tree else None
        if isinstance(inode, Version) and not isinstance(inode.key, ControlKey):
            inode.used, inode.cached = trio.current_time(), True
            self._use(inode, inode.key)

    def note_request(self, number: int) -> None:
        """Take note of a request that tells of an open, if the kernel has asked for none: to read, or to poll."""
        if self._kernel_opens():
            self.unasked = True
            self.note(number)

    def note_empty(self, number: int) -> None:
        """Take note that somebody looks at a file: if it is empty, nothing else tells that it is used."""
        version = self._tree.inode(number)
        if isinstance(version, Version) and version.digest and not version.size:
            self.note_request(number)

    def note_entry(self, version: Version) -> None:
        """Take note that the kernel, which may have the bytes of a version, learns again that a path leads there.

        Until that expires, it may open the file by itself.
        """
        if isinstance(version.key, ControlKey):
            return
        self._use(version, version.key)
        if trio.current_time() - version.used >= CONFIRM_PART * self._contents.idle(version.key):
            version.cached = False
            self._unconfirmed.add(version)
            self._some_are_unconfirmed.set()

    async def unconfirmed(self) -> Collection[Version]:
        """Wait until there are files of which it is to be found out whether somebody uses them. Returns them once."""
        await self._some_are_unconfirmed.wait()
        self._some_are_unconfirmed = trio.Event()
        found, self._unconfirmed = self._unconfirmed, set()
        return found

    def _use(self, version: Version, key: FileKey) -> None:
        now = trio.current_time()
        until = max(now, version.entry_expires) if self.unasked else now
        self._tree.open(version, until - now)
        self._contents.use(key, until)
