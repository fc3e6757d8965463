"""What is in the files: values, cut out of secrets, and bulk files, rendered from a whole store.

Knows the stores of one app, by component, and which of them has been replaced while a question was under way.
"""

import logging
import math
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial
from types import MappingProxyType
from typing import Final, NamedTuple, TypeVar

import trio

from secretfs.cache.change import Change
from secretfs.cache.deadlines import shared_deadline
from secretfs.cache.store_cache import CachedStore
from secretfs.cache.ttl_cache import CachedAnswer, TTLCache
from secretfs.errors import DeadlineExceeded, NoSuchEntry, SecretFSError, StoreError, Superseded
from secretfs.fs.bulk import render, render_secret
from secretfs.fs.keys import (
    AppKey,
    Bulk,
    BulkKey,
    FileKey,
    FolderKey,
    PinnedSecretKey,
    PinnedValueKey,
    RootKey,
    SecretBulkKey,
    SecretKey,
    ValueKey,
    VersionKey,
    VersionValueKey,
    parent_of,
)
from secretfs.fs.names import encode
from secretfs.fs.pinned import PinnedSecrets
from secretfs.fs.view import StoreView
from secretfs.scopes import SecretScope
from secretfs.store import Secret

T = TypeVar("T")

BULK_IDLE = 60.0
"""Seconds that the bulk file of a store stays in memory without a reader."""
FRESH_IN_BULK: Final = 1000
"""Secrets of a store up to which a bulk file that is in use has them all kept fresh, as if each had been opened."""
BULK_USED_EVERY: Final = 1.0
"""Seconds between two notes that they are in use."""


log = logging.getLogger(__name__)


class Content(NamedTuple):
    """The bytes of a file and what is known of the answer that brought them."""

    data: bytes
    modified: float
    expires: float
    """Until when it may be served, on trio's clock."""
    serial: int
    label: str = ""
    """What the store calls this version of the secret; empty where it has none."""


UNREAD: Final = Content(b"", 0.0, 0.0, 0)
"""Stands for a content that nobody may ask for now, because that might issue a credential."""


def views_of(
    stores: Mapping[str, tuple[CachedStore, SecretScope]], before: Mapping[str, StoreView] = MappingProxyType({})
) -> dict[str, StoreView]:
    """Return the views of stores, by where they are shown: each store behind its scope.

    A view ``before`` that shows the same goes on, with what was made of the store's names.
    """
    views: dict[str, StoreView] = {}
    for name, (store, scope) in stores.items():
        view = before.get(name)
        views[name] = view if view is not None and view.shows(store, scope) else StoreView(store, scope, name)
    return views


class _Bulk(NamedTuple):
    """A bulk file, and the secrets in it."""

    data: bytes
    names: Collection[str]


