"""Health of a store: a circuit breaker, statistics of its calls, and a log that has each failure once. Pure."""

import logging
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, NamedTuple

from secretfs.cache.turns import Work
from secretfs.errors import AccessDenied, StoreError
from secretfs.histogram import Histograms

log = logging.getLogger(__name__)


class Kind(Enum):
    """The calls of `secretfs.store.SecretStore` and of `secretfs.store.RevalidatingStore`."""

    CHECK = "check"
    NAMES = "names"
    FETCH = "fetch"
    COMPARE = "compare"


class State(Enum):
    """The health of a store, the best first."""

    OK = "ok"
    REFUSED = "refused"
    """It answers; its last answer was "forbidden"."""
    IN_DOUBT = "in doubt"
    """Its last call failed: cached answers are served."""
    DOWN = "down"
    """Several in a row failed: the circuit breaker is open, and only probes call the store."""


class Failure(NamedTuple):
    """A failure or a refusal. Times here are seconds since the epoch."""

    at: float
    error: str
    """Name of the error's class, one of `secretfs.errors`."""
    message: str
    """What went wrong. It names no secret."""


class Readers(NamedTuple):
    """What readers of a store met, since this process began to serve it."""

    hits: int = 0
    """Requests for values that nobody waited for."""
    waits: int = 0
    """Those that a reader waited for."""
    waiting: int = 0
    """Readers that wait now."""
    rotated: int = 0
    """Known values that have changed."""
    last_rotation: float | None = None


NO_READERS: Final = Readers()


