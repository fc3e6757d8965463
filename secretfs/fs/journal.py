"""The journal: what the kernel knows of this mount, in a memory file that outlives the process.

The kernel goes on using inode numbers after the process that issued them was killed. The next process reads in the
journal what each number stands for, how many references the kernel holds, and how to recognise the content. The journal
has names, sizes, times and keyed digests, and never a value. The memory file has no name in any file system.

A kill may come between any two instructions. So each step is one store of eight bytes, which turns one valid state into
the next: a record is valid once its number is written, which happens last.
"""

import json
import math
import mmap
import os
import secrets
import struct
import time
import weakref
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum, IntFlag
from typing import Final, NamedTuple

from secretfs.errors import JournalUnreadable
from secretfs.fs.keys import PIN

FORMAT: Final = 1
"""Changes when older or newer versions of secretfs cannot read the journal any more. Extend it without that."""
FORMAT_KERNEL_OPENS: Final = 2
"""The same, of a mount whose files the kernel opens by itself: versions that do not expect that must not serve it."""

_MAGIC: Final = int.from_bytes(b"secretfs", "little")
_GROWTH: Final = 256 << 10  # bytes
_WORD: Final = 8
_NOTE: Final = 2**64 - 1  # number of a record that is no inode, as is the next
_WAITER: Final = 2**64 - 2
_LONGEST_INIT: Final = 256  # bytes; FUSE_INIT has 104 (protocol 7.45)
_DIGEST: Final = 16
_LAST: Final = float(1 << 41)  # seconds since the epoch; no answer has a time that is as far away
_DETAILS: Final = ""  # no component has this name; versions that know nothing of it take it for one that is gone


class _Head(IntEnum):
    """Words at the start of the file."""

    MAGIC = 0
    FORMAT = 1
    USED = 2  # words
    NEXT = 3  # inode number
    BORN = 4
    GENERATION = 5
    DIGEST_KEY = 6
    INIT_LENGTH = 10
    INIT = 11
    END = 11 + _LONGEST_INIT // _WORD


class _Field(IntEnum):
    """Words of a record."""

    WORDS = 0  # how long the record is; never changes
    NUMBER = 1  # 0: free
    LOOKUPS = 2
    OPENS = 3
    FLAGS = 4
    SIZE = 5
    MODIFIED = 6
    USED = 7
    DIGEST = 8
    LENGTH = 10
    TEXT = 11


class Flag(IntFlag):
    """States of an inode."""

    CURRENT = 1
    """The path to its place leads to it."""
    BOUND = 2
    """Size, time and digest are those of its content."""
    OUTDATED = 4
    """It is the directory of a store that has gone."""
    LINKED = 8
    """Its path leads to another version, and the kernel has not been told: it may still have this one there."""
    PINNED = 16
    """It is in a directory of one version of a secret, which the 16 bytes behind the text name. Versions of secretfs
    that do not know this take it for a directory or a file of that secret to which no path leads."""
    REVOKED = 32
    """It belongs to an app that has been removed: nobody may read it any more."""


_KEPT: Final = int(Flag.BOUND | Flag.PINNED)


class StoreRecord(NamedTuple):
    """A store as it was served."""

    multi_valued: bool
    type: str = ""
    """The component's; empty if a version of secretfs that did not write it down has served the store."""
    declaration: str = ""
    """A keyed digest of how the component was declared; empty likewise."""
    reads_have_effects: bool = False


class Record(NamedTuple):
    """An inode as the journal has it."""

    slot: int
    number: int
    lookups: int
    opens: int
    flags: Flag
    size: int
    modified: float
    used: float
    digest: bytes
    text: bytes
    pin: bytes