class Contents:
    """The stores of one app, and what is in the files that show them."""

    def __init__(
        self,
        views: Mapping[str, StoreView],
        nursery: trio.Nursery,
        apps: Collection[str] | None,
        pinned: PinnedSecrets,
    ) -> None:
        self._pinned = pinned
        self.views = dict(views)
        """By where they are shown."""
        self._tops = _tops(views, apps)
        self._bulks = TTLCache[BulkKey, _Bulk](self._render, nursery)
        self._bulks_used: dict[BulkKey, float] = {}
        """When the secrets in them were last noted as used, on trio's clock."""
        self._unrenderable: dict[BulkKey, str] = {}

    def observe(self, change: Change) -> Change:
        """Let no bulk file be served that is older than a change. Returns what of the change this app may see."""
        self._expire_bulks(change.component)
        view = self.views.get(change.component)
        return change if view is None else view.visible(change)

    @property
    def apps(self) -> frozenset[str]:
        """The apps that have a directory."""
        return frozenset(key.app for key in self._tops if isinstance(key, AppKey))

    def top(self, key: RootKey | AppKey) -> Mapping[bytes, AppKey | FolderKey]:
        """Return what is in the root, or in the directory of an app: nothing if there is no such app (any more)."""
        return self._tops.get(key, {})

    def replace(self, views: Mapping[str, StoreView], apps: Collection[str] | None = None) -> list[str]:
        """Show other stores from now on. Returns those whose files may have other contents now."""
        different = [name for name, view in self.views.items() if views.get(name) is not view]
        for component in different:
            self._expire_bulks(component)
        self.views = dict(views)
        self._tops = _tops(views, apps)
        return different

    def drop_idle(self) -> None:
        """Forget the bulk files that nobody uses, and what was made of listings that have expired."""
        self._bulks.drop_idle(BULK_IDLE)
        for view in self.views.values():
            view.evict_expired()

    def view(self, component: str) -> StoreView:
        """Return a store. Raises `NoSuchEntry` for one that has been taken away."""
        view = self.views.get(component)
        if view is None:
            raise NoSuchEntry(component)
        return view

    async def ask(self, component: str, question: Callable[[StoreView], Awaitable[T]]) -> T:
        """Ask a store, within one deadline, however many answers of it the question takes.

        What one answers that has been replaced meanwhile is not true any more: then the next is asked.
        """
        with shared_deadline():
            return await self._ask(component, question)

    async def recall_or_ask(
        self,
        component: str,
        recall: Callable[[StoreView], T | None],
        question: Callable[[StoreView], Awaitable[T]],
    ) -> T:
        """Return what can be had without waiting; else `ask`. All that `ask` does is about waiting."""
        known = recall(self.view(component))
        return await self.ask(component, question) if known is None else known

    async def _ask(self, component: str, question: Callable[[StoreView], Awaitable[T]]) -> T:
        while True:
            view = self.view(component)
            try:
                answer = await question(view)
            except DeadlineExceeded:  # there is no time left for the next
                raise
            except SecretFSError:
                if self.views.get(component) is view:
                    raise
            else:
                if self.views.get(component) is view:
                    return answer

    async def pin(self, secret: SecretKey) -> PinnedSecretKey:
        """Return the directory of the version that a secret has now, and keep that version until `forget`."""
        answer = await self.ask(secret.component, lambda view: view.secret(secret.name))
        return self._pinned.keep(secret, answer)

    async def pin_without_effects(self, secret: SecretKey) -> PinnedSecretKey | None:
        """Return `pin`; None where that might issue a credential."""
        answer = await self.ask(secret.component, lambda view: view.secret_without_effects(secret.name))
        return None if answer is None else self._pinned.keep(secret, answer)

    async def pinned(self, key: PinnedSecretKey) -> CachedAnswer[Secret]:
        """Return a version of a secret that has a directory. Raises `Superseded` if it was lost with its process."""
        self.view(key.component).require(key.name)
        answer = self._pinned.get(key)
        if answer is None:
            answer = await self.ask(key.component, lambda view: view.secret(key.name))
            if self._pinned.key_of(key.secret, answer) != key:
                raise Superseded("a version of a secret was lost with the process that had it")
            self._pinned.keep(key.secret, answer)
        return answer

    def peek_pinned(self, key: PinnedSecretKey) -> CachedAnswer[Secret] | None:
        """Return `pinned` if that takes no waiting."""
        self.view(key.component).require(key.name)
        return self._pinned.get(key)

    async def version(self, key: VersionKey) -> CachedAnswer[Secret]:
        """Return one version of a secret, by its name. Raises `SecretNotFound` if it is not there (any more)."""
        return await self.ask(key.component, lambda view: view.versions.get(key.name, key.version))

    def is_outdated(self, key: PinnedSecretKey) -> bool:
        """Whether it is known that a secret has another version by now."""
        view = self.views.get(key.component)
        answer = view.peek(key.name) if view else None
        return answer is not None and self._pinned.key_of(key.secret, answer) != key

    def forget(self, key: PinnedSecretKey) -> None:
        """Forget a version of a secret: the kernel has no directory of it any more."""
        self._pinned.forget(key)

    async def get(self, key: FileKey) -> Content:
        """Return what is in a file, fresh. Raises `NoSuchEntry` or `SecretNotFound` if it is gone."""
        if isinstance(key, BulkKey):
            with shared_deadline(bulk=True):
                return _bulk_content(await self._bulks.get(key))
        if isinstance(key, PinnedValueKey):
            return _content_of(key, await self.pinned(key.directory))
        if isinstance(key, VersionValueKey):
            return _content_of(key, await self.version(key.directory))
        secret = await self.recall_or_ask(
            key.component, lambda view: view.recall(key.name), lambda view: view.secret(key.name)
        )
        return _content_of(key, secret)

    def reads_have_effects(self, key: SecretKey | ValueKey) -> bool:
        """Whether fetching a secret may issue a credential."""
        view = self.views.get(key.component)
        return view is not None and view.issues(key.name)

    def use(self, key: FileKey | PinnedSecretKey, until: float = -math.inf) -> None:
        """Take note that a file is in use: somebody opens it, has it open, or may open it ``until`` without telling us.

        Likewise a single version.
        """
        if isinstance(key, BulkKey):
            self._use_bulk(key)
        elif key.component in self.views and isinstance(key, VersionValueKey):
            self.views[key.component].versions.use(key.name, key.version, until)
        elif key.component in self.views:
            self.views[key.component].use(key.name, until)

    def _use_bulk(self, key: BulkKey) -> None:
        self._bulks.use(key)
        bulk, view = self._bulks.known(key), self.views.get(key.component)
        now = trio.current_time()
        if bulk is None or view is None or now < self._bulks_used.get(key, -math.inf) + BULK_USED_EVERY:
            return
        self._bulks_used[key] = now
        for name in bulk.value.names if len(bulk.value.names) <= FRESH_IN_BULK else ():
            view.use(name)

    def idle(self, key: FileKey) -> float:
        """Return the seconds after its last use for which a file stays in memory."""
        view = self.views.get(key.component)
        return BULK_IDLE if isinstance(key, BulkKey) or view is None else view.idle

    def idle_for(self, key: FileKey | PinnedSecretKey) -> float:
        """Return for how long nobody has asked for a file, as a part of the time after which it leaves memory."""
        if isinstance(key, BulkKey):
            return self._bulks.idle_for(key) / BULK_IDLE
        view = self.views.get(key.component)
        if view is None:
            return math.inf
        if isinstance(key, VersionValueKey):
            return view.versions.idle_for(key.name, key.version) / view.idle
        return view.idle_for(key.name) / view.idle

    def peek(self, key: FileKey) -> Content | None:
        """Return what is in a file if that may be served without waiting."""
        if isinstance(key, BulkKey):
            bulk = self._bulks.peek(key)
            return _bulk_content(bulk) if bulk else None
        if isinstance(key, PinnedValueKey):
            secret = self.peek_pinned(key.directory)
        elif isinstance(key, VersionValueKey):
            secret = self.view(key.component).versions.peek(key.name, key.version)
        else:
            secret = self.view(key.component).peek(key.name)
        return _content_of(key, secret) if secret else None

    def peek_secret(self, key: FileKey) -> CachedAnswer[Secret] | None:
        """Return the secret that a value is part of if it may be served without waiting; None for any other file."""
        return self.view(key.component).peek(key.name) if isinstance(key, ValueKey) else None

    async def _render(self, key: BulkKey) -> CachedAnswer[_Bulk]:
        """Render a bulk file from one snapshot of its store, in a thread: the store may be large."""
        view = self.view(key.component)
        try:
            secrets = await view.every_secret()
        except DeadlineExceeded as error:  # of them all: of a single call the log has it
            self._log_once(key, f".bulk.{key.form.value} is not complete: {error}")
            raise

        try:
            rendered = await trio.to_thread.run_sync(
                partial(render, secrets.value, key.form, multi_valued=view.multi_valued)
            )
        except StoreError as error:  # not the store's fault, so nobody has logged it
            self._log_once(key, str(error))
            raise
        self._unrenderable.pop(key, None)
        bulk = _Bulk(rendered, tuple(secrets.value))
        return CachedAnswer(bulk, secrets.fetched, secrets.expires, secrets.fetched_at, secrets.stale)

    def _log_once(self, key: BulkKey, reason: str) -> None:
        if self._unrenderable.get(key) != reason:
            self._unrenderable[key] = reason
            log.warning("%s: %s", key.component, reason, extra={"store": key.component})

    def _expire_bulks(self, component: str) -> None:
        for form in Bulk:
            self._bulks.expire(BulkKey(component, form))


