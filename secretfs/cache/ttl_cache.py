"""Answers by key. Loads are single flight: one at a time for each key, whatever the number of callers.

Belongs to one trio thread. Records how old an answer is and when it was last used; the owner decides what follows.
"""

import copy
import logging
import math
import random
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, Generic, NamedTuple, TypeVar

import trio

from secretfs.errors import SecretFSError, StoreError, as_store_error

K = TypeVar("K")
T = TypeVar("T")

EARLY = (0.70, 0.90)
"""The part of its life after which an answer in use is due to be loaded again; random, so that a thousand that were
loaded together do not stay together."""

NOTED_EVERY = 1.0
"""Seconds between two notes for the next process of when an answer was used: an open should not pay for a note."""

RETRY = 2.0
"""Seconds after which an answer that could not be loaded is due again."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CachedAnswer(Generic[T]):
    """An answer and until when, on trio's clock, it may be served."""

    value: T
    fetched: float
    """When it was asked for, on trio's clock."""
    expires: float
    fetched_at: float
    """When it was asked for, in seconds since the epoch: for people."""
    stale: bool = False
    """Served although it has expired, because the store does not answer."""
    serial: int = field(default_factory=count(1).__next__)
    """Different for every load, so that "the same answer as before" can be decided without comparing contents."""

    @property
    def remaining(self) -> float:
        """Seconds this answer may still be served; 0 once it has expired."""
        return max(0.0, self.expires - trio.current_time())

    def revalidated(self, earlier: "CachedAnswer[K]") -> "CachedAnswer[K]":
        """Return an earlier answer that this one confirms, as fresh as this one. Its content is not compared."""
        return replace(earlier, fetched=self.fetched, expires=self.expires, fetched_at=self.fetched_at, stale=False)

    def with_value(self: "CachedAnswer[Any]", value: K) -> "CachedAnswer[K]":
        """Return an answer as old as this one, with a value that was made from this one's."""
        return replace(self, value=value)

    def limited_by(self, part: "CachedAnswer[Any]") -> "CachedAnswer[T]":
        """Return this answer with the age of ``part`` where that is older: the answer was made of it, too."""
        return replace(
            self,
            fetched=min(self.fetched, part.fetched),
            expires=min(self.expires, part.expires),
            fetched_at=min(self.fetched_at, part.fetched_at),
            stale=self.stale or part.stale,
        )


@dataclass(slots=True)
class _Entry(Generic[T]):
    answer: CachedAnswer[T]
    accessed: float
    """When it was last asked for."""
    used: float
    """When it was last in use; long ago if it never was."""
    due: float
    noted: float
    """When the memory was last told of these times."""


