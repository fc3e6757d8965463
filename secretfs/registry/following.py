"""A store whose credentials come from another store: opened anew when they have been rotated upstream.

A refusal shows it at once. When the store says "forbidden", the references are read again; if they give other
values, the store is opened with those and the question is asked again: the reader never notices. If they give the same,
the refusal stands. A question that is refused again and again looks upstream once a second, so that a program which
keeps asking for what it may not have costs little.

A TLS connection that fails counts as a refusal: the certificate authority may have been rotated. Another address makes
no refusal, so a probe of a store that cannot be reached reads the references, too, and so does `refresh_references`.
"""

import copy
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from secretfs.errors import (
    AccessDenied,
    SecretNotFound,
    StoreError,
    StoreUnavailable,
    TLSFailure,
    as_store_error,
    log_defect,
)
from secretfs.settings import Property
from secretfs.store import (
    BatchingStore,
    CachedRead,
    ClockedStore,
    ExpiringStore,
    Expiry,
    LeasingStore,
    Names,
    RevalidatingStore,
    Secret,
    SecretStore,
    VersionedStore,
    WatchingStore,
)
from secretfs.store import reads_have_effects as has_effects

T = TypeVar("T")

Question = tuple[str, str]

REFRESH_PAUSE = 1.0
"""Seconds between two reads of the references after refusals of one call: a call that is always refused must not use up
the read that another one needs."""

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Generation:
    """A store opened with one set of credentials, and how many calls are under way in it."""

    store: SecretStore
    calls: int = 0
    opened_at: float = field(default_factory=time.time)
    """Seconds since the epoch."""


