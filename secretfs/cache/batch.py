"""Batches: secrets that are asked for at the same time are read with one request, where the store can do that.

A batch is open from the first question until its call has its turn: what is asked for while a busy store lets it wait
joins it. Nobody waits for others to ask.

Belongs to one trio thread.
"""

import time
from collections.abc import Callable, Mapping
from typing import Final

import trio

from secretfs.cache.turns import Turn, asker
from secretfs.errors import StoreError
from secretfs.store import Secret

PATIENCE: Final = 0.25
"""The part of the deadline that a batch may have waited for its turn to be joined: what joins it has to wait, too."""


class Batch:
    """Secrets that one call reads, and what it found."""

    def __init__(self, turn: Turn) -> None:
        self.turn = turn
        self.names: list[str] = []
        self.asked, self.asked_at = trio.current_time(), time.time()
        self.done = trio.Event()
        self.found: Mapping[str, Secret | StoreError] = {}
        """What is not in it has to be read alone."""
        self.error: StoreError | None = None
        """Why there is no answer."""

    def takes(self, largest: int, deadline: float) -> bool:
        """Whether another name may join. ``deadline`` is how long the call may take, in seconds."""
        is_open = not self.turn.begun and not self.done.is_set() and len(self.names) < largest
        return is_open and trio.current_time() <= self.asked + deadline * PATIENCE


class Batches:
    """The open batches of one store: one for each app, because apps take turns."""

    def __init__(self, new_turn: Callable[[], Turn], deadline: float) -> None:
        self._new_turn = new_turn
        self._deadline = deadline
        self._open: dict[str, Batch] = {}

    def join(self, name: str, largest: int) -> tuple[Batch, bool]:
        """Return the batch that will read a secret, and whether it is new: then the caller has it read."""
        batch = self._open.get(asker())
        is_new = batch is None or not batch.takes(largest, self._deadline)
        if batch is None or is_new:
            batch = self._open[asker()] = Batch(self._new_turn())
        batch.names.append(name)
        return batch, is_new

    def end(self, batch: Batch) -> None:
        """Forget a batch that has been read, and wake those who wait for it."""
        for app, known in list(self._open.items()):
            if known is batch:
                del self._open[app]
        batch.done.set()


async def gather() -> None:
    """Let those ask who can do so now: the tasks that one answer woke up ask again two steps of the loop later."""
    for _ in range(2):
        await trio.lowlevel.checkpoint()