def _tops(
    views: Mapping[str, StoreView], apps: Collection[str] | None
) -> dict[RootKey | AppKey, dict[bytes, AppKey | FolderKey]]:
    """Return the directories above the stores, with what is in them by path segment."""
    tops: dict[RootKey | AppKey, dict[bytes, AppKey | FolderKey]] = {RootKey(): {}}
    for app in sorted(apps or ()):
        tops[RootKey()][encode(app)] = AppKey(app)
        tops[AppKey(app)] = {}
    for component in sorted(views):
        tops[parent_of(component)][encode(component.rpartition("/")[2])] = FolderKey(component)
    return tops


def _content_of(
    key: ValueKey | PinnedValueKey | VersionValueKey | SecretBulkKey, secret: CachedAnswer[Secret]
) -> Content:
    """Cut a file out of a secret. Raises `NoSuchEntry` if this version of the secret has no such key."""
    if isinstance(key, SecretBulkKey):
        data = render_secret(secret.value, key.form)
    elif key.key in secret.value.values:
        data = secret.value.values[key.key]
    else:
        raise NoSuchEntry(key.key)
    modified = secret.value.modified or secret.fetched_at
    return Content(data, modified, secret.expires, secret.serial, secret.value.version)


def _bulk_content(bulk: CachedAnswer[_Bulk]) -> Content:
    return Content(bulk.value.data, bulk.fetched_at, bulk.expires, bulk.serial)
