"""Credentials rotated upstream: the store is opened anew and the reader never notices."""

import threading
import time
from collections.abc import Mapping

import pytest

from secretfs.errors import AccessDenied, SecretNotFound, StoreError, StoreUnavailable
from secretfs.registry import following
from secretfs.registry.following import FollowingStore, UnopenedStore
from secretfs.settings import Property
from secretfs.store import BatchingStore, CachedRead, Secret, SecretStore, VersionedStore
from tests.conftest import ExpectLog
from tests.support.canary import secret as canary
from tests.support.memory_store import BatchingMemoryStore, MemoryStore, VersionedMemoryStore, WatchingMemoryStore


class Upstream:
    """Where the credentials come from, and a backend which accepts just one of them."""

    def __init__(self) -> None:
        self.kind: type[_Guarded] = _Guarded
        self.token = canary("first")
        self.accepted: str | None = self.token
        self.looks = 0
        self.opened: list[_Guarded] = []
        self.fail_with: StoreError | None = None

    def resolve(self) -> list[Property]:
        self.looks += 1
        if self.fail_with:
            raise self.fail_with
        return [Property("token", self.token)]

    def reopen(self, properties: list[Property]) -> SecretStore:
        store = self.kind(self, properties[0].value)
        self.opened.append(store)
        return store

    def rotate(self) -> None:
        self.token = self.accepted = canary("second")


class _Guarded(MemoryStore):
    def __init__(self, upstream: Upstream, token: str) -> None:
        super().__init__({"db": {"k": b"v"}})
        self._upstream = upstream
        self._token = token

    def _called(self, call: str) -> None:
        super()._called(call)
        if self._token != self._upstream.accepted:
            raise AccessDenied("the token is not good")


class _Watching(_Guarded, WatchingMemoryStore):
    pass


