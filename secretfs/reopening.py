"""A store whose credentials come from another store: opened anew when they have been rotated upstream.

A refusal is what tells. When the store says "forbidden", the references are read again; if they give other values,
the store is opened with those and the question is asked again: the reader never notices. If they give the same, the
refusal stands. At most one look upstream per second, so that a program which keeps asking for what it may not have
costs little.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from secretfs.errors import AccessDenied, SecretFSError, StoreError
from secretfs.settings import Property
from secretfs.store import Names, Secret, SecretStore, WatchingStore

T = TypeVar("T")

LOOK_AGAIN = 1.0
"""Seconds between two looks at the references on account of one kind of question: a listing that is never granted must
not use up the look that a read needs."""

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Generation:
    """A store opened with one set of credentials, and how many calls are under way in it."""

    store: SecretStore
    calls: int = 0


class ReopeningStore:
    """A `SecretStore` that follows its references. ``resolve`` reads them, ``reopen`` makes a store of what they say.

    Both block, and may raise; what they raise at a later time is logged, and the refusal that led to it stands.

    If it is told whether the store is ``multi_valued`` it opens it when it is first asked, and raises then what keeps
    it from that: a store that was served until a moment ago is there, whether its references can be read or not.
    """

    def __init__(
        self,
        component: str,
        resolve: Callable[[], list[Property]],
        reopen: Callable[[list[Property]], SecretStore],
        *,
        multi_valued: bool | None = None,
    ) -> None:
        self._component = component
        self._resolve = resolve
        self._reopen = reopen
        self._properties: list[Property] = []
        self._current: _Generation | None = None
        self._looked: dict[str, float] = {}
        self._changed: Callable[[frozenset[str]], None] | None = None
        self._counting = threading.Lock()
        self._looking = threading.Lock()
        self.multi_valued = self._open().store.multi_valued if multi_valued is None else multi_valued
        """As the store says; it follows from its settings, not from its credentials."""

    def check(self) -> None:
        """`SecretStore.check`."""
        self._ask("check", lambda store: store.check())

    def names(self, folder: str) -> Names:
        """`SecretStore.names`."""
        return self._ask("names", lambda store: store.names(folder))

    def fetch(self, name: str) -> Secret:
        """`SecretStore.fetch`."""
        return self._ask("fetch", lambda store: store.fetch(name))

    def watch(self, changed: Callable[[frozenset[str]], None]) -> None:
        """`WatchingStore.watch`, if the store does watch."""
        self._changed = changed
        if self._current is not None:
            self._watch(self._current.store)

    def close(self) -> None:
        """Close the store."""
        if self._current is not None:
            self._current.store.close()

    def _open(self) -> _Generation:
        """Return the current store, opened if it is not yet."""
        with self._looking:
            if self._current is None:
                self._properties = self._resolve()
                self._current = _Generation(self._reopen(self._properties))
                self._watch(self._current.store)
            return self._current

    def _ask(self, kind: str, question: Callable[[SecretStore], T]) -> T:
        with self._in_use() as asked:
            try:
                return question(asked.store)
            except AccessDenied:
                if not self._renewed(asked, kind):
                    raise
        with self._in_use() as asked:
            return question(asked.store)

    @contextmanager
    def _in_use(self) -> Iterator[_Generation]:
        """Hold the current store. One that was replaced meanwhile is closed by the last who leaves it."""
        opened = self._current or self._open()
        with self._counting:
            generation = self._current or opened
            generation.calls += 1
        try:
            yield generation
        finally:
            with self._counting:
                generation.calls -= 1
                abandoned = generation is not self._current and not generation.calls
            if abandoned:
                generation.store.close()

    def _renewed(self, refused: _Generation, kind: str) -> bool:
        """Whether there is another store to ask by now, opened by us or by somebody else who was refused."""
        with self._looking:
            if self._current is not refused:
                return True
            if time.monotonic() < self._looked.get(kind, 0.0) + LOOK_AGAIN:
                return False
            self._looked[kind] = time.monotonic()
            try:
                properties = self._resolve()
                if properties == self._properties:
                    return False
                store = self._reopen(properties)
            except SecretFSError as error:
                log.warning("%s: refused, and its credentials cannot be read again: %s", self._component, error)
                return False
            self._properties = properties
            with self._counting:
                self._current = _Generation(store)
            self._watch(store)
            log.info("%s: opened with new credentials", self._component)
            return True

    def _watch(self, store: SecretStore) -> None:
        if self._changed is not None and isinstance(store, WatchingStore):
            store.watch(self._changed)


class UnopenedStore:
    """A `SecretStore` that could not be opened, and says why to everybody who asks."""

    def __init__(self, reason: str, *, multi_valued: bool) -> None:
        self.multi_valued = multi_valued
        self._reason = reason

    def check(self) -> None:
        """`SecretStore.check`."""
        raise StoreError(self._reason)

    def names(self, folder: str) -> Names:
        """`SecretStore.names`."""
        raise StoreError(self._reason)

    def fetch(self, name: str) -> Secret:
        """`SecretStore.fetch`."""
        raise StoreError(self._reason)

    def close(self) -> None:
        """Close nothing."""
