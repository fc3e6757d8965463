"""Calls to one store: in a bounded number of threads, each with a deadline, behind a circuit breaker.

A call has an answer, which may be "no such secret" or "forbidden", or it fails. Whatever a store raises that is not a
`StoreError` is a defect of that store, and counts as a failure of it: it never leaves this module as anything else.
After three consecutive failures the circuit breaker opens and calls fail at once; a probe closes it again.
"""

import contextlib
import copy
import logging
import time
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, TypeVar

import trio

from secretfs.cache.answers import checked, fetched, is_failure
from secretfs.cache.batch import Batch, Batches, gather
from secretfs.cache.deadlines import TimeLimit
from secretfs.cache.health import CallStats, CircuitBreaker, FailureLog, Kind, State, Statistics
from secretfs.cache.limits import DEFAULT, Limits, StoreLimits
from secretfs.cache.threads import call_in_thread, counted_call
from secretfs.cache.ttl_cache import CachedAnswer
from secretfs.cache.turns import OverrunLog, Turn, TurnQueue
from secretfs.errors import (
    AccessDenied,
    DeadlineExceeded,
    NoTurn,
    SecretNotFound,
    StoreError,
    StoreUnavailable,
    as_store_error,
)
from secretfs.store import (
    BatchingStore,
    CachedRead,
    Names,
    NamespacedStore,
    RevalidatingStore,
    Secret,
    SecretStore,
    VersionedStore,
)

T = TypeVar("T")

CONCURRENCY: Final = 8
"""Calls at once to one store. More threads buy little: the SDKs hold the interpreter lock most of the time."""

REFUSAL_TTL: Final = 1.0
"""Seconds that "forbidden" is remembered: long enough that a program which polls does not pester the store, short
enough that a new policy or token is noticed at once."""
SHORTEST_TTL: Final = 0.1
"""Seconds that an answer lives from when it arrives, whatever ttl says. The kernel repeats a call once when a file was
superseded; an answer that had expired by then would end it with ESTALE."""

log = logging.getLogger(__name__)


