"""One store as one app may see it: the only place where a secret scope is applied.

What the scope hides does not exist here, by any way of asking: not by name, not in a listing, not in bulk, and no
folder shows up that holds nothing else. A hidden secret is refused before the backend hears of it (Dapr:
``universal/secrets.go``).
"""

import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final, TypeVar

import trio

from secretfs.cache.change import Change
from secretfs.cache.client import CONCURRENCY, REFUSAL_TTL
from secretfs.cache.health import Statistics
from secretfs.cache.store_cache import CachedStore
from secretfs.cache.ttl_cache import CachedAnswer
from secretfs.errors import AccessDenied, NoSuchEntry, SecretNotFound, StoreError
from secretfs.fs.keys import FolderKey, SecretKey, ValueKey
from secretfs.fs.names import decode, encode, split
from secretfs.scopes import SecretScope
from secretfs.store import Names, Secret

Entry = FolderKey | SecretKey | ValueKey
Entries = Mapping[bytes, Entry]

T = TypeVar("T")

log = logging.getLogger(__name__)


AHEAD: Final = 16
"""Secrets that are fetched ahead of a program that reads what it has listed."""


class SequentialReads:
    """A listing, and how far a program has come that reads it in its order, as ``ls -l`` and ``cat *`` do."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._names = tuple(names)
        self._places = {name: place for place, name in enumerate(self._names)}
        self._last = -2

    def ahead_of(self, name: str) -> tuple[str, ...]:
        """Return what to fetch ahead when ``name`` is read: nothing, until two have been read in a row."""
        place = self._places.get(name, -2)
        in_a_row, self._last = place == self._last + 1 and place > 0, place
        return self._names[place + 1 : place + 1 + AHEAD] if in_a_row else ()


class StoreView:
    """A `CachedStore` behind a `SecretScope`, with its names arranged in folders."""

    def __init__(self, store: CachedStore, scope: SecretScope) -> None:
        self.component = store.component
        self._store = store
        self._scope = scope
        self._arranged: dict[tuple[str, ...], tuple[CachedAnswer[Names], Entries]] = {}
        self._shadowed: set[str] = set()
        self._reads = SequentialReads()

    @property
    def multi_valued(self) -> bool:
        """Whether a secret is a directory of keys, as the store says."""
        return self._store.multi_valued

    @property
    def idle(self) -> float:
        """Seconds after which what nobody uses is not known any more."""
        return self._store.idle

    def visible(self, change: Change) -> Change:
        """Return what of a change the scope lets this app see. Of names, `entries` tells what of them shows."""
        values = frozenset(value for value in change.values if self._scope.allows(value[0]))
        return replace(change, values=values)

    def shows_the_same_as(self, other: "StoreView | None") -> bool:
        """Whether another view is on the same store, with the same scope."""
        if other is None:
            return False
        return self._store is other._store and self._scope == other._scope  # noqa: SLF001 - one class

    async def secret(self, name: str) -> CachedAnswer[Secret]:
        """Return a secret at most ttl old. Raises `NoSuchEntry` for one that the scope hides."""
        known = self.use(name)
        if known is not None:
            return known
        self._store.prefetch(self._reads.ahead_of(name))
        return await self._store.fetch(name)

    def use(self, name: str) -> CachedAnswer[Secret] | None:
        """`secret`, if that takes no waiting; else None. Raises what `secret` would."""
        self._require(name)
        return self._store.use(name)

    def touch(self, name: str) -> None:
        """Let a secret count as used: somebody has it open, and may wait to be told that it changes."""
        self._store.touch(name)

    def note_listing(self, names: Iterable[str]) -> None:
        """Take note that a program lists a directory with these secrets, and may go on to read them one by one."""
        self._reads = SequentialReads(names)

    def peek(self, name: str) -> CachedAnswer[Secret] | None:
        """Return a secret that may be served without waiting, if there is one."""
        return self._store.peek(name) if self._scope.allows(name) else None

    async def entries(self, segments: tuple[str, ...]) -> tuple[Entries, float]:
        """Return what a folder holds, by path segment, and for how many seconds that holds.

        Raises `NoSuchEntry` when there is no such folder (any more), `AccessDenied` when the store lets nobody list it
        and the scope does not enumerate the names.
        """
        names = await self._listing(segments)
        known = self._arranged.get(segments)
        if known is None or known[0] is not names:
            known = self._arranged[segments] = (names, await self._arrange(segments, names.value))
        if segments and not known[1]:
            del self._arranged[segments]
            raise NoSuchEntry("/".join(segments))
        return known[1], names.remaining

    async def entry(self, segments: tuple[str, ...], segment: bytes) -> tuple[Entry, float]:
        """Return one entry of a folder and for how many seconds it holds. Raises `NoSuchEntry`."""
        try:
            entries, remaining = await self.entries(segments)
        except AccessDenied:
            return await self._probe(segments, segment), 0.0
        if segment not in entries:
            raise NoSuchEntry(segment.decode(errors="replace"))
        return entries[segment], remaining

    async def every_secret(self) -> CachedAnswer[dict[str, Secret]]:
        """Return all secrets of the store, fresh for as long as the oldest of them.

        One that is gone or refused by the time it is read is left out, and logged; any other failure fails the whole.
        """
        names = await self._every_name()
        found: dict[str, Secret] = {}
        whole: CachedAnswer[dict[str, Secret]] = _with_value(names, found)
        waiting = iter(sorted(names.value))

        async def read_on() -> None:
            nonlocal whole
            for name in waiting:
                try:
                    secret = await self.secret(name)
                except (SecretNotFound, AccessDenied) as error:
                    log.info("%s: left out of the bulk file: %s", self.component, error)
                    continue
                found[name] = secret.value
                whole = whole.limited_by(secret)

        await _in_parallel(read_on)
        return whole

    async def refresh(self, path: tuple[bytes, ...]) -> None:
        """Ask the store again, now, for what is known of a secret, of a folder, or with no path of everything.

        Raises `NoSuchEntry` or `SecretNotFound` for what is not there (any more), and any failure of the store.
        """
        if not path:
            await self._store.refresh()
            return
        try:
            entry, below = await self._follow(path)
        except NoSuchEntry:  # it may be newer than our listing
            await self._store.list_anew(_above(list(map(_own_name, path))))
            entry, below = await self._follow(path)
        if isinstance(entry, FolderKey):
            name = "/".join(entry.segments)
            above = _above(entry.segments)
            await self._store.refresh(lambda known: known == name or known in above or known.startswith(name + "/"))
            return
        try:
            secret = await self._store.fetch_anew(entry.name)
        except SecretNotFound:
            await self._store.list_anew(_above(split(entry.name)))
            raise
        if below and below not in [(encode(key),) for key in secret.value.values]:
            raise NoSuchEntry("/".join(map(_own_name, path)))

    def evict_expired(self) -> None:
        """Forget what was made of listings that have expired: the next one is arranged anew. Call it at times."""
        for segments in [key for key, (names, _) in self._arranged.items() if not names.remaining]:
            del self._arranged[segments]

    def statistics(self) -> Statistics:
        """Say how the store does. What the scope hides is not counted."""
        return self._store.statistics(self._scope.allows)

    async def _follow(self, path: tuple[bytes, ...]) -> tuple[Entry, tuple[bytes, ...]]:
        """Follow a path to a folder, or to a secret and what of the path is below that."""
        segments: tuple[str, ...] = ()
        for depth, segment in enumerate(path, 1):
            entry, _ = await self.entry(segments, segment)
            if not isinstance(entry, FolderKey):
                if isinstance(entry, ValueKey) and path[depth:]:
                    raise NoSuchEntry("/".join(map(_own_name, path)))
                return entry, path[depth:]
            segments = entry.segments
        return FolderKey(self.component, segments), ()

    def _require(self, name: str) -> None:
        if not self._scope.allows(name):
            raise NoSuchEntry(name)

    async def _listing(self, segments: tuple[str, ...]) -> CachedAnswer[Names]:
        """Return the answer of the store which tells about this folder: its own, or one from further up.

        A store without folders tells all of them at once; one with folders may refuse those above ours.
        """
        if not segments:
            return await self._names("")
        folder = "/".join(segments)
        try:
            above = await self._listing(segments[:-1])
        except AccessDenied:
            return await self._names(folder)
        return await self._names(folder) if folder in above.value.folders else above

    async def _names(self, folder: str) -> CachedAnswer[Names]:
        """Ask for names; where listing is refused, a scope that enumerates what is allowed is as good an answer."""
        try:
            return await self._store.names(folder)
        except AccessDenied:
            if self._scope.allowed_names is None:
                raise
            listed = Names(secrets=self._scope.allowed_names)
            now = trio.current_time()
            return CachedAnswer(listed, now, now + REFUSAL_TTL, time.time())

    async def _arrange(self, segments: tuple[str, ...], names: Names) -> Entries:
        """Sort visible names into the files and folders directly under ``segments``. Of a name for both, the folder."""
        depth = len(segments)
        entries: dict[bytes, Entry] = {}
        folders: set[tuple[str, ...]] = set()
        for name in filter(self._scope.allows, names.secrets):
            path = split(name)
            if path[:depth] == segments and len(path) == depth + 1:
                entries[encode(path[-1])] = self._entry_of(name)
            elif path[:depth] == segments and len(path) > depth:
                folders.add(path[: depth + 1])
        for folder in names.folders:
            path = split(folder)
            if path[:depth] == segments and len(path) > depth and await self._shows_anything(folder):
                folders.add(path[: depth + 1])
        for path in folders:
            self._place_folder(entries, path)
        return MappingProxyType(dict(sorted(entries.items(), key=lambda item: item[0])))

    def _entry_of(self, name: str) -> Entry:
        return SecretKey(self.component, name) if self.multi_valued else ValueKey(self.component, name, name)

    def _place_folder(self, entries: dict[bytes, Entry], path: tuple[str, ...]) -> None:
        segment, name = encode(path[-1]), "/".join(path)
        if segment in entries and name not in self._shadowed:
            self._shadowed.add(name)
            log.warning("%s: the folder %s hides the secret of that name; .bulk.json has it", self.component, name)
        entries[segment] = FolderKey(self.component, path)

    async def _shows_anything(self, folder: str) -> bool:
        """Whether a folder the store has not looked into holds a visible secret. Asks the store only if in doubt."""
        scope, inside = self._scope, folder + "/"
        allowed = scope.allowed_names
        if allowed is not None and not any(name.startswith(inside) for name in allowed):
            return False
        if allowed is None and not any(name.startswith(inside) for name in scope.denied):
            return True
        try:
            names = (await self._names(folder)).value
        except AccessDenied:
            return True  # nothing is known to be hidden: as much of it as the app may read can be read by name
        if any(scope.allows(name) for name in names.secrets):
            return True
        for deeper in names.folders:
            if await self._shows_anything(deeper):
                return True
        return False

    async def _probe(self, segments: tuple[str, ...], segment: bytes) -> Entry:
        """Find an entry of a folder that the store does not let us list: a folder that it does, or a secret."""
        own = decode(segment)
        if own is None:
            raise NoSuchEntry(segment.decode(errors="replace"))
        path = (*segments, own)
        name = "/".join(path)
        try:
            if (await self.entries(path))[0]:
                return FolderKey(self.component, path)
        except (AccessDenied, NoSuchEntry):
            log.debug("%s: %s is no folder that may be listed", self.component, name)
        await self.secret(name)
        return self._entry_of(name)

    async def _every_name(self) -> CachedAnswer[frozenset[str]]:
        root = await self._names("")
        names, waiting = set(root.value.secrets), set(root.value.folders)
        whole = root
        while waiting:
            folder = waiting.pop()
            if not await self._shows_anything(folder):
                continue
            try:
                listing = await self._names(folder)
            except AccessDenied as error:
                log.info("%s: left out of the bulk file: %s", self.component, error)
                continue
            names |= listing.value.secrets
            waiting |= listing.value.folders
            whole = whole.limited_by(listing)
        return _with_value(whole, frozenset(filter(self._scope.allows, names)))


def views_of(stores: Mapping[str, tuple[CachedStore, SecretScope]]) -> dict[str, StoreView]:
    """Return the views of an app, by component: each of its stores behind its scope."""
    return {name: StoreView(store, scope) for name, (store, scope) in stores.items()}


def _with_value(answer: CachedAnswer[Any], value: T) -> CachedAnswer[T]:
    """Return another value that was made of an answer, as old as that."""
    return replace(answer, value=value)


def _above(segments: Sequence[str]) -> frozenset[str]:
    """Return the names of the folders on the way to a path, with that of the store itself."""
    return frozenset("/".join(segments[:depth]) for depth in range(len(segments)))


def _own_name(segment: bytes) -> str:
    return decode(segment) or segment.decode(errors="replace")


async def _in_parallel(work: Callable[[], Awaitable[None]]) -> None:
    """Run ``work`` as often at once as a store takes calls; the first error of a store ends all and is raised."""
    errors: list[StoreError] = []

    async def until_error() -> None:
        try:
            await work()
        except StoreError as error:
            errors.append(error)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for _ in range(CONCURRENCY):
            nursery.start_soon(until_error)
    if errors:
        raise errors[0]
