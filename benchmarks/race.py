"""Timing that a noisy machine disturbs least: contestants take turns, and medians count."""

import gc
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

Contestants = Mapping[str, Callable[[], object]]


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured."""

    rounds: int
    """Turns that each contestant gets at what takes microseconds or milliseconds."""
    starts: int
    """How often each file system is started."""
    names: int
    """Files in a directory, and secrets in the Vault-compatible server."""
    cold: int
    """How many of those are read one by one, cold."""
    values: int
    """Values whose memory is measured."""
    seconds: float
    """How long the processes read at the same time, for each turn."""


FULL = Effort(rounds=25, starts=7, names=1000, cold=400, values=10_000, seconds=0.3)
QUICK = Effort(rounds=3, starts=1, names=100, cold=20, values=1000, seconds=0.05)


def race(contestants: Contestants, *, rounds: int, operations: int = 1) -> dict[str, list[float]]:
    """Let each contestant run once in every round; returns seconds per operation, one for each round.

    A contestant does its operation ``operations`` times. The first round does not count. Who starts changes with each.
    """
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    turns = list(contestants.items())
    for count in range(rounds + 1):
        first = count % len(turns)
        gc.collect()
        for name, run in turns[first:] + turns[:first]:
            seconds = timed(run) / operations
            if count:
                samples[name].append(seconds)
    return samples


def timed(run: Callable[[], object]) -> float:
    """Return the seconds that something takes, without our own garbage collector in it."""
    gc.disable()
    try:
        started = time.perf_counter()
        run()
        return time.perf_counter() - started
    finally:
        gc.enable()


@contextmanager
def step(title: str) -> Iterator[None]:
    """Say on standard error what is going on, and how long it took."""
    print(f"{title} ... ", end="", file=sys.stderr, flush=True)
    started = time.perf_counter()
    try:
        yield
    except BaseException:
        print(file=sys.stderr)
        raise
    print(f"{time.perf_counter() - started:.1f} s", file=sys.stderr)
