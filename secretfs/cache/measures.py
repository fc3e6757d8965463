"""What is counted of one store beside its calls: what readers met, what changed, and what is in memory.

Counting goes through all values in slices, between which other tasks run: a store may have 100,000.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import trio

from secretfs.cache.health import Readers
from secretfs.cache.outcomes import outcome_of
from secretfs.cache.ttl_cache import TTLCache
from secretfs.errors import SecretFSError, StoreError
from secretfs.histogram import Histograms
from secretfs.store import Names, Secret

SLICE: Final = 1000
"""Answers that are counted between two checkpoints. That takes less than a millisecond."""

VALUE, LISTING = "value", "listing"
"""What readers ask for."""


class ReaderStats:
    """Counts what readers of one store had to wait for, and what changed under them."""

    def __init__(self) -> None:
        self.waits = Histograms()
        """How long they waited for the store, by what for and how that ended (`secretfs.cache.outcomes`)."""
        self.waiting = 0
        """How many wait now."""
        self.rotated = 0
        """Values that are different, new or gone, of those that were known."""
        self.last_rotation: float | None = None
        """Seconds since the epoch."""

    @contextmanager
    def wait(self, what: str) -> Iterator[None]:
        """Count a wait."""
        since, outcome = trio.current_time(), outcome_of(None)
        self.waiting += 1
        try:
            yield
        except SecretFSError as error:
            outcome = outcome_of(error)
            raise
        finally:
            self.waiting -= 1
            self.waits.observe((what, outcome.value), trio.current_time() - since)

    def now(self, hits: int) -> Readers:
        """Return how it stands. ``hits`` and waits are those for values."""
        waits = sum(sum(each.counts) for (what, _), each in self.waits.now().items() if what == VALUE)
        return Readers(hits, waits, self.waiting, self.rotated, self.last_rotation)

    def rotation(self, values: int, at: float) -> None:
        """Count values that have changed."""
        if values:
            self.rotated += values
            self.last_rotation = at


@dataclass(slots=True)
class ValueCounts:
    """The values of one store that are in memory."""

    values: int = 0
    bytes: int = 0
    in_use: int = 0
    """Those that were opened within ``idle``, and are kept fresh."""
    stale: int = 0
    """Those that are served although they have expired."""
    oldest_in_use: float | None = None
    """When the oldest of those in use was fetched, in seconds since the epoch."""


async def count_values(
    secrets: TTLCache[str, Secret | StoreError], idle: float, in_doubt: Callable[[], bool]
) -> ValueCounts:
    """Count values, in slices. What changes meanwhile is counted as it was or as it is."""
    counts, entries = ValueCounts(), iter(secrets.entries())
    while entry := next(entries, None):
        for answer, used in (entry, *islice(entries, SLICE - 1)):
            if not isinstance(answer.value, Secret):
                continue
            number = len(answer.value.values)
            counts.values += number
            counts.bytes += sum(map(len, answer.value.values.values()))
            if answer.stale or (not answer.remaining and in_doubt()):
                counts.stale += number
            if used > trio.current_time() - idle:
                counts.in_use += number
                counts.oldest_in_use = min(answer.fetched_at, counts.oldest_in_use or answer.fetched_at)
        await trio.lowlevel.checkpoint()
    return counts


def listed(names: TTLCache[str, Any]) -> frozenset[str]:
    """Return all names that are in listings."""
    listings = [answer.value for _, answer in names.answers() if isinstance(answer.value, Names)]
    return frozenset[str]().union(*(names.secrets for names in listings))


def count_names(names: TTLCache[str, Any], visible: Callable[[str], bool] | None) -> int:
    """Count the names in listings that are ``visible``; None is all."""
    if visible is None:  # at no cost for a store with 100,000 names
        return sum(len(each.value.secrets) for _, each in names.answers() if isinstance(each.value, Names))
    return sum(map(visible, listed(names)))
