"""Calls of one store: in threads of which there is a bounded number, and none is waited for longer than the deadline.

What they say is an answer, also "no such secret" and "forbidden"; every other error is a failure. After a few failures
nobody calls any more, until a trial shows that the store answers again. Of all that people can know about a store, what
it was asked is counted here, and each trouble is told once.

Belongs to one trio thread; nothing here is thread-safe but the calls into the store.
"""

import contextlib
import copy
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Final, TypeVar

import trio

from secretfs.cache.health import CallStats, CircuitBreaker, FailureLog, Kind, State
from secretfs.cache.ttl_cache import CachedAnswer
from secretfs.errors import AccessDenied, DeadlineExceeded, SecretNotFound, StoreError, StoreUnavailable
from secretfs.store import CachedRead, Names, RevalidatingStore, Secret, SecretStore

T = TypeVar("T")

CONCURRENCY: Final = 8
"""Calls at once to one store. More threads buy little: the SDKs hold the interpreter lock most of the time."""

REFUSAL_TTL: Final = 1.0
"""Seconds that "forbidden" is remembered: long enough that a program which polls does not pester the store, short
enough that a new policy or token is noticed at once."""
SHORTEST_TTL: Final = 0.1
"""Seconds that an answer lives from when it arrives, whatever ttl says. The kernel repeats a call once when a file was
superseded; an answer that had expired by then would end it with ESTALE."""


class StoreClient:
    """A store as it can be called. ``ttl`` and ``deadline`` are seconds.

    A thread whose call outlives the deadline is left behind and keeps its place among the `CONCURRENCY` of this store
    until the SDK gives up: a store that hangs slows down nobody else and cannot pile up threads. ``nursery`` runs the
    trials.
    """

    def __init__(self, component: str, store: SecretStore, ttl: float, deadline: float, nursery: trio.Nursery) -> None:
        self.store = store
        self.stats = CallStats()
        self._ttl = ttl
        self._deadline = deadline
        self._nursery = nursery
        self._limiter = trio.CapacityLimiter(CONCURRENCY)
        self._breaker = CircuitBreaker()
        self._log = FailureLog(component)
        self._over = False

    @property
    def in_doubt(self) -> bool:
        """Whether the last call failed: what is known should be served rather than waited for."""
        return self._breaker.in_doubt

    @property
    def down(self) -> bool:
        """Whether several in a row did: nobody calls until a trial has succeeded."""
        return self._breaker.open

    @property
    def state(self) -> State:
        """What is to be thought of the store."""
        if self.in_doubt:
            return State.DOWN if self.down else State.IN_DOUBT
        return State.REFUSED if self.stats.last_refused else State.OK

    @property
    def next_try(self) -> float | None:
        """When a store that is down is tried again, in seconds since the epoch."""
        if self.stats.last_error is None or not self.down:
            return None
        return self.stats.last_error.at + self._breaker.pause

    async def names(self, folder: str) -> CachedAnswer[Names | StoreError]:
        """Call `SecretStore.names`, if the store is worth asking. Raises what is no answer."""
        return await self._guarded(Kind.NAMES, self.store.names, folder)

    async def fetch(self, name: str) -> CachedAnswer[Secret | StoreError]:
        """Call `SecretStore.fetch`, if the store is worth asking. Raises what is no answer."""
        return await self._guarded(Kind.FETCH, self.store.fetch, name)

    async def unchanged(self, known: Mapping[str, CachedRead]) -> CachedAnswer[frozenset[str] | StoreError]:
        """Call `RevalidatingStore.unchanged`, if the store has it and is worth asking. Raises what is no answer."""
        store = self.store
        if not isinstance(store, RevalidatingStore):
            raise StoreError("this store does not compare")
        return await self._guarded(Kind.COMPARE, lambda _: store.unchanged(known), "")

    async def check(self) -> None:
        """Call `SecretStore.check`, whatever is thought of the store. Raises what is no answer."""
        await self._call(Kind.CHECK, lambda _: self.store.check(), "")

    async def probe(self) -> None:
        """Find out whether a store that failed answers again, if it is time to."""
        if trio.current_time() >= self._breaker.retry_at:
            await self._probe()

    def end(self) -> None:
        """Call the store no more: it may be closed."""
        self._over = True

    @property
    def over(self) -> bool:
        """Whether it is called no more."""
        return self._over

    async def _probe(self) -> None:
        with contextlib.suppress(StoreError):  # told where it happened
            await self.check()

    async def _guarded(self, kind: Kind, call: Callable[[str], T], argument: str) -> CachedAnswer[T | StoreError]:
        if self._breaker.open:
            raise copy.copy(self._breaker.error)
        return await self._call(kind, call, argument)

    async def _call(self, kind: Kind, call: Callable[[str], T], argument: str) -> CachedAnswer[T | StoreError]:
        if self._over:
            raise StoreUnavailable("it is not served any more")
        asked, asked_at = trio.current_time(), time.time()
        ttl = self._ttl
        answer: T | StoreError
        subject = (kind.value, argument)
        try:
            answer = await self._in_thread(call, argument)
        except SecretNotFound as error:
            answer = error
        except AccessDenied as error:
            answer, ttl = error, min(ttl, REFUSAL_TTL)
        except StoreError as error:
            self.stats.failed(kind, time.time(), error)
            self._log.failed(subject, error)
            if self._breaker.failed(error, trio.current_time(), asked) and kind is not Kind.CHECK:
                self._nursery.start_soon(self._probe)  # it may have been the question: then nobody else is to suffer
            raise
        if isinstance(answer, AccessDenied):
            self.stats.refused(kind, time.time(), answer)
            self._log.refused(subject, answer)
        else:
            self.stats.answered(kind, time.time())
            self._log.answered(subject)
        self._breaker.answered()
        self._log.over()
        return CachedAnswer(answer, asked, max(asked + ttl, trio.current_time() + SHORTEST_TTL), asked_at)

    async def _in_thread(self, call: Callable[[str], T], argument: str) -> T:
        with time_limit(self._deadline, trio.current_time()):
            return await trio.to_thread.run_sync(call, argument, limiter=self._limiter, abandon_on_cancel=True)


@contextlib.contextmanager
def time_limit(deadline: float, since: float) -> Iterator[None]:
    """Wait no longer than so many seconds ``since`` a moment. Raises `DeadlineExceeded`."""
    try:
        with trio.fail_at(since + deadline):
            yield
    except trio.TooSlowError:
        raise DeadlineExceeded(f"no answer within {deadline:g} s") from None
