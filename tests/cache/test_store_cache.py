"""Freshness on a virtual clock: one question at a time, ttl, deadlines, bounded threads."""

import logging
import threading
from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from secretfs.cache.change import Change
from secretfs.cache.client import CONCURRENCY, REFUSAL_TTL
from secretfs.cache.freshness import Freshness
from secretfs.cache.health import SHORTEST
from secretfs.cache.store_cache import CachedStore
from secretfs.cache.ttl_cache import CachedAnswer, TTLCache
from secretfs.errors import (
    AccessDenied,
    DeadlineExceeded,
    MalformedAnswer,
    SecretNotFound,
    StoreError,
    StoreUnavailable,
)
from secretfs.store import Names, Secret
from tests.conftest import ExpectLog
from tests.support.at_once import AtOnce, tell
from tests.support.cached import Cached, use
from tests.support.canary import leaked
from tests.support.canary import secret as canary
from tests.support.memory_store import MemoryStore, WatchingMemoryStore

VALUE = canary().encode()


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore({"db": {"password": VALUE}})


@pytest.fixture
def cached(store: MemoryStore, nursery: trio.Nursery, mock_clock: MockClock) -> CachedStore:
    return Cached("vault", store, Freshness(ttl=60, deadline=5), nursery)


async def test_a_fresh_answer_costs_one_call(cached: CachedStore, store: MemoryStore, mock_clock: MockClock) -> None:
    first = await cached.fetch("db")
    mock_clock.jump(59)
    again = await cached.fetch("db")
    assert again is first
    assert again.remaining == pytest.approx(1)
    assert store.calls["fetch:db"] == 1


async def test_an_answer_as_old_as_ttl_is_asked_for_again(
    cached: CachedStore, store: MemoryStore, mock_clock: MockClock
) -> None:
    await cached.fetch("db")
    store.put("db", {"password": b"new"})
    mock_clock.jump(60)
    assert cached.peek("db") is None
    assert (await cached.fetch("db")).value.values == {"password": b"new"}


async def test_names_are_cached_by_folder(cached: CachedStore, store: MemoryStore) -> None:
    await cached.names("")
    await cached.names("")
    await cached.names("team")
    assert store.calls == {"names:": 1, "names:team": 1}


async def test_two_hundred_readers_of_a_cold_secret_are_one_call(cached: CachedStore, store: MemoryStore) -> None:
    store.gate.clear()
    answers = []

    async def read() -> None:
        answers.append(await cached.fetch("db"))

    async with trio.open_nursery() as readers:
        for _ in range(200):
            readers.start_soon(read)
        await wait_all_tasks_blocked()
        store.gate.set()
    assert len(answers) == 200
    assert store.calls["fetch:db"] == 1


async def test_readers_of_a_failing_call_all_get_their_own_error(
    cached: CachedStore, store: MemoryStore, expect_log: ExpectLog
) -> None:
    expect_log("vault: down")
    store.gate.clear()
    store.fail_with = StoreUnavailable("down")
    errors = []

    async def read() -> None:
        with pytest.raises(StoreUnavailable) as raised:
            await cached.fetch("db")
        errors.append(raised.value)

    async with trio.open_nursery() as readers:
        for _ in range(3):
            readers.start_soon(read)
        await wait_all_tasks_blocked()
        store.gate.set()
    assert len({id(error) for error in errors}) == 3
    assert store.calls["fetch:db"] == 1


async def test_a_failure_is_not_remembered(cached: CachedStore, store: MemoryStore, expect_log: ExpectLog) -> None:
    expect_log("vault: down")
    store.fail_with = StoreUnavailable("down")
    with pytest.raises(StoreUnavailable):
        await cached.fetch("db")
    store.fail_with = None
    assert (await cached.fetch("db")).value.values == {"password": VALUE}


async def test_not_found_is_an_answer_for_ttl(cached: CachedStore, store: MemoryStore, mock_clock: MockClock) -> None:
    for _ in range(3):
        with pytest.raises(SecretNotFound):
            await cached.fetch("nope")
    assert store.calls["fetch:nope"] == 1
    store.put("nope", {"k": b"v"})
    mock_clock.jump(60)
    assert (await cached.fetch("nope")).value.values == {"k": b"v"}


