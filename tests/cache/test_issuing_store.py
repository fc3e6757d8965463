"""A store that issues credentials is read for those who use a secret, and by nothing else. On a virtual clock."""

import pytest
import trio
from trio.testing import MockClock

from secretfs.cache.change import Change
from secretfs.cache.freshness import Freshness
from secretfs.cache.store_cache import CachedStore
from tests.support.at_once import AtOnce, tell
from tests.support.memory_store import IssuingMemoryStore

FRESHNESS = Freshness(ttl=60, deadline=5, idle=600)


@pytest.fixture
def store() -> IssuingMemoryStore:
    return IssuingMemoryStore({"app": {"username": b"u", "password": b"p"}, "other": {"username": b"o"}})


@pytest.fixture
def told() -> list[Change]:
    return []


@pytest.fixture
def cached(store: IssuingMemoryStore, told: list[Change], nursery: trio.Nursery) -> CachedStore:
    cached = AtOnce("database", store, FRESHNESS, nursery, announce=told.append)
    nursery.start_soon(cached.keep_fresh)
    return cached


async def test_what_is_in_use_is_not_fetched_in_the_background(
    cached: CachedStore, store: IssuingMemoryStore, autojump_clock: MockClock
) -> None:
    await cached.fetch("app")
    for _ in range(60):
        await trio.sleep(10)
        cached.use("app")
    assert store.issued == 1
    assert store.calls["names:"] == 0
    await cached.fetch("app")
    assert store.issued == 2  # for a reader; it is the store that knows whether the credential is still valid


async def test_nothing_is_prefetched(cached: CachedStore, store: IssuingMemoryStore, autojump_clock: MockClock) -> None:
    cached.prefetch(["app", "other"])
    await trio.sleep(1)
    assert store.issued == 0


async def test_a_refresh_lists_again_and_leaves_the_rest_to_the_next_reader(
    cached: CachedStore, store: IssuingMemoryStore, autojump_clock: MockClock
) -> None:
    await cached.names("")
    await cached.fetch("app")
    await cached.refresh()
    assert (store.calls["names:"], store.issued) == (2, 1)
    assert cached.peek("app") is None
    await cached.fetch("app")
    assert store.issued == 2


async def test_a_credential_that_ends_is_a_change_and_not_a_fetch(
    cached: CachedStore, store: IssuingMemoryStore, autojump_clock: MockClock, told: list[Change]
) -> None:
    await cached.fetch("app")
    store.put("app", {"username": b"new", "password": b"new"})
    await tell(store, "app", "other")
    await trio.sleep(1)
    assert store.issued == 1
    change = Change("database", values=frozenset({("app", "username"), ("app", "password")}))
    assert told == [change]
    assert cached.peek("app") is None
    await cached.fetch("app")
    assert (store.issued, told) == (2, [change])


async def test_what_replaces_a_store_issues_nothing(
    cached: CachedStore, store: IssuingMemoryStore, autojump_clock: MockClock, told: list[Change], nursery: trio.Nursery
) -> None:
    await cached.fetch("app")
    successor = AtOnce("database", store, FRESHNESS, nursery, announce=told.append)
    successor.inherit(cached)
    await trio.sleep(1)
    assert store.issued == 1
    assert told == [Change("database", values=frozenset({("app", "username"), ("app", "password")}))]
