"""What a cache knows after its process was killed: what it would have known if it had gone on."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from secretfs.cache.change import Change
from secretfs.cache.freshness import Freshness
from secretfs.cache.store_cache import CachedStore
from secretfs.cache.warm_restart import StoreMemory, WarmMemory
from secretfs.errors import AccessDenied, SecretNotFound, StoreUnavailable
from secretfs.store import Secret
from tests.conftest import ExpectLog
from tests.support.at_once import AtOnce
from tests.support.cached import use
from tests.support.canary import secret
from tests.support.held_memory import KEY, HeldMemory, memory, texts
from tests.support.memory_store import IssuingMemoryStore, MemoryStore, VersionedMemoryStore

__all__ = ["memory"]

VALUE, NEW = secret().encode(), secret("new").encode()
FRESHNESS = Freshness(ttl=60, max_stale=3600, idle=600, deadline=5)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore({"db": {"password": VALUE, "user": b"\x00\xff\n"}, "other": {"key": b""}})


class Process:
    """One process after the other, with the same memory and the same store."""

    def __init__(self, memory: HeldMemory, store: MemoryStore) -> None:
        self._memory = memory
        self._store = store
        self.changes: list[Change] = []
        self.known: StoreMemory

    @asynccontextmanager
    async def run(self, declaration: str = "") -> AsyncIterator[CachedStore]:
        """Run a process, which is killed at the end: nothing is put in order."""
        warm = WarmMemory(KEY, self._memory.arena(), trio.current_time)
        async with trio.open_nursery() as nursery:
            known = self.known = warm.store("vault", declaration)
            cached = AtOnce("vault", self._store, FRESHNESS, nursery, announce=self.changes.append, memory=known)
            warm.sweep()
            nursery.start_soon(cached.keep_fresh)
            yield cached
            nursery.cancel_scope.cancel()


@pytest.fixture
def process(memory: HeldMemory, store: MemoryStore) -> Process:
    return Process(memory, store)


async def test_all_that_is_known_of_a_version_comes_back(
    process: Process, autojump_clock: MockClock, store: MemoryStore
) -> None:
    store.secrets["db"] = Secret({"key": VALUE}, "version", 12.5, ("AWSCURRENT", "blue"))
    async with process.run() as cached:
        await cached.fetch("db")
    async with process.run() as cached:
        assert (await cached.fetch("db")).value == store.secrets["db"]
    assert store.calls["fetch:db"] == 1


async def test_what_is_fresh_is_served_for_what_is_left_of_its_ttl(
    process: Process, autojump_clock: MockClock, store: MemoryStore
) -> None:
    async with process.run() as cached:
        before = await cached.fetch("db")
        await cached.names("")
    await trio.sleep(20)
    store.calls.clear()
    async with process.run() as cached:
        again = await cached.fetch("db")
        assert (again.value, again.stale) == (before.value, False)
        assert again.remaining == pytest.approx(40, abs=0.1)
        assert again.fetched_at == pytest.approx(before.fetched_at, abs=30)  # the clock on the wall did not jump
        assert (await cached.names("")).value.secrets == {"db", "other"}
        assert store.calls == {}
        await trio.sleep(41)
        await cached.fetch("db")
        assert store.calls == {"fetch:db": 1}


async def test_many_kills_are_like_one(process: Process, autojump_clock: MockClock, store: MemoryStore) -> None:
    async with process.run() as cached:
        await cached.fetch("db")
    for _ in range(5):
        await trio.sleep(9)
        async with process.run() as cached:
            assert cached.peek("db") is not None
    assert store.calls == {"fetch:db": 1}


async def test_what_is_in_use_is_kept_fresh_and_its_changes_are_announced(
    process: Process, autojump_clock: MockClock, store: MemoryStore
) -> None:
    async with process.run() as cached:
        await use(cached, "db")
        await cached.fetch("other")
    store.put("db", {"password": NEW, "user": b"\x00\xff\n"})
    store.calls.clear()
    async with process.run() as cached:
        await trio.sleep(61)
        assert process.changes == [Change("vault", values=frozenset({("db", "password")}))]
        assert store.calls == {"fetch:db": 1}
    async with process.run() as cached:
        fresh = cached.peek("db")
        assert fresh is not None
        assert fresh.value.values["password"] == NEW


async def test_during_an_outage_it_is_served_stale_without_a_wait(
    process: Process, autojump_clock: MockClock, store: MemoryStore, expect_log: ExpectLog
) -> None:
    async with process.run() as cached:
        await cached.fetch("db")
        await trio.sleep(61)
        expect_log("down")
        store.fail_with = StoreUnavailable("down")
        stale = await cached.fetch("db")
        assert stale.stale
    store.calls.clear()
    async with process.run() as cached:
        stale = await cached.fetch("db")
        assert (stale.stale, stale.value.values["password"]) == (True, VALUE)
        assert store.calls["fetch:db"] == 0
        await trio.sleep(3500)
        assert cached.peek("db") is None
        with pytest.raises(StoreUnavailable):
            await cached.fetch("db")  # older than max-stale, or unused for idle


async def test_a_store_that_is_back_is_noticed_at_once(
    process: Process, autojump_clock: MockClock, store: MemoryStore, expect_log: ExpectLog
) -> None:
    async with process.run() as cached:
        await use(cached, "db")
        store.fail_with = StoreUnavailable("down")
        expect_log("down")
        await trio.sleep(61)
    store.fail_with = None
    store.put("db", {"password": NEW})
    async with process.run() as cached:
        await wait_all_tasks_blocked()
        await trio.sleep(5)
        assert (await cached.fetch("db")).value.values == {"password": NEW}


async def test_what_was_told_to_have_changed_is_not_fresh_any_more(
    process: Process, autojump_clock: MockClock, store: MemoryStore, expect_log: ExpectLog
) -> None:
    async with process.run() as cached:
        await cached.fetch("db")
        expect_log("down")
        store.fail_with = StoreUnavailable("down")
        with pytest.raises(StoreUnavailable):
            await cached.refresh(lambda name: name == "db")
    async with process.run() as cached:
        assert cached.peek("db") is None


async def test_what_is_dropped_is_not_found_any_more(
    process: Process, autojump_clock: MockClock, memory: HeldMemory, store: MemoryStore
) -> None:
    async with process.run() as cached:
        await cached.fetch("db")
        assert len([text for text in texts(memory.arena()) if VALUE in text]) == 1
        await trio.sleep(700)  # longer than idle
        assert [text for text in texts(memory.arena()) if VALUE in text] == []


async def test_a_value_past_max_stale_leaves_this_memory_too(
    process: Process, autojump_clock: MockClock, memory: HeldMemory, store: MemoryStore, expect_log: ExpectLog
) -> None:
    async with process.run() as cached:
        await use(cached, "db")
        store.fail_with = StoreUnavailable("down")
        expect_log("down")
        for _ in range(8):
            await trio.sleep(500)
            cached.use("db")
        assert [text for text in texts(memory.arena()) if VALUE in text] == []


async def test_it_is_idle_as_long_as_before(process: Process, autojump_clock: MockClock) -> None:
    async with process.run() as cached:
        await cached.fetch("db")
    await trio.sleep(590)
    async with process.run() as cached:
        assert cached.idle_for("db") == pytest.approx(590, abs=0.1)
        await trio.sleep(15)
        assert list(cached._secrets) == []


async def test_that_a_secret_is_not_there_is_known_and_a_refusal_is_asked_for_again(
    process: Process, autojump_clock: MockClock, store: MemoryStore, expect_log: ExpectLog
) -> None:
    store.refused["fetch:secret"] = AccessDenied("no")
    expect_log("no")
    async with process.run() as cached:
        with pytest.raises(SecretNotFound):
            await cached.fetch("nothing")
        with pytest.raises(AccessDenied):
            await cached.fetch("secret")
    store.calls.clear()
    async with process.run() as cached:
        with pytest.raises(SecretNotFound, match="secret nothing not found"):
            await cached.fetch("nothing")
        with pytest.raises(AccessDenied):
            await cached.fetch("secret")
    assert store.calls == {"fetch:secret": 1}


async def test_values_of_a_store_that_is_declared_otherwise_are_dropped(
    process: Process, autojump_clock: MockClock, memory: HeldMemory, store: MemoryStore
) -> None:
    async with process.run("one address") as cached:
        await cached.fetch("db")
    async with process.run("another address") as cached:
        assert cached.peek("db") is None
        assert [text for text in texts(memory.arena()) if VALUE in text] == []


async def test_a_store_that_was_replaced_keeps_nothing(
    process: Process, autojump_clock: MockClock, memory: HeldMemory
) -> None:
    async with process.run() as cached:
        await cached.fetch("db")
        process.known.end()
        await cached.refresh()
    assert list(memory.arena().records()) == []


async def test_issued_credentials_are_not_kept(memory: HeldMemory, autojump_clock: MockClock) -> None:
    process = Process(memory, IssuingMemoryStore({"role": {"password": VALUE}}))
    async with process.run() as cached:
        await cached.fetch("role")
        assert [text for text in texts(memory.arena()) if VALUE in text] == []


async def test_what_cannot_be_kept_is_asked_for_again(
    process: Process, autojump_clock: MockClock, memory: HeldMemory, store: MemoryStore, expect_log: ExpectLog
) -> None:
    memory.limit = 0
    expect_log("no memory to keep more values for the next process")
    async with process.run() as cached:
        await cached.fetch("db")
        assert cached.peek("db") is not None
    async with process.run() as cached:
        assert (await cached.fetch("db")).value.values["password"] == VALUE
    assert store.calls == {"fetch:db": 2}


class TestContents:
    def test_a_content_is_there_as_long_as_somebody_holds_it(self, memory: HeldMemory) -> None:
        warm = WarmMemory(KEY, memory.arena())
        digest = warm.digest(VALUE)
        assert warm.hold(digest, VALUE)
        assert warm.hold(digest, VALUE)
        warm.release(digest)
        assert WarmMemory(KEY, memory.arena()).content(digest) == VALUE
        warm.release(digest)
        assert WarmMemory(KEY, memory.arena()).content(digest) is None

    def test_what_nobody_claims_is_dropped(self, memory: HeldMemory) -> None:
        first = WarmMemory(KEY, memory.arena())
        for content in (VALUE, NEW):
            first.hold(first.digest(content), content)
        second = WarmMemory(KEY, memory.arena())
        second.hold(second.digest(NEW), NEW)
        second.sweep()
        third = WarmMemory(KEY, memory.arena())
        assert third.content(third.digest(VALUE)) is None
        assert third.content(third.digest(NEW)) == NEW

    def test_nothing_is_held_without_a_memory(self) -> None:
        warm = WarmMemory(KEY)
        assert not warm.hold(warm.digest(VALUE), VALUE)
        assert warm.content(warm.digest(VALUE)) is None


async def test_versions_and_what_is_written_down_about_a_secret_are_known(memory: HeldMemory) -> None:
    store = VersionedMemoryStore({"db": {"password": VALUE}})
    store.secrets["db"] = Secret({"password": VALUE, "empty": b""}, "2", metadata={"owner": "ünïcode", "empty": ""})
    process = Process(memory, store)
    async with process.run() as cached:
        await cached.fetch("db")
        await cached.versions.fetch("db", "1")
    calls = dict(store.calls)
    async with process.run() as cached:
        assert (await cached.fetch("db")).value == store.secrets["db"]
        assert (await cached.versions.fetch("db", "1")).value.values == {"password": VALUE}
        assert store.calls == calls
        process.known.end()
    async with process.run() as cached:
        assert cached.versions.peek("db", "1") is None
