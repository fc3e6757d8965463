"""What the journal is told of inodes, and inodes made of what it says."""

import time
from typing import Final

from secretfs.cache.warm_restart import WarmMemory
from secretfs.errors import JournalUnreadable
from secretfs.fs.inode import Directory, Inode, Version
from secretfs.fs.journal import Flag, Journal, Record
from secretfs.fs.keys import DirectoryKey, LeafKey, key_from_text, key_to_text

_NONE: Final = Flag(0)


class InodeRecords:
    """The inodes in a journal. ``memory`` has the contents of files, by digest."""

    def __init__(self, journal: Journal, memory: WarmMemory) -> None:
        self._journal = journal
        self._memory = memory

    def write_down(self, inode: Inode, *, current: bool) -> None:
        """Add an inode that the kernel is about to hear of. ``current``: the path to its place leads to it."""
        inode.slot = self._journal.add(inode.number, key_to_text(inode.key), pin=inode.key.pin)
        self.mark(inode, current=current)
        if isinstance(inode, Version) and inode.digest:
            self._journal.bind(inode.slot, inode.digest, inode.size, inode.modified)

    def mark(self, inode: Inode, *, current: bool) -> None:
        """Write down what is true of an inode, if the kernel has heard of it.

        No path leads to what is pinned, in the eyes of a version of secretfs that does not know it.
        """
        if not inode.slot:
            return
        flags = _NONE  # and one flag, mostly: to join two of them takes longer than all the rest
        if inode.key.pin:
            pass
        elif current:
            flags = Flag.CURRENT
        elif isinstance(inode, Version) and inode.linked:
            flags = Flag.LINKED
        if isinstance(inode, Directory) and inode.outdated:
            flags |= Flag.OUTDATED
        if inode.revoked:
            flags |= Flag.REVOKED
        self._journal.flag(inode.slot, flags)

    def restored(self, record: Record) -> tuple[Inode, bool]:
        """Return an inode of the process before, and whether a path leads to it. Raises `JournalUnreadable`."""
        try:
            key = key_from_text(record.text, record.pin)
        except (ValueError, TypeError, KeyError, RecursionError):
            raise JournalUnreadable(f"inode {record.number} is of no kind that is known here") from None
        revoked = bool(record.flags & Flag.REVOKED)
        current = not revoked if record.pin else bool(record.flags & Flag.CURRENT)
        inode = _directory(record, key) if isinstance(key, DirectoryKey) else _version(record, key, current=current)
        inode.revoked = revoked
        if isinstance(inode, Version) and inode.digest:
            inode.content = None if revoked else self._memory.content(inode.digest)
            inode.in_doubt = inode.content is None
        return inode, current


def _directory(record: Record, key: DirectoryKey) -> Inode:
    directory = Directory(record.number, key, record.lookups, bool(record.flags & Flag.OUTDATED), slot=record.slot)
    directory.modified = time.time()  # another time than before: what the kernel has listed may not be true any more
    return directory


def _version(record: Record, key: LeafKey, *, current: bool) -> Inode:
    linked = current or bool(record.flags & Flag.LINKED)
    version = Version(record.number, key, record.lookups, linked=linked, slot=record.slot)
    version.opened = bool(record.opens)
    if record.flags & Flag.BOUND:
        version.digest, version.size, version.modified = record.digest, record.size, record.modified
    return version