class Clock:
    """A clock that stands still until it is told to move on."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(following, "time", clock)
    return clock


@pytest.fixture
def upstream() -> Upstream:
    return Upstream()


@pytest.fixture
def store(upstream: Upstream, clock: Clock) -> FollowingStore:
    store = FollowingStore("vault", upstream.resolve, upstream.reopen)
    clock.now += following.REFRESH_PAUSE
    return store


def test_questions_are_passed_on(store: FollowingStore, upstream: Upstream) -> None:
    assert store.multi_valued
    assert store.names("").secrets == {"db"}
    assert store.fetch("db") == Secret({"k": b"v"}, "1")
    store.check()
    store.close()
    assert upstream.opened[0].closed
    assert upstream.looks == 1


def test_a_rotation_upstream_costs_no_failed_read(store: FollowingStore, upstream: Upstream) -> None:
    upstream.rotate()
    assert store.fetch("db").values == {"k": b"v"}
    old, new = upstream.opened
    assert old.closed
    assert not new.closed


class _Batching(_Guarded, BatchingMemoryStore):
    pass


def test_batches_are_passed_on(store: FollowingStore, upstream: Upstream) -> None:
    assert isinstance(store, BatchingStore)
    assert store.largest_batch == 1
    assert store.fetch_many(("db", "other")) == {}  # this one reads them one by one
    upstream.kind = _Batching
    upstream.token = upstream.accepted = canary("second")
    store.refresh_references()
    assert store.largest_batch == 20
    assert store.fetch_many(("db", "db"))["db"] == Secret({"k": b"v"}, "1")


class _Versioned(_Guarded, VersionedMemoryStore):
    pass


def test_versions_are_passed_on_and_follow_a_rotation(upstream: Upstream, clock: Clock) -> None:
    upstream.kind = _Versioned
    store = FollowingStore("store", upstream.resolve, upstream.reopen)
    assert isinstance(store, VersionedStore)
    assert store.keeps_versions
    assert store.fetch_version("db", "1") == store.fetch("db")
    upstream.rotate()
    assert store.fetch_version("db", "1").values == {"k": b"v"}
    with pytest.raises(SecretNotFound):
        store.fetch_version("db", "2")


def test_a_store_without_versions_has_none_for_those_who_follow(store: FollowingStore) -> None:
    assert not store.keeps_versions
    with pytest.raises(SecretNotFound, match="the store keeps no versions"):
        store.fetch_version("db", "1")


def test_before_it_is_opened_nobody_says_that_there_are_no_versions(upstream: Upstream) -> None:
    upstream.kind = _Versioned
    for multi_valued in (True, False):  # the Secrets API gives versions of secrets that are one file
        store = FollowingStore("store", upstream.resolve, upstream.reopen, multi_valued=multi_valued)
        upstream.opened.clear()
        assert store.keeps_versions
        assert upstream.opened == []
        assert store.fetch_version("db", "1").values == {"k": b"v"}
    issuing = FollowingStore("store", upstream.resolve, upstream.reopen, multi_valued=True, reads_have_effects=True)
    assert not issuing.keeps_versions


def test_what_could_not_be_opened_says_why_and_not_that_there_are_no_versions() -> None:
    store = UnopenedStore(StoreUnavailable("no token"), multi_valued=True)
    assert isinstance(store, VersionedStore)
    assert store.keeps_versions
    with pytest.raises(StoreUnavailable, match="no token"):
        store.fetch_version("db", "1")
    assert not UnopenedStore(StoreUnavailable("no"), multi_valued=True, reads_have_effects=True).keeps_versions


def test_a_batch_that_is_refused_reads_the_references_again(upstream: Upstream, clock: Clock) -> None:
    upstream.kind = _Batching
    store = FollowingStore("vault", upstream.resolve, upstream.reopen)
    clock.now += following.REFRESH_PAUSE
    upstream.rotate()
    assert store.fetch_many(("db", "other"))["db"] == Secret({"k": b"v"}, "1")


def test_a_secret_that_a_batch_refuses_is_read_alone(upstream: Upstream, clock: Clock) -> None:
    """Then the references are read again, if it is time to."""
    upstream.kind = _Batching
    store = FollowingStore("vault", upstream.resolve, upstream.reopen)
    (opened,) = upstream.opened
    assert isinstance(opened, _Batching)
    opened.outcomes = {"other": AccessDenied("other: forbidden")}
    assert list(store.fetch_many(("db", "other"))) == ["db"]


def test_a_refusal_that_has_another_cause_stands(store: FollowingStore, upstream: Upstream) -> None:
    upstream.accepted = "another"
    with pytest.raises(AccessDenied):
        store.fetch("db")
    assert upstream.looks == 2
    assert len(upstream.opened) == 1


def test_refusals_look_upstream_once_a_second(store: FollowingStore, upstream: Upstream, clock: Clock) -> None:
    upstream.accepted = "another"
    for _ in range(5):
        with pytest.raises(AccessDenied):
            store.fetch("db")
    assert upstream.looks == 2
    clock.now += following.REFRESH_PAUSE
    with pytest.raises(AccessDenied):
        store.fetch("db")
    assert upstream.looks == 3


def test_an_upstream_that_fails_leaves_the_refusal_and_says_so(
    store: FollowingStore, upstream: Upstream, expect_log: ExpectLog, clock: Clock
) -> None:
    expect_log("vault: its credentials cannot be read again: upstream is down")
    upstream.rotate()
    upstream.fail_with = StoreUnavailable("upstream is down")
    with pytest.raises(AccessDenied):
        store.fetch("db")
    upstream.fail_with = None
    clock.now += following.REFRESH_PAUSE
    assert store.fetch("db").values == {"k": b"v"}


def test_a_refusal_does_not_use_up_the_look_of_another(store: FollowingStore, upstream: Upstream, clock: Clock) -> None:
    upstream.opened[0].refused["fetch:secret"] = AccessDenied("the policy says no")
    with pytest.raises(AccessDenied):
        store.fetch("secret")
    clock.now += following.REFRESH_PAUSE / 10
    upstream.rotate()
    assert store.fetch("db").values == {"k": b"v"}


def test_many_that_are_refused_at_once_share_a_look(store: FollowingStore, upstream: Upstream, clock: Clock) -> None:
    upstream.accepted = "another"
    generation = store._open()
    assert not store._was_replaced(generation, ("fetch", "a"), clock.now)
    clock.now += 0.1  # the look has taken so long
    assert not store._was_replaced(generation, ("fetch", "b"), clock.now - 0.2)
    assert upstream.looks == 2
    assert not store._was_replaced(generation, ("fetch", "b"), clock.now)
    assert upstream.looks == 3


def test_what_makes_no_refusal_is_found_by_a_look(
    store: FollowingStore, upstream: Upstream, caplog: pytest.LogCaptureFixture, expect_log: ExpectLog
) -> None:
    expect_log("vault: its credentials cannot be read again: upstream is down")
    store.refresh_references()
    assert len(upstream.opened) == 1
    upstream.token = canary("second")  # the first goes on to be good
    upstream.fail_with = StoreUnavailable("upstream is down")
    for _ in range(3):
        store.refresh_references()
    assert caplog.text.count("cannot be read again") == 1
    assert len(upstream.opened) == 1
    upstream.fail_with = None
    store.refresh_references()
    assert [opened.closed for opened in upstream.opened] == [True, False]
    upstream.accepted = upstream.token
    assert store.fetch("db").values == {"k": b"v"}


def test_a_trial_of_a_store_that_cannot_be_reached_looks_for_another_place(
    store: FollowingStore, upstream: Upstream
) -> None:
    upstream.opened[0].fail_with = StoreUnavailable("nobody there")
    upstream.rotate()
    with pytest.raises(StoreUnavailable):
        store.fetch("db")
    store.check()
    assert store.fetch("db").values == {"k": b"v"}


class _Comparing(_Guarded):
    def unchanged(self, known: Mapping[str, CachedRead]) -> frozenset[str]:
        return frozenset(known)


def test_what_was_read_from_another_store_is_not_compared(store: FollowingStore, upstream: Upstream) -> None:
    known = {"db": CachedRead(store.fetch("db"), time.time())}
    assert store.unchanged(known) == frozenset()  # this one does not compare
    upstream.kind = _Comparing
    upstream.rotate()
    store.refresh_references()
    assert store.unchanged(known) == frozenset()
    assert store.unchanged({"db": CachedRead(store.fetch("db"), time.time())}) == {"db"}


def test_nothing_is_opened_after_the_end(store: FollowingStore, upstream: Upstream) -> None:
    store.close()
    upstream.rotate()
    store.refresh_references()
    assert len(upstream.opened) == 1


def test_a_call_under_way_keeps_the_old_store_open(store: FollowingStore, upstream: Upstream) -> None:
    old = upstream.opened[0]
    old.gate.clear()
    entered = old.entered

    def refused() -> None:
        with pytest.raises(AccessDenied):
            store.check()

    slow = threading.Thread(target=refused)
    slow.start()
    entered.acquire()
    generation = store._current
    assert generation is not None
    upstream.rotate()
    assert store._was_replaced(generation, ("fetch", "db"), 0.0)
    assert store.fetch("db").values == {"k": b"v"}
    assert not old.closed
    upstream.accepted = None  # the slow call is refused by the old store and by the new one
    old.gate.set()
    slow.join()
    assert old.closed


def test_many_refused_at_once_open_one_new_store(store: FollowingStore, upstream: Upstream) -> None:
    upstream.rotate()
    found: list[Mapping[str, bytes]] = []
    readers = [threading.Thread(target=lambda: found.append(store.fetch("db").values)) for _ in range(8)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert found == [{"k": b"v"}] * 8
    assert len(upstream.opened) == 2
    assert upstream.opened[0].closed


def test_changes_are_told_by_the_new_store_too(upstream: Upstream, clock: Clock) -> None:
    upstream.kind = _Watching
    store = FollowingStore("vault", upstream.resolve, upstream.reopen)
    clock.now += following.REFRESH_PAUSE
    heard: list[frozenset[str]] = []
    store.watch(heard.append)
    upstream.rotate()
    store.fetch("db")
    new = upstream.opened[1]
    assert isinstance(new, _Watching)
    new.tell("db")
    assert heard == [frozenset({"db"})]
