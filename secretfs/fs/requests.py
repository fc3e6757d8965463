"""How many requests of the kernel wait for an answer, in a mount for many apps.

There is a limit to them all. An app may have as many as it leaves places free, like calls in `secretfs.cache.turns`: if
ten thousand threads of it wait, half of the places are left to the others. What is beyond that fails at once.
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
"""Seconds after which the log has again that an app has too many requests."""

log = logging.getLogger(__name__)


class Work(NamedTuple):
    """The requests of one app."""

    waiting: int
    refused: int
    """Since this process began to serve."""


class RequestPlaces:
    """The places for requests. Those about no app's files, as about the root of the mount, always get one."""

    def __init__(self, places: int = PLACES) -> None:
        self.free = places
        self._apps: dict[str, AppRequests] = {}

    @property
    def work(self) -> Mapping[str, Work]:
        """The requests of each app that has any, or has had too many."""
        known = {app: Work(requests.waiting, requests.refused) for app, requests in sorted(self._apps.items())}
        return {app: work for app, work in known.items() if app and any(work)}

    def of(self, key: DirectoryKey | LeafKey) -> "AppRequests":
        """Return a context manager for each request about what is at a place in the tree."""
        app = app_of_key(key)
        return self._apps.get(app) or self._apps.setdefault(app, AppRequests(self, app))


class AppRequests:
    """The requests of one app. To enter it takes a place, or raises `TooManyRequests`."""

    def __init__(self, places: RequestPlaces, app: str) -> None:
        self._places = places
        self._app = app
        self._logged = -math.inf
        self.waiting = self.refused = 0

    def __enter__(self) -> None:
        if self._app and self.waiting >= self._places.free:
            self._refuse()
        self.waiting += 1
        self._places.free -= 1

    def __exit__(self, *_: object) -> None:
        self.waiting -= 1
        self._places.free += 1

    def _refuse(self) -> None:
        self.refused += 1
        now = trio.current_time()
        if now >= self._logged + REMIND:
            self._logged = now
            log.warning("app %s: %d requests wait, and more fail with EAGAIN", self._app, self.waiting)
        raise TooManyRequests(f"app {self._app} has {self.waiting} requests that wait")
