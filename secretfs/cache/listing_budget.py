"""How many names of a store are in memory: one that lists folder by folder may have folders without end.

Beyond the limit, the listings that nobody has asked for the longest are forgotten. Whoever asks again has them loaded.
"""

import logging
from typing import Any, Final

from secretfs.cache.limits import StoreLimits
from secretfs.cache.ttl_cache import TTLCache
from secretfs.store import Names

KEPT: Final = 0.9
"""The part of the limit that is left when it has been reached: to look at all listings takes time."""

log = logging.getLogger(__name__)


class ListingBudget:
    """Counts the names in the listings of one store."""

    def __init__(self, component: str, limits: StoreLimits) -> None:
        self._component = component
        self._limits = limits
        self._most = limits.limits.names
        self._sizes: dict[str, int] = {}
        self._total = 0
        self._told = False

    def loaded(self, cache: TTLCache[str, Any], folder: str) -> None:
        """Take note that a folder has been listed, and forget others if there are too many names."""
        self._note(folder, cache)
        if self._total > self._most:
            self._recount(cache)  # some have been dropped meanwhile
            if self._total > self._most:
                self._forget(cache, folder)

    def _note(self, folder: str, cache: TTLCache[str, Any]) -> None:
        size = _size(cache, folder)
        self._total += size - self._sizes.get(folder, 0)
        self._sizes[folder] = size

    def _recount(self, cache: TTLCache[str, Any]) -> None:
        self._sizes, self._total = {}, 0
        for folder, _ in cache.answers():
            self._note(folder, cache)

    def _forget(self, cache: TTLCache[str, Any], newest: str) -> None:
        self._limits.count("names")
        if not self._told:
            self._told = True
            text = "%s: its folders have more names than secretfs/max-names allows, %d: not all are kept in memory"
            log.warning(text, self._component, self._most, extra={"store": self._component})
        for folder in sorted(self._sizes, key=cache.idle_for, reverse=True):
            if self._total <= KEPT * self._most:
                break
            if folder != newest:
                cache.drop(folder)
                self._total -= self._sizes.pop(folder)


def _size(cache: TTLCache[str, Any], folder: str) -> int:
    answer = cache.known(folder)
    names = answer.value if answer is not None else None
    return max(1, len(names.secrets) + len(names.folders)) if isinstance(names, Names) else 1
