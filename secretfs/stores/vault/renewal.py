"""Tokens and leases: what the server lends for a term, which is renewed in time, in the background."""

import logging
import math
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from secretfs.errors import MalformedAnswer
from secretfs.store import Secret

Clock = Callable[[], float]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LeaseTerm:
    """How long something lives that the server has lent: a token or a lease. Seconds, on a monotonic clock."""

    since: float
    """When it was asked for, which is no later than when it began."""
    ttl: float
    """Infinite for what never ends."""
    renewable: bool
    full: float
    """What a renewal gives while nothing limits it."""
    due: float = field(init=False)
    """When to renew or replace it: while a third is left, and not when everybody else does it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "due", self.since + self.ttl * random.uniform(0.55, 0.66))  # noqa: S311

    @classmethod
    def lent(cls, since: float, ttl: Any, renewable: Any, full: float | None = None) -> "LeaseTerm":
        """Read what the server says. ``full`` is from before, for what was renewed; 0 is then the end, not for ever."""
        if isinstance(ttl, bool) or not isinstance(ttl, int | float):
            raise MalformedAnswer("the answer has no duration")
        seconds = float(ttl) if ttl > 0 or full is not None else math.inf
        return cls(since, seconds, bool(renewable), seconds if full is None else full)

    @property
    def expires(self) -> float:
        """When it ends unless it is renewed."""
        return self.since + self.ttl

    @property
    def last(self) -> bool:
        """Whether a renewal would not make it longer. The server counts in whole seconds, and rounds down."""
        return not self.renewable or self.ttl < self.full * 0.9


@dataclass(frozen=True, slots=True)
class Token:
    """A token and its term."""

    value: str = field(repr=False)
    term: LeaseTerm


@dataclass(slots=True, eq=False)
class Lease:
    """Credentials, how long they live, and when they were last read."""

    id: str
    """Empty for what ends by itself and cannot be revoked."""
    secret: Secret
    token: str = field(repr=False)
    """The token it was taken with. When that ends, so does the lease."""
    term: LeaseTerm
    used: float
    retired: bool = False
    """The next reader gets other credentials. These live on until they end by themselves."""


def retry_at(now: float, term: "LeaseTerm") -> float | None:
    """Say when to try again what failed for no fault of ours; None when it would be too late."""
    left = term.expires - now
    return now + min(max(0.2, left / 3), 30.0) if left > 0 else None


class Scheduler:
    """Does things when they are due, one after the other, in a thread that starts with the first of them."""

    def __init__(self, name: str, clock: Clock = time.monotonic) -> None:
        self._name = name
        self._clock = clock
        self._plans: dict[object, tuple[float, Callable[[], None]]] = {}
        self._news = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    def at(self, when: float, key: object, action: Callable[[], None]) -> None:
        """Plan something, instead of what was planned under this key."""
        with self._news:
            if self._closed or when == math.inf:
                self._plans.pop(key, None)
                return
            self._plans[key] = when, action
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=f"{self._name}: renewals", daemon=True)
                self._thread.start()
            self._news.notify()

    def cancel(self, key: object) -> None:
        """Forget what was planned."""
        with self._news:
            self._plans.pop(key, None)

    def close(self) -> None:
        """Begin nothing any more. What is under way is left to itself."""
        with self._news:
            self._closed = True
            self._plans.clear()
            self._news.notify()

    def _run(self) -> None:
        while (action := self._next()) is not None:
            try:
                action()
            except Exception as error:  # noqa: BLE001 - one defect must not end all renewals; its text may quote a token
                log.error("%s: a defect in its renewals: %s", self._name, type(error).__name__)  # noqa: TRY400

    def _next(self) -> Callable[[], None] | None:
        with self._news:
            while not self._closed:
                if self._plans:
                    key = min(self._plans, key=lambda key: self._plans[key][0])
                    pause = self._plans[key][0] - self._clock()
                    if pause <= 0:
                        return self._plans.pop(key)[1]
                    self._news.wait(min(pause, threading.TIMEOUT_MAX))
                else:
                    self._news.wait()
        return None
