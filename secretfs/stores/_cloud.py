"""What the stores of clouds share: the secrets of one account, listed page by page, and some of them read together."""

import base64
import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from secretfs.errors import MalformedAnswer, SecretNotFound
from secretfs.store import LARGEST_LISTING, Names, Secret
from secretfs.stores._http.batches import Batches, Found
from secretfs.stores._http.exchange import Exchange
from secretfs.stores._http.failures import LacksRight, about

T = TypeVar("T")

Page = tuple[Iterable[str], Any]
"""Names, and what leads to the next page; nothing, or empty, on the last one."""


class CloudStore(ABC):
    """A store without folders. All requests of one call share the deadline."""

    multi_valued = False
    page_size = 100
    """How many names are asked for at once."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def check(self) -> None:
        """List one name. An identity that may not list, but is known, passes as well."""
        with contextlib.suppress(LacksRight):
            self._ask("list of secrets", lambda: self._page("", 1))

    def names(self, folder: str) -> Names:
        """List the secrets, page by page. Reads no values."""
        return Names() if folder else Names(self._ask("list of secrets", self._listed))

    def fetch(self, name: str) -> Secret:
        """Read the newest version of one secret."""
        return self._ask(f"secret {name}", lambda: self._read(name))

    def clock_skew(self) -> float | None:
        """By how many seconds the clock of the cloud is ahead of ours."""
        return self._exchange.clock.skew

    def close(self) -> None:
        """Close the connections."""
        self._exchange.close()

    @abstractmethod
    def _page(self, mark: str, size: int) -> Page:
        """List ``size`` names at most, from where ``mark`` says; empty is the first page. Raises `StoreError`."""

    @abstractmethod
    def _read(self, name: str) -> Secret:
        """Read a secret. Raises `StoreError`."""

    def _listed(self) -> frozenset[str]:
        return self._all(self._page)

    def _all(self, page: Callable[[str, int], Page]) -> frozenset[str]:
        """Return the names of all pages."""
        found: set[str] = set()
        mark: Any = ""
        while True:
            try:
                names, following = page(mark, self.page_size)
            except SecretNotFound as error:  # a request that the cloud does not take
                raise MalformedAnswer(str(error)) from None
            found.update(names)
            if not following:
                return frozenset(found - {""})
            if len(found) > LARGEST_LISTING:
                raise MalformedAnswer(f"more than {LARGEST_LISTING} names are listed")
            if not isinstance(following, str) or following == mark:
                raise MalformedAnswer("a page leads to itself")
            mark = following

    def _ask(self, subject: str, question: Callable[[], T]) -> T:
        """Ask, within the deadline. Errors start with ``subject``."""
        with self._exchange.time.within():
            return about(subject, question)


class BatchedCloudStore(CloudStore):
    """One whose cloud reads several secrets with one request."""

    def __init__(self, exchange: Exchange, batches: Batches) -> None:
        super().__init__(exchange)
        self._batches = batches

    @property
    def largest_batch(self) -> int:
        """How many secrets the cloud takes at once, as long as it lets us; then 1."""
        return self._batches.largest

    def fetch_many(self, names: tuple[str, ...]) -> Found:
        """Read secrets with one request."""
        wanted = tuple(filter(self._fits_batch, names))
        if not wanted:
            return {}
        return self._batches.read(lambda: self._ask("batch of secrets", lambda: self._read_many(wanted)))

    @abstractmethod
    def _fits_batch(self, name: str) -> bool:
        """Tell whether a name may be in a batch: one that is no name has all others refused."""

    @abstractmethod
    def _read_many(self, names: tuple[str, ...]) -> Found:
        """Read them, and leave out those that the answer does not speak of. Raises `StoreError`."""


# --- what is in answers ---


def entries(answer: Mapping[str, Any], member: str) -> list[Mapping[str, Any]]:
    """Return a list of objects in an answer. Raises `MalformedAnswer`."""
    found = answer.get(member)
    if not isinstance(found, list) or not all(isinstance(entry, Mapping) for entry in found):
        raise MalformedAnswer(f"the answer has no list {member}")
    return found


def decoded(data: Any) -> bytes:
    """Decode a value in base64. Raises `MalformedAnswer`."""
    try:
        return base64.b64decode(data, validate=True)
    except (TypeError, ValueError):
        raise MalformedAnswer("the answer has no value in base64") from None