class FollowingStore:
    """A `SecretStore` that follows its references. ``resolve`` reads them, ``reopen`` makes a store of what they say.

    Both block, and may raise; what they raise at a later time is logged, and the refusal that led to it stands.

    If ``multi_valued`` is given, it opens the store at the first call, and raises then what keeps
    it from that: a store that was served until a moment ago is there, whether its references can be read or not.
    """

    def __init__(
        self,
        component: str,
        resolve: Callable[[], list[Property]],
        reopen: Callable[[list[Property]], SecretStore],
        *,
        multi_valued: bool | None = None,
        reads_have_effects: bool = False,
    ) -> None:
        self._component = component
        self._resolve = resolve
        self._reopen = reopen
        self._properties: list[Property] = []
        self._current: _Generation | None = None
        self._refreshed: dict[Question, float] = {}
        self._last_refresh = -math.inf
        self._reported = ""
        self._closed = False
        self._changed: Callable[[frozenset[str]], None] | None = None
        self._inherited = b""
        self._save: Callable[[bytes], None] | None = None
        self._saving: _Generation | None = None
        """The store whose state is kept: the newest."""
        self._known_effects = reads_have_effects
        self._lock = threading.Lock()
        self._opening = threading.Lock()
        self.multi_valued = self._open().store.multi_valued if multi_valued is None else multi_valued
        """As the store says; it follows from its settings, not from its credentials."""

    def check(self) -> None:
        """`SecretStore.check`."""
        self._ask(("check", ""), lambda store: store.check(), (AccessDenied, StoreUnavailable))

    def names(self, folder: str) -> Names:
        """`SecretStore.names`."""
        return self._ask(("names", folder), lambda store: store.names(folder))

    def fetch(self, name: str) -> Secret:
        """`SecretStore.fetch`."""
        return self._ask(("fetch", name), lambda store: store.fetch(name))

    @property
    def keeps_versions(self) -> bool:
        """`VersionedStore.keeps_versions`; until it is open there may be some, unless it issues what it gives."""
        if self._current is None:
            return not self._known_effects
        store = self._current.store
        return isinstance(store, VersionedStore) and store.keeps_versions

    def fetch_version(self, name: str, version: str) -> Secret:
        """`VersionedStore.fetch_version`, if the store keeps versions."""

        def fetch(store: SecretStore) -> Secret:
            if not isinstance(store, VersionedStore):
                raise SecretNotFound(f"secret {name}: the store keeps no versions")
            return store.fetch_version(name, version)

        return self._ask(("fetch", f"{name}, version {version}"), fetch)

    @property
    def largest_batch(self) -> int:
        """`BatchingStore.largest_batch`; 1 until the store is open, and if it reads no batches."""
        store = self._current.store if self._current is not None else None
        return store.largest_batch if isinstance(store, BatchingStore) else 1

    def fetch_many(self, names: tuple[str, ...]) -> Mapping[str, Secret | StoreError]:
        """`BatchingStore.fetch_many`. What is refused is left out: `fetch` reads the references again."""

        def ask(store: SecretStore) -> Mapping[str, Secret | StoreError]:
            return store.fetch_many(names) if isinstance(store, BatchingStore) else {}

        found = self._ask(("fetch_many", ""), ask)
        return {name: answer for name, answer in found.items() if not isinstance(answer, AccessDenied | TLSFailure)}

    def unchanged(self, known: Mapping[str, CachedRead]) -> frozenset[str]:
        """`RevalidatingStore.unchanged`, if the store does compare. What was read before it opened may be another's."""
        with self._in_use() as asked:
            if not isinstance(asked.store, RevalidatingStore):
                return frozenset()
            return asked.store.unchanged({name: it for name, it in known.items() if it.read_at >= asked.opened_at})

    def watch(self, changed: Callable[[frozenset[str]], None]) -> None:
        """`WatchingStore.watch`, if the store does watch."""
        self._changed = changed
        if self._current is not None:
            self._watch(self._current.store)

    @property
    def reads_have_effects(self) -> bool:
        """`IssuingStore.reads_have_effects`, as the open store says."""
        return has_effects(self._current.store) if self._current else self._known_effects

    def resume(self, state: bytes, save: Callable[[bytes], None]) -> None:
        """`LeasingStore.resume`, if the store is lent anything."""
        self._inherited, self._save = state, save
        if self._current is not None:
            self._resume(self._current)

    def hand_over(self) -> None:
        """`LeasingStore.hand_over`, if the store is lent anything; else close it."""
        self._end(lambda store: store.hand_over() if isinstance(store, LeasingStore) else store.close())

    def clock_skew(self) -> float | None:
        """`ClockedStore.clock_skew`, if the store reports it."""
        store = self._current.store if self._current is not None else None
        return store.clock_skew() if isinstance(store, ClockedStore) else None

    def expiry(self) -> Expiry:
        """`ExpiringStore.expiry`, if the store knows it."""
        store = self._current.store if self._current is not None else None
        return store.expiry() if isinstance(store, ExpiringStore) else Expiry()

    def close(self) -> None:
        """Close the store, and open none any more."""
        self._end(lambda store: store.close())

    def _end(self, end: Callable[[SecretStore], None]) -> None:
        with self._lock:
            self._closed = True
        if self._current is not None:
            end(self._current.store)

    def _resume(self, opened: _Generation) -> None:
        """Let a store that has just been opened go on with what was inherited, and save what becomes of it."""
        save, state = self._save, self._inherited
        if save is None:
            return
        self._inherited, self._saving = b"", opened
        if isinstance(opened.store, LeasingStore):
            opened.store.resume(state, lambda now: save(now) if self._saving is opened else None)

    def _open(self) -> _Generation:
        """Return the current store, opened if it is not yet."""
        with self._opening:
            if self._current is None:
                self._properties = self._resolve()
                opened = _Generation(self._reopen(self._properties))
                self._resume(opened)
                self._current = opened
                self._watch(opened.store)
            return self._current

    def refresh_references(self) -> None:
        """Read the references again, and open the store anew if they have changed. Blocks, and raises nothing."""
        with self._opening:
            self._refresh_references()

    def _ask(
        self,
        question: Question,
        ask: Callable[[SecretStore], T],
        hints: tuple[type[StoreError], ...] = (AccessDenied, TLSFailure),
    ) -> T:
        with self._in_use() as asked:
            try:
                return ask(asked.store)
            except hints:
                if not self._was_replaced(asked, question, time.monotonic()):
                    raise
        with self._in_use() as asked:
            return ask(asked.store)

    @contextmanager
    def _in_use(self) -> Iterator[_Generation]:
        """Hold the current store. One that was replaced meanwhile is closed by the last call that leaves it."""
        opened = self._current or self._open()
        with self._lock:
            generation = self._current or opened
            generation.calls += 1
        try:
            yield generation
        finally:
            with self._lock:
                generation.calls -= 1
                orphaned = generation is not self._current and not generation.calls
            if orphaned:
                _close(generation.store)

    def _was_replaced(self, refused: _Generation, question: Question, refused_at: float) -> bool:
        """Whether there is another store to ask by now, opened by us or by another call that was refused."""
        with self._opening:
            if self._current is not refused:
                return True
            if self._last_refresh > refused_at:  # by a call that was refused at the same time
                return False
            now = time.monotonic()
            self._refreshed = {asked: at for asked, at in self._refreshed.items() if now < at + REFRESH_PAUSE}
            if question in self._refreshed:
                return False
            self._refreshed[question] = now
            self._refresh_references()
            return self._current is not refused

    def _refresh_references(self) -> None:
        before = self._current
        if self._closed or before is None:
            return
        self._last_refresh = time.monotonic()
        try:
            properties = self._resolve()
            if properties == self._properties:
                self._reported = ""
                return
            store = self._reopen(properties)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a store may be anybody's
            reason = str(as_store_error(None, error))
            if reason != self._reported:  # logged once: they are read again and again
                self._reported = reason
                as_store_error(log, error)  # logs the place of a defect
                text, context = "%s: its credentials cannot be read again: %s", {"store": self._component}
                log.warning(text, self._component, reason, extra=context)
            return
        self._reported = ""
        self._properties = properties
        self._install(store, before)

    def _install(self, store: SecretStore, before: _Generation) -> None:
        """Ask another store from now on, unless this one was closed meanwhile. Closes the one that nobody needs."""
        with self._lock:
            if not self._closed:
                opened = _Generation(store)
                self._resume(opened)
                self._current = opened
            installed = self._current is not before
            needed = installed and before.calls  # then the last call that leaves it closes it
        if not needed:
            _close(before.store if installed else store)
        if installed:
            self._watch(store)
            log.info("%s: opened with new credentials", self._component, extra={"store": self._component})

    def _watch(self, store: SecretStore) -> None:
        if self._changed is None or not isinstance(store, WatchingStore):
            return
        try:
            store.watch(self._changed)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a store may be anybody's
            reason = as_store_error(log, error)
            log.error("%s: its changes show after ttl: %s", self._component, reason)  # noqa: TRY400 - not ours


