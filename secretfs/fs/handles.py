"""State of what is open: snapshots of directories, and programs that poll a file. Pure.

A file has no snapshot: its handle is its inode number.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from secretfs.errors import SecretFSError
from secretfs.fs.caller import Caller
from secretfs.fs.inode_numbers import NUMBER_BITS
from secretfs.fs.journal import Journal
from secretfs.fs.keys import LeafKey
from secretfs.fs.listing import Listing

_NUMBER = (1 << NUMBER_BITS) - 1
_PLACE_BITS = 32
_PLACE = (1 << _PLACE_BITS) - 1

REPEATED_WITHIN: Final = 0.5
"""Seconds within which the kernel repeats a look-up that has failed."""

MAX_WAITERS: Final = 1000
"""Waiters that are remembered for each file. A poll that has timed out, or whose file is closed, is remembered too."""


@dataclass(slots=True)
class Snapshot:
    """What was in a directory when it was opened."""

    listing: Listing
    expires: float
    """Until when it holds, on trio's clock."""
    opens: int = 0
    read_at: float = 0.0
    """When it was last read, likewise."""


SNAPSHOT_IDLE: Final = 600.0
"""Seconds for which a snapshot of a directory that nobody opened with us is kept after it was last read."""


class DirectoryHandles:
    """Snapshots of directories by handle.

    A handle is the inode number and, above that, the digest of the names, so a process that takes over knows which
    directory it is for, and whether that still holds the same names. Handles of a directory with the same names share
    one snapshot.

    A directory that the kernel opens by itself has only its inode number. There the digest is in the position, above
    the place in the listing, and the snapshot is dropped when it has not been read for a time.
    """

    def __init__(self) -> None:
        self._snapshots: dict[int, Snapshot] = {}

    def __len__(self) -> int:
        return len(self._snapshots)

    def open(self, number: int, listing: Listing, expires: float) -> int:
        """Keep a snapshot of a directory; returns the handle."""
        handle = _handle(number, listing)
        snapshot = self._snapshots.setdefault(handle, Snapshot(listing, expires))
        snapshot.listing, snapshot.expires = listing, expires  # the same names, known for longer
        snapshot.opens += 1
        return handle

    def keep(self, number: int, listing: Listing, expires: float) -> int:
        """Keep a snapshot of a directory that the kernel has opened by itself; returns the handle to read on with."""
        handle = self.open(number, listing, expires)
        self._snapshots[handle].opens -= 1
        return handle

    def get(self, handle: int, now: float = 0.0) -> Snapshot | None:
        """Return the snapshot; None for a directory that was opened before this process took over."""
        snapshot = self._snapshots.get(handle)
        if snapshot is not None:
            snapshot.read_at = now
        return snapshot

    def drop_idle(self, now: float) -> None:
        """Drop what was not read for long, and whose end nobody tells us."""
        idle = [key for key, one in self._snapshots.items() if one.opens <= 0 and one.read_at < now - SNAPSHOT_IDLE]
        for handle in idle:
            del self._snapshots[handle]

    def restore(self, handle: int, listing: Listing, expires: float) -> Snapshot | None:
        """Take over a handle from the process before, if the directory holds the same names now."""
        if _handle(directory_of(handle), listing) != handle:
            return None
        return self._snapshots.setdefault(handle, Snapshot(listing, expires))

    def close(self, handle: int) -> None:
        """Drop a snapshot with its last handle. A handle from before the takeover may never have been used here."""
        snapshot = self._snapshots.get(handle)
        if snapshot is not None:
            snapshot.opens -= 1
            if snapshot.opens <= 0:
                del self._snapshots[handle]


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

    def add(self, number: int, waiter: bytes) -> None:
        """Remember a program that polls a file."""
        waiters = self._waiters.setdefault(number, {})
        if waiter in waiters:
            return
        if len(waiters) >= MAX_WAITERS:
            self.wake(number)  # a program that still waits polls again
            waiters = self._waiters.setdefault(number, {})
        waiters[waiter] = self._journal.add_waiter(waiter)

    def wake(self, number: int) -> None:
        """Wake all programs that poll a file."""
        for waiter, slot in self._waiters.pop(number, {}).items():
            self._journal.drop(slot)
            self._wake(waiter)

    def forget(self, number: int) -> None:
        """Forget the programs that poll a file. The kernel has forgotten it, so it is open nowhere."""
        for slot in self._waiters.pop(number, {}).values():
            self._journal.drop(slot)


class FailedLookups:
    """Look-ups that failed, of names that the kernel has. It repeats each of them once, for the same caller."""

    def __init__(self) -> None:
        self._failed: dict[tuple[Caller, LeafKey], tuple[float, SecretFSError]] = {}

    def add(self, caller: Caller, key: LeafKey, now: float, error: SecretFSError) -> None:
        """Remember how a look-up failed, now, on the owner's clock."""
        self._failed[caller, key] = now, error

    def raise_again(self, caller: Caller, key: LeafKey, now: float) -> None:
        """Raise the error again if this is the repetition: the caller has waited for it already."""
        failed_at, error = self._failed.pop((caller, key), (0.0, None))
        if error is not None and now <= failed_at + REPEATED_WITHIN:
            raise copy.copy(error)

    def drop_old(self, now: float) -> None:
        """Forget those that were not repeated."""
        self._failed = {call: failed for call, failed in self._failed.items() if now <= failed[0] + REPEATED_WITHIN}


def directory_of(handle: int) -> int:
    """Return the inode number of the directory that a handle is for."""
    return handle & _NUMBER


def locate(handle: int, position: int) -> tuple[int, int]:
    """Return the handle with the digest of the names, and the place in the listing, from what READDIR has."""
    return handle | position >> _PLACE_BITS << NUMBER_BITS, position & _PLACE


def position(handle: int, snapshot: Snapshot, place: int) -> int:
    """Return how the kernel is to call a place in a listing that it reads with a handle."""
    return place if handle >> NUMBER_BITS else snapshot.listing.digest << _PLACE_BITS | place


def _handle(number: int, listing: Listing) -> int:
    return number | listing.digest << NUMBER_BITS
