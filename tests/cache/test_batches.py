"""Secrets that are asked for at the same time are read with one call. Calls are counted, on a virtual clock."""

from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from secretfs.cache.batch import PATIENCE
from secretfs.cache.client import CONCURRENCY, REFUSAL_TTL
from secretfs.cache.freshness import Freshness
from secretfs.cache.health import FAILURES, Kind, State
from secretfs.cache.store_cache import CachedStore
from secretfs.cache.turns import asking_for
from secretfs.errors import (
    AccessDenied,
    DeadlineExceeded,
    MalformedAnswer,
    SecretNotFound,
    StoreError,
    StoreUnavailable,
)
from secretfs.fs.keys import SecretKey
from secretfs.fs.listing import make_listing
from secretfs.fs.view import StoreView
from secretfs.scopes import SecretScope
from secretfs.store import Secret
from tests.conftest import ExpectLog
from tests.support.cached import Cached, run
from tests.support.canary import secret
from tests.support.memory_store import BatchingMemoryStore

NAMES = [f"secret-{number:04}" for number in range(1000)]
TTL, DEADLINE = 60.0, 5.0

Outcomes = dict[str, Secret | StoreError]


@pytest.fixture
def store() -> BatchingMemoryStore:
    return BatchingMemoryStore({name: {"password": secret(name).encode()} for name in NAMES})


@pytest.fixture
def cached(store: BatchingMemoryStore, nursery: trio.Nursery, mock_clock: MockClock) -> CachedStore:
    return Cached("aws", store, Freshness(ttl=TTL, deadline=DEADLINE, bulk_deadline=60), nursery)


async def ask(cached: CachedStore, app: str, name: str) -> None:
    """Fetch a secret for an app."""
    with asking_for(app):
        await cached.fetch(name)


async def outcomes(cached: CachedStore, *names: str) -> Outcomes:
    """Fetch secrets at the same time."""
    found: Outcomes = {}

    async def fetch(name: str) -> None:
        try:
            found[name] = (await cached.fetch(name)).value
        except StoreError as error:
            found[name] = error

    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(fetch, name)
    return found


async def begun(store: BatchingMemoryStore, calls: int) -> None:
    """Wait until so many more calls of a store have begun, which happens in threads."""
    for _ in range(calls):
        await trio.to_thread.run_sync(store.entered.acquire)


def reads(store: BatchingMemoryStore) -> int:
    """Count the calls that read values."""
    return sum(number for call, number in store.calls.items() if call.startswith("fetch"))


async def test_a_bulk_file_of_1000_secrets_costs_50_calls(cached: CachedStore, store: BatchingMemoryStore) -> None:
    whole = await StoreView(cached, SecretScope()).every_secret()
    assert {name: it.values for name, it in whole.value.items()} == {n: s.values for n, s in store.secrets.items()}
    assert store.calls == {"names:": 1, "fetch_many": 50}
    assert {len(batch) for batch in store.batches} == {20}


async def test_a_refresh_of_1000_secrets_costs_50_calls(cached: CachedStore, store: BatchingMemoryStore) -> None:
    await outcomes(cached, *NAMES)
    store.calls.clear()
    await cached.refresh()
    assert store.calls == {"fetch_many": 50}


async def test_reading_1000_secrets_one_after_the_other_costs_52_calls(
    cached: CachedStore, store: BatchingMemoryStore
) -> None:
    view = StoreView(cached, SecretScope())
    view.note_listing(await make_listing({name.encode(): SecretKey("aws", name) for name in NAMES}))
    for name in NAMES:
        assert (await view.secret(name)).value is store.secrets[name]
        await wait_all_tasks_blocked()
    assert reads(store) == 52  # the first two show that somebody reads in a row
    read = [name for batch in store.batches for name in batch]
    read += [call.removeprefix("fetch:") for call in store.calls if call.startswith("fetch:")]
    assert sorted(read) == NAMES  # each of them once


async def test_who_reads_one_secret_has_it_read_alone(cached: CachedStore, store: BatchingMemoryStore) -> None:
    await cached.fetch(NAMES[0])
    assert store.calls == {f"fetch:{NAMES[0]}": 1}


