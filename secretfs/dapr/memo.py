"""Results that stay true while what they were made from stays the same: a host has a thousand apps and changes one."""

from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


_memos: list["Memo[Any, Any]"] = []


class Memo(Generic[K, T]):
    """The last result for each key. There is one for each kind of result, as long as the process runs."""

    def __init__(self) -> None:
        self._results: dict[K, tuple[object, T]] = {}
        self._wanted: set[K] = set()
        _memos.append(self)

    def get(self, key: K, basis: object, make: Callable[[], T]) -> T:
        """Return the last result for a key if it was made from an equal ``basis``, else make it."""
        self._wanted.add(key)
        known = self._results.get(key)
        if known is not None and known[0] == basis:
            return known[1]
        result = make()
        self._results[key] = basis, result
        return result

    def last(self, key: K) -> T | None:
        """Return the last result for a key, whatever it could be made from now; None if there was none."""
        known = self._results.get(key)
        return known and known[1]

    def forget_unwanted(self) -> None:
        """Forget what nobody has asked for since the last call."""
        self._results = {key: result for key, result in self._results.items() if key in self._wanted}
        self._wanted.clear()


def forget_undeclared() -> None:
    """Forget, after everything has been read, what was read before and not now: it is not declared any more."""
    for memo in _memos:
        memo.forget_unwanted()