async def test_forbidden_is_remembered_for_a_moment_only(
    cached: CachedStore, store: MemoryStore, mock_clock: MockClock, expect_log: ExpectLog
) -> None:
    expect_log("not allowed")
    store.refused["fetch:db"] = AccessDenied("not allowed")
    for _ in range(3):
        with pytest.raises(AccessDenied):
            await cached.fetch("db")
    assert store.calls["fetch:db"] == 1
    del store.refused["fetch:db"]
    mock_clock.jump(REFUSAL_TTL)
    assert (await cached.fetch("db")).value.values == {"password": VALUE}


async def test_a_secret_that_is_deleted_upstream_is_gone_after_ttl(
    cached: CachedStore, store: MemoryStore, mock_clock: MockClock
) -> None:
    await cached.fetch("db")
    store.delete("db")
    mock_clock.jump(60)
    with pytest.raises(SecretNotFound):
        await cached.fetch("db")
    assert cached.peek("db") is None


async def test_no_reader_waits_longer_than_the_deadline(
    cached: CachedStore, store: MemoryStore, mock_clock: MockClock, nursery: trio.Nursery, expect_log: ExpectLog
) -> None:
    expect_log("vault: no answer within 5s")
    store.gate.clear()
    waited = []

    async def read() -> None:
        with pytest.raises(DeadlineExceeded):
            await cached.fetch("db")
        waited.append(trio.current_time())

    begin = trio.current_time()
    async with trio.open_nursery() as readers:
        readers.start_soon(read)
        await trio.to_thread.run_sync(store.entered.acquire)
        mock_clock.jump(3)
        readers.start_soon(read)  # joins the call under way: waits the rest of its time
        await wait_all_tasks_blocked()
        mock_clock.jump(2)
    store.gate.set()
    assert waited == [begin + 5, begin + 5]
    assert store.calls["fetch:db"] == 1


async def test_a_store_that_hangs_is_called_a_bounded_number_of_times_at_once(
    cached: CachedStore, store: MemoryStore, mock_clock: MockClock, expect_log: ExpectLog
) -> None:
    expect_log("no answer within")
    store.gate.clear()

    async def read(name: str) -> None:
        with pytest.raises(DeadlineExceeded):
            await cached.fetch(name)

    async with trio.open_nursery() as readers:
        for number in range(5 * CONCURRENCY):
            readers.start_soon(read, f"secret-{number}")
        for _ in range(CONCURRENCY):
            await trio.to_thread.run_sync(store.entered.acquire)
        mock_clock.jump(5)
    assert store.running == CONCURRENCY
    assert store.most_running == CONCURRENCY
    store.gate.set()


async def test_a_store_that_hangs_delays_no_other(
    nursery: trio.Nursery, mock_clock: MockClock, cached: CachedStore, store: MemoryStore, expect_log: ExpectLog
) -> None:
    other = Cached("other", MemoryStore({"a": {"k": b"v"}}), Freshness(), nursery)
    store.gate.clear()
    async with trio.open_nursery() as readers:
        for number in range(3 * CONCURRENCY):
            readers.start_soon(_ignoring_deadline, cached.fetch, f"secret-{number}")
        await wait_all_tasks_blocked()
        assert (await other.fetch("a")).value.values == {"k": b"v"}  # the clock stands still: no time has passed
        store.gate.set()


async def _ignoring_deadline(fetch: Callable[[str], Awaitable[object]], name: str) -> None:
    with pytest.raises(StoreError):
        await fetch(name)


async def test_a_reader_that_goes_away_does_not_take_the_answer_from_the_others(
    cached: CachedStore, store: MemoryStore
) -> None:
    store.gate.clear()
    answers = []

    async def read(scope: trio.CancelScope) -> None:
        with scope:
            answers.append(await cached.fetch("db"))

    impatient = trio.CancelScope()
    async with trio.open_nursery() as readers:
        readers.start_soon(read, impatient)
        await wait_all_tasks_blocked()
        readers.start_soon(read, trio.CancelScope())
        await wait_all_tasks_blocked()
        impatient.cancel()
        await wait_all_tasks_blocked()
        store.gate.set()
    assert len(answers) == 1
    assert store.calls["fetch:db"] == 1


async def test_a_trouble_is_logged_once_and_so_is_its_end(
    cached: CachedStore,
    store: MemoryStore,
    mock_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
    expect_log: ExpectLog,
) -> None:
    expect_log("vault: down")
    store.fail_with = StoreUnavailable("down")
    for _ in range(5):
        with pytest.raises(StoreUnavailable):
            await cached.fetch("db")
    store.fail_with = None
    mock_clock.jump(2 * SHORTEST)
    with caplog.at_level(logging.INFO):
        await cached._client._probe()  # as `keep_fresh` does
        await cached.fetch("db")
    told = [record.getMessage() for record in caplog.records if record.name == "secretfs.cache.health"]
    assert told == ["vault: down", "vault: answers again"]


