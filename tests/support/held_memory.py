"""The supervisor's part for an arena: it holds the segments, and a successor gets descriptors of its own.

Import the fixture where you use it: ``from tests.support.held_memory import memory``.
"""

import os
from collections.abc import Iterator

import pytest

from secretfs.cache.arena import Arena, Storage
from secretfs.linux import secret_memory

KEY = bytes(range(32))


class HeldMemory(Storage):
    """Segments in memory, by number. ``limit`` is how many bytes there are."""

    def __init__(self, limit: int = 1 << 40) -> None:
        self.limit = limit
        self.held: dict[int, int] = {}

    def create(self, size: int) -> int:
        """Return a memory file."""
        if size > self.limit:
            raise OSError
        self.limit -= size
        return secret_memory.create(size)

    def keep(self, number: int, descriptor: int) -> None:
        """Hold a segment."""
        self.held[number] = os.dup(descriptor)

    def drop(self, number: int) -> None:
        """Hold it no more."""
        os.close(self.held.pop(number))

    def arena(self) -> Arena:
        """Return the arena as the next process gets it."""
        return Arena(KEY, self, {number: os.dup(descriptor) for number, descriptor in self.held.items()})


def texts(arena: Arena) -> list[bytes]:
    """Return what the records say, the oldest first."""
    return [bytes(arena.view(record.slot)) for record in arena.records()]


@pytest.fixture
def memory() -> Iterator[HeldMemory]:
    """Hold segments until the end of the test."""
    memory = HeldMemory()
    yield memory
    for number in list(memory.held):
        memory.drop(number)
