"""An arena: records in memory that outlives the process, for what would otherwise have to be asked again.

It consists of segments, each a memory file of its own: a secret memory file gets its size once and never another. The
supervisor, or systemd, holds their descriptors and does not map them.

A kill may come between any two instructions. So each step is one store of eight bytes, which turns one valid state into
the next: a record counts once its serial is written, which happens last, and does not count any more once that is 0.
Each record has a keyed checksum: whatever else is found in the memory is not believed. It is that of another checksum,
the CRC of the text, which takes a quarter of the time: a process that takes over looks at every byte before it answers
anybody (measured: 26 ms for 64 MB instead of 98). What is dropped is overwritten with zeros, and a segment that is
empty is given back.
"""

import hashlib
import logging
import math
import mmap
import os
import weakref
import zlib
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import IntEnum
from typing import Final, NamedTuple

FORMAT: Final = 2
"""Changes with the format of segments or of what their records say. What has another one is ignored."""
SMALLEST: Final = 256 << 10
"""Bytes of the first segment. Each of the next ones is as large as all before it, up to `LARGEST`."""
LARGEST: Final = 16 << 20
"""Bytes of a segment, unless a single record takes more."""

_MAGIC: Final = int.from_bytes(b"sfsarena", "little")
_WORD: Final = 8
_SHIFT: Final = 40  # bits of a place within its segment
_PLACE: Final = (1 << _SHIFT) - 1
_LENGTH: Final = (1 << 32) - 1
_ROUND: Final = 4  # words; few different lengths, so that free blocks fit

log = logging.getLogger(__name__)


class _Head(IntEnum):
    """Words at the start of a segment."""

    MAGIC = 0
    FORMAT = 1
    END = 4


class _Field(IntEnum):
    """Words of a block. A free one has the serial 0, and nothing but zeros after it."""

    WORDS = 0  # how long the block is
    SERIAL = 1
    CHECKSUM = 2
    LENGTHS = 3  # of the text in bytes, and the number of marks << 32
    BODY = 4  # marks, a word each, and then the text


class Record(NamedTuple):
    """A record as a predecessor has left it."""

    slot: int
    serial: int
    """Later records have higher ones."""
    marks: tuple[float, ...]


class ArenaFull(Exception):
    """There is no memory for another record that could be kept."""


class Storage:
    """Where segments come from, and who holds them besides us. This one has none: nothing outlives the process."""

    def create(self, size: int) -> int:
        """Return the descriptor of a new memory file of a size in bytes. Raises OSError."""
        raise OSError

    def keep(self, number: int, descriptor: int) -> None:
        """Have a segment held for the next process. Raises OSError."""

    def drop(self, number: int) -> None:
        """Have it held no more."""