async def test_a_defect_in_a_store_is_an_error_of_the_reader_and_its_text_is_withheld(
    nursery: trio.Nursery,
    store: MemoryStore,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    expect_log: ExpectLog,
) -> None:
    for line in ("a defect in secretfs or in a store", "vault: unexpected KeyError"):
        expect_log(line)

    def broken(name: str) -> Secret:
        raise KeyError(VALUE)

    monkeypatch.setattr(store, "fetch", broken)
    with caplog.at_level(logging.DEBUG), pytest.raises(StoreError, match="unexpected KeyError"):
        await Cached("vault", store, Freshness(), nursery).fetch("db")
    assert "broken" in caplog.text  # the place is told
    assert not leaked(caplog.text)


async def test_malformed_answers_reach_the_reader(
    cached: CachedStore, store: MemoryStore, expect_log: ExpectLog
) -> None:
    expect_log("garbage")
    store.fail_with = MalformedAnswer("garbage")
    with pytest.raises(MalformedAnswer):
        await cached.names("")


def lasting(value: str, seconds: float) -> CachedAnswer[str]:
    now = trio.current_time()
    return CachedAnswer(value, now, now + seconds, 0.0)


async def test_every_answer_has_a_serial_of_its_own(nursery: trio.Nursery, mock_clock: MockClock) -> None:
    async def load(key: str) -> CachedAnswer[str]:
        return lasting(key, 1)

    shelf = TTLCache(load, nursery)
    first = await shelf.get("a")
    mock_clock.jump(1)
    assert (await shelf.get("a")).serial != first.serial


@pytest.fixture
def watched() -> WatchingMemoryStore:
    return WatchingMemoryStore({"db": {"k": b"old"}, "other": {"k": b"v"}})


@pytest.fixture
def told() -> list[Change]:
    return []


@pytest.fixture
def watching(
    watched: WatchingMemoryStore, told: list[Change], nursery: trio.Nursery, mock_clock: MockClock
) -> CachedStore:
    return AtOnce("vault", watched, Freshness(ttl=60, deadline=5), nursery, announce=told.append)


async def change(store: WatchingMemoryStore, name: str, value: bytes = b"new") -> None:
    """Write a secret and tell of it; returns when that has been heard."""
    store.put(name, {"k": value})
    await tell(store, name)


async def test_a_change_is_asked_for_at_once_and_what_did_not_change_is_not(
    watching: CachedStore, watched: WatchingMemoryStore, mock_clock: MockClock
) -> None:
    before = await watching.fetch("db")
    await watching.fetch("other")
    await change(watched, "db")
    after = watching.peek("db")  # nobody had to ask for it
    assert after is not None
    assert after.value.values == {"k": b"new"}
    assert after.serial != before.serial
    assert after.remaining == 60
    await watching.fetch("other")
    assert (watched.calls["fetch:db"], watched.calls["fetch:other"]) == (2, 1)


async def test_a_change_may_be_of_names_so_every_listing_is_asked_for_again(
    watching: CachedStore, watched: WatchingMemoryStore
) -> None:
    for folder in ("", "team"):
        await watching.names(folder)
    await change(watched, "added")
    assert watched.calls == {"names:": 2, "names:team": 2}  # and "added" is not: nobody wanted to know it before
    assert "added" in (await watching.names("")).value.secrets
    await watching.names("team")
    assert watched.calls == {"names:": 2, "names:team": 2}


async def test_a_change_ends_what_is_known_of_a_secret_that_was_not_there(
    watching: CachedStore, watched: WatchingMemoryStore
) -> None:
    with pytest.raises(SecretNotFound):
        await watching.fetch("added")
    await change(watched, "added")
    assert (await watching.fetch("added")).value.values == {"k": b"new"}
    watched.delete("added")
    await tell(watched, "added")
    with pytest.raises(SecretNotFound):
        await watching.fetch("added")


def values(*changed: tuple[str, str]) -> Change:
    return Change("vault", values=frozenset(changed))


def names(*changed: str) -> Change:
    return Change("vault", names=frozenset(changed))


