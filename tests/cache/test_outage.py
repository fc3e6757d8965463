"""Freshness in the background and outages, on a virtual clock: nobody waits for what is known, and nothing lasts."""

import logging
import threading
from collections.abc import Mapping

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from secretfs.cache import health
from secretfs.cache.change import Change
from secretfs.cache.freshness import Freshness
from secretfs.cache.store_cache import BACKGROUND, STALE_TTL, CachedStore
from secretfs.errors import (
    AccessDenied,
    DeadlineExceeded,
    MalformedAnswer,
    SecretNotFound,
    StoreError,
    StoreUnavailable,
)
from secretfs.store import CachedRead, Secret
from tests.conftest import ExpectLog
from tests.support.cached import Cached, run, settle, use
from tests.support.canary import secret as canary
from tests.support.memory_store import MemoryStore

OLD, NEW = canary("old").encode(), canary("new").encode()
FRESHNESS = Freshness(ttl=60, max_stale=3600, deadline=5, idle=600)


class HoldingStore(MemoryStore):
    """Holds what is asked of some of its secrets until `release`."""

    held: frozenset[str] = frozenset()
    release = threading.Event()

    def fetch(self, name: str) -> Secret:
        found = super().fetch(name)
        if name in self.held:
            self.release.wait()
        return found


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore({"db": {"password": OLD}, "other": {"k": b"v"}})


@pytest.fixture
def cached(store: MemoryStore, nursery: trio.Nursery, mock_clock: MockClock) -> CachedStore:
    cached = Cached("vault", store, FRESHNESS, nursery)
    nursery.start_soon(cached.keep_fresh)
    return cached


async def fetch_at_once(cached: CachedStore, name: str = "db") -> bytes:
    """Fetch without letting time pass."""
    begin = trio.current_time()
    with trio.fail_after(0.001):
        secret = await use(cached, name)
    assert trio.current_time() == begin
    (value,) = secret.value.values.values()
    return value


async def test_a_value_in_use_is_asked_for_again_before_it_expires(
    cached: CachedStore, store: MemoryStore, mock_clock: MockClock
) -> None:
    await use(cached, "db")
    store.put("db", {"password": NEW})
    await run(mock_clock, 58)
    assert store.calls["fetch:db"] == 2
    assert cached.peek("db")
    assert await fetch_at_once(cached) == NEW


