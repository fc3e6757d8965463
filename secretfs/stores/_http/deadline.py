"""One deadline for all requests that a thread sends on behalf of one call."""

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from secretfs.errors import DeadlineExceeded


class Deadline:
    """The time that a thread may still wait. Thread-safe: each thread has its own end."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        """The longest that one request may take, also outside of `within`."""
        self._thread = threading.local()

    @contextmanager
    def within(self, seconds: float | None = None) -> Iterator[None]:
        """Bound all requests of this thread in the context, together, by ``seconds``. Inner bounds only shorten."""
        outer = getattr(self._thread, "end", math.inf)
        self._thread.end = min(outer, time.monotonic() + (self.seconds if seconds is None else seconds))
        try:
            yield
        finally:
            self._thread.end = outer

    def left(self) -> float:
        """Return the seconds that this thread may wait for its next answer; 0 when the time is over."""
        end = getattr(self._thread, "end", math.inf)
        return max(0.0, min(end - time.monotonic(), self.seconds))

    def remaining(self, where: str = "") -> float:
        """Return the same. Raises `DeadlineExceeded` when the time is over; the message starts with ``where``."""
        left = self.left()
        if not left:
            raise DeadlineExceeded(f"{where}: no answer in time" if where else "no answer in time")
        return left
