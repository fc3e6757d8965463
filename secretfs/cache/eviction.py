"""What leaves memory: what nobody asks for, and what has expired for good."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import trio

from secretfs.cache.forgotten import Forgotten
from secretfs.cache.freshness import Freshness
from secretfs.cache.ttl_cache import TTLCache
from secretfs.errors import StoreError
from secretfs.store import Secret


def evict(cache: TTLCache[str, Any], freshness: Freshness, may_drop_error: Callable[[str], bool]) -> None:
    """Drop what nobody has asked for within ``idle``, refusals that have expired, and values past ``max_stale``."""
    cache.drop_idle(freshness.idle)
    for key in list(cache):
        known = cache.known(key)
        if known is None or known.remaining or isinstance(known.value, Forgotten):
            continue
        if isinstance(known.value, Secret):
            if trio.current_time() >= known.fetched + freshness.max_stale:
                cache.keep(key, replace(known, value=Forgotten(known.value)))
        elif isinstance(known.value, StoreError) and may_drop_error(key):
            cache.drop(key)
