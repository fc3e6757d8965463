"""Whether a store is worth asking: after failures in a row it is tried once, then left alone for a while. Pure."""

import random

from secretfs.errors import StoreError

FAILURES = 3
"""Failures in a row after which a store is left alone."""
SHORTEST, LONGEST = 1.0, 30.0
"""Seconds of the pause before the first trials and of the longest; it doubles each time, give or take a quarter."""


class Breaker:
    """Counts what a store did last. Times are seconds on whatever clock the caller uses."""

    def __init__(self) -> None:
        self._failures = 0
        self._error: StoreError | None = None
        self.retry_at = 0.0
        """When to try the store again."""
        self.pause = 0.0
        """Seconds from the last failure to then."""
        self._counted_at = 0.0

    @property
    def in_doubt(self) -> bool:
        """Whether the last call failed: what is known should be served rather than waited for."""
        return self._failures > 0

    @property
    def open(self) -> bool:
        """Whether nobody should ask until a trial has succeeded."""
        return self._failures >= FAILURES

    @property
    def error(self) -> StoreError:
        """The last failure."""
        return self._error or StoreError("no failure")

    def failed(self, error: StoreError, now: float, asked: float | None = None) -> bool:
        """Take note of a failure. Returns whether this one opens it. ``asked`` is when the call began, if before now.

        Calls that were under way when the store went down fail one after the other. They tell nothing new, and must not
        make the pause longer: eight of them would make it the longest at once.
        """
        self._error = error
        if self.open and asked is not None and asked < self._counted_at:
            return False
        self._failures += 1
        self._counted_at = now
        pause = min(LONGEST, SHORTEST * 2.0 ** max(0, self._failures - FAILURES - 1))
        self.pause = pause * random.uniform(0.75, 1.25)  # noqa: S311 - spreads load, hides nothing
        self.retry_at = now + self.pause
        return self._failures == FAILURES

    def answered(self) -> bool:
        """Take note of an answer, whatever it says. Returns whether the store was in doubt before."""
        doubted = self.in_doubt
        self._failures, self._error = 0, None
        return doubted
