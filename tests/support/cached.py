"""A cache with a client of its own, from what a test has at hand."""

from typing import ClassVar

import trio

from secretfs.cache.change import Announce, discard
from secretfs.cache.client import StoreClient
from secretfs.cache.freshness import Freshness
from secretfs.cache.store_cache import CachedStore
from secretfs.store import SecretStore


class Cached(CachedStore):
    """A `CachedStore` of a store."""

    client_type: ClassVar[type[StoreClient]] = StoreClient

    def __init__(
        self,
        component: str,
        store: SecretStore,
        freshness: Freshness,
        nursery: trio.Nursery,
        store_type: str = "",
        *,
        announce: Announce = discard,
    ) -> None:
        client = self.client_type(component, store, freshness.ttl, freshness.deadline, store_type)
        super().__init__(client, freshness, nursery, announce)