class FileHealth(NamedTuple):
    """A rendered file that somebody has read lately."""

    rendered: float | None
    """When it was, last; None if it could not be."""
    failure: Failure | None
    """Why it could not be when that was last tried."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """A store at one moment: no names and no values, only how many."""

    store_type: str
    state: State
    last_success: float | None
    last_error: Failure | None
    next_try: float | None
    """When a store that is down is probed next."""
    names: int
    cached: int
    stale: int
    """Values that are served although they have expired."""
    asked: Mapping[Kind, int]
    failed: Mapping[Kind, int]
    work: Mapping[str, Work]
    """Calls that wait and run, by app."""
    breaker_openings: int
    readers: Readers = NO_READERS
    files: Mapping[str, FileHealth] = field(default_factory=dict)
    """Of rendered files, those that are known, by their names."""


class CallStats:
    """Counts the calls to one store."""

    def __init__(self) -> None:
        self.asked: Counter[Kind] = Counter()
        self.failures: Counter[Kind] = Counter()
        self.calls = Histograms()
        """How long calls took, by kind and outcome (`secretfs.cache.outcomes`)."""
        self.last_success: float | None = None
        self.last_error: Failure | None = None
        self.last_refused = False
        """The last answer was a refusal."""

    def answered(self, kind: Kind, at: float) -> None:
        """Count an answer; "no such secret" is one."""
        self.asked[kind] += 1
        self.last_success, self.last_refused = at, False

    def refused(self, kind: Kind, at: float, error: StoreError) -> None:
        """Count a refusal."""
        self.failed(kind, at, error)
        self.last_refused = True

    def failed(self, kind: Kind, at: float, error: StoreError) -> None:
        """Take note of a failure."""
        self.asked[kind] += 1
        self.failures[kind] += 1
        message = str(error) if kind is Kind.CHECK else error.meaning  # what was asked for is part of the error's text
        self.last_error = Failure(at, public_class(error), message)


def public_class(error: StoreError) -> str:
    """Return the name of the class of an error; a store may have raised one of its own, which nobody else knows."""
    return next(known.__name__ for known in type(error).__mro__ if known.__module__ == StoreError.__module__)


FAILURES = 3
"""Failures in a row after which a store is left alone."""
SHORTEST, LONGEST = 1.0, 30.0
"""Seconds of the pause before the first trials and of the longest; it doubles each time, give or take a quarter."""


class CircuitBreaker:
    """Opens after consecutive failures. Times are seconds on the clock of the caller."""

    def __init__(self) -> None:
        self.failures = 0
        """Failures in a row."""
        self.openings = 0
        """How often it has opened."""
        self._error: StoreError | None = None
        self.retry_at = 0.0
        """When to probe the store."""
        self.pause = 0.0
        """Seconds from the last failure to then."""
        self._counted_at = 0.0
        self._note: Callable[[int], None] = lambda _: None

    @property
    def in_doubt(self) -> bool:
        """Whether the last call failed: what is known should be served rather than waited for."""
        return self.failures > 0

    @property
    def open(self) -> bool:
        """Whether only probes should call the store, until one has succeeded."""
        return self.failures >= FAILURES

    @property
    def error(self) -> StoreError:
        """The last failure."""
        return self._error or StoreError("no failure")

    def failed(self, error: StoreError, now: float, asked: float | None = None) -> bool:
        """Take note of a failure. Returns whether this one opens it. ``asked`` is when the call began, if before now.

        Calls that were under way when the store went down fail one after the other. They are no news, and must not
        make the pause longer: eight of them would make it the longest at once.
        """
        self._error = error
        if self.open and asked is not None and asked < self._counted_at:
            return False
        self._count(self.failures + 1)
        self._counted_at = now
        pause = min(LONGEST, SHORTEST * 2.0 ** max(0, self.failures - FAILURES - 1))
        self.pause = pause * random.uniform(0.75, 1.25)  # noqa: S311 - spreads load, hides nothing
        self.retry_at = now + self.pause
        self.openings += self.failures == FAILURES
        return self.failures == FAILURES

    def resume(self, failures: int, error: StoreError, note: Callable[[int], None]) -> None:
        """Go on where another one was; the store may be probed at once. ``note`` is called with each new number."""
        self._note = note
        if failures:
            self._error = error
            self._count(failures)

    def answered(self) -> bool:
        """Take note of an answer, whatever it says. Returns whether the store was in doubt before."""
        doubted = self.in_doubt
        self._error = None
        if doubted:
            self._count(0)
        return doubted

    def _count(self, failures: int) -> None:
        self.failures = failures
        self._note(failures)


Question = tuple[str, str]
"""What a store was asked: the kind of question, and the secret or folder."""

REMEMBERED: Final = 1000
"""Calls with a failure of their own that are remembered; one that is forgotten would be logged again."""


class FailureLog:
    """Logs each failure of one store once, again when its reason changes, and the end of an outage."""

    def __init__(self, component: str) -> None:
        self._component = component
        self._outage = ""
        self._reasons: dict[Question, str] = {}

    def refused(self, question: Question, error: StoreError) -> None:
        """Log that a call is refused."""
        if self._remember(question, str(error)):
            self._warn(question, error)

    def failed(self, question: Question, error: StoreError) -> None:
        """Log that a call failed, unless it is one failure of an outage that is logged already.

        A call that failed so before, and has not been answered since, says nothing about the store: the cause may be
        its secret alone, while other calls are answered.
        """
        reason = _reason(error)
        if reason != self._outage and self._remember(question, reason):
            self._outage = reason
            self._warn(question, error)

    def known(self, question: Question, error: StoreError) -> None:
        """Take note of a failure that is in the log already, or of a refusal."""
        if isinstance(error, AccessDenied):
            self._remember(question, str(error))
        else:
            self._outage = _reason(error)
            self._remember(question, self._outage)

    def answered(self, question: Question) -> None:
        """Forget the failure of a call that is answered now."""
        self._reasons.pop(question, None)

    def over(self) -> None:
        """Log that the store answers again, if it was logged that it does not."""
        if self._outage:
            self._outage = ""
            log.info("%s: answers again", self._component, extra={"store": self._component})

    def _warn(self, question: Question, error: StoreError) -> None:
        context = {"store": self._component, "operation": question[0], "error": public_class(error)}
        log.warning("%s: %s", self._component, error, extra=context)

    def _remember(self, question: Question, reason: str) -> bool:
        """Note why a call fails. Returns whether that is new."""
        if self._reasons.get(question) == reason:
            return False
        self._reasons.pop(question, None)
        self._reasons[question] = reason
        if len(self._reasons) > REMEMBERED:
            del self._reasons[next(iter(self._reasons))]
        return True


def _reason(error: StoreError) -> str:
    """Return why a call failed, without what was asked for, which comes first."""
    _, _, reason = str(error).partition(": ")
    return reason or str(error)