def _close(store: SecretStore) -> None:
    """Close a store that is not called any more. What it raises is no concern of the one that is."""
    try:
        store.close()
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a store may be anybody's
        log_defect(log, error)


class UnopenedStore:
    """A `SecretStore` that could not be opened: every call raises why."""

    def __init__(
        self, error: StoreError, *, multi_valued: bool | None = None, reads_have_effects: bool = False
    ) -> None:
        self.is_new = multi_valued is None
        """Nobody knows whether it is multi-valued; until it is opened, it is shown as if it were not."""
        self.multi_valued = bool(multi_valued)
        self.reads_have_effects = reads_have_effects
        self.error = error

    def check(self) -> None:
        """`SecretStore.check`."""
        raise copy.copy(self.error)

    def names(self, folder: str) -> Names:
        """`SecretStore.names`."""
        raise copy.copy(self.error)

    def fetch(self, name: str) -> Secret:
        """`SecretStore.fetch`."""
        raise copy.copy(self.error)

    @property
    def keeps_versions(self) -> bool:
        """`VersionedStore.keeps_versions`: nobody can say that there are none, unless it issues what it gives."""
        return not self.reads_have_effects

    def fetch_version(self, name: str, version: str) -> Secret:
        """`VersionedStore.fetch_version`."""
        raise copy.copy(self.error)

    def close(self) -> None:
        """Close nothing."""