class _PendingLoad(Generic[T]):
    """A load under way. Those who wait find its answer or its error here."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.answer: CachedAnswer[T] | None = None
        self.error: SecretFSError = StoreError("the question was not answered")
        self.outdated = False
        """What was asked about has changed since."""


class RestoredAnswer(NamedTuple, Generic[T]):
    """An answer that a process before this one has kept."""

    answer: CachedAnswer[T]
    accessed: float
    used: float


class AnswerMemory(Generic[K, T]):
    """Where a cache keeps its answers for the next process. This one keeps nothing."""

    def restored(self) -> Mapping[K, RestoredAnswer[T]]:
        """Return what the process before has kept."""
        return {}

    def keep(self, key: K, answer: CachedAnswer[T], accessed: float, used: float, *, same: bool = False) -> None:
        """Keep an answer. With ``same`` the value is the same object as before."""

    def touch(self, key: K, accessed: float, used: float) -> None:
        """Take note of when an answer was asked for, and in use."""

    def drop(self, key: K) -> None:
        """Drop an answer."""


class TTLCache(Generic[K, T]):
    """Answers by key. A load is a task of its own: it outlives a caller that goes away.

    ``loaded`` is called after each load, with the key, what was known before, and what is known now.
    ``memory`` has the answers of the process before, and keeps them for the next one.
    """

    def __init__(
        self,
        load: Callable[[K], Awaitable[CachedAnswer[T]]],
        nursery: trio.Nursery,
        loaded: Callable[[K, CachedAnswer[T] | None, CachedAnswer[T]], None] = lambda *_: None,
        memory: AnswerMemory[K, T] | None = None,
    ) -> None:
        self._load = load
        self._loaded = loaded
        self._nursery = nursery
        self._entries: dict[K, _Entry[T]] = {}
        self._pending: dict[K, _PendingLoad[T]] = {}
        self._memory: AnswerMemory[K, T] = memory or AnswerMemory()
        self.hits = self.stale_hits = 0
        """How often an answer was there; and it had expired, but the store did not answer."""
        for key, (answer, accessed, used) in self._memory.restored().items():
            self._entries[key] = _Entry(answer, accessed, used, _due(answer), accessed)

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[K]:
        """All that has an answer or is being loaded."""
        return iter({**self._entries, **self._pending})

    def peek(self, key: K) -> CachedAnswer[T] | None:
        """Return the answer that may be served at once, if there is one."""
        entry = self._entries.get(key)
        return entry.answer if entry is not None and entry.answer.expires > trio.current_time() else None

    def access(self, key: K) -> CachedAnswer[T] | None:
        """`peek`, and record the access: an answer that is asked for is not idle."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        entry.accessed = max(entry.used, trio.current_time())
        if entry.accessed >= entry.noted + NOTED_EVERY:
            self._note(key, entry)
        if not entry.answer.remaining:
            return None
        self.hits += 1
        self.stale_hits += entry.answer.stale
        return entry.answer

    def use(self, key: K, until: float = -math.inf) -> None:
        """Take note that an answer is in use, if it is known: then it is to be loaded again before it expires.

        With ``until`` it may be used until then without anybody telling us.
        """
        entry = self._entries.get(key)
        if entry is not None:
            first = entry.used == -math.inf
            entry.accessed = entry.used = max(entry.used, until, trio.current_time())
            if first or entry.used >= entry.noted + NOTED_EVERY:
                self._note(key, entry)

    def used(self, key: K) -> float:
        """Return when an answer was last in use, on trio's clock; long ago if it never was."""
        entry = self._entries.get(key)
        return entry.used if entry else -math.inf

    def known(self, key: K) -> CachedAnswer[T] | None:
        """Return the last answer, which may have expired."""
        entry = self._entries.get(key)
        return entry.answer if entry else None

    def answers(self) -> Iterator[tuple[K, CachedAnswer[T]]]:
        """Yield all that is `known`."""
        return ((key, entry.answer) for key, entry in self._entries.items())

    def entries(self) -> list[tuple[CachedAnswer[T], float]]:
        """Return all that is `known`, and when each was last in use, as of now."""
        return [(entry.answer, entry.used) for entry in self._entries.values()]

    async def get(self, key: K) -> CachedAnswer[T]:
        """Return the answer, loading it when it is not known or has expired. Raises what the load raised."""
        return self.access(key) or await self.load(key)

    async def load(self, key: K) -> CachedAnswer[T]:
        """Load the answer, or wait for the load under way. When that fails, what was known stays `known`."""
        while True:
            pending = self._pending.get(key)
            if pending is None:
                pending = self._pending[key] = _PendingLoad()
                self._nursery.start_soon(self._run, key, pending)
            await pending.done.wait()
            if pending.outdated or self._replaced(key, pending):
                newer = self.access(key)
                if newer is not None:
                    return newer
            elif pending.answer is None:
                raise copy.copy(pending.error)  # a copy for each: one instance raised by many grows its traceback
            else:
                return pending.answer

    def keep(self, key: K, answer: CachedAnswer[T], used: float = -math.inf) -> None:
        """Keep an answer. It is in use as the one before was, or since ``used``."""
        before = self._entries.get(key)
        accessed, used = (before.accessed, before.used) if before else (trio.current_time(), used)
        self._entries[key] = _Entry(answer, accessed, used, _due(answer), accessed)
        same = before is not None and before.answer.value is answer.value
        self._memory.keep(key, answer, accessed, used, same=same)

    def _note(self, key: K, entry: _Entry[T]) -> None:
        entry.noted = entry.accessed
        self._memory.touch(key, entry.accessed, entry.used)

    def _replaced(self, key: K, pending: _PendingLoad[T]) -> bool:
        """Whether the answer of a load that is done expired before those who waited for it woke up."""
        entry = self._entries.get(key)
        return pending.answer is not None and entry is not None and entry.answer is not pending.answer

    def expire(self, key: K) -> None:
        """Serve an answer no more. Those who wait get one that is loaded from now on: never an older after a newer."""
        entry = self._entries.get(key)
        if entry is not None:
            self.keep(key, replace(entry.answer, expires=trio.current_time()))
        pending = self._pending.pop(key, None)
        if pending is not None:
            pending.outdated = True

    def due(self, idle: float) -> list[K]:
        """Return the keys that were in use within ``idle`` seconds and should be loaded again, the oldest first."""
        now = trio.current_time()
        entries = sorted(self._entries.items(), key=_by_due)
        return [key for key, entry in entries if entry.due <= now and entry.used > now - idle]

    def is_due(self, key: K) -> bool:
        """Whether there is an answer that should be loaded again."""
        entry = self._entries.get(key)
        return entry is not None and entry.due <= trio.current_time()

    def idle_for(self, key: K) -> float:
        """Return for how many seconds nobody has asked for an answer; infinity if there is none."""
        entry = self._entries.get(key)
        return math.inf if entry is None else trio.current_time() - entry.accessed

    def drop_idle(self, idle: float) -> None:
        """Forget the answers that nobody has asked for in ``idle`` seconds."""
        limit = trio.current_time() - idle
        for key in [key for key, entry in self._entries.items() if entry.accessed <= limit]:
            self.drop(key)

    def drop(self, key: K) -> None:
        """Forget an answer."""
        self._entries.pop(key, None)
        self._memory.drop(key)

    def _put_off(self, key: K) -> None:
        """Let what fails be due after the others: if it went on to fail, it would keep them from their turn."""
        if (entry := self._entries.get(key)) is not None:
            entry.due = max(entry.due, trio.current_time() + RETRY)

    async def _run(self, key: K, pending: _PendingLoad[T]) -> None:
        """Load one answer. An error belongs to those who wait; in the nursery it would end the mount."""
        try:
            answer = await self._load(key)
            if not pending.outdated:
                before = self.known(key)
                self.keep(key, answer)
                self._loaded(key, before, answer)
            pending.answer = answer
        except SecretFSError as error:
            pending.error = error
            self._put_off(key)
        except Exception as error:  # noqa: BLE001 - a defect costs those who asked EIO, never everybody the mount
            pending.error = as_store_error(log, error)
        finally:
            pending.done.set()
            if not pending.outdated:
                del self._pending[key]


def _due(answer: CachedAnswer[Any]) -> float:
    return trio.current_time() + answer.remaining * random.uniform(*EARLY)  # noqa: S311 - spreads load, hides nothing


def _by_due(item: tuple[K, _Entry[T]]) -> float:
    return item[1].due