async def test_what_a_reader_has_asked_for_meanwhile_is_not_asked_for_again(
    nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    """When much is due at once, the last of it has to wait for its turn."""
    store = HoldingStore({f"{number}": {"k": OLD} for number in range(BACKGROUND + 1)})
    cached = Cached("vault", store, FRESHNESS, nursery)
    for name in store.secrets:
        await use(cached, name)
    mock_clock.jump(55)
    *first, last = cached._secrets.due(FRESHNESS.idle)
    store.held = frozenset(first)
    nursery.start_soon(cached._renew, cached._secrets)
    await settle()
    assert [store.calls[f"fetch:{name}"] for name in first] == [2] * BACKGROUND
    await cached.fetch_anew(last)
    assert store.calls[f"fetch:{last}"] == 2
    store.release.set()
    await settle()
    assert store.calls[f"fetch:{last}"] == 2


async def test_what_is_only_looked_at_is_not_asked_for_in_the_background(
    cached: CachedStore, store: MemoryStore, mock_clock: MockClock
) -> None:
    """A use is an open: a walk looks at everything, and reads nothing."""
    await cached.names("")
    for name in store.secrets:
        await cached.fetch(name)
    await run(mock_clock, 300)
    assert store.calls == {"names:": 1, "fetch:db": 1, "fetch:other": 1}


async def test_the_listings_that_lead_to_what_is_in_use_are_kept_fresh(
    nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    store = MemoryStore({"team/db": {"k": OLD}, "other/db": {"k": OLD}}, folders=True)
    cached = Cached("vault", store, FRESHNESS, nursery)
    nursery.start_soon(cached.keep_fresh)
    for folder in ("", "team", "other"):
        await cached.names(folder)
    await use(cached, "team/db")
    await run(mock_clock, 58)
    assert store.calls == {"names:": 2, "names:team": 2, "names:other": 1, "fetch:team/db": 2}


async def test_values_leave_memory_during_an_outage(
    cached: CachedStore, store: MemoryStore, mock_clock: MockClock, expect_log: ExpectLog
) -> None:
    """After `idle`, and after `max_stale` at the latest. What has changed meanwhile is announced all the same."""
    expect_log("vault: down")
    told: list[Change] = []
    cached._announce = told.append
    await use(cached, "db")
    await use(cached, "other")
    store.fail_with = StoreUnavailable("down")
    store.put("db", {"password": NEW})
    for _ in range(5):
        await run(mock_clock, 500, 10)
        cached.use("db")
    assert cached._secrets.known("other") is None
    assert OLD in values_in(cached)
    for _ in range(3):
        await run(mock_clock, 500, 10)
        cached.use("db")
    assert values_in(cached) == []
    store.fail_with = None
    await run(mock_clock, 100)
    assert NEW in values_in(cached)
    assert told == [Change("vault", values=frozenset({("db", "password")}))]


def values_in(cached: CachedStore) -> list[bytes]:
    """Return all values that are in memory."""
    known = (cached._secrets.known(name) for name in cached._secrets)
    return [value for one in known if one and isinstance(one.value, Secret) for value in one.value.values.values()]


async def test_a_value_nobody_uses_is_dropped_and_costs_nothing_more(
    cached: CachedStore, store: MemoryStore, mock_clock: MockClock
) -> None:
    await use(cached, "db")
    await run(mock_clock, 700)
    calls = store.calls["fetch:db"]
    assert calls <= 16  # 600 s idle at ttl 60 s, each after 70 to 90 % of it
    assert not len(cached._secrets)
    await run(mock_clock, 300)
    assert store.calls["fetch:db"] == calls


class Comparing(MemoryStore):
    """A store that compares versions."""

    def unchanged(self, known: Mapping[str, CachedRead]) -> frozenset[str]:
        self._called("unchanged")
        return frozenset(name for name, it in known.items() if self.secrets.get(name) is it.secret)


async def test_what_a_store_can_compare_is_read_again_only_if_it_has_changed(
    nursery: trio.Nursery, mock_clock: MockClock, expect_log: ExpectLog
) -> None:
    expect_log("vault: down")
    store = Comparing({str(number): {"k": OLD} for number in range(50)})
    cached = Cached("vault", store, FRESHNESS, nursery)
    nursery.start_soon(cached.keep_fresh)
    before = {name: await use(cached, name) for name in store.secrets}
    store.put("7", {"k": NEW})
    store.delete("8")
    await run(mock_clock, 120)
    assert {call: count for call, count in store.calls.items() if count > 1 and call != "unchanged"} == {
        "fetch:7": 2,
        "fetch:8": 2,
    }
    assert 2 <= store.calls["unchanged"] <= 4
    assert await fetch_at_once(cached, "7") == NEW
    with pytest.raises(SecretNotFound):
        await use(cached, "8")
    again = await use(cached, "9")
    assert (again.serial, again.value) == (before["9"].serial, before["9"].value)  # nothing to look at anew
    assert again.fetched > before["9"].fetched
    store.refused["unchanged"] = StoreUnavailable("down")
    store.put("9", {"k": NEW})
    await run(mock_clock, 70)
    assert await fetch_at_once(cached, "9") == NEW


async def test_what_changes_while_it_is_compared_is_not_taken_for_the_same(
    nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    store = Comparing({"db": {"k": OLD}})
    cached = Cached("vault", store, FRESHNESS, nursery)
    await use(cached, "db")
    async with trio.open_nursery() as comparing:
        gate = store.gate
        gate.clear()
        comparing.start_soon(cached._revalidate)
        await trio.to_thread.run_sync(store.entered.acquire)  # that of `fetch`
        await trio.to_thread.run_sync(store.entered.acquire)
        cached._secrets.expire("db")
        gate.set()
    assert cached.peek("db") is None


async def test_names_in_use_are_kept_fresh_too(cached: CachedStore, store: MemoryStore, mock_clock: MockClock) -> None:
    await cached.names("")
    store.put("added", {"k": b"v"})
    await run(mock_clock, 60)
    assert "added" in (await cached.names("")).value.secrets
    assert store.calls["names:"] == 2


async def test_refusals_are_not_kept_fresh(cached: CachedStore, store: MemoryStore, mock_clock: MockClock) -> None:
    with pytest.raises(SecretNotFound):
        await use(cached, "nope")
    await run(mock_clock, 300)
    assert store.calls["fetch:nope"] == 1
    assert not len(cached._secrets)


FAILURES = [StoreUnavailable("down"), DeadlineExceeded("slow"), MalformedAnswer("garbage"), StoreError("unexpected")]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda error: type(error).__name__)
async def test_what_is_known_is_served_while_the_store_fails(
    cached: CachedStore, store: MemoryStore, mock_clock: MockClock, expect_log: ExpectLog, failure: StoreError
) -> None:
    expect_log(f"vault: {failure}")
    await use(cached, "db")
    store.fail_with = failure
    await run(mock_clock, 70)
    for _ in range(20):
        assert await fetch_at_once(cached) == OLD
        await run(mock_clock, 30, step=10)
    secret = await use(cached, "db")
    assert secret.stale
    assert secret.remaining <= STALE_TTL


async def test_stale_has_an_end(
    cached: CachedStore, store: MemoryStore, mock_clock: MockClock, expect_log: ExpectLog
) -> None:
    expect_log("vault: down")
    await use(cached, "db")
    store.fail_with = StoreUnavailable("down")
    for _ in range(119):
        await run(mock_clock, 30, step=15)
        assert await fetch_at_once(cached) == OLD
    await run(mock_clock, 40)
    with pytest.raises(StoreUnavailable):
        await use(cached, "db")


@pytest.mark.parametrize(
    "refusal", [AccessDenied("revoked"), SecretNotFound("deleted")], ids=lambda error: type(error).__name__
)
async def test_a_refusal_takes_effect_at_once_and_is_never_papered_over(
    cached: CachedStore, store: MemoryStore, mock_clock: MockClock, expect_log: ExpectLog, refusal: StoreError
) -> None:
    if isinstance(refusal, AccessDenied):
        expect_log("vault: revoked")
    await use(cached, "db")
    store.refused["fetch:db"] = refusal
    await run(mock_clock, 60)
    with pytest.raises(type(refusal)):
        await use(cached, "db")


async def test_what_is_not_known_fails_in_time_and_then_at_once(
    cached: CachedStore, store: MemoryStore, mock_clock: MockClock, expect_log: ExpectLog
) -> None:
    expect_log("vault: down")
    store.fail_with = StoreUnavailable("down")
    for _ in range(10):
        with pytest.raises(StoreUnavailable):
            await use(cached, "db")
    assert store.calls["fetch:db"] == 3  # the breaker is open


async def test_recovery_is_noticed_without_a_reader_and_without_a_herd(
    cached: CachedStore, store: MemoryStore, mock_clock: MockClock, expect_log: ExpectLog
) -> None:
    expect_log("vault: down")
    for number in range(100):
        store.put(f"secret-{number}", {"k": b"1"})
        await use(cached, f"secret-{number}")
    store.fail_with = StoreUnavailable("down")
    await run(mock_clock, 200)
    down = sum(store.calls.values())
    await run(mock_clock, 100)
    assert sum(store.calls.values()) - down <= 8  # one trial every 30 s or so
    for number in range(100):
        store.put(f"secret-{number}", {"k": b"2"})
    store.fail_with = None
    store.calls.clear()
    store.most_running = 0
    await run(mock_clock, 40)
    assert all(calls == 1 for call, calls in store.calls.items() if call.startswith("fetch")), store.calls
    assert store.most_running <= 4
    for number in range(100):
        assert await fetch_at_once(cached, f"secret-{number}") == b"2"


async def test_a_store_that_hangs_serves_what_it_knows_after_one_wait_at_most(
    cached: CachedStore, store: MemoryStore, mock_clock: MockClock, expect_log: ExpectLog
) -> None:
    expect_log("vault: no answer within 5s")
    await use(cached, "db")
    store.gate.clear()
    for _ in range(100):
        mock_clock.jump(1)
        await wait_all_tasks_blocked(0.001)
    begin = trio.current_time()
    assert await fetch_at_once(cached) == OLD
    assert trio.current_time() == begin
    store.gate.set()


async def test_one_failure_does_not_shut_out_what_is_not_known(
    cached: CachedStore, store: MemoryStore, mock_clock: MockClock, expect_log: ExpectLog
) -> None:
    expect_log("vault: hiccup")
    store.refused["fetch:db"] = StoreUnavailable("hiccup")
    with pytest.raises(StoreUnavailable):
        await use(cached, "db")
    assert (await use(cached, "other")).value.values == {"k": b"v"}


async def test_one_secret_that_always_fails_does_not_shut_out_the_others(
    cached: CachedStore,
    store: MemoryStore,
    mock_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
    expect_log: ExpectLog,
) -> None:
    expect_log("vault: its database is down")
    caplog.set_level(logging.INFO, "secretfs.cache.health")
    store.refused["fetch:db"] = StoreUnavailable("its database is down")
    for number in range(20):
        for _ in range(2 * health.FAILURES):  # a program that polls
            with pytest.raises(StoreUnavailable):
                await use(cached, "db")
        await settle()
        store.put(f"cold-{number}", {"k": b"v"})
        assert await fetch_at_once(cached, f"cold-{number}") == b"v"
    assert store.calls["check"] >= 20
    told = [record.getMessage() for record in caplog.records if record.name == "secretfs.cache.health"]
    assert told == ["vault: its database is down", "vault: answers again"]
