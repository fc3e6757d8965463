"""How many requests of the kernel wait for an answer, in a mount for several apps or users.

There is a limit to them all. An app may have as many as it leaves places free, like calls in `secretfs.cache.turns`: if
ten thousand threads of it wait, half of the places are left to the others. What is beyond that fails at once. In a
mount without apps the same holds for each user.
"""

import logging
import math
from collections.abc import Mapping
from typing import Final, NamedTuple

import trio

from secretfs.errors import TooManyRequests
from secretfs.fs.keys import DirectoryKey, LeafKey, app_of_key

PLACES: Final = 10_000
"""Requests that are served at once, a task each. Enough that readers who wait for one store never block another's."""
REMIND: Final = 60.0
"""Seconds after which the log has again that somebody has too many requests."""

log = logging.getLogger(__name__)


class Work(NamedTuple):
    """The requests of one app or user."""

    waiting: int
    refused: int
    """Since this process began to serve."""


NOBODY: Final = ""
"""Who asks for what is no app's, as the root of a mount for many apps: that never waits, and always gets a place."""


def user(uid: int) -> str:
    """Return who asks, if that is a user."""
    return f"user {uid}"


class RequestPlaces:
    """The places for requests."""

    def __init__(self, places: int = PLACES) -> None:
        self.free = self._places = places
        self._askers: dict[str, Requests] = {}

    @property
    def total(self) -> Work:
        """The requests of all."""
        return Work(self._places - self.free, sum(requests.refused for requests in self._askers.values()))

    @property
    def work(self) -> Mapping[str, Work]:
        """The requests of each app or user that has any, or has had too many."""
        known = {asker: Work(requests.waiting, requests.refused) for asker, requests in sorted(self._askers.items())}
        return {asker: work for asker, work in known.items() if asker != NOBODY and any(work)}

    def of(self, key: DirectoryKey | LeafKey, uid: int | None = None) -> "Requests":
        """Return a context manager for each request about what is at a place in the tree.

        It counts for the app that the place is in, else for the user.
        """
        app = app_of_key(key)
        asker = f"app {app}" if app else NOBODY if uid is None else user(uid)
        return self._askers.get(asker) or self._askers.setdefault(asker, Requests(self, asker))

    def forget_idle(self) -> None:
        """Forget those who ask for nothing now, and never had too many requests: there may be many users."""
        self._askers = {asker: each for asker, each in self._askers.items() if each.waiting or each.refused}


class Requests:
    """The requests of one app or user. To enter it takes a place, or raises `TooManyRequests`. Yields who asks."""

    def __init__(self, places: RequestPlaces, asker: str) -> None:
        self._places = places
        self.asker = asker
        self._logged = -math.inf
        self.waiting = self.refused = 0

    def __enter__(self) -> str:
        if self.asker != NOBODY and self.waiting >= self._places.free:
            self._refuse()
        self.waiting += 1
        self._places.free -= 1
        return self.asker

    def __exit__(self, *_: object) -> None:
        self.waiting -= 1
        self._places.free += 1

    def _refuse(self) -> None:
        self.refused += 1
        now = trio.current_time()
        if now >= self._logged + REMIND:
            self._logged = now
            kind, _, name = self.asker.partition(" ")
            text = "%s: %d requests wait, and more fail with EAGAIN"
            log.warning(text, self.asker, self.waiting, extra={"app": name} if kind == "app" else None)
        raise TooManyRequests(f"{self.asker} has {self.waiting} requests that wait")
