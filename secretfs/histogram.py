"""Histograms of durations, cheap enough to be kept all the time. Pure."""

from bisect import bisect_left
from collections.abc import Mapping
from typing import Final, NamedTuple

BOUNDS: Final = (0.0001, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds in seconds: of a message that the daemon answers by itself, up to the longest usual deadline."""

Labels = tuple[str, ...]


class Distribution(NamedTuple):
    """A histogram at one moment."""

    counts: tuple[int, ...]
    """How many durations were no longer than each of `BOUNDS` and longer than the bound before; the last: longer."""
    total: float
    """Seconds, of all of them together."""


class Histogram:
    """Counts durations by how long they were."""

    __slots__ = ("_counts", "_total")

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS) + 1)
        self._total = 0.0

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        self._counts[bisect_left(BOUNDS, seconds)] += 1
        self._total += seconds

    def now(self) -> Distribution:
        """Return how it stands."""
        return Distribution(tuple(self._counts), self._total)


class Histograms:
    """A histogram for each combination of labels that has occurred."""

    __slots__ = ("_histograms",)

    def __init__(self) -> None:
        self._histograms: dict[Labels, Histogram] = {}

    def observe(self, labels: Labels, seconds: float) -> None:
        """Count one duration."""
        histogram = self._histograms.get(labels)
        if histogram is None:
            histogram = self._histograms[labels] = Histogram()
        histogram.observe(seconds)

    def now(self) -> Mapping[Labels, Distribution]:
        """Return how they stand."""
        return {labels: histogram.now() for labels, histogram in self._histograms.items()}