class StoreClient:
    """Calls one store, for its cache and for the stores that take their credentials from it.

    ``ttl`` and ``deadline`` are seconds. Apps take turns (`secretfs.cache.turns`). A thread whose call outlives the
    deadline is abandoned, and keeps its place among the `CONCURRENCY` of this store until the SDK gives up: a store
    that hangs slows down no other store, and cannot pile up threads. `keep_probing` has to run beside the calls.
    """

    def __init__(
        self,
        component: str,
        store: SecretStore,
        ttl: float,
        deadline: float,
        store_type: str = "",
        limits: Limits = DEFAULT,
    ) -> None:
        self.component = component
        self.store = store
        self.store_type = store_type
        self.stats = CallStats()
        self.limits = StoreLimits(component, limits)
        self._ttl, self._deadline = ttl, deadline
        self.turns = TurnQueue(CONCURRENCY)
        self._calls: dict[tuple[Kind, str], Turn] = {}
        """The last call of each kind under way."""
        self._batching = store if isinstance(store, BatchingStore) else None
        self._batches = Batches(self.turns.turn, deadline)
        self._breaker = CircuitBreaker()
        self._log = FailureLog(component)
        self._failed = trio.Event()
        """Set while the store is in doubt."""
        self._opened = trio.Event()
        """Set when the circuit breaker opens, until it is probed."""
        self._defects: frozenset[tuple[str, str, int]] = frozenset()
        self._overruns = OverrunLog(component)
        self._ended = False
        self._refusal: StoreError | None = None
        """Why nothing is asked at all."""

    def go_on(self, failures: int, note: Callable[[int], None]) -> None:
        """Go on with a store that has failed so often in a row, which ``note`` hears of from now on."""
        self._breaker.resume(failures, StoreUnavailable("it did not answer the process before"), note)
        if failures:
            self._failed.set()

    @property
    def in_doubt(self) -> bool:
        """Whether the last call failed: what is known should be served rather than waited for."""
        return self._breaker.in_doubt

    @property
    def down(self) -> bool:
        """Whether the circuit breaker is open: calls fail at once, until a probe succeeds."""
        return self._breaker.open

    @property
    def state(self) -> State:
        """The health of the store."""
        if self._refusal is not None:
            return State.REFUSED if isinstance(self._refusal, AccessDenied) else State.DOWN
        if self.in_doubt:
            return State.DOWN if self.down else State.IN_DOUBT
        return State.REFUSED if self.stats.last_refused else State.OK

    def statistics(self, *, names: int, cached: int, stale: int) -> Statistics:
        """Return the health of the store, with what its cache counts."""
        stats, last_error = self.stats, self.stats.last_error
        return Statistics(
            self.store_type,
            self.state,
            stats.last_success,
            last_error,
            last_error.at + self._breaker.pause if last_error is not None and self.down else None,
            names,
            cached,
            stale,
            dict(stats.asked),
            dict(stats.failures),
            self.turns.work,
            self._breaker.openings,
        )

    async def names(self, folder: str) -> CachedAnswer[Names | StoreError]:
        """Call `SecretStore.names`, unless the circuit breaker is open. Raises any failure."""
        return await self._guarded(Kind.NAMES, self.store.names, folder)

    async def fetch(self, name: str) -> CachedAnswer[Secret | StoreError]:
        """Call `SecretStore.fetch`, unless the circuit breaker is open. Raises any failure.

        Where the store can, secrets that are asked for at the same time are read with one call.
        """
        if self._batching is None or self.largest_batch < 2:
            return await self._guarded(Kind.FETCH, self.store.fetch, name)
        self._require_open()
        batch, is_new = self._batches.join(name, self.largest_batch)
        self._calls[Kind.FETCH, name] = batch.turn
        try:
            if is_new:
                await self._read(batch, self._batching)
            await batch.done.wait()  # also after reading it: then all who waited go on in the same step of the loop
        finally:
            if self._calls.get((Kind.FETCH, name)) is batch.turn:
                del self._calls[Kind.FETCH, name]
        if batch.error is not None:
            raise copy.copy(batch.error)
        answer = batch.found.get(name)
        if answer is None:
            return await self._guarded(Kind.FETCH, self.store.fetch, name)
        if is_failure(answer):
            raise copy.copy(answer)
        return self._kept(answer, batch.asked, batch.asked_at)

    async def fetch_version(self, key: str, name: str, version: str) -> CachedAnswer[Secret | StoreError]:
        """Call `VersionedStore.fetch_version`, unless the circuit breaker is open. `share` knows it by ``key``."""
        store = self.store
        if not isinstance(store, VersionedStore):
            raise StoreError("this store keeps no versions")
        return await self._guarded(Kind.FETCH, lambda _: store.fetch_version(name, version), key)

    @property
    def largest_batch(self) -> int:
        """How many secrets one call reads at most."""
        return 1 if self._batching is None else self._batching.largest_batch

    def share(self, kind: Kind, argument: str) -> None:
        """Let the app of this task wait for a call that another one has asked for. Its turn counts for both."""
        turn = self._calls.get((kind, argument))
        if turn is not None:
            turn.share()

    async def fetch_reference(self, name: str, namespace: str = "") -> Secret:
        """Read a secret as a reference to it in a component of ``namespace`` means it.

        A store that is down is probed first, if it is time to: whether it is used for anything else does not matter.
        Raises any `StoreError`, also a refusal.
        """
        if self.down and trio.current_time() >= self._breaker.retry_at:
            await self._probe()
        read: Callable[[str], Secret] = self.store.fetch
        if namespace and isinstance(self.store, NamespacedStore):
            read = partial(self.store.fetch_in, namespace)
        answer = await self._guarded(Kind.FETCH, read, name)
        if isinstance(answer.value, StoreError):
            raise copy.copy(answer.value)
        return answer.value

    async def unchanged(self, known: Mapping[str, CachedRead]) -> CachedAnswer[frozenset[str] | StoreError]:
        """Call `RevalidatingStore.unchanged`, unless the circuit breaker is open. Raises any failure."""
        store = self.store
        if not isinstance(store, RevalidatingStore):
            raise StoreError("this store cannot revalidate")
        return await self._guarded(Kind.COMPARE, lambda _: store.unchanged(known), "")

    async def check(self) -> None:
        """Call `SecretStore.check`, also while the circuit breaker is open. Raises any failure."""
        if self._refusal is not None:
            raise copy.copy(self._refusal)
        await self._call(Kind.CHECK, lambda _: self.store.check(), "")

    def watch(self, changed: Callable[[frozenset[str]], None]) -> None:
        """Call `WatchingStore.watch`, if the store has it. One that fails is not watched, and the log says so."""
        watch = getattr(self.store, "watch", None)
        if watch is None:
            return
        try:
            watch(changed)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a store may be anybody's
            log.error("%s: its changes show after ttl: %s", self.component, as_store_error(log, error))  # noqa: TRY400

    async def keep_probing(self) -> None:
        """Probe the store while it fails, until it answers again. Runs forever.

        At once when the circuit breaker opens: it may have been the question that failed, and not the store. Then after
        1 s to 30 s, with exponential back-off.
        """
        while True:
            await self._failed.wait()
            with trio.move_on_at(self._breaker.retry_at):
                await self._opened.wait()
            if self.in_doubt and (self._opened.is_set() or trio.current_time() >= self._breaker.retry_at):
                self._opened = trio.Event()
                await self._probe()

    def begin_with(self, error: StoreError) -> None:
        """Take note that the store has failed, or refused, when it was opened. That is in the log already."""
        question = (Kind.CHECK.value, "")
        self._log.known(question, error)
        if isinstance(error, AccessDenied):
            self.stats.refused(Kind.CHECK, time.time(), error)
        else:
            self.stats.failed(Kind.CHECK, time.time(), error)
            self._note_failure(Kind.CHECK, error, trio.current_time())

    def refuse_all(self, error: StoreError) -> None:
        """Answer every call with an error, without calling the store: it could not be opened."""
        self.stats.failed(Kind.CHECK, time.time(), error)
        self._refusal = error

    def end(self) -> None:
        """Call the store no more: it may be closed."""
        self._ended = True

    async def _probe(self) -> None:
        with contextlib.suppress(StoreError):  # logged where it happened
            await self.check()

    async def _guarded(self, kind: Kind, call: Callable[[str], T], argument: str) -> CachedAnswer[T | StoreError]:
        self._require_open()
        return await self._call(kind, call, argument)

    def _require_open(self) -> None:
        """Raise why the store is not called, if it is not."""
        if self._refusal is not None:
            raise copy.copy(self._refusal)
        if self._breaker.open:
            raise copy.copy(self._breaker.error)
        if self._ended:
            raise StoreUnavailable("it is not served any more")

    async def _call(self, kind: Kind, call: Callable[[str], T], argument: str) -> CachedAnswer[T | StoreError]:
        if self._ended:
            raise StoreUnavailable("it is not served any more")
        asked, asked_at = trio.current_time(), time.time()
        answer: T | StoreError
        turn = self._calls[kind, argument] = self.turns.turn()
        try:
            made = self._in_thread(lambda: checked(kind, call(argument), self.limits), turn)
            answer = await counted_call(self.stats.calls, kind.value, turn, made)
        except (SecretNotFound, AccessDenied) as error:
            answer = error
        except NoTurn as error:
            if kind is Kind.CHECK:  # those before it hang
                self._note_failure(kind, error, asked)
            elif not self.in_doubt:
                self._overruns.missed(turn, error)
            raise
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever it is, it costs this store, not the mount
            failure = self._as_failure(error)
            self.stats.failed(kind, time.time(), failure)
            self._log.failed((kind.value, argument), failure)
            if failure is error or kind not in (Kind.NAMES, Kind.FETCH):  # a defect met by one question is no outage
                self._note_failure(kind, failure, asked)
            raise failure from None
        finally:
            if self._calls.get((kind, argument)) is turn:
                del self._calls[kind, argument]
        self._note_answers(kind, {argument: answer})
        return self._kept(answer, asked, asked_at)

    async def _read(self, batch: Batch, store: BatchingStore) -> None:
        """Have the store read a batch, when it is its turn. All that goes wrong is told to those who wait for it."""
        try:
            await gather()
            made = self._in_thread(lambda: fetched(store, tuple(batch.names), self.limits), batch.turn)
            batch.found = await counted_call(self.stats.calls, Kind.FETCH.value, batch.turn, made)
            self._note_outcome(batch)
        except NoTurn as error:
            if not self.in_doubt:  # else it is the store that fails
                self._overruns.missed(batch.turn, error)
            batch.error = error
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever it is, it costs this store, not the mount
            batch.error = self._as_failure(error)
            self._note_failures(
                dict.fromkeys(batch.names, batch.error), batch.asked, is_defect=batch.error is not error
            )
        finally:
            self._batches.end(batch)

    def _note_outcome(self, batch: Batch) -> None:
        """Take note of what a batch found. It is one call: a failure of it all is one failure."""
        failures = {name: answer for name, answer in batch.found.items() if is_failure(answer)}
        answers = {name: answer for name, answer in batch.found.items() if name not in failures}
        if failures and not answers:
            self._note_failures(failures, batch.asked)
            return
        for name, failure in failures.items():
            self._log.failed((Kind.FETCH.value, name), failure)
        self._note_answers(Kind.FETCH, answers)

    def _note_failures(self, failures: Mapping[str, StoreError], asked: float, *, is_defect: bool = False) -> None:
        """Take note of a call that failed."""
        failure = next(iter(failures.values()))
        self.stats.failed(Kind.FETCH, time.time(), failure)
        for name, each in failures.items():
            self._log.failed((Kind.FETCH.value, name), each)
        if not is_defect:
            self._note_failure(Kind.FETCH, failure, asked)

    def _note_answers(self, kind: Kind, answers: Mapping[str, object]) -> None:
        """Take note of what one call found."""
        refusals = [answer for answer in answers.values() if isinstance(answer, AccessDenied)]
        if refusals:
            self.stats.refused(kind, time.time(), refusals[0])
        else:
            self.stats.answered(kind, time.time())
        for argument, answer in answers.items():
            if isinstance(answer, AccessDenied):
                self._log.refused((kind.value, argument), answer)
            else:
                self._log.answered((kind.value, argument))
        self._note_recovery()

    def _kept(self, answer: T, asked: float, asked_at: float) -> CachedAnswer[T]:
        """Return an answer with the time for which it may be served."""
        ttl = min(self._ttl, REFUSAL_TTL) if isinstance(answer, AccessDenied) else self._ttl
        return CachedAnswer(answer, asked, max(asked + ttl, trio.current_time() + SHORTEST_TTL), asked_at)

    def _as_failure(self, error: BaseException) -> StoreError:
        """Make a failure of whatever was raised. The log gets the place of each defect once: a probe meets it again."""
        *_, (frame, line) = traceback.walk_tb(error.__traceback__)
        defect = (type(error).__name__, frame.f_code.co_filename, line)
        known, self._defects = defect in self._defects, self._defects | {defect}
        return as_store_error(None if known else log, error)

    def _note_failure(self, kind: Kind, failure: StoreError, asked: float) -> None:
        if self._breaker.failed(failure, trio.current_time(), asked) and kind is not Kind.CHECK:
            self._opened.set()
        self._failed.set()

    def _note_recovery(self) -> None:
        if self._breaker.answered():
            self._failed = trio.Event()
            if self._opened.is_set():
                self._opened = trio.Event()
        self._log.over()

    async def _in_thread(self, call: Callable[[], T], turn: Turn) -> T:
        """Call the store in a thread, when it is the turn of this call. Raises `NoTurn` if that takes too long."""
        try:
            with TimeLimit(self._deadline, trio.current_time()):
                return await call_in_thread(call, turn)
        except DeadlineExceeded as error:
            if not turn.begun:
                raise NoTurn(f"{error}: {CONCURRENCY} calls at once were not enough for all that was asked") from None
            raise
