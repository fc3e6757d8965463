"""What turned out to be different from what was known: the one thing that travels from the stores to the publisher.

Caches and the reload announce changes; they travel in one channel, which `secretfs.daemon.serve` opens, and
`secretfs.fs.publish` takes them out at the other end.
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Change:
    """A change of one store. False if there is none in it."""

    component: str
    names: frozenset[str] = frozenset()
    """Secrets and folders that are new or gone, by full name."""
    values: frozenset[tuple[str, str]] = frozenset()
    """Values that are new, different or gone, by name of the secret and key."""
    whole: bool = False
    """The store itself came or went, or is another one now."""

    def __bool__(self) -> bool:
        return bool(self.names or self.values or self.whole)


Announce = Callable[[Change], None]
"""Takes a change. Called in the thread of trio, when the new state is what the cache answers."""


def discard(change: Change) -> None:
    """Ignore a change."""
