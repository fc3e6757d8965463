"""State of what is open: snapshots of directories, and callers that poll a file. Pure.

A file needs none: its handle is its inode number.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from secretfs.fs.journal import Journal
from secretfs.fs.keys import DirectoryKey, LeafKey

Entries = list[tuple[bytes, DirectoryKey | LeafKey, float]]
"""What is in a directory: segment, place, and until when that holds, on trio's clock."""

_NUMBER_BITS = 40
_NUMBER = (1 << _NUMBER_BITS) - 1
"""Inode numbers stay below: ten years of a thousand versions a second are 3e11."""

MAX_WAITERS: Final = 1000
"""Waiters that are remembered for each time that a file is open. A poll that has timed out is remembered too."""


@dataclass(slots=True)
class _Listing:
    entries: Entries
    opens: int = 0


class DirectoryHandles:
    """Snapshots of directories by handle.

    A handle is the inode number and, above that, a digest of the names: a process that takes over can tell whose it is,
    and whether the directory still holds the same. Who opens a directory with the same names in it shares the snapshot.
    """

    def __init__(self) -> None:
        self._listings: dict[int, _Listing] = {}

    def __len__(self) -> int:
        return len(self._listings)

    def open(self, number: int, entries: Entries) -> int:
        """Keep a snapshot of a directory; returns the handle."""
        handle = _handle(number, entries)
        listing = self._listings.setdefault(handle, _Listing(entries))
        listing.entries = entries  # the same names, known for longer
        listing.opens += 1
        return handle

    def get(self, handle: int) -> Entries | None:
        """Return the snapshot; None for a directory that was opened before this process took over."""
        listing = self._listings.get(handle)
        return listing.entries if listing else None

    def restore(self, handle: int, entries: Entries) -> bool:
        """Take over a directory that holds these entries now. Whether that is what it held when it was opened."""
        same = _handle(directory_of(handle), entries) == handle
        if same:
            self._listings.setdefault(handle, _Listing(entries))
        return same

    def close(self, handle: int) -> None:
        """Drop a snapshot when the last who has it closes it. One from before we took over may never have been used."""
        listing = self._listings.get(handle)
        if listing is not None:
            listing.opens -= 1
            if listing.opens <= 0:
                del self._listings[handle]


class PollWaiters:
    """Waiters by inode number. They are in the journal as well: a process that takes over has them poll again."""

    def __init__(self, journal: Journal, wake: Callable[[bytes], None]) -> None:
        """``wake`` is called with each waiter when it is time, and at once with those of the process before us."""
        self._journal = journal
        self._wake = wake
        self._waiters: dict[int, dict[bytes, int]] = {}
        for waiter in journal.take_waiters():
            wake(waiter)

    def __len__(self) -> int:
        return len(self._waiters)

    def add(self, number: int, waiter: bytes, opens: int) -> None:
        """Remember who polls a file that is open so many times."""
        waiters = self._waiters.setdefault(number, {})
        if waiter in waiters:
            return
        if len(waiters) >= MAX_WAITERS * opens:
            self.wake(number)  # whoever still waits polls again
            waiters = self._waiters.setdefault(number, {})
        waiters[waiter] = self._journal.add_waiter(waiter)

    def wake(self, number: int) -> None:
        """Wake all who poll a file."""
        for waiter, slot in self._waiters.pop(number, {}).items():
            self._journal.drop(slot)
            self._wake(waiter)

    def forget(self, number: int) -> None:
        """Forget who polls a file: it is closed."""
        for slot in self._waiters.pop(number, {}).values():
            self._journal.drop(slot)


def directory_of(handle: int) -> int:
    """Return the inode number of the directory that a handle is for."""
    return handle & _NUMBER


def _handle(number: int, entries: Entries) -> int:
    digest = hashlib.blake2b(b"/".join(segment for segment, _, _ in entries), digest_size=3).digest()
    return number | int.from_bytes(digest, "big") << _NUMBER_BITS
