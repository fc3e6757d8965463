"""One store as one app sees it. Secret scopes are applied here and nowhere else.

What the scope hides does not exist: not by name, not in a listing, not in a bulk file. A folder that contains nothing
else is not shown. A hidden secret is refused before the store is asked (Dapr: ``universal/secrets.go``).
"""

import logging
import math
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

import trio

from secretfs.cache.change import Change
from secretfs.cache.client import CONCURRENCY, REFUSAL_TTL
from secretfs.cache.health import Statistics
from secretfs.cache.parallel import in_parallel
from secretfs.cache.ttl_cache import CachedAnswer
from secretfs.cache.turns import ONLY_APP, asking_for
from secretfs.errors import AccessDenied, DeadlineExceeded, NoSuchEntry, SecretNotFound
from secretfs.fs.keys import FolderKey, SecretKey, ValueKey, app_of
from secretfs.fs.listing import Arranged, Entry, FolderTree, Listing, Path, Slices, in_order, make_keys, select
from secretfs.fs.names import decode, encode, folders_of, is_probe
from secretfs.fs.read_ahead import SequentialReads
from secretfs.fs.refreshing import refresh
from secretfs.fs.shown_store import Issues, ShownStore
from secretfs.fs.versions import VersionsView
from secretfs.scopes import SecretScope
from secretfs.store import Names, Secret

log = logging.getLogger(__name__)


