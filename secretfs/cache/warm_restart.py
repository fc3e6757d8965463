"""What the next process finds in memory when this one is killed: answers of the stores, and the contents of files.

An answer belongs to a store as it is declared: if that declaration is another one after a restart, nobody claims the
answer, and it is dropped. Contents are those of files that the kernel knows, each in the arena once, by its digest. A
file may be open at a version that no answer has any more; and a kill may come when the answer is a newer one already,
and nobody has looked at the file since.
"""

import hashlib
import json
import logging
import math
import re
import time
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Mapping
from enum import IntEnum
from itertools import accumulate
from typing import Any, Final, Generic, TypeVar

import trio

from secretfs.cache.arena import Arena, ArenaFull, Record
from secretfs.cache.ttl_cache import AnswerMemory, CachedAnswer, RestoredAnswer
from secretfs.errors import SecretNotFound, StoreError
from secretfs.store import Names, Secret

T = TypeVar("T")

DIGEST: Final = 16
"""Bytes of a digest."""
_OWNER: Final = 8

_CONTENT, _NAMES, _SECRET, _HEALTH, _VERSION = b"c", b"n", b"s", b"h", b"v"

_NEWLINE: Final = re.compile(rb"\n")

log = logging.getLogger(__name__)


class _Mark(IntEnum):
    """Numbers of an answer that change. Times are those of the clock of `WarmMemory`."""

    FETCHED = 0
    EXPIRES = 1
    ACCESSED = 2
    USED = 3


class _Content:
    """A content in the arena."""

    __slots__ = ("holders", "slot")

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.holders = 0


