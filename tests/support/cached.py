"""A cache with a client of its own, from what a test has at hand."""

import time
from typing import ClassVar
from weakref import WeakKeyDictionary

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from secretfs.cache.change import Announce, discard
from secretfs.cache.client import StoreClient
from secretfs.cache.freshness import Freshness
from secretfs.cache.store_cache import CachedStore
from secretfs.cache.ttl_cache import CachedAnswer
from secretfs.cache.warm_restart import StoreMemory
from secretfs.store import Secret, SecretStore
from tests.support.memory_store import MemoryStore


class Cached(CachedStore):
    """A `CachedStore` of a store."""

    client_type: ClassVar[type[StoreClient]] = StoreClient
    clients: ClassVar[WeakKeyDictionary[StoreClient, trio.lowlevel.TrioToken]] = WeakKeyDictionary()
    """Those that there are, and the run that each belongs to."""

    def __init__(
        self,
        component: str,
        store: SecretStore,
        freshness: Freshness,
        nursery: trio.Nursery,
        store_type: str = "",
        *,
        announce: Announce = discard,
        memory: StoreMemory | None = None,
    ) -> None:
        client = self.client_type(component, store, freshness.ttl, freshness.deadline, store_type)
        self.clients[client] = trio.lowlevel.current_trio_token()
        super().__init__(client, freshness, nursery, announce, memory)


async def use(cached: CachedStore, name: str) -> CachedAnswer[Secret]:
    """Fetch a secret, and take note that it is in use, as the file system does when a file is opened."""
    secret = await cached.fetch(name)
    cached.use(name)
    return secret


async def run(mock_clock: MockClock, seconds: int, step: int = 2) -> None:
    """Let time pass in steps, so that what is due at each of them can happen, threads included."""
    for _ in range(seconds // step):
        mock_clock.jump(step)
        await settle()


async def settle() -> None:
    """Wait until no task can go on: those that wait for a thread are given the time it needs."""
    await wait_all_tasks_blocked()
    for _ in range(200):
        if not calls_under_way():
            break
        await trio.to_thread.run_sync(time.sleep, 0.001)  # a test may hold some of them for good
        await wait_all_tasks_blocked()
    await wait_all_tasks_blocked(0.002)


def calls_under_way() -> bool:
    """Whether a thread is calling a store, other than those that a `MemoryStore` holds at its gate."""
    run = trio.lowlevel.current_trio_token()
    ours = (client for client, token in Cached.clients.items() if token is run)
    return any(client.turns.running > _held(client.store) for client in ours)


def _held(store: SecretStore) -> int:
    return store.running if isinstance(store, MemoryStore) and not store.gate.is_set() else 0
