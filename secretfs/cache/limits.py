"""What the answers of a store may have at most, whoever wrote the store: a backend may be broken, or hostile.

An answer beyond a limit is malformed: nobody gets a part of it. Single names that no path can carry are left out of a
listing, and the others are served. `StoreLimits.exceeded` counts both. Runs in the threads that call stores.
"""

import logging
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from secretfs.errors import MalformedAnswer
from secretfs.store import Names, Secret

LONGEST_NAME: Final = 4096
"""Bytes: PATH_MAX of Linux. What is longer cannot be opened by its path."""
FARTHEST: Final = float(1 << 40)
"""Seconds from the epoch to a time. The kernel has no room for any number, and infinity is none."""
DEEPEST: Final = 64
"""Folders around a secret."""

LIMITS: Final = ("names", "keys", "size", "name")
"""What is counted: listings and secrets with too much in them, secrets that are too large, names that are left out."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """What an operator may choose for a store."""

    names: int = 500_000
    """Secrets and folders in one listing, keys in one secret, and all names of the store that are in memory."""
    size: int = 16 << 20
    """Bytes of all values of one secret together."""


DEFAULT: Final = Limits()


class StoreLimits:
    """Holds the answers of one store to its limits."""

    def __init__(self, component: str, limits: Limits) -> None:
        self.limits = limits
        self._component = component
        self._exceeded = Counter[str]()
        self._left_out = 0
        self._lock = threading.Lock()

    @property
    def exceeded(self) -> dict[str, int]:
        """How often an answer was beyond each of `LIMITS`, since the process began."""
        with self._lock:
            return {limit: self._exceeded[limit] for limit in LIMITS}

    def count(self, limit: str, number: int = 1) -> None:
        """Count what is beyond a limit."""
        with self._lock:
            self._exceeded[limit] += number

    def require_names(self, number: int) -> None:
        """Raise `MalformedAnswer` if so many names are too many."""
        if number > self.limits.names:
            self.count("names")
            raise MalformedAnswer(f"{number} names are listed: {self._most('max-names', self.limits.names)}")

    def names(self, answer: Names) -> Names:
        """Return a listing without the names that no path can carry. Raises `MalformedAnswer`."""
        number = len(answer.secrets) + len(answer.folders)
        self.require_names(number)
        secrets, folders = _possible(answer.secrets), _possible(answer.folders)
        left_out = number - len(secrets) - len(folders)
        if left_out:
            self.count("name", left_out)
        if left_out != self._left_out:
            self._left_out = left_out
            text = "%s: %d names are left out, which are longer than %d bytes or deeper than %d folders"
            log.warning(text, self._component, left_out, LONGEST_NAME, DEEPEST, extra={"store": self._component})
        return answer if not left_out else Names(secrets, folders)

    def secret(self, answer: Secret) -> Secret:
        """Return a secret, without a time that cannot be one. Raises `MalformedAnswer` for one that is too large."""
        if len(answer.values) > self.limits.names:
            self.count("keys")
            raise MalformedAnswer(f"it has {len(answer.values)} keys: {self._most('max-names', self.limits.names)}")
        size = sum(map(len, answer.values.values()))
        if size > self.limits.size:
            self.count("size")
            raise MalformedAnswer(f"it has {size} bytes: {self._most('max-size', self.limits.size)}")
        plausible = answer.modified is None or abs(answer.modified) < FARTHEST  # and a number: NaN is not less
        return answer if plausible else replace(answer, modified=None)

    def _most(self, annotation: str, limit: int) -> str:
        return f"secretfs/{annotation} of {self._component} allows {limit}"


def _possible(names: Iterable[str]) -> frozenset[str]:
    """Return the names that a path can carry. Raises `MalformedAnswer` for what is no text."""
    kept = []
    for name in names:
        if not isinstance(name, str):
            raise MalformedAnswer("a name is listed that is no text")
        if name.count("/") <= DEEPEST and (
            4 * len(name) <= LONGEST_NAME or len(name.encode("utf-8", "surrogatepass")) <= LONGEST_NAME
        ):
            kept.append(name)
    return frozenset(kept)
