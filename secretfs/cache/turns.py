"""Turns: a bounded number of calls to one store at once, shared out among the apps that ask.

Apps whose questions wait take turns, so that an app with a thousand questions delays another by one call and not by a
thousand. In a mount for many apps, an app runs at most as many calls as it leaves places free: the calls of an app that
hang leave half of the places to the others. Background work takes turns like an app.

Belongs to one trio thread.
"""

import contextlib
import logging
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Final, NamedTuple

import trio

from secretfs.errors import NoTurn

ONLY_APP: Final = ""
"""Who asks in a mount for a single app. Nobody else is there, so it may take all places."""
NO_APP: Final = ".background"
"""Who asks when no reader waits. No app has a name that begins with a dot."""

REMIND: Final = 60.0
"""Seconds after which the log has again that an app asks for more than the store answers."""

log = logging.getLogger(__name__)

_asker: ContextVar[str] = ContextVar("_asker", default=ONLY_APP)


@contextlib.contextmanager
def asking_for(app: str) -> Iterator[None]:
    """Ask stores for an app, or for `NO_APP`, in this task and in those that it starts."""
    token = _asker.set(app)
    try:
        yield
    finally:
        _asker.reset(token)


def asker() -> str:
    """Return who this task asks for."""
    return _asker.get()


class Work(NamedTuple):
    """How many calls of one app there are."""

    waiting: int = 0
    running: int = 0


class TurnQueue:
    """Gives the calls to one store their turns. ``places`` is the number of calls at once."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: OrderedDict[str, OrderedDict[Turn, None]] = OrderedDict()
        """The calls that wait, by app. The app at the front has the next turn."""
        self._running = Counter[str]()

    @property
    def running(self) -> int:
        """How many calls run."""
        return self._running.total()

    @property
    def work(self) -> Mapping[str, Work]:
        """How many calls wait and run, by app: those that have any. A call that two apps wait for counts for both."""
        apps = sorted({*self._waiting, *+self._running})
        return {app: Work(len(self._waiting.get(app, ())), self._running[app]) for app in apps}

    def turn(self) -> "Turn":
        """Return the turn of a call that this task makes."""
        return Turn(self, _asker.get())

    def enter(self, turn: "Turn", *apps: str) -> None:
        """Let a call wait for apps, or begin where there is a place and nobody waits."""
        if self._free and not self._waiting and self._may_run(apps[0]):
            self._start(turn, apps[0])
            return
        for app in apps:
            self._waiting.setdefault(app, OrderedDict())[turn] = None
        self._start_next()

    def leave(self, turn: "Turn") -> None:
        """Take back a call that waits, or that has ended."""
        if turn.app is None:
            self._forget(turn)
            return
        self._running[turn.app] -= 1
        self._free += 1
        if self._waiting:
            self._start_next()

    def _start_next(self) -> None:
        while self._free and (app := next(filter(self._may_run, self._waiting), None)) is not None:
            turn = next(iter(self._waiting[app]))
            self._waiting.move_to_end(app)
            self._forget(turn)
            self._start(turn, app)

    def _start(self, turn: "Turn", app: str) -> None:
        self._free -= 1
        self._running[app] += 1
        turn.begin(app)

    def _may_run(self, app: str) -> bool:
        return app == ONLY_APP or self._running[app] < self._free

    def _forget(self, turn: "Turn") -> None:
        for app in turn.apps:
            del self._waiting[app][turn]
            if not self._waiting[app]:
                del self._waiting[app]


class Turn:
    """The turn of one call, for all apps that wait for its answer."""

    __slots__ = ("_begin", "_queue", "app", "apps", "began")

    def __init__(self, queue: TurnQueue, app: str) -> None:
        self._queue = queue
        self._begin: Callable[[], None] | None = None
        """Begins the call; known while it waits."""
        self.apps = {app: None}
        """Who waits for the answer."""
        self.app: str | None = None
        """For whom it runs; None while it waits."""
        self.began = 0.0
        """When its call began, on trio's clock."""

    @property
    def begun(self) -> bool:
        """Whether the call has had its turn."""
        return self.app is not None

    def share(self) -> None:
        """Let the app of this task wait for the answer too: the call is made when either of them has its turn."""
        app = _asker.get()
        if self.app is None and app not in self.apps:
            self.apps[app] = None
            if self._begin is not None:
                self._queue.enter(self, app)

    def take(self, begin: Callable[[], None]) -> None:
        """Call ``begin``, which must not raise, when the turn comes: maybe at once."""
        self._begin = begin
        self._queue.enter(self, *self.apps)

    def begin(self, app: str) -> None:
        """Run for an app."""
        begin, self._begin, self.app = self._begin, None, app
        if begin is not None:
            begin()

    def end(self) -> None:
        """End the turn: the thread has ended, maybe long after everybody gave up; or nobody waits for it any more."""
        self._queue.leave(self)


class OverrunLog:
    """Logs which app asks for more than a store answers, once in a while."""

    def __init__(self, component: str) -> None:
        self._component = component
        self._logged: dict[str, float] = {}

    def missed(self, turn: Turn, error: NoTurn) -> None:
        """Take note of a call that did not get its turn."""
        app, now = next(iter(turn.apps)), trio.current_time()
        if now >= self._logged.get(app, -math.inf) + REMIND:
            self._logged[app] = now
            whose = {ONLY_APP: "", NO_APP: " in the background"}.get(app, f" of app {app}")
            context = {"store": self._component, "app": app}
            log.warning("%s: a call%s did not get its turn: %s", self._component, whose, error, extra=context)
