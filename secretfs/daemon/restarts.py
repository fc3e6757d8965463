"""When the supervisor starts the next worker, and when it gives up.

The usual case is a worker that served and was killed, crashed or was asked to end: the next one starts at once. Workers
that end before they serve are started with pauses between them. If they end by themselves, as one with a defect or a
mistake in its configuration does, the supervisor gives up after six in a row: readers get ENOTCONN instead of waiting
for ever, and the next tries are minutes apart. A worker that is killed from outside never counts towards that.
"""

import signal
from typing import Final, NamedTuple

FAILURES: Final = 6
"""Workers in a row that end by themselves before they serve; then the supervisor gives up."""
EARLY: Final = 2.0
"""Seconds. A worker that crashes within them after it was ready has not served: an unanswered request is sent again."""
PAUSES: Final = (0.0, 0.0, 0.1, 0.5, 1.0, 2.0)
"""Seconds before the next worker, by how many in a row have not served."""
RETRIES: Final = (30.0, 300.0)
"""Seconds before the first try after giving up, and the longest pause; it doubles."""

_OUTSIDE: Final = {-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGQUIT, -signal.SIGHUP}


class End(NamedTuple):
    """How a worker ended."""

    code: int
    """Its exit status; a signal is negative."""
    served: float | None = None
    """Seconds since it was ready; None if it never was."""
    hung: bool = False
    """It was the supervisor that killed it, because it did not answer."""

    @property
    def from_outside(self) -> bool:
        """Whether somebody else ended it, such as the kernel for want of memory."""
        return self.code in _OUTSIDE and not self.hung


class Restarts:
    """The ends of workers that count, and the pause that follows from them."""

    def __init__(self) -> None:
        self._failures = 0
        self._unserved = 0

    def count(self, end: End) -> None:
        """Take note of how a worker ended."""
        if end.served is not None and (end.from_outside or end.served >= EARLY):
            self._failures = self._unserved = 0
            return
        self._unserved += 1
        if not end.from_outside:
            self._failures += 1

    @property
    def given_up(self) -> bool:
        """Whether a worker is not expected to serve any more."""
        return self._failures >= FAILURES

    @property
    def pause(self) -> float:
        """Seconds before the next worker."""
        if self.given_up:
            first, longest = RETRIES
            return min(longest, first * 2.0 ** min(self._failures - FAILURES, 10))
        return PAUSES[min(self._unserved, len(PAUSES) - 1)]