class Arena:
    """Records by slot. One process at a time uses it. ``key`` is the same for all processes of a mount."""

    def __init__(self, key: bytes, storage: Storage, inherited: Mapping[int, int] | None = None) -> None:
        """Begin an arena, or go on with the segments that a predecessor has left, by number."""
        self._key = key
        self._storage = storage
        self._segments: dict[int, _Segment] = {}
        self._serial = 0
        for number, descriptor in sorted((inherited or {}).items()):
            self._inherit(number, descriptor)

    @property
    def size(self) -> int:
        """Bytes of memory in all segments."""
        return sum(len(segment.words) for segment in self._segments.values()) * _WORD

    def records(self) -> Iterator[Record]:
        """Yield what a predecessor has left, the oldest first."""
        found = [record for number in self._segments for record in self._records_of(number)]
        self._serial = max([self._serial, *(record.serial for record in found)])
        yield from sorted(found, key=lambda record: record.serial)

    def add(self, text: bytes, marks: Sequence[float] = ()) -> int:
        """Add a record. ``marks`` are numbers that may be changed later. Returns its slot, which is never 0.

        Raises `ArenaFull`.
        """
        number, place = self._allocate(_Field.BODY + len(marks) + -(-len(text) // _WORD))
        segment = self._segments[number]
        words = segment.words
        for index, value in enumerate(marks):
            segment.numbers[place + _Field.BODY + index] = value
        start = (place + _Field.BODY + len(marks)) * _WORD
        segment.bytes[start : start + len(text)] = text
        words[place + _Field.LENGTHS] = len(marks) << 32 | len(text)
        self._serial += 1
        words[place + _Field.CHECKSUM] = self._checksum(self._serial, len(marks), text)
        words[place + _Field.SERIAL] = self._serial
        return number << _SHIFT | place

    def view(self, slot: int) -> memoryview:
        """Return the text of a record, without a copy. Release it before anything is dropped."""
        return self._segments[slot >> _SHIFT].view(slot & _PLACE)

    def mark(self, slot: int, index: int, value: float) -> None:
        """Change a mark of a record."""
        self._segments[slot >> _SHIFT].numbers[(slot & _PLACE) + _Field.BODY + index] = value

    def drop(self, slot: int) -> None:
        """Drop a record, and overwrite it."""
        self._segments[slot >> _SHIFT].free(slot & _PLACE)
        room = 0
        for number, segment in list(self._segments.items()):
            if not segment.used and room >= SMALLEST // 2 // _WORD:  # else it is soon needed again
                self._give_back(number)
            else:
                room += segment.room

    def close(self) -> None:
        """Have nothing held any more, and forget it."""
        for number in list(self._segments):
            self._give_back(number)

    # --- segments ---

    def _inherit(self, number: int, descriptor: int) -> None:
        """Take a segment over, unless it is none of ours."""
        try:
            segment = self._segments[number] = _Segment(descriptor, self._is_right)
            if segment.damaged:
                log.warning("%d values of the process before are damaged, and asked for again", segment.damaged)
        except (OSError, ValueError) as error:
            log.warning("values of the process before are asked for again: %s", error)
            os.close(descriptor)
            self._storage.drop(number)

    def _give_back(self, number: int) -> None:
        self._segments.pop(number).close()
        self._storage.drop(number)

    def _allocate(self, words: int) -> tuple[int, int]:
        """Return the segment and place of a free block of at least that many words."""
        words += -words % (_ROUND if words < 16 * _ROUND else 1 << (words.bit_length() - 4))
        for number, segment in self._segments.items():
            if (place := segment.take(words)) is not None:
                return number, place
        for number, segment in self._segments.items():
            if segment.merge() and (place := segment.take(words)) is not None:
                return number, place
        number = self._grow((_Head.END + words) * _WORD)
        place = self._segments[number].take(words)
        if place is None:
            raise ArenaFull
        return number, place

    def _grow(self, needed: int) -> int:
        number = max(self._segments, default=0) + 1
        smallest = max(SMALLEST, -(-needed // mmap.PAGESIZE) * mmap.PAGESIZE)
        for size in sorted({max(smallest, min(self.size, LARGEST)), smallest}, reverse=True):  # a limit may be near
            try:
                descriptor = self._storage.create(size)
            except OSError:
                continue
            try:
                self._segments[number] = _Segment(descriptor)
            except OSError:
                os.close(descriptor)
                continue
            try:
                self._storage.keep(number, descriptor)
            except OSError:
                self._segments.pop(number).close()
                continue
            return number
        raise ArenaFull

    # --- records ---

    def _records_of(self, number: int) -> Iterator[Record]:
        segment = self._segments[number]
        for place in segment.blocks():
            if serial := segment.words[place + _Field.SERIAL]:
                yield Record(number << _SHIFT | place, serial, segment.marks(place))

    def _is_right(self, segment: "_Segment", place: int) -> bool:
        """Whether a record is one that somebody with our key has written."""
        if not segment.fits(place) or any(map(math.isnan, segment.marks(place))):
            return False
        serial, marks = segment.words[place + _Field.SERIAL], len(segment.marks(place))
        with segment.view(place) as text:
            return bool(segment.words[place + _Field.CHECKSUM] == self._checksum(serial, marks, text))

    def _checksum(self, serial: int, marks: int, text: bytes | memoryview) -> int:
        what = b"".join(number.to_bytes(8, "little") for number in (serial, marks, len(text), zlib.crc32(text)))
        return int.from_bytes(hashlib.blake2b(what, key=self._key, digest_size=_WORD).digest(), "little")


class _Segment:
    """A memory file, mapped, with blocks one after the other: records and free ones."""

    def __init__(self, descriptor: int, is_right: Callable[["_Segment", int], bool] | None = None) -> None:
        """Begin a segment, or go on with one whose records ``is_right`` tells from damage.

        Raises OSError if it cannot be mapped, and ValueError if it is not a segment of this version.
        """
        self._map = mmap.mmap(descriptor, 0)
        self.bytes = memoryview(self._map)
        self.words = self.bytes.cast("Q")
        self.numbers = self.bytes.cast("d")
        self.used = 0
        """Number of records."""
        self.damaged = 0
        """Number of records that were not right."""
        self.room = 0
        """Words of free blocks."""
        self._free: defaultdict[int, list[int]] = defaultdict(list)
        self._lengths: list[int] = []
        """The lengths of which there are free blocks, in order."""
        if is_right is None:
            self.words[_Head.END] = len(self.words) - _Head.END
            self.words[_Head.FORMAT], self.words[_Head.MAGIC] = FORMAT, _MAGIC
            self._add_free(int(_Head.END), len(self.words) - _Head.END)
        else:
            self._restore(is_right)
        self._close = weakref.finalize(self, os.close, descriptor)

    def _restore(self, is_right: Callable[["_Segment", int], bool]) -> None:
        words = self.words
        if len(words) < _Head.END + _Field.BODY or words[_Head.MAGIC] != _MAGIC or words[_Head.FORMAT] != FORMAT:
            raise ValueError("they are of another version of secretfs")
        blocks = list(self.blocks())
        for place in blocks:
            if words[place + _Field.SERIAL] and is_right(self, place):
                self.used += 1
            else:
                self.damaged += bool(words[place + _Field.SERIAL])
                words[place + _Field.SERIAL] = 0
                self._wipe(place)
                self._add_free(place, words[place])

    def blocks(self) -> Iterator[int]:
        """Yield the places of all blocks. Raises ValueError where there cannot be one."""
        place = int(_Head.END)
        while place < len(self.words):
            length = self.words[place]
            if length < _Field.BODY or place + length > len(self.words):
                raise ValueError("they are damaged")
            yield place
            place += length

    def fits(self, place: int) -> bool:
        """Whether what a record says of its length may be true."""
        lengths = self.words[place + _Field.LENGTHS]
        return bool(_Field.BODY + (lengths >> 32) + -(-(lengths & _LENGTH) // _WORD) <= self.words[place])

    def view(self, place: int) -> memoryview:
        """Return the text of a record, without a copy."""
        lengths = self.words[place + _Field.LENGTHS]
        start = (place + _Field.BODY + (lengths >> 32)) * _WORD
        return self.bytes[start : start + (lengths & _LENGTH)]

    def marks(self, place: int) -> tuple[float, ...]:
        """Return the marks of a record."""
        start = place + _Field.BODY
        return tuple(self.numbers[start : start + (self.words[place + _Field.LENGTHS] >> 32)])

    def take(self, words: int) -> int | None:
        """Return the place of a free block that is large enough, cut to that many words; None if there is none."""
        index = bisect_left(self._lengths, words)
        if index == len(self._lengths):
            return None
        length = self._lengths[index]
        place = self._free[length].pop()
        if not self._free[length]:
            del self._free[length], self._lengths[index]
        self.room -= length
        rest = length - words
        if rest >= _Field.BODY + _ROUND:
            self.words[place + words] = rest
            self.words[place] = words
            self._add_free(place + words, rest)
        self.used += 1
        return place

    def free(self, place: int) -> None:
        """Free a block."""
        self.words[place + _Field.SERIAL] = 0
        self._wipe(place)
        self._add_free(place, self.words[place])
        self.used -= 1

    def merge(self) -> bool:
        """Make one of free blocks that are side by side. Returns whether there were any."""
        free = {place for places in self._free.values() for place in places}
        merged, last = False, -1
        for place in list(self.blocks()):
            if place not in free:
                last = -1
            elif last < 0:
                last = place
            else:
                self.words[last] += self.words[place]
                self.words[place] = 0
                free.discard(place)
                merged = True
        if merged:
            self._free.clear()
            self._lengths.clear()
            self.room = 0
            for place in free:
                self._add_free(place, self.words[place])
        return merged

    def close(self) -> None:
        """Unmap and close the file."""
        for view in (self.words, self.numbers, self.bytes):
            view.release()
        self._map.close()
        self._close()

    def _wipe(self, place: int) -> None:
        length = (self.words[place] - _Field.CHECKSUM) * _WORD
        start = (place + _Field.CHECKSUM) * _WORD
        self.bytes[start : start + length] = bytes(length)

    def _add_free(self, place: int, length: int) -> None:
        if length not in self._free:
            insort(self._lengths, length)
        self._free[length].append(place)
        self.room += length
