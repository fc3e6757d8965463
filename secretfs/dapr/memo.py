"""Results that stay true while what they were made from stays the same: a host has a thousand apps and changes one."""

from collections.abc import Callable, Collection, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class Memo(Generic[K, T]):
    """The last result for each key."""

    def __init__(self) -> None:
        self._results: dict[K, tuple[object, T]] = {}

    def get(self, key: K, basis: object, make: Callable[[], T]) -> T:
        """Return the last result for a key if it was made from an equal ``basis``, else make it."""
        known = self._results.get(key)
        if known is not None and known[0] == basis:
            return known[1]
        result = make()
        self._results[key] = basis, result
        return result

    def keep_only(self, keys: Collection[K]) -> None:
        """Forget all others: what is not declared any more leaves memory."""
        self._results = {key: self._results[key] for key in keys if key in self._results}
