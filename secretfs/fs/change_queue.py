"""Changes that wait to be published: those of a store one after the other, stores side by side."""

import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final

import trio

from secretfs.cache.change import Change
from secretfs.errors import SecretFSError, log_defect
from secretfs.histogram import Histograms

BACKLOG: Final = 10_000
"""Changes of one store that may wait. Beyond that they are found out by reading, when ttl is over."""

PATIENCE: Final = 5.0
"""Seconds for which a request to refresh waits until its results show."""

log = logging.getLogger(__name__)


class ChangeQueue:
    """A queue for each store: one that hangs must not keep the changes of another from being seen.

    ``publish`` takes one change. ``settle`` is called with the name of a store when no more of its changes wait: it
    publishes what is made of all its secrets, once for changes that come together.
    """

    def __init__(
        self,
        announced: trio.MemoryReceiveChannel[Change],
        publish: Callable[[Change], Awaitable[None]],
        settle: Callable[[str], Awaitable[None]],
    ) -> None:
        self._announced = announced
        self._publish = publish
        self._settle = settle
        self._waiting: dict[str, deque[tuple[float, Change] | trio.Event]] = {}
        self._begin, self._begun = trio.open_memory_channel[str](math.inf)  # no component is in there twice
        self.delays = Histograms()
        """Seconds from when a change of values was announced until it was published, by component."""

    async def run(self) -> None:
        """Publish what waits. Runs forever."""
        async with trio.open_nursery() as nursery:
            async for component in self._begun:
                nursery.start_soon(self._publish_all, component)

    def enqueue(self, change: Change) -> None:
        """Take a change to be published."""
        component = change.component
        if component not in self._waiting:
            self._waiting[component] = deque()
            self._begin.send_nowait(component)
        if len(self._waiting[component]) < BACKLOG:
            self._waiting[component].append((trio.current_time(), change))
        else:
            log.warning("%s: over %d changes at once: some show late", component, BACKLOG, extra={"store": component})

    async def caught_up(self) -> None:
        """Wait until all that has been announced by now is published, `PATIENCE` seconds at most."""
        with trio.move_on_after(PATIENCE):
            while not self._has_received_all():
                await trio.lowlevel.checkpoint()
            async with trio.open_nursery() as nursery:
                for waiting in self._waiting.values():
                    mark = trio.Event()
                    waiting.append(mark)
                    nursery.start_soon(mark.wait)

    def _has_received_all(self) -> bool:
        """Whether who enqueues what is announced waits for more: it may hold a change that is not in the channel."""
        announced = self._announced.statistics()
        return announced.current_buffer_used == 0 and announced.tasks_waiting_receive > 0

    async def _publish_all(self, component: str) -> None:
        """Publish what has changed in a store, until nothing more has."""
        waiting = self._waiting[component]
        unsettled = False
        while waiting:
            first = waiting.popleft()
            if isinstance(first, trio.Event):
                first.set()
                continue
            since, change = first
            with _surviving(component):
                await self._publish(change)
                if change.values:
                    self.delays.observe((component.rpartition("/")[2],), trio.current_time() - since)
            unsettled = unsettled or not change.whole
            if unsettled and not any(isinstance(later, tuple) for later in waiting):
                unsettled = False
                with _surviving(component):
                    await self._settle(component)
        del self._waiting[component]


@contextmanager
def _surviving(component: str) -> Iterator[None]:
    """Go on with the next change, whatever becomes of this one."""
    try:
        yield
    except SecretFSError as error:  # of the store: it has been logged, and readers will find out
        log.debug("%s: a change is not announced: %s", component, error)
    except Exception as error:  # noqa: BLE001 - a defect here must not cost everybody the mount
        log_defect(log, error)