class Journal:
    """The memory file, mapped. One process writes at a time; `file` is the descriptor for the next process."""

    def __init__(self, file: int | None = None) -> None:
        """Begin a journal, or continue the one in ``file``. Raises `JournalUnreadable` if that is none of ours."""
        fresh = file is None
        self.file = os.memfd_create("secretfs-journal", os.MFD_CLOEXEC) if file is None else file
        if fresh:
            os.ftruncate(self.file, _GROWTH)
        self._map = mmap.mmap(self.file, 0) if os.fstat(self.file).st_size >= _GROWTH else None
        if self._map is None:
            raise JournalUnreadable("it is cut off")
        self._words = memoryview(self._map).cast("Q")
        self.close = weakref.finalize(self, os.close, self.file)
        """Close the descriptor. The memory exists as long as another process has it open."""
        self._free: defaultdict[int, list[int]] = defaultdict(list)
        self._note_slots: Sequence[int] | None = None
        if fresh:
            self._begin()
        if self._words[_Head.MAGIC] != _MAGIC or self._words[_Head.FORMAT] not in (FORMAT, FORMAT_KERNEL_OPENS):
            raise JournalUnreadable("it is of another version of secretfs")
        used, init = self._words[_Head.USED], self._words[_Head.INIT_LENGTH]
        if not (_Head.END <= used <= len(self._words) and init <= _LONGEST_INIT and math.isfinite(self.born)):
            raise JournalUnreadable("it is damaged")

    def _begin(self) -> None:
        words = self._words
        words[_Head.USED], words[_Head.NEXT], words[_Head.BORN] = _Head.END, 1, _bits(time.time())
        self._put(_Head.DIGEST_KEY, secrets.token_bytes(32))
        words[_Head.FORMAT], words[_Head.MAGIC] = FORMAT, _MAGIC

    @property
    def digest_key(self) -> bytes:
        """The key of the digests: without the journal they tell nothing about a value."""
        return self._get(_Head.DIGEST_KEY, 32)

    @property
    def init(self) -> bytes:
        """The FUSE_INIT that the kernel sent after the mount; empty until it has been stored."""
        return self._get(_Head.INIT, self._words[_Head.INIT_LENGTH])

    def store_init(self, message: bytes) -> None:
        """Store the kernel's FUSE_INIT: it is sent once, and every takeover needs it."""
        if len(message) > _LONGEST_INIT:
            raise JournalUnreadable(f"a FUSE_INIT of {len(message)} bytes")
        self._put(_Head.INIT, message)
        self._words[_Head.INIT_LENGTH] = len(message)

    @property
    def kernel_opens(self) -> bool:
        """Whether the kernel has been told to open files and directories by itself, which cannot be taken back."""
        return self._words[_Head.FORMAT] == FORMAT_KERNEL_OPENS

    def note_kernel_opens(self) -> None:
        """Write that it is being told."""
        self._words[_Head.FORMAT] = FORMAT_KERNEL_OPENS

    @property
    def born(self) -> float:
        """When the mount was made, in seconds since the epoch."""
        return _float(self._words[_Head.BORN])

    @property
    def generation(self) -> int:
        """The number of takeovers of this mount."""
        return self._words[_Head.GENERATION]

    def begin_generation(self) -> None:
        """Count one more."""
        self._words[_Head.GENERATION] += 1

    def take_number(self) -> int:
        """Return an inode number that has never been used in this mount."""
        number = self._words[_Head.NEXT]
        self._words[_Head.NEXT] = number + 1
        return number

    def records(self) -> Iterator[Record]:
        """Yield all inodes, and find the free records."""
        self._free.clear()  # what was dropped before is found again, and must not be given to two inodes
        for slot in self._slots():
            if not self._words[slot + _Field.NUMBER]:
                self._free[self._words[slot]].append(slot)
            elif self._words[slot + _Field.NUMBER] < _WAITER:
                yield self._record(slot)

    def _slots(self) -> Iterator[int]:
        slot = int(_Head.END)
        while slot < self._words[_Head.USED]:
            words = self._words[slot]
            if words <= _Field.TEXT or slot + words > self._words[_Head.USED]:
                raise JournalUnreadable("it is damaged")
            yield slot
            slot += words

    def _record(self, slot: int) -> Record:
        words = self._words
        length, pinned = words[slot + _Field.LENGTH], words[slot + _Field.FLAGS] & Flag.PINNED
        modified, used = _float(words[slot + _Field.MODIFIED]), _float(words[slot + _Field.USED])
        too_long = _behind(slot, length) + (PIN // _WORD if pinned else 0) > slot + words[slot]
        if too_long or not (abs(modified) < _LAST and abs(used) < _LAST):
            raise JournalUnreadable("it is damaged")
        return Record(
            slot,
            words[slot + _Field.NUMBER],
            words[slot + _Field.LOOKUPS],
            words[slot + _Field.OPENS],
            Flag(words[slot + _Field.FLAGS]),
            words[slot + _Field.SIZE],
            modified,
            used,
            self._get(slot + _Field.DIGEST, _DIGEST),
            self._get(slot + _Field.TEXT, length),
            self._get(_behind(slot, length), PIN if pinned else 0),
        )

    def add(self, number: int, text: bytes, lookups: int = 0, pin: bytes = b"") -> int:
        """Add an inode. Returns the slot by which it is changed from now on."""
        slot = self._room(_behind(0, len(text) + len(pin)))
        words = self._words
        words[slot + _Field.LOOKUPS] = lookups
        for field in (_Field.OPENS, _Field.FLAGS, _Field.SIZE, _Field.MODIFIED, _Field.USED):
            words[slot + field] = 0
        self._put(slot + _Field.TEXT, text)
        if pin:
            self._put(_behind(slot, len(text)), pin)
            words[slot + _Field.FLAGS] = Flag.PINNED
        words[slot + _Field.LENGTH] = len(text)
        words[slot + _Field.NUMBER] = number
        return slot

    def drop(self, slot: int) -> None:
        """Remove a record."""
        self._words[slot + _Field.NUMBER] = 0
        self._free[self._words[slot]].append(slot)

    def count(self, slot: int, lookups: int) -> None:
        """Write how many references the kernel holds."""
        self._words[slot + _Field.LOOKUPS] = lookups

    def note_use(self, slot: int, time: float) -> None:
        """Write that the file has been opened, and when it has been used, in seconds since the epoch."""
        self._words[slot + _Field.OPENS] = 1
        self._words[slot + _Field.USED] = _bits(time)

    def flag(self, slot: int, flags: Flag) -> None:
        """Write the flags of an inode, except BOUND and PINNED."""
        self._words[slot + _Field.FLAGS] = int(flags) | (self._words[slot + _Field.FLAGS] & _KEPT)

    def bind(self, slot: int, digest: bytes, size: int, modified: float) -> None:
        """Write what identifies the content of a version. Done once: a version never changes."""
        self._words[slot + _Field.SIZE] = size
        self._words[slot + _Field.MODIFIED] = _bits(modified)
        self._put(slot + _Field.DIGEST, digest)
        self._words[slot + _Field.FLAGS] |= int(Flag.BOUND)

    def add_waiter(self, message: bytes) -> int:
        """Add the message that wakes a poller. Returns the slot to `drop` when it is no longer needed."""
        return self.add(_WAITER, message)

    def take_waiters(self) -> list[bytes]:
        """Return the messages of all pollers, and remove them."""
        slots = [slot for slot in self._slots() if self._words[slot + _Field.NUMBER] == _WAITER]
        messages = [self._record(slot).text for slot in slots]
        for slot in slots:
            self.drop(slot)
        return messages

    @property
    def stores(self) -> dict[str, StoreRecord]:
        """The stores that were served last, by component."""
        try:
            known = json.loads(self._note() or b"{}")
            details = known.pop(_DETAILS, {})
            return {name: StoreRecord(multi_valued, *details.get(name, ())) for name, multi_valued in known.items()}
        except (ValueError, TypeError, AttributeError, RecursionError):
            raise JournalUnreadable("it does not say which stores were served") from None

    @stores.setter
    def stores(self, stores: Mapping[str, StoreRecord]) -> None:
        note: dict[str, object] = {name: store.multi_valued for name, store in stores.items()}
        note[_DETAILS] = {
            name: (store.type, store.declaration, store.reads_have_effects) for name, store in stores.items()
        }
        self._store_note(json.dumps(note).encode())

    def _note(self) -> bytes:
        """Return the text that `_store_note` wrote last."""
        return max(map(self._record, self._notes()), key=lambda note: note.lookups).text if self._notes() else b""

    def _store_note(self, text: bytes) -> None:
        """Store a text that is about no inode, in the place of the one before."""
        before = self._notes()
        serial = max((self._words[slot + _Field.LOOKUPS] for slot in before), default=0) + 1
        # One that is a little longer than the last fits all the same: else each would leave a gap that nothing fits.
        self._note_slots = [self.add(_NOTE, text.ljust(1 << len(text).bit_length()), serial)]
        for slot in before:
            self.drop(slot)

    def _notes(self) -> Sequence[int]:
        """Return where notes are: after a kill in the middle of `_store_note` there may be two."""
        if self._note_slots is None:
            self._note_slots = [slot for slot in self._slots() if self._words[slot + _Field.NUMBER] == _NOTE]
        return self._note_slots

    def _room(self, words: int) -> int:
        """Return a slot of a length in words, a free one or one at the end."""
        words += -words % 4  # few different lengths, so that free records fit
        if self._free[words]:
            return self._free[words].pop()
        slot = self._words[_Head.USED]
        if slot + words > len(self._words):
            self._grow(words)
        self._words[slot] = words
        self._words[slot + _Field.NUMBER] = 0
        self._words[_Head.USED] = slot + words
        return slot

    def _grow(self, words: int) -> None:
        size = len(self._words) * _WORD + max(_GROWTH, words * _WORD)
        os.ftruncate(self.file, size)
        self._words.release()
        if self._map is not None:
            self._map.close()
        self._map = mmap.mmap(self.file, size)
        self._words = memoryview(self._map).cast("Q")

    def _put(self, word: int, data: bytes) -> None:
        self._words.cast("B")[word * _WORD : word * _WORD + len(data)] = data

    def _get(self, word: int, length: int) -> bytes:
        return bytes(self._words.cast("B")[word * _WORD : word * _WORD + length])


def _behind(slot: int, length: int) -> int:
    """Return the word that follows the text of a record, if that has so many bytes."""
    return slot + _Field.TEXT + -(-length // _WORD)


def _bits(number: float) -> int:
    return int.from_bytes(struct.pack("<d", number), "little")


def _float(bits: int) -> float:
    return float(struct.unpack("<d", bits.to_bytes(8, "little"))[0])