class WarmMemory:
    """All that is kept for the next process. Without an arena it keeps nothing, at no cost.

    ``key`` is that of the journal: the digests of contents are those that the journal has. ``clock`` is in seconds, and
    goes on from process to process.
    """

    def __init__(
        self, key: bytes = b"", arena: Arena | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.clock = clock
        self._key = key
        self._arena = arena
        self._contents: dict[bytes, _Content] = {}
        self._unclaimed: defaultdict[bytes, list[Record]] = defaultdict(list)
        self._full = False
        for record in arena.records() if arena else ():
            with self.view(record.slot) as text:
                head = bytes(text[: 1 + DIGEST])
            if head[:1] == _CONTENT:
                self._contents[head[1:]] = _Content(record.slot)
            else:
                self._unclaimed[head[: 1 + _OWNER]].append(record)

    @property
    def keeps(self) -> bool:
        """Whether anything is kept."""
        return self._arena is not None

    def digest(self, content: bytes) -> bytes:
        """Return the digest of a content. Without the key it tells nothing about it."""
        return hashlib.blake2b(content, key=self._key, digest_size=DIGEST).digest()

    def hold(self, digest: bytes, content: bytes) -> bool:
        """Keep a content until it is released as often as it was held. Returns whether it is kept."""
        if self._arena is None:
            return False
        known = self._contents.get(digest)
        if known is None:
            slot = self.add(_CONTENT + digest + content)
            if not slot:
                return False
            known = self._contents[digest] = _Content(slot)
        known.holders += 1
        return True

    def release(self, digest: bytes) -> None:
        """Take back one `hold`."""
        known = self._contents[digest]
        known.holders -= 1
        if not known.holders:
            self._drop_content(digest)

    def content(self, digest: bytes) -> bytes | None:
        """Return a content that a predecessor has kept; None if there is none."""
        known = self._contents.get(digest)
        if known is None or self._arena is None:
            return None
        with self._arena.view(known.slot) as text:
            return bytes(text[1 + DIGEST :])

    def store(self, component: str, declaration: str) -> "StoreMemory":
        """Return the place for what is known of a store, with what a predecessor knew if it was declared the same."""
        owner = hashlib.blake2b(f"{component}\0{declaration}".encode(), key=self._key, digest_size=_OWNER).digest()
        return StoreMemory(self, owner)

    def sweep(self) -> None:
        """Drop what a predecessor has kept and nobody has claimed. To be called when everything is restored."""
        for record in [record for records in self._unclaimed.values() for record in records]:
            self.drop(record.slot)
        self._unclaimed.clear()
        for digest in [digest for digest, content in self._contents.items() if not content.holders]:
            self._drop_content(digest)

    def close(self) -> None:
        """Keep nothing any more: the mount has ended."""
        if self._arena is not None:
            self._arena.close()
        self._arena = None

    # --- records, for `StoreMemory` ---

    def add(self, text: bytes, *marks: float) -> int:
        """Add a record. Returns its slot; 0 if it cannot be kept, which the log has once."""
        if self._arena is None:
            return 0
        try:
            return self._arena.add(text, marks)
        except ArenaFull:
            if not self._full:
                self._full = True
                log.warning(
                    "no memory to keep more values for the next process, which will ask for them again: "
                    "raise the limit for locked memory (LimitMEMLOCK=infinity)"
                )
            return 0

    def view(self, slot: int) -> memoryview:
        """Return the text of a record, without a copy. Release it before anything is dropped."""
        return self._arena.view(slot) if self._arena else memoryview(b"")

    def claim(self, prefix: bytes) -> list[Record]:
        """Return what a predecessor has kept that begins so, with kind and owner. Returns it once."""
        return self._unclaimed.pop(prefix, [])

    def mark(self, slot: int, index: int, value: float) -> None:
        """Change a mark of a record."""
        if self._arena:
            self._arena.mark(slot, index, value)

    def drop(self, slot: int) -> None:
        """Drop a record."""
        if self._arena:
            self._arena.drop(slot)

    def _drop_content(self, digest: bytes) -> None:
        self.drop(self._contents.pop(digest).slot)


NOTHING_KEPT: Final = WarmMemory()
"""For a mount that ends with its process."""


class StoreMemory:
    """What is known of one store: its names, its secrets, versions of them, and whether it failed."""

    def __init__(self, memory: WarmMemory, owner: bytes) -> None:
        self._memory = memory
        self.failures = 0
        """How many calls in a row had failed when the process before ended."""
        self.names = _NamesMemory(memory, _NAMES + owner)
        self.secrets = _SecretsMemory(memory, _SECRET + owner)
        self.versions = _SecretsMemory(memory, _VERSION + owner)
        self._health = memory.add(_HEALTH + owner, 0.0)
        for record in memory.claim(_HEALTH + owner):
            self.failures = int(record.marks[0])
            memory.drop(record.slot)

    def note_failures(self, failures: int) -> None:
        """Take note of how many calls in a row have failed."""
        if self._health:
            self._memory.mark(self._health, 0, failures)

    def end(self) -> None:
        """Drop everything, and keep nothing more: another store takes the place of this one."""
        self.names.end()
        self.secrets.end()
        self.versions.end()
        if self._health:
            self._memory.drop(self._health)
            self._health = 0


class _AnswerMemory(AnswerMemory[str, T], Generic[T]):
    """Answers of one kind, by name. A record has a line of JSON, and for a secret its values after that."""

    def __init__(self, memory: WarmMemory, prefix: bytes) -> None:
        self._memory = memory
        self._prefix = prefix
        self._slots: dict[str, int] = {}
        self._restored: dict[str, RestoredAnswer[T]] = {}
        self._ended = not memory.keeps
        self._ahead = trio.current_time() - memory.clock()  # trio's begins anew with each process
        for record in memory.claim(prefix):
            self._inherit(record)

    def restored(self) -> Mapping[str, RestoredAnswer[T]]:
        """Return what a predecessor has kept. Returns it once."""
        restored, self._restored = self._restored, {}
        return restored

    def keep(self, key: str, answer: CachedAnswer[T], accessed: float, used: float, *, same: bool = False) -> None:
        """Keep an answer in the place of the one before. With ``same`` the value is the same, and only older or newer.

        A stale answer stays what it was before its life was prolonged. One of another store is not kept.
        """
        if self._ended or answer.stale:
            return
        before = self._slots.get(key)
        if before is not None and same:
            self._note_age(before, answer)
            return
        written = None if answer.fetched == -math.inf else self._write(key, answer.value)
        text = self._prefix + (written or b"")
        if before is not None and self._is(before, text):
            self._note_age(before, answer)
            return
        times = (answer.fetched, answer.expires, accessed, used)
        slot = self._memory.add(text, *(time - self._ahead for time in times)) if written else 0
        self.drop(key)
        if slot:
            self._slots[key] = slot

    def touch(self, key: str, accessed: float, used: float) -> None:
        """Take note of when an answer was asked for, and in use."""
        slot = self._slots.get(key)
        if slot is not None:
            self._memory.mark(slot, _Mark.ACCESSED, accessed - self._ahead)
            self._memory.mark(slot, _Mark.USED, used - self._ahead)

    def drop(self, key: str) -> None:
        """Drop an answer."""
        slot = self._slots.pop(key, None)
        if slot is not None:
            self._memory.drop(slot)

    def end(self) -> None:
        """Drop everything, and keep nothing more."""
        self._ended = True
        for key in list(self._slots):
            self.drop(key)

    def _is(self, slot: int, text: bytes) -> bool:
        with self._memory.view(slot) as kept:
            return kept == text

    def _note_age(self, slot: int, answer: CachedAnswer[T]) -> None:
        self._memory.mark(slot, _Mark.FETCHED, answer.fetched - self._ahead)
        self._memory.mark(slot, _Mark.EXPIRES, answer.expires - self._ahead)

    def _inherit(self, record: Record) -> None:
        """Take over what a predecessor has kept. Of two answers about one name the later one counts."""
        with self._memory.view(record.slot) as text:
            newline = _NEWLINE.search(text, start := len(self._prefix))
            end = newline.start() if newline else len(text)
            key, *written = json.loads(bytes(text[start:end]))
            value = self._read(written, text[end + 1 :])
        self.drop(key)
        self._slots[key] = record.slot
        fetched, expires, accessed, used = (time + self._ahead for time in record.marks)
        fetched_at = time.time() - (trio.current_time() - fetched)
        answer = CachedAnswer(value, fetched, expires, fetched_at)
        self._restored[key] = RestoredAnswer(answer, accessed, used)

    @abstractmethod
    def _write(self, key: str, value: T) -> bytes | None:
        """Return what is written down of an answer; None if it is not worth it."""

    @abstractmethod
    def _read(self, written: list[Any], rest: memoryview) -> T:
        """Return the answer that was written down. ``rest`` is gone afterwards."""


class _NamesMemory(_AnswerMemory[Names | StoreError]):
    def _write(self, key: str, value: Names | StoreError) -> bytes | None:
        if not isinstance(value, Names):
            return None
        return json.dumps([key, list(value.secrets), list(value.folders)]).encode()

    def _read(self, written: list[Any], rest: memoryview) -> Names | StoreError:
        secrets, folders = written
        return Names(frozenset(secrets), frozenset(folders))


class _SecretsMemory(_AnswerMemory[Secret | StoreError]):
    def _write(self, key: str, value: Secret | StoreError) -> bytes | None:
        if isinstance(value, SecretNotFound):
            return json.dumps([key, str(value)]).encode()
        if not isinstance(value, Secret):
            return None
        values = value.values.values()  # there may be many; none of this is a step of Python for each
        line = json.dumps(
            [key, value.version, value.modified, value.stages, list(value.values), list(map(len, values))]
        )
        metadata = json.dumps(dict(value.metadata)).encode() if value.metadata else b""
        return b"\n".join([line.encode(), b"".join(values)]) + metadata  # where versions that do not know it look not

    def _read(self, written: list[Any], rest: memoryview) -> Secret | StoreError:
        if len(written) == 1:
            return SecretNotFound(written[0])
        version, modified, stages, keys, lengths = written
        ends = accumulate(lengths)
        values = {key: bytes(rest[end - length : end]) for key, length, end in zip(keys, lengths, ends, strict=True)}
        metadata = bytes(rest[sum(lengths) :])
        return Secret(values, version, modified, tuple(stages), json.loads(metadata) if metadata else {})
