"""A cache that calls its store without a thread: all that follows from a change is over when no task can go on."""

from collections.abc import Callable
from typing import TypeVar

import trio
from trio.testing import wait_all_tasks_blocked

from secretfs.cache.client import StoreClient
from secretfs.cache.turns import Turn
from tests.support.cached import Cached
from tests.support.memory_store import WatchingMemoryStore

T = TypeVar("T")


class _CallsAtOnce(StoreClient):
    async def _in_thread(self, question: Callable[[], T], _turn: Turn) -> T:
        await trio.lowlevel.checkpoint()
        return question()


class AtOnce(Cached):
    """A `CachedStore` whose store answers in no time."""

    client_type = _CallsAtOnce


async def tell(store: WatchingMemoryStore, *names: str) -> None:
    """Let a store tell of changes; returns when that has been heard, and by `AtOnce` acted upon."""
    store.tell(*names)
    await wait_all_tasks_blocked()
