"""Results that stay true while what they were made from stays the same: a host has a thousand apps and changes one."""

import hashlib
import stat
import time
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from secretfs.dapr.goyaml import MAX_BYTES

RACY: Final = 2.0
"""Seconds for which a file that was changed may change again and look the same."""

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


def file_identity(path: Path) -> object:
    """Return something that differs when the content of a file may differ.

    A file that was changed a moment ago may change again without a difference: its times are those of a clock that
    ticks every few milliseconds, on some file systems every two seconds. So long its content counts as well.
    """
    try:
        status = path.stat()
        identity = status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size
        if max(status.st_mtime, status.st_ctime) <= time.time() - RACY:
            return identity
        if stat.S_ISREG(status.st_mode) and status.st_size <= MAX_BYTES:
            with path.open("rb") as file:
                return *identity, hashlib.blake2b(file.read(MAX_BYTES)).digest()
    except OSError:
        pass  # gone: reading it says so
    return object()
