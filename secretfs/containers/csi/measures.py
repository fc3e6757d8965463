"""What the driver counts: calls of the kubelet, how long they take and how they end, and reviews of tokens."""

import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from secretfs.containers.csi.failures import PermissionDenied
from secretfs.histogram import Distribution, Histograms, Labels

REVIEWS: Final = ("accepted", "refused", "failed")
"""How the review of a token can end: it is good, it is not that of the pod, or the API server did not say."""


@dataclass(slots=True)
class Call:
    """A call that is under way."""

    code: str = "OK"
    """The name of the status code of gRPC with which it ends."""


class Measures:
    """Counts since the driver began. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls = Histograms()
        self._running = 0
        self._reviews = Counter(dict.fromkeys(REVIEWS, 0))

    @contextmanager
    def call(self, method: str) -> Iterator[Call]:
        """Measure a call of a method, which ends with what its `Call.code` is then."""
        call, began = Call(), time.monotonic()
        with self._lock:
            self._running += 1
        try:
            yield call
        finally:
            with self._lock:
                self._running -= 1
                self._calls.observe((method, call.code), time.monotonic() - began)

    @contextmanager
    def review(self) -> Iterator[None]:
        """Count the review of a token, which ends as the body does."""
        outcome = "failed"
        try:
            yield
            outcome = "accepted"
        except PermissionDenied:
            outcome = "refused"
            raise
        finally:
            with self._lock:
                self._reviews[outcome] += 1

    def now(self) -> tuple[Mapping[Labels, Distribution], int, Mapping[str, int]]:
        """Return durations by method and code, how many calls are under way, and reviews by how they ended."""
        with self._lock:
            return self._calls.now(), self._running, dict(self._reviews)
