"""Fair queueing: apps whose questions wait take turns, and none takes all places of a store."""

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from secretfs.cache.client import CONCURRENCY
from secretfs.cache.freshness import Freshness
from secretfs.cache.store_cache import CachedStore
from secretfs.cache.turns import NO_APP, ONLY_APP, Work, asking_for
from secretfs.errors import NoTurn, StoreError
from tests.conftest import ExpectLog
from tests.support.cached import Cached
from tests.support.canary import secret
from tests.support.memory_store import MemoryStore

MANY = 100


@pytest.fixture
def store() -> MemoryStore:
    names = [f"{app}-{number}" for app in ("a", "b", "c") for number in range(MANY)]
    return MemoryStore({name: {"key": secret(name).encode()} for name in names})


@pytest.fixture
def cached(store: MemoryStore, nursery: trio.Nursery, mock_clock: MockClock) -> CachedStore:
    return Cached("vault", store, Freshness(ttl=60, deadline=5), nursery)


@asynccontextmanager
async def held(store: MemoryStore) -> AsyncIterator[trio.Nursery]:
    """Hold all calls to a store; let them go at the end, and wait for those who asked."""
    store.gate.clear()
    async with trio.open_nursery() as readers:
        try:
            yield readers
        finally:
            store.gate.set()


async def ask(cached: CachedStore, readers: trio.Nursery, app: str, *names: str) -> None:
    """Ask for secrets on behalf of an app. Returns when all calls that may run do."""
    with asking_for(app):
        for name in names:
            readers.start_soon(cached.fetch, name)
    await wait_all_tasks_blocked()


async def entered(store: MemoryStore, calls: int) -> None:
    """Wait until a store has been called."""
    for _ in range(calls):
        await trio.to_thread.run_sync(store.entered.acquire)


def work(cached: CachedStore) -> dict[str, Work]:
    return dict(cached.statistics().work)


def names(app: str, count: int = MANY) -> list[str]:
    return [f"{app}-{number}" for number in range(count)]


async def test_an_app_that_hammers_leaves_half_of_the_places(cached: CachedStore, store: MemoryStore) -> None:
    async with held(store) as readers:
        await ask(cached, readers, "a", *names("a"))
        assert work(cached) == {"a": Work(MANY - CONCURRENCY // 2, CONCURRENCY // 2)}
        await ask(cached, readers, "b", "b-0")
        assert work(cached)["b"] == Work(0, 1)
        await entered(store, CONCURRENCY // 2 + 1)
        assert store.running == CONCURRENCY // 2 + 1
    assert work(cached) == {}
    assert store.calls.total() == MANY + 1


async def test_the_only_app_takes_all_places(cached: CachedStore, store: MemoryStore) -> None:
    async with held(store) as readers:
        await ask(cached, readers, ONLY_APP, *names("a"))
        assert work(cached) == {ONLY_APP: Work(MANY - CONCURRENCY, CONCURRENCY)}


async def test_apps_that_wait_take_turns(cached: CachedStore, store: MemoryStore) -> None:
    order: list[str] = []
    turns = cached._client.turns

    async def call(app: str) -> None:
        with asking_for(app):
            turn = turns.turn()
        begun = trio.Event()
        turn.take(begun.set)
        await begun.wait()
        order.append(app)
        await wait_all_tasks_blocked()
        turn.end()

    async with trio.open_nursery() as nursery:
        for app in ("a", NO_APP, "b"):
            for _ in range(MANY):
                nursery.start_soon(call, app)
            await wait_all_tasks_blocked()
    first = order[20:120]
    assert {app: first.count(app) for app in ("a", "b", NO_APP)} == pytest.approx({"a": 33, "b": 33, NO_APP: 33}, abs=5)
    assert turns.running == 0
    assert turns.work == {}


async def test_a_secret_that_two_apps_want_is_one_call_at_the_turn_of_either(
    cached: CachedStore, store: MemoryStore
) -> None:
    async with held(store) as readers:
        await ask(cached, readers, "a", *names("a"))
        await entered(store, CONCURRENCY // 2)
        wanted = next(name for name in names("a") if not store.calls[f"fetch:{name}"])
        await ask(cached, readers, "b", wanted)
        await entered(store, 1)
        assert store.calls[f"fetch:{wanted}"] == 1
        assert work(cached) == {"a": Work(MANY - 1 - CONCURRENCY // 2, CONCURRENCY // 2), "b": Work(0, 1)}
    assert store.calls.total() == MANY


async def test_to_wait_in_vain_for_a_turn_is_no_failure_of_the_store(
    cached: CachedStore, store: MemoryStore, mock_clock: MockClock, expect_log: ExpectLog
) -> None:
    expect_log("a call of app a did not get its turn")
    errors: list[StoreError] = []

    async def fetch(name: str) -> None:
        try:
            await cached.fetch(name)
        except StoreError as error:
            errors.append(error)

    turns = [cached._client.turns.turn() for _ in range(CONCURRENCY)]
    for turn in turns:
        turn.take(lambda: None)
    async with trio.open_nursery() as readers:
        with asking_for("a"):
            for name in names("a"):
                readers.start_soon(fetch, name)
        await wait_all_tasks_blocked()
        mock_clock.jump(5)
    for turn in turns:
        turn.end()
    assert [error.errno for error in errors] == [errno.ETIMEDOUT] * MANY
    assert store.calls.total() == 0
    assert not cached._client.in_doubt
    assert work(cached) == {}
    assert (await cached.fetch("a-0")).value.values == {"key": secret("a-0").encode()}


async def test_a_probe_that_gets_no_turn_is_a_failure(cached: CachedStore, mock_clock: MockClock) -> None:
    """Calls that hang have all places: the store is no better, and the next probe comes later."""
    client = cached._client
    turns = [client.turns.turn() for _ in range(CONCURRENCY)]
    for turn in turns:
        turn.take(lambda: None)

    async def probe() -> None:
        with pytest.raises(NoTurn):
            await client.check()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(probe)
        await wait_all_tasks_blocked()
        mock_clock.jump(5)
    assert client.in_doubt
    for turn in turns:
        turn.end()
