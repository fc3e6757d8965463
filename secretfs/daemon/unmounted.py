"""The tree of a mount, without a mount: the same views, scopes, cache and names, asked in this process.

For programs that look once and end. Nothing is published and nothing is kept fresh for longer than a question takes.
What is about a mount, `.secretfs`, is not there.
"""

import errno
import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from stat import S_ISDIR

import trio

from secretfs.cache.change import discard
from secretfs.cache.freshness import Freshness
from secretfs.daemon.files import shown_files
from secretfs.dapr.component import Component
from secretfs.dapr.declaration import Declaration
from secretfs.dapr.references import component_references
from secretfs.errors import NoSuchEntry
from secretfs.fs.attributes import Attributes, PermissionPolicy
from secretfs.fs.content import views_of
from secretfs.fs.inodes import ROOT_INODE
from secretfs.fs.keys import Bulk
from secretfs.fs.names import CONTROL, encode
from secretfs.fs.rendered_set import RenderedSet
from secretfs.fs.vfs import SecretVFS
from secretfs.fs.view import StoreView
from secretfs.registry.opening import Registry, close_stores, open_registry
from secretfs.registry.store_set import StoreSet

Path = tuple[bytes, ...]
"""Segments of a path below the mount point. None is empty."""


def path_of(text: str | os.PathLike[str]) -> Path:
    """Return the segments of a path as people write it: below the mount point, with or without a "/" in front."""
    return tuple(segment for segment in os.fsencode(text).split(b"/") if segment)


def place_of(store: str) -> Path:
    """Return where a store is shown, as a path: ``COMPONENT``, and with apps ``APP/COMPONENT``. Or a rendered file."""
    return tuple(map(encode, filter(None, store.split("/"))))


def narrow(declaration: Declaration, paths: Iterable[Path]) -> Declaration:
    """Return what has to be open to read these paths: their stores, and those that these take credentials from.

    Those of a rendered file are all that it may be made of.
    """
    wanted = tuple(paths)
    stores = {
        name: store for name, store in declaration.stores.items() if any(_meet(place_of(name), path) for path in wanted)
    }
    files = {
        shown: file for shown, file in declaration.files.items() if any(_meet(place_of(shown), path) for path in wanted)
    }
    for file in files.values():
        own = {n: store for n, store in declaration.stores.items() if place_of(n)[:-1] == place_of(file.prefix)}
        stores |= {n: s for n, s in own.items() if file.asks_others or n[len(file.prefix) :] in file.stores}
    by_name = {component.name: component for component in declaration.components}
    needed, waiting = set[str](), {store.component for store in stores.values()}
    while waiting:
        name = waiting.pop()
        needed.add(name)
        waiting |= (component_references(by_name[name]) & by_name.keys()) - needed
    components = tuple(component for component in declaration.components if component.name in needed)
    return replace(declaration, components=components, stores=stores, files=files)


def _meet(store: Path, path: Path) -> bool:
    """Whether one of the two is the other one or below it."""
    return all(ours == theirs for ours, theirs in zip(store, path, strict=False))


class UnmountedTree:
    """What a mount would show. A path that cannot be read raises what a mount has an errno for, or `OSError`."""

    def __init__(self, vfs: SecretVFS, shown: Iterable[str]) -> None:
        self._vfs = vfs
        self._shown = tuple(map(place_of, shown))
        self.issuing = set[str]()
        """The components that may have issued a credential for what was read."""

    @property
    def views(self) -> Mapping[str, StoreView]:
        """The stores, by where they are shown."""
        return self._vfs.views

    async def read(self, path: Path) -> bytes:
        """Return what is in a file: it is a use, like an open."""
        found = await self._find(path)
        if S_ISDIR(found.mode):
            raise _error(errno.EISDIR)
        return await self._read(found.inode, path)

    async def read_whole(self, path: Path, form: Bulk) -> bytes | None:
        """Return all keys of a secret, or all secrets of a store, in a form; None for a path that is a file.

        A directory that is neither raises `OSError` with EISDIR.
        """
        found = await self._find(path)
        if not S_ISDIR(found.mode):
            return None
        try:
            bulk = await self._vfs.lookup(found.inode, form.segment)
        except NoSuchEntry:
            raise _error(errno.EISDIR) from None
        return await self._read(bulk.inode, path)

    async def list(self, path: Path) -> list[bytes]:
        """Return the names in a directory, as ls(1) does. Above the stores these are all names, opened or not."""
        above = {place[len(path)] for place in self._shown if place[: len(path)] == path and len(place) > len(path)}
        if above:
            return sorted(above)
        found = await self._find(path)
        if not S_ISDIR(found.mode):
            raise _error(errno.ENOTDIR)
        handle = await self._vfs.open_directory(found.inode)
        return [name for _, name, _ in await self._vfs.read_directory(handle, 0)]

    async def _find(self, path: Path) -> Attributes:
        if path[:1] == (CONTROL,):
            raise NoSuchEntry(os.fsdecode(CONTROL))
        found = await self._vfs.getattr(ROOT_INODE)
        for segment in path:
            if not S_ISDIR(found.mode):
                raise _error(errno.ENOTDIR)
            found = await self._vfs.lookup(found.inode, segment)
        return found

    async def _read(self, inode: int, path: Path) -> bytes:
        views = self._vfs.views.items()
        is_rendered = any(view.rendered and _meet(place_of(name), path) for name, view in views)
        self.issuing.update(
            view.store_name
            for name, view in views
            if view.reads_have_effects and not view.rendered and (is_rendered or _meet(place_of(name), path))
        )
        size = (await self._vfs.getattr(inode)).size
        handle = await self._vfs.open(inode)
        return await self._vfs.read(handle, 0, size)


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


@asynccontextmanager
async def open_tree(
    declaration: Declaration, narrowed: Declaration, opened: Callable[[Component], None]
) -> AsyncIterator[tuple[UnmountedTree, Registry]]:
    """Open the stores of a declaration that was narrowed to what is asked for, and show what a mount would show.

    The registry tells which of them could not be opened. ``opened`` is called as each component is done. At the end
    the stores give back what they were lent, except credentials that were issued for what was read: somebody is about
    to use them.
    """
    default = Freshness()
    async with (
        open_registry(narrowed.components, narrowed.context, default, opened) as registry,
        trio.open_nursery() as nursery,
    ):
        stores = StoreSet(registry, default, nursery)
        files = RenderedSet(nursery, discard, default.idle)
        nursery.start_soon(files.drop_idle)
        views = files.beside(views_of(await stores.start(narrowed)), shown_files(narrowed))
        apps = None if declaration.apps is None else declaration.apps.keys()
        vfs = SecretVFS(views, PermissionPolicy(), nursery, declaration.context.app_id, apps=apps)
        tree = UnmountedTree(vfs, (*declaration.stores, *(file.directory for file in shown_files(declaration))))
        try:
            yield tree, registry
        finally:
            kept = [registry.stores.pop(component) for component in tree.issuing]
            await close_stores(kept, hand_over=True)
            nursery.cancel_scope.cancel()