async def test_what_is_in_use_is_renewed_in_batches(
    cached: CachedStore, store: BatchingMemoryStore, nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    await outcomes(cached, *NAMES)
    for name in NAMES:
        cached.use(name)
    before = reads(store)
    nursery.start_soon(cached.keep_fresh)
    await run(mock_clock, 60)
    assert all(cached.peek(name) is not None for name in NAMES)
    assert reads(store) - before <= 60  # a thousand fall due at random within 12 s, which are looked at every 3.75 s


async def test_what_waits_for_a_busy_store_is_read_together(
    cached: CachedStore, store: BatchingMemoryStore, nursery: trio.Nursery
) -> None:
    """The places are taken one after the other. What is asked for then waits, and joins what waits already."""
    store.gate.clear()
    for name in NAMES[: CONCURRENCY + 10]:
        nursery.start_soon(cached.fetch, name)
        await wait_all_tasks_blocked()
    store.gate.set()
    assert await outcomes(cached, *NAMES[: CONCURRENCY + 10]) == {
        name: store.secrets[name] for name in NAMES[: CONCURRENCY + 10]
    }
    assert reads(store) == CONCURRENCY + 1
    assert store.batches == [tuple(NAMES[CONCURRENCY : CONCURRENCY + 10])]


async def test_what_has_waited_for_long_is_not_joined(
    cached: CachedStore, store: BatchingMemoryStore, nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    """Its time is nearly over: who joined it would have less than a deadline of its own."""
    store.gate.clear()
    for name in NAMES[: CONCURRENCY + 2]:
        nursery.start_soon(cached.fetch, name)
        await wait_all_tasks_blocked()
    mock_clock.jump(DEADLINE * PATIENCE + 0.1)
    for name in NAMES[CONCURRENCY + 2 : CONCURRENCY + 4]:
        nursery.start_soon(cached.fetch, name)
        await wait_all_tasks_blocked()
    store.gate.set()
    while len(store.batches) < 2:
        await wait_all_tasks_blocked()
    assert sorted(store.batches) == [tuple(NAMES[8:10]), tuple(NAMES[10:12])]


async def test_each_secret_of_a_batch_has_an_outcome_of_its_own(
    cached: CachedStore, store: BatchingMemoryStore, mock_clock: MockClock, expect_log: ExpectLog
) -> None:
    expect_log("aws: secret denied: forbidden")
    expect_log("aws: secret broken: no answer")
    store.outcomes = {
        "denied": AccessDenied("secret denied: forbidden"),
        "broken": StoreUnavailable("secret broken: no answer"),
    }
    found = await outcomes(cached, NAMES[0], "gone", "denied", "broken")
    assert found[NAMES[0]] is store.secrets[NAMES[0]]
    assert [type(found[name]) for name in ("gone", "denied", "broken")] == [
        SecretNotFound,
        AccessDenied,
        StoreUnavailable,
    ]
    assert store.calls == {"fetch_many": 1}
    statistics = cached.statistics()
    assert statistics.state is State.REFUSED  # it answers: what failed is one secret's own trouble
    assert (statistics.asked[Kind.FETCH], statistics.failed[Kind.FETCH]) == (1, 1)
    mock_clock.jump(REFUSAL_TTL)
    store.outcomes = {}
    store.put("denied", {"k": b"v"})
    assert (await cached.fetch("denied")).value is store.secrets["denied"]
    assert isinstance((await outcomes(cached, "gone"))["gone"], SecretNotFound)
    assert store.calls["fetch:gone"] == 0  # "not found" is an answer for ttl


async def test_what_a_batch_leaves_out_is_read_alone(cached: CachedStore, store: BatchingMemoryStore) -> None:
    store.outcomes = {NAMES[1]: None, "gone": None}
    found = await outcomes(cached, *NAMES[:3], "gone")
    assert {name: found[name] for name in NAMES[:3]} == {name: store.secrets[name] for name in NAMES[:3]}
    assert isinstance(found["gone"], SecretNotFound)
    assert store.calls == {"fetch_many": 1, f"fetch:{NAMES[1]}": 1, "fetch:gone": 1}


@pytest.mark.parametrize("error", [StoreUnavailable("secrets: down"), MalformedAnswer("secrets: no JSON")])
async def test_a_batch_that_fails_is_one_failure_and_an_error_for_each(
    cached: CachedStore, store: BatchingMemoryStore, expect_log: ExpectLog, error: StoreError
) -> None:
    expect_log(f"aws: {error}")
    store.fail_with = error
    found = await outcomes(cached, *NAMES[:20])
    assert {type(each) for each in found.values()} == {type(error)}
    assert len({id(each) for each in found.values()}) == 20
    assert store.calls == {"fetch_many": 1}
    statistics = cached.statistics()
    assert statistics.state is State.IN_DOUBT
    assert (statistics.asked[Kind.FETCH], statistics.failed[Kind.FETCH]) == (1, 1)


async def test_batches_that_fail_open_the_circuit_breaker(
    cached: CachedStore, store: BatchingMemoryStore, expect_log: ExpectLog
) -> None:
    expect_log("down")
    store.fail_with = StoreUnavailable("secrets: down")
    for _ in range(FAILURES):
        await outcomes(cached, *NAMES[:2])
    await outcomes(cached, *NAMES[:2])
    assert store.calls == {"fetch_many": FAILURES}
    assert cached.statistics().state is State.DOWN


async def test_a_batch_that_is_refused_is_refused_for_each(
    cached: CachedStore, store: BatchingMemoryStore, expect_log: ExpectLog
) -> None:
    expect_log("forbidden")
    store.fail_with = AccessDenied("secrets: forbidden")
    found = await outcomes(cached, *NAMES[:2])
    assert {type(each) for each in found.values()} == {AccessDenied}
    assert cached.statistics().state is State.REFUSED


async def test_a_defect_in_a_batch_is_an_error_for_each_and_its_text_is_withheld(
    cached: CachedStore, store: BatchingMemoryStore, expect_log: ExpectLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: object) -> Outcomes:
        raise KeyError(secret("broken"))

    expect_log("a defect in secretfs or in a store")
    expect_log("unexpected KeyError")
    monkeypatch.setattr(store, "fetch_many", broken)
    found = await outcomes(cached, *NAMES[:20])
    assert {str(each) for each in found.values()} == {"unexpected KeyError; the log has the place"}
    assert cached.statistics().state is State.OK  # as for a single secret: it may be the question


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ([], "with a list, not a mapping"),
        ({NAMES[0]: "text", NAMES[1]: "text"}, "with a str, not Secret"),
        ({NAMES[0]: Secret({"k": "text"}), NAMES[1]: Secret({"k": "text"})}, "a value that is not bytes"),  # type: ignore[dict-item]
    ],
)
async def test_a_batch_that_is_not_what_it_should_be(
    cached: CachedStore,
    store: BatchingMemoryStore,
    expect_log: ExpectLog,
    monkeypatch: pytest.MonkeyPatch,
    answer: Any,
    why: str,
) -> None:
    expect_log(why)
    monkeypatch.setattr(store, "fetch_many", lambda _: answer)
    found = await outcomes(cached, *NAMES[:2])
    assert {type(each) for each in found.values()} == {MalformedAnswer}


