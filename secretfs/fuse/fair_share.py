"""Turns for the requests of several users: who floods a mount delays the others by one step of his, and not by all.

The kernel hands out requests in the order in which they came. So they are read before any is worked on, each waits for
its turn here, and the next turn is that of whoever has had none for the longest time. A program has one request under
way for each of its threads: while those wait here, it makes no more.

Belongs to one trio thread.
"""

from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from typing import Final

import trio

from secretfs.fs.requests import Requests

READ_FIRST: Final = 200
"""Requests that are read from the kernel before the next turn, at most: those that nobody waits for may come without
end."""
REMEMBERED: Final = 4096
"""Askers of whom is known when they had a turn."""

_asker: ContextVar[str] = ContextVar("_asker", default="")


class FairShare:
    """Shares a mount out among its users.

    ``place`` gives a request about an inode its place (`secretfs.fs.requests`), by the number of the inode and that of
    the user, if the request says that. ``unread`` is whether the kernel has requests that nobody has read yet.
    """

    def __init__(self, place: Callable[[int, int | None], Requests], unread: Callable[[], bool]) -> None:
        self.place = place
        self._unread = unread
        self._waiting: dict[str, deque[trio.lowlevel.Task]] = {}
        """Tasks by asker, those that came first at the left."""
        self._served: dict[str, int] = {}
        """When each asker had a turn last, by a count of all turns."""
        self._turns = 0
        self._arrived = trio.Event()

    async def turn(self, asker: str) -> None:
        """Wait for the turn of somebody: an app, or a user. There is no wait where nobody else wants anything."""
        _asker.set(asker)
        if self._waiting or self._unread():
            await self._wait(asker)

    async def go_on(self) -> None:
        """Let others have their turns in the middle of a long answer to whom this task had its last `turn` for."""
        if self._waiting or self._unread():
            await self._wait(_asker.get())

    async def run(self) -> None:
        """Give turns. Runs forever."""
        while True:
            await self._arrived.wait()
            for _ in range(READ_FIRST):
                await trio.lowlevel.checkpoint()
                if not self._unread():
                    break
            self._give_turn()
            if not self._waiting:
                self._arrived = trio.Event()

    async def _wait(self, asker: str) -> None:
        task = trio.lowlevel.current_task()
        self._waiting.setdefault(asker, deque()).append(task)
        self._arrived.set()

        def give_up(_: object) -> trio.lowlevel.Abort:
            self._take(asker, task)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(give_up)

    def _give_turn(self) -> None:
        if not self._waiting:  # whoever waited has been cancelled
            return
        asker = min(self._waiting, key=lambda asker: self._served.get(asker, 0))
        if len(self._served) >= REMEMBERED:
            self._served.clear()
        self._turns += 1
        self._served[asker] = self._turns
        task = self._waiting[asker][0]
        self._take(asker, task)
        trio.lowlevel.reschedule(task)

    def _take(self, asker: str, task: trio.lowlevel.Task) -> None:
        self._waiting[asker].remove(task)
        if not self._waiting[asker]:
            del self._waiting[asker]
