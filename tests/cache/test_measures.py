"""What is counted of a store: calls and waits by outcome, hits, rotations, and the values in memory."""

import time
from collections.abc import Mapping
from contextlib import suppress

import pytest
import trio
from trio.testing import MockClock

from secretfs.cache.freshness import Freshness
from secretfs.cache.measures import SLICE
from secretfs.cache.outcomes import Outcome, outcome_of
from secretfs.cache.store_cache import CachedStore
from secretfs.cache.ttl_cache import CachedAnswer
from secretfs.errors import AccessDenied, DeadlineExceeded, SecretNotFound, StoreError, StoreUnavailable
from secretfs.histogram import Distribution, Labels
from secretfs.store import Secret
from tests.conftest import ExpectLog
from tests.support.cached import Cached, settle, use
from tests.support.canary import secret as canary
from tests.support.memory_store import MemoryStore
from tests.support.work import counted

OLD, NEW = canary("old").encode(), canary("new").encode()
FRESHNESS = Freshness(ttl=60, max_stale=3600, deadline=5, idle=600)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore({"db": {"user": OLD, "password": OLD}, "other": {"k": b"v"}})


@pytest.fixture
def cached(store: MemoryStore, nursery: trio.Nursery, mock_clock: MockClock) -> CachedStore:
    return Cached("vault", store, FRESHNESS, nursery)


def numbers(measured: Mapping[Labels, Distribution]) -> dict[str, int]:
    return {" ".join(labels): sum(each.counts) for labels, each in measured.items()}


def calls(cached: CachedStore) -> dict[str, int]:
    return numbers(cached._client.stats.calls.now())


def waits(cached: CachedStore) -> dict[str, int]:
    return numbers(cached.readers.waits.now())


async def test_a_cold_read_is_a_wait_and_a_warm_one_a_hit(cached: CachedStore) -> None:
    await cached.names("")
    await cached.fetch("db")
    assert waits(cached) == {"listing ok": 1, "value ok": 1}
    assert calls(cached) == {"names ok": 1, "fetch ok": 1}
    assert cached.hits == {"value": (0, 0), "listing": (0, 0)}
    for _ in range(3):
        await cached.fetch("db")
    assert cached.recall("db") is not None
    assert waits(cached)["value ok"] == 1
    assert cached.hits == {"value": (4, 0), "listing": (0, 0)}


async def test_how_calls_end(cached: CachedStore, store: MemoryStore, expect_log: ExpectLog) -> None:
    expect_log("vault: no")
    expect_log("vault: down")
    store.refused["fetch:other"] = AccessDenied("no")
    for name in ("db", "none", "other"):
        await outcome(cached, name)
    store.fail_with = StoreUnavailable("down")
    await outcome(cached, "more")
    assert calls(cached) == {"fetch ok": 1, "fetch missing": 1, "fetch refused": 1, "fetch failed": 1}
    assert waits(cached) == {"value ok": 3, "value failed": 1}  # "no" is an answer as well


async def outcome(cached: CachedStore, name: str) -> None:
    with suppress(StoreError):
        await cached.fetch(name)


async def test_readers_that_wait_and_a_call_that_takes_too_long(
    cached: CachedStore, store: MemoryStore, nursery: trio.Nursery, mock_clock: MockClock, expect_log: ExpectLog
) -> None:
    expect_log("no answer within 5s")
    store.gate.clear()
    for _ in range(3):
        nursery.start_soon(outcome, cached, "db")
    await settle()
    assert cached.readers.waiting == 3
    mock_clock.jump(5)
    await settle()
    assert cached.readers.waiting == 0
    assert calls(cached) == {"fetch timeout": 1}
    assert waits(cached) == {"value timeout": 3}
    (waited,) = cached.readers.waits.now().values()
    assert waited.total == pytest.approx(15)
    store.gate.set()
    await settle()


async def test_what_is_served_from_before_an_outage(
    cached: CachedStore, store: MemoryStore, mock_clock: MockClock, expect_log: ExpectLog
) -> None:
    expect_log("vault: down")
    await use(cached, "db")
    before = await cached.count_values()
    assert (before.values, before.in_use, before.stale, before.bytes) == (2, 2, 0, 2 * len(OLD))
    store.fail_with = StoreUnavailable("down")
    mock_clock.jump(100)
    for _ in range(3):
        await cached.fetch("db")
    after = await cached.count_values()
    assert (after.values, after.stale, after.oldest_in_use) == (2, 2, before.oldest_in_use)
    assert cached.hits["value"] == (2, 2)  # the first of them waited for the store to fail
    mock_clock.jump(FRESHNESS.idle)
    assert (await cached.count_values()).in_use == 0


async def test_rotations_are_values_that_changed(cached: CachedStore, store: MemoryStore) -> None:
    await use(cached, "db")
    await cached.refresh()
    assert (cached.readers.rotated, cached.readers.last_rotation) == (0, None)
    store.put("db", {"user": OLD, "password": NEW, "new": NEW})
    before = time.time()
    await cached.refresh()
    assert cached.readers.rotated == 2
    assert before <= (cached.readers.last_rotation or 0) <= time.time()


def test_outcomes() -> None:
    errors = [SecretNotFound(""), AccessDenied(""), DeadlineExceeded(""), StoreUnavailable(""), ValueError()]
    assert [outcome_of(error) for error in (b"", *errors)] == [*Outcome, Outcome.FAILED]
    assert outcome_of({"a": errors[0], "b": Secret({})}) is Outcome.OK
    assert outcome_of({"a": errors[2], "b": errors[1]}) is Outcome.REFUSED


async def test_many_values_are_counted_in_slices(cached: CachedStore) -> None:
    """However many values there are, others wait for one slice at most."""
    now = trio.current_time()
    for number in range(20 * SLICE):
        name = str(number)
        cached._secrets.keep(name, CachedAnswer(Secret({"k": b"v"}), now, now + 60, time.time()), used=now)
    with counted() as work:
        counts = await cached.count_values()
    assert (counts.values, counts.in_use) == (20 * SLICE, 20 * SLICE)
    assert work.largest_step < work.total / 10