async def test_a_store_may_stop_reading_batches(cached: CachedStore, store: BatchingMemoryStore) -> None:
    store.largest_batch = 1
    await outcomes(cached, *NAMES[:3])
    assert store.calls == {f"fetch:{name}": 1 for name in NAMES[:3]}


async def test_apps_have_batches_of_their_own_and_take_turns(
    cached: CachedStore, store: BatchingMemoryStore, nursery: trio.Nursery
) -> None:
    store.gate.clear()
    for name in NAMES[:40]:
        nursery.start_soon(ask, cached, "greedy", name)
    nursery.start_soon(ask, cached, "modest", NAMES[40])
    nursery.start_soon(ask, cached, "modest", NAMES[41])
    await begun(store, 3)
    assert {len(batch) for batch in store.batches} == {20, 2}
    assert {app: work.running for app, work in cached.statistics().work.items()} == {"greedy": 2, "modest": 1}
    store.gate.set()


async def test_an_app_shares_the_turn_of_a_batch_that_has_what_it_wants(
    cached: CachedStore, store: BatchingMemoryStore, nursery: trio.Nursery
) -> None:
    store.gate.clear()
    for name in NAMES[:200]:
        nursery.start_soon(ask, cached, "greedy", name)
    await wait_all_tasks_blocked()
    running = cached.statistics().work["greedy"].running
    await begun(store, running)
    waiting = [name for name in NAMES[:200] if not any(name in batch for batch in store.batches)]
    nursery.start_soon(ask, cached, "modest", waiting[-1])
    await begun(store, 1)
    assert cached.statistics().work["greedy"].running == running
    assert any(waiting[-1] in batch for batch in store.batches)
    store.gate.set()


async def test_readers_of_a_batch_that_hangs_wait_no_longer_than_the_deadline(
    cached: CachedStore, store: BatchingMemoryStore, nursery: trio.Nursery, mock_clock: MockClock, expect_log: ExpectLog
) -> None:
    expect_log("no answer within 5s")
    found: Outcomes = {}

    async def ask() -> None:
        found.update(await outcomes(cached, *NAMES[:20]))

    store.gate.clear()
    nursery.start_soon(ask)
    await wait_all_tasks_blocked()
    mock_clock.jump(DEADLINE)
    await wait_all_tasks_blocked()
    assert {type(each) for each in found.values()} == {DeadlineExceeded}
    store.gate.set()