async def test_a_change_is_told_when_the_new_answer_is_there(
    watched: WatchingMemoryStore, nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    told: list[tuple[Change, object]] = []

    def changed(change: Change) -> None:
        known = watcher.peek("db")
        told.append((change, known and known.value.values))

    watcher = AtOnce("vault", watched, Freshness(ttl=60, deadline=5), nursery, announce=changed)
    await watcher.fetch("db")
    watched.put("db", {"k": b"new"})
    watched.tell("db", "nobody asked for this")
    assert told == []  # it is heard in the thread of trio
    await wait_all_tasks_blocked()
    assert told == [(values(("db", "k")), {"k": b"new"})]
    assert "fetch:nobody asked for this" not in watched.calls


@pytest.mark.parametrize(
    ("before", "after", "changed"),
    [
        ({"a": b"1", "b": b"2"}, {"a": b"1", "b": b"3"}, {"b"}),
        ({"a": b"1"}, {"a": b"1", "b": b""}, {"b"}),
        ({"a": b"1", "b": b""}, {"a": b"1"}, {"b"}),
        ({"a": b"1", "b": b"2"}, None, {"a", "b"}),
        (None, {"a": b"1", "b": b"2"}, {"a", "b"}),
        ({"a": b"1"}, {"b": b"1"}, {"a", "b"}),
        ({"a": b"1"}, {"a": b"1"}, set()),
        (None, None, set()),
    ],
    ids=[
        "another value",
        "a new key",
        "a lost key",
        "deleted",
        "added",
        "renamed",
        "the same again",
        "still not there",
    ],
)
async def test_of_a_secret_the_keys_that_changed_are_told(
    watching: CachedStore,
    watched: WatchingMemoryStore,
    told: list[Change],
    *,
    before: dict[str, bytes] | None,
    after: dict[str, bytes] | None,
    changed: set[str],
) -> None:
    for state in (before, after):
        watched.secrets.pop("it", None)
        if state is not None:
            watched.put("it", state)
        await tell(watched, "it")
        await _ignoring_not_found(watching, "it")
        assert not told or state is after
    assert told == ([values(*(("it", key) for key in changed))] if changed else [])


async def _ignoring_not_found(cached: CachedStore, name: str) -> None:
    try:
        await cached.fetch(name)
    except SecretNotFound:
        return


@pytest.mark.parametrize("folders", [False, True])
async def test_of_a_listing_the_secrets_and_folders_are_told_that_came_and_went(
    watching: CachedStore, watched: WatchingMemoryStore, told: list[Change], *, folders: bool
) -> None:
    watched.folders = folders
    await watching.names("")
    assert told == []
    await tell(watched, "db")
    assert told == []
    watched.delete("other")
    await change(watched, "team/added")
    assert told == [names("other", "team" if folders else "team/added")]


async def test_what_changed_before_a_listing_was_refused_is_told_after_it(
    watching: CachedStore,
    watched: WatchingMemoryStore,
    told: list[Change],
    nursery: trio.Nursery,
    mock_clock: MockClock,
    expect_log: ExpectLog,
) -> None:
    expect_log("vault: revoked")
    nursery.start_soon(watching.keep_fresh)
    await watching.names("")
    watched.put("added", {"k": b"v"})
    watched.refused["names:"] = AccessDenied("revoked")
    for _ in range(3):
        mock_clock.jump(60)
        await wait_all_tasks_blocked()
        with pytest.raises(AccessDenied):
            await watching.names("")
    assert told == []
    del watched.refused["names:"]
    mock_clock.jump(60)
    await watching.names("")
    await wait_all_tasks_blocked()
    assert told == [names("added")]
    mock_clock.jump(600)  # nobody wants to know it any more
    await wait_all_tasks_blocked()
    assert not list(watching._names)
    assert not watching._withheld


@pytest.mark.parametrize("found_by", ["a reader", "the background"])
async def test_a_change_is_told_whoever_finds_it(
    nursery: trio.Nursery, mock_clock: MockClock, store: MemoryStore, *, found_by: str
) -> None:
    told: list[Change] = []
    cached = AtOnce("vault", store, Freshness(ttl=60), nursery, announce=told.append)
    await cached.names("")
    await use(cached, "db")
    store.put("db", {"password": b"new"})
    store.put("added", {"k": b"v"})
    mock_clock.jump(60)
    if found_by == "a reader":
        await cached.names("")
        await cached.fetch("db")
    else:
        for shelf in (cached._names, cached._secrets):  # as `keep_fresh` does
            await cached._renew(shelf)
    await wait_all_tasks_blocked()
    assert told == [names("added"), values(("db", "password"))]


async def test_a_failure_tells_of_no_change_and_a_refusal_of_every_value(
    watching: CachedStore,
    watched: WatchingMemoryStore,
    told: list[Change],
    mock_clock: MockClock,
    expect_log: ExpectLog,
) -> None:
    expect_log("vault: down")
    expect_log("vault: revoked")
    await watching.names("")
    await watching.fetch("db")
    watched.fail_with = StoreUnavailable("down")
    await tell(watched, "db")
    assert told == []
    assert (await watching.fetch("db")).stale  # it is served as before
    watched.fail_with = None
    watched.refused["fetch:db"] = AccessDenied("revoked")
    await tell(watched, "db")
    assert told == [values(("db", "k"))]


class _Retelling(WatchingMemoryStore):
    """Answers what was true when it was asked."""

    def names(self, folder: str) -> Names:
        answer = Names(frozenset(self.secrets))
        super().names(folder)
        return answer

    def fetch(self, name: str) -> Secret:
        answer = self.secrets[name]
        super().fetch(name)
        return answer


@pytest.mark.parametrize("newer_lands_first", [False, True])
async def test_never_an_older_answer_after_a_newer(
    nursery: trio.Nursery, mock_clock: MockClock, *, newer_lands_first: bool
) -> None:
    store = _Retelling({"db": {"k": b"old"}})
    cached = Cached("vault", store, Freshness(), nursery)
    answers: list[object] = []

    async def list_names() -> None:
        answers.append((await cached.names("")).value.secrets)

    async def read() -> None:
        answers.append((await cached.fetch("db")).value.values["k"])

    older = store.gate
    older.clear()
    async with trio.open_nursery() as readers:
        readers.start_soon(list_names)
        readers.start_soon(read)
        for _ in range(2):
            await trio.to_thread.run_sync(store.entered.acquire)
        store.gate = threading.Event()
        store.gate.set()
        store.put("added", {"k": b"v"})
        await change(store, "db")
        if newer_lands_first:  # whoever asks now does not join what is under way
            await list_names()
            await read()
        assert len(answers) == 2 * newer_lands_first
        older.set()
    assert answers.count(b"new") == answers.count({"db", "added"}) == 1 + newer_lands_first
    newest = cached.peek("db")
    assert newest is not None
    assert newest.value.values == {"k": b"new"}
    assert (await cached.names("")).value.secrets == {"db", "added"}


async def test_what_changes_all_the_time_is_not_waited_for_longer_than_the_deadline(
    nursery: trio.Nursery, mock_clock: MockClock, expect_log: ExpectLog
) -> None:
    expect_log("vault: no answer within 5s")
    store = WatchingMemoryStore({"db": {"k": b"old"}, "cold": {"k": b"v"}})
    cached = Cached("vault", store, Freshness(ttl=60, deadline=5), nursery)
    await cached.fetch("db")
    store.gate.clear()
    begin, waited = trio.current_time(), {}

    async def read(name: str) -> None:
        try:
            assert (await cached.fetch(name)).stale
        except DeadlineExceeded:
            assert name == "cold"
        waited[name] = trio.current_time() - begin

    await tell(store, "db", "cold")
    async with trio.open_nursery() as readers:
        for name in store.secrets:
            readers.start_soon(read, name)
        for _ in range(10):
            await wait_all_tasks_blocked()
            mock_clock.jump(1)
            store.tell("db", "cold")
    assert waited == {"db": 5, "cold": 5}
    store.gate.set()


def test_a_change_that_is_told_after_the_end_disturbs_nobody(watched: WatchingMemoryStore) -> None:
    heard: list[Change] = []

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            cached = Cached("vault", watched, Freshness(), nursery, announce=heard.append)
            await cached.fetch("db")

    trio.run(main)
    watched.tell("db")  # would raise what is raised in the thread of the store
    assert heard == []


async def test_whoever_waits_when_an_answer_expires_is_spared_the_error_of_the_older_question(
    nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    asked: list[str] = []
    fail = trio.Event()

    async def load(key: str) -> CachedAnswer[str]:
        asked.append(key)
        if len(asked) == 1:
            await fail.wait()
            raise StoreError("the older")
        return lasting("the newer", 60)

    shelf = TTLCache(load, nursery)
    answers: list[str] = []

    async def read() -> None:
        answers.append((await shelf.get("a")).value)

    async with trio.open_nursery() as readers:
        readers.start_soon(read)
        await wait_all_tasks_blocked()
        shelf.expire("a")
        fail.set()
    assert answers == ["the newer"]
    assert asked == ["a", "a"]


async def test_to_expire_what_nobody_asked_for_is_harmless(nursery: trio.Nursery, mock_clock: MockClock) -> None:
    async def load(key: str) -> CachedAnswer[str]:
        return lasting(key, 60)

    shelf = TTLCache(load, nursery)
    shelf.expire("a")
    assert len(shelf) == 0
    assert shelf.known("a") is None
    known = await shelf.get("a")
    shelf.expire("b")
    assert shelf.peek("a") is known


async def test_an_older_answer_that_lands_last_and_that_nobody_waits_for_is_not_kept(
    nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    asked: list[str] = []
    land = trio.Event()

    async def load(key: str) -> CachedAnswer[str]:
        asked.append(key)
        if len(asked) == 1:
            await land.wait()
            return lasting("the older", 60)
        return lasting("the newer", 60)

    shelf = TTLCache(load, nursery)
    async with trio.open_nursery() as readers:
        readers.start_soon(shelf.get, "a")
        await wait_all_tasks_blocked()
        readers.cancel_scope.cancel()
    shelf.expire("a")
    newer = await shelf.get("a")
    land.set()
    await wait_all_tasks_blocked()
    assert newer.value == "the newer"
    assert shelf.peek("a") is newer


async def test_an_answer_that_expires_between_landing_and_waking_is_given_to_nobody(
    nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    gate = trio.Event()
    asked: list[str] = []

    async def load(key: str) -> CachedAnswer[str]:
        asked.append(key)
        mine = "the newer" if len(asked) > 1 else "the older"
        if len(asked) == 1:
            await gate.wait()
        return lasting(mine, 60)

    shelf = TTLCache(load, nursery)
    answers: list[str] = []

    async def read() -> None:
        answer = await shelf.get("a")
        if not answers:
            shelf.expire("a")  # the change is heard when one of them has woken, and the other has not
        answers.append(answer.value)

    async with trio.open_nursery() as readers:
        readers.start_soon(read)
        readers.start_soon(read)
        await wait_all_tasks_blocked()
        gate.set()
    assert answers == ["the older", "the newer"]


async def test_whoever_waited_for_an_older_question_takes_the_newer_answer(
    nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    gate = trio.Event()
    asked: list[str] = []

    async def load(key: str) -> CachedAnswer[str]:
        asked.append(key)
        if len(asked) == 1:
            await gate.wait()
        return lasting(key, 60)

    shelf = TTLCache(load, nursery)
    async with trio.open_nursery() as readers:
        readers.start_soon(shelf.get, "a")
        await wait_all_tasks_blocked()
        shelf.expire("a")
        await shelf.get("a")
        gate.set()
    assert len(asked) == 2


async def test_to_look_at_an_answer_is_not_to_use_it(nursery: trio.Nursery, mock_clock: MockClock) -> None:
    async def load(key: str) -> CachedAnswer[str]:
        return lasting(key, 60)

    shelf = TTLCache(load, nursery)
    for key in ("used", "looked at"):
        await shelf.get(key)
    mock_clock.jump(10)
    assert shelf.access("used")
    assert shelf.peek("looked at")
    shelf.drop_idle(10)
    assert list(shelf) == ["used"]


async def test_secrets_that_keep_failing_do_not_keep_others_from_being_renewed(
    nursery: trio.Nursery, autojump_clock: MockClock, expect_log: ExpectLog
) -> None:
    failing = [f"bad-{number}" for number in range(8)]
    store = MemoryStore({name: {"key": VALUE} for name in (*failing, "good")})
    cached = AtOnce("vault", store, Freshness(ttl=1), nursery)
    for name in failing:
        await use(cached, name)
    await trio.sleep(0.5)
    await use(cached, "good")  # which is due after them
    nursery.start_soon(cached.keep_fresh)
    store.put("good", {"key": b"new"})
    store.refused = {f"fetch:{name}": MalformedAnswer("no") for name in failing}
    expect_log("no")
    await trio.sleep(10)
    answer = cached._secrets.known("good")
    assert answer is not None
    assert isinstance(answer.value, Secret)
    assert answer.value.values == {"key": b"new"}