class StoreView:
    """A store behind a `SecretScope`, with its names arranged in folders."""

    def __init__(self, store: ShownStore, scope: SecretScope, shown_as: str = "", issues: Issues | None = None) -> None:
        """Show a store; of one with rendered files ``issues`` says which of them may issue a credential when read."""
        self.component = shown_as or store.component
        """Where it is shown: ``COMPONENT``, and with apps ``APP/COMPONENT``."""
        self._app = app_of(self.component) or ONLY_APP
        self._store = store
        self.limits = store.limits
        self._issues = issues
        self.rendered = issues is not None
        """Whether it shows rendered files, which only paths lead to."""
        self._scope = scope
        self.versions = VersionsView(store, scope, self._app)
        allowed = scope.allowed_names
        self._allowed_listing = None if allowed is None else Names(secrets=allowed)
        self._doubtful_folders = folders_of(scope.denied if allowed is None else allowed)
        """Folders that may or may not hold a visible secret: the store has to say which secrets are there."""
        self._arranged = defaultdict[str, Arranged](lambda: Arranged(FolderTree(self.component, self._key_of)))
        """By the folder that the store was asked for."""
        self._shadowed: set[str] = set()
        self._reads = SequentialReads()

    @property
    def multi_valued(self) -> bool:
        """Whether a secret is a directory of keys, as the store says."""
        return self._store.multi_valued

    @property
    def reads_have_effects(self) -> bool:
        """Whether reading a value may issue a credential. Such values are not listed, they are found by name only."""
        return self._store.reads_have_effects

    def issues(self, name: str) -> bool:
        """Whether reading this secret may issue a credential."""
        return self._issues(name) if self._issues else self.reads_have_effects

    @property
    def idle(self) -> float:
        """Seconds without a reader after which a secret is dropped from memory."""
        return self._store.idle

    def visible(self, change: Change) -> Change:
        """Return the part of a change that this app may see. It has all names: `entries` tells which show."""
        values = frozenset(value for value in change.values if self._scope.allows(value[0]))
        return replace(change, values=values)

    def may_show(self, name: str) -> bool:
        """Whether a secret or a folder of this name may be shown."""
        return self._scope.allows(name) or name in self._doubtful_folders

    def shows(self, store: ShownStore, scope: SecretScope) -> bool:
        """Whether it is a view of this store, with this scope."""
        return self._store is store and self._scope == scope

    async def secret(self, name: str) -> CachedAnswer[Secret]:
        """Return a secret at most ttl old. Raises `NoSuchEntry` for one that the scope hides."""
        known = self.recall(name)
        if known is not None:
            return known
        with asking_for(self._app):
            return await self._store.fetch(name)

    def recall(self, name: str) -> CachedAnswer[Secret] | None:
        """Return `secret` if it can be served without waiting, else None. Raises what `secret` raises."""
        self.require(name)
        known = self._store.recall(name)
        if known is None or name == self._reads.half_way:
            with asking_for(self._app):
                self._store.prefetch(self._reads.ahead_of(name, self._store.largest_batch))
        return known

    def use(self, name: str, until: float = -math.inf) -> None:
        """Count a secret as used: a program opens it, has it open and may watch it, or may open it ``until``."""
        self._store.use(name, until)

    def idle_for(self, name: str) -> float:
        """Return for how many seconds nobody has asked for a secret; infinity if it is not known."""
        return self._store.idle_for(name)

    def note_listing(self, listing: Listing) -> None:
        """Note that a program lists a directory: it may go on to read the secrets one by one."""
        self._reads = SequentialReads(listing)

    async def secret_without_effects(self, name: str) -> CachedAnswer[Secret] | None:
        """Return `secret`; None where fetching it might issue a credential."""
        return self.peek(name) if self.issues(name) else await self.secret(name)

    async def values(self, name: str) -> tuple[Mapping[bytes, ValueKey], float]:
        """Return what a listing of a multi-valued secret shows, in no order, and for how many seconds that holds."""
        if self.reads_have_effects:  # a program that walks a tree opens what it finds
            return {}, math.inf
        secret = await self.secret(name)
        return await make_keys(self.component, name, secret.value.values), secret.remaining

    async def value(self, name: str, segment: bytes) -> tuple[ValueKey, float]:
        """Find a value of a multi-valued secret by its path segment, and for how many seconds it holds.

        Raises `NoSuchEntry`. A name that programs look for in every directory never issues a credential.
        """
        return self.recall_value(name, segment) or self._value_in(await self.secret(name), name, segment)

    def recall_value(self, name: str, segment: bytes) -> tuple[ValueKey, float] | None:
        """Return `value` if it can be found without waiting, else None. Raises what `value` raises."""
        if self.reads_have_effects and is_probe(segment) and self.peek(name) is None:
            raise NoSuchEntry(segment.decode(errors="replace"))
        secret = self.recall(name)
        return None if secret is None else self._value_in(secret, name, segment)

    def _value_in(self, secret: CachedAnswer[Secret], name: str, segment: bytes) -> tuple[ValueKey, float]:
        key = decode(segment)
        if key is None:  # it may end in a hash
            key = next((key for key in secret.value.values if encode(key) == segment), None)
        if key is None or key not in secret.value.values:
            raise NoSuchEntry(segment.decode(errors="replace"))
        return ValueKey(self.component, name, key), secret.remaining

    def peek(self, name: str) -> CachedAnswer[Secret] | None:
        """Return a secret that may be served without waiting, if there is one."""
        return self._store.peek(name) if self._scope.allows(name) else None

    async def entries(self, segments: Path) -> tuple[Listing, float]:
        """Return what a folder holds, in order, and for how many seconds that holds.

        Raises `NoSuchEntry` if there is no such folder (any more), `AccessDenied` if the store refuses to list it and
        the scope has no list of allowed names.
        """
        folder, names = await self._listing(segments)
        tree = await self._tree(folder, names)
        listing = await tree.make_listing(segments)
        if segments and not listing:
            if not tree:
                self._arranged.pop(folder, None)  # else each name that a program guesses would stay in memory
            raise NoSuchEntry("/".join(segments))
        return listing, names.remaining

    async def listing(self, segments: Path) -> tuple[Listing, float]:
        """Return `entries` as a listing shows them: without values whose reads have effects."""
        entries, remaining = await self.entries(segments)
        if self.reads_have_effects and not self.multi_valued:
            entries = await entries.without(self.issues)
        return entries, remaining

    async def entry(self, segments: Path, segment: bytes) -> tuple[Entry, float]:
        """Return one entry of a folder and for how many seconds it holds. Raises `NoSuchEntry`."""
        try:
            entry, remaining = await self._find(segments, segment)
            if entry is None and not is_probe(segment):
                entry, remaining = await self._find(segments, segment, self._store.negative_ttl)
        except AccessDenied:
            return await self._probe(segments, segment), 0.0
        if entry is None:
            raise NoSuchEntry(segment.decode(errors="replace"))
        return entry, remaining

    def recall_entry(self, segments: Path, segment: bytes) -> tuple[Entry, float] | None:
        """Return `entry` if it is known and can be found without waiting, else None. It is most of what is asked."""
        try:
            folder, names = self._recall_listing(segments)
        except AccessDenied:
            return None
        arranged = self._arranged.get(folder)
        if names is None or arranged is None or not self._is_arranged(arranged, names):
            return None
        arranged.answer = names
        entry = arranged.tree.get(segments, segment)
        return None if entry is None else (entry, names.remaining)

    async def _find(self, segments: Path, segment: bytes, max_age: float = math.inf) -> tuple[Entry | None, float]:
        folder, names = await self._listing(segments, max_age)
        return (await self._tree(folder, names)).get(segments, segment), names.remaining

    async def every_secret(self) -> CachedAnswer[dict[str, Secret]]:
        """Return all secrets of the store, fresh for as long as the oldest of them.

        A secret that is gone or refused when it is read is left out, and logged; any other failure is raised. Raises
        `NoSuchEntry` where a read has effects: one read of a file must not issue every credential.
        """
        if self.reads_have_effects:
            raise NoSuchEntry("a store whose reads have effects has no bulk file")
        names = await self._every_name()
        found: dict[str, Secret] = {}
        whole: CachedAnswer[dict[str, Secret]] = names.with_value(found)
        waiting = iter(await in_order(names.value))

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

        try:
            await in_parallel(read_on, min(CONCURRENCY * self._store.largest_batch, len(names.value)))
        except DeadlineExceeded as error:
            raise DeadlineExceeded(f"{len(found)} of {len(names.value)} secrets are read: {error}") from None
        return whole

    async def refresh(self, path: tuple[bytes, ...]) -> None:
        """Fetch again, now, what is known of a secret or of a folder; without a path, of the whole store.

        Raises `NoSuchEntry` or `SecretNotFound` for what is not there (any more), and any failure of the store.
        """
        await refresh(self, self._store, path)

    def evict_expired(self) -> None:
        """Drop what was made of answers that have expired. To be called periodically."""
        for folder, arranged in list(self._arranged.items()):
            if arranged.answer is not None and not arranged.answer.remaining and not arranged.lock.locked():
                del self._arranged[folder]

    @property
    def store_name(self) -> str:
        """The name of the component that is opened for this view, and for others."""
        return self._store.component

    def store_statistics(self) -> Statistics:
        """Return the health of the store with all that any view of it may see."""
        return self._store.statistics()

    def statistics(self) -> Statistics:
        """Return the health of the store. What the scope hides is not counted."""
        return self._store.statistics(None if self._scope.unrestricted else self._scope.allows)

    def require(self, name: str) -> None:
        """Raise `NoSuchEntry` for a secret that the scope hides."""
        if not self._scope.allows(name):
            raise NoSuchEntry(name)

    async def _listing(self, segments: Path, max_age: float = math.inf) -> tuple[str, CachedAnswer[Names]]:
        """Return which folder the store was asked for, this or one above it, and the answer, which covers this one.

        A store without folders lists everything at once. A store with folders may refuse to list those above ours.
        An answer that is older than ``max_age`` seconds is asked for again; those on the way to it are not.
        """
        if not segments:
            return "", await self._names("", max_age)
        folder = "/".join(segments)
        try:
            above, names = await self._listing(segments[:-1])
        except AccessDenied:
            return folder, await self._names(folder, max_age)
        if folder in names.value.folders:
            return folder, await self._names(folder, max_age)
        return (above, names) if max_age == math.inf else await self._listing(segments[:-1], max_age)

    def _recall_listing(self, segments: Path) -> tuple[str, CachedAnswer[Names] | None]:
        """Return `_listing`, with None for an answer that takes waiting. Raises `AccessDenied`."""
        folder, names = "", self._store.recall_names("")
        for depth in range(1, len(segments) + 1):
            if names is None:
                break
            deeper = "/".join(segments[:depth])
            if deeper in names.value.folders:
                folder, names = deeper, self._store.recall_names(deeper)
        return folder, names

    async def _names(self, folder: str, max_age: float = math.inf) -> CachedAnswer[Names]:
        """Return the names in a folder; if the store refuses, the allowed names of the scope stand in for them."""
        try:
            with asking_for(self._app):
                return await self._store.names(folder, max_age=max_age)
        except AccessDenied:
            if self._allowed_listing is None:
                raise
            now = trio.current_time()
            return CachedAnswer(self._allowed_listing, now, now + REFUSAL_TTL, time.time())

    async def _tree(self, folder: str, names: CachedAnswer[Names]) -> FolderTree:
        """Return an answer of the store, arranged in folders. Each answer is arranged once."""
        arranged = self._arranged[folder]
        if not self._is_arranged(arranged, names):
            async with arranged.lock:
                if not self._is_arranged(arranged, names):  # another task may have been faster
                    arranged.tree = await self._arrange(names.value)
        arranged.answer = names  # no checkpoint in between: tree and answer belong together
        return arranged.tree

    def _is_arranged(self, arranged: Arranged, names: CachedAnswer[Names]) -> bool:
        """Whether the tree is that of an answer. Where there are doubtful folders, each answer is arranged anew."""
        before = arranged.answer
        if before is None or before.value is not names.value:
            return False
        return before is names or names.value.folders.isdisjoint(self._doubtful_folders)

    async def _arrange(self, names: Names) -> FolderTree:
        """Arrange what is visible of the names."""
        tree = FolderTree(self.component, self._key_of)
        slices = Slices()
        for name in names.secrets:
            if self._scope.allows(name):
                tree.add_secret(name)
            await slices.step()
        for folder in names.folders:
            if await self._shows_anything(folder):
                tree.add_folder(folder)
            await slices.step()
        for name in tree.shadowed:
            if name not in self._shadowed:
                self._shadowed.add(name)
                log.warning("%s: the folder %s hides the secret of that name; .bulk.json has it", self.component, name)
        return tree

    def _key_of(self, name: str) -> SecretKey | ValueKey:
        return SecretKey(self.component, name) if self.multi_valued else ValueKey(self.component, name, name)

    async def _shows_anything(self, folder: str) -> bool:
        """Whether a folder contains a visible secret. Asks the store only where the scope alone does not decide it."""
        if folder not in self._doubtful_folders:
            return self._allowed_listing is None
        try:
            names = (await self._names(folder)).value
        except AccessDenied:
            return True  # the names are not known, so none is known to be hidden: each can be read by its name
        slices = Slices()
        for name in names.secrets:
            if self._scope.allows(name):
                return True
            await slices.step()
        for deeper in names.folders:
            if await self._shows_anything(deeper):
                return True
        return False

    async def _probe(self, segments: tuple[str, ...], segment: bytes) -> Entry:
        """Find an entry of a folder that the store refuses to list: a folder that it does list, or a secret."""
        own = decode(segment)
        if own is None:
            raise NoSuchEntry(segment.decode(errors="replace"))
        name = "/".join(path := (*segments, own))
        try:
            if (await self.entries(path))[0]:
                return FolderKey(self.component, path)
        except (AccessDenied, NoSuchEntry):
            log.debug("%s: %s is no folder that may be listed", self.component, name)
        if not self.reads_have_effects:
            await self.secret(name)
        elif is_probe(segment):
            raise NoSuchEntry(name)
        self.require(name)
        return self._key_of(name)

    async def _every_name(self) -> CachedAnswer[frozenset[str]]:
        whole = root = await self._names("")
        names, waiting = set(root.value.secrets), set(root.value.folders)
        while waiting:
            self.limits.require_names(len(names) + len(waiting))
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
        return whole.with_value(frozenset(await select(names, self._scope.allows)))
