"""What a tree of secrets is as a file system: inodes and paths, errors and freshness, but no FUSE and no store.

Every method takes inode numbers the kernel knows and answers with `Attributes`, bytes or a `SecretFSError`. Names come
from listings. A value is fetched when its size or its bytes are asked for, and in `lookup` never, because the kernel
takes one lookup at a time in a directory and one slow secret would hold up the rest: an entry whose value is not known
is answered with an attribute timeout of 0, and the kernel then asks `getattr`, which runs side by side. (The keys of a
multi-valued secret are names that only its value tells; all its lookups wait for the same one.)

Content that has changed means a new inode. The old one is `Superseded`: the kernel looks the path up again by itself.
"""

import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import count
from stat import S_IFDIR, S_IFREG
from typing import NamedTuple, TypeGuard, TypeVar

import trio

from secretfs.bulk import render_env, render_json, render_secret
from secretfs.cache import Change
from secretfs.control import DIRECTORY_MODE, FILES, MODES, MountStatus, refresh, requested, status
from secretfs.errors import (
    AccessDenied,
    DeadlineExceeded,
    NoSuchAttribute,
    NoSuchEntry,
    ReadOnly,
    SecretFSError,
    SecretNotFound,
    StoreError,
    Superseded,
)
from secretfs.names import BULK_ENV, BULK_JSON, CONTROL, encode, split
from secretfs.shelf import Fresh, Shelf
from secretfs.store import Secret
from secretfs.tree import (
    Bulk,
    BulkKey,
    Control,
    ControlKey,
    ControlsKey,
    Directory,
    DirectoryKey,
    FolderKey,
    Inode,
    LeafKey,
    RootKey,
    SecretBulkKey,
    SecretKey,
    Tree,
    ValueKey,
    Version,
)
from secretfs.view import StoreView

T = TypeVar("T")

XATTR_VERSION = "user.secretfs.version"
"""What the store calls the version of the secret."""
XATTR_FETCHED = "user.secretfs.fetched"
"""When the store was last asked for it, in ISO 8601."""
XATTR_STALE = "user.secretfs.stale"
"""``1`` while it is served although it has expired, because the store does not answer; else ``0``."""

DIRECTORY_TIMEOUT = 60.0
"""Seconds for which the kernel may keep the attributes of a directory, which never change."""

POLLS = 1000
"""Waiting polls that are remembered for one open file. Every poll leaves one, also those that have timed out since."""

log = logging.getLogger(__name__)

GRACE = 0.1
"""Seconds for which a version can be opened from when it was right, whatever happens: `SHORTEST_TTL` of the cache."""
BULK_IDLE = 60.0
"""Seconds that the bulk file of a store stays in memory without a reader."""

_BULK_FORMS = {BULK_JSON: Bulk.JSON, BULK_ENV: Bulk.ENV}


class Attributes(NamedTuple):
    """What the kernel is told of an inode. Times in seconds; the timeouts say for how long it may believe the rest."""

    inode: int
    mode: int
    size: int
    modified: float
    attr_timeout: float
    entry_timeout: float
    control: bool = False
    """Belongs to who runs us, whoever owns the secrets."""


class Content(NamedTuple):
    """The bytes of a file and what is known of the answer that brought them."""

    data: bytes
    modified: float
    remaining: float
    serial: int


@dataclass(frozen=True, slots=True)
class Modes:
    """Permission bits: of files as given, of directories with an ``x`` for every ``r``."""

    file: int = 0o400

    @property
    def directory(self) -> int:
        """Permission bits of directories. Their owner may write: we rename there, and may not be root."""
        return 0o200 | self.file | (self.file & 0o444) >> 2


_XATTRS: dict[str, Callable[[Fresh[Secret]], str]] = {
    XATTR_VERSION: lambda secret: secret.value.version,
    XATTR_FETCHED: lambda secret: datetime.fromtimestamp(secret.fetched_at, UTC).isoformat(timespec="seconds"),
    XATTR_STALE: lambda secret: str(int(secret.stale)),
}


class SecretVFS:
    """The file system of one app: a directory for each of its stores, by component name."""

    def __init__(self, views: Mapping[str, StoreView], modes: Modes, nursery: trio.Nursery, app_id: str = "") -> None:
        self._views = dict(views)
        self._roots = _roots(views)
        self._file_mode = S_IFREG | modes.file
        self._directory_mode = S_IFDIR | modes.directory
        self._tree = Tree()
        self._bulks = Shelf[BulkKey, bytes](self._render, nursery)
        self._listings: dict[int, list[tuple[bytes, DirectoryKey | LeafKey, float]]] = {}
        self._unrenderable: dict[BulkKey, str] = {}
        self._handles = count(1)
        self._changed: Callable[[str, Change], None] = lambda _, __: None
        self._polls: dict[int, list[Callable[[], None]]] = {}
        self._born = time.time()
        self._app_id = app_id
        self._open_files = 0

    def on_change(self, changed: Callable[[str, Change], None]) -> None:
        """Call ``changed`` with a component and what has changed in it, whenever that turns out."""
        self._changed = changed
        for component, view in self._views.items():
            view.on_change(partial(self._pass_on, component))

    def replace(self, views: Mapping[str, StoreView], others: frozenset[str] = frozenset()) -> frozenset[str]:
        """Show other stores from now on. Returns the components that came or went, and ``others``.

        ``others`` are those that have nothing in common with the store of that name before: as if it went and came.
        """
        changed = frozenset(self._views.keys() ^ views.keys()) | others
        for component in {*self._views, *views}:
            for form in Bulk:
                self._bulks.expire(BulkKey(component, form))
        for component, view in self._views.items():
            if not view.shows_the_same_as(views.get(component)):
                self._tree.distrust(component)
        self._views = dict(views)
        self._roots = _roots(views)
        for component, view in views.items():
            view.on_change(partial(self._pass_on, component))
        for version in [version for component in changed for version in self._tree.outdate(component)]:
            self._wake(version.number)
        return changed

    async def lookup(self, parent: int, segment: bytes) -> Attributes:
        """Find an entry of a directory. The kernel holds a reference to what is returned until `forget`."""
        key, remaining = await self._find(self._directory(parent).key, segment)
        return self._entry(key, remaining)

    def forget(self, inode: int, lookups: int) -> None:
        """Take back references of the kernel."""
        self._tree.forget(inode, lookups)

    async def getattr(self, number: int) -> Attributes:
        """Return attributes with the true size, which may mean to fetch the value."""
        inode = self._tree.inode(number)
        if isinstance(inode, Directory):
            return self._directory_attributes(inode)
        if isinstance(inode.key, ControlKey):
            return self._control_attributes(inode, inode.key.control)
        try:
            content = await self._current_content(inode)
        except SecretFSError:
            if inode.opens:  # fstat of an open file: it keeps its version, whatever became of the secret
                return self._file_attributes(inode, 0.0)
            raise
        return self._file_attributes(inode, content.remaining)

    async def open_directory(self, number: int) -> int:
        """Take a snapshot of a directory's entries; returns a handle for `read_directory` and `close_directory`."""
        directory = self._directory(number).key
        entries = await self._entries(directory)
        if isinstance(directory, FolderKey):
            self._view(directory.component).walk(key.name for _, key, _ in entries if _is_secret(key))
        handle = next(self._handles)
        self._listings[handle] = entries
        return handle

    def read_directory(self, handle: int, start: int) -> Iterator[tuple[int, bytes, Attributes]]:
        """Yield ``(offset of the next, segment, attributes)`` from ``start`` on, without fetching any value.

        What is yielded counts as a reference that the kernel holds; `forget` what did not reach it.
        """
        now = trio.current_time()
        for offset, (segment, key, expires) in enumerate(self._listings[handle][start:], start + 1):
            try:
                attributes = self._entry(key, max(0.0, expires - now))
            except NoSuchEntry:  # a key that the secret lost since the directory was opened
                continue
            yield offset, segment, attributes

    def close_directory(self, handle: int) -> None:
        """Drop a snapshot."""
        del self._listings[handle]

    async def open(self, number: int) -> int:
        """Open a file at the version of this inode. The handle is the inode number: it carries no state of its own.

        Raises `Superseded` when the path by now leads to another version, unless this one was right a moment ago: the
        kernel repeats the call only once, and a value that changes ten times a second must be possible to open.
        """
        version = self._version(number)
        if isinstance(version.key, ControlKey):
            self._tree.open(version, version.content or b"")
            return number
        try:
            data = (await self._current_content(version)).data
        except Superseded:
            if version.content is None or trio.current_time() > version.confirmed + GRACE:
                raise
            data = version.content
        self._tree.open(version, data)
        self._open_files += 1
        return number

    def takes_requests(self, number: int) -> bool:
        """Whether a file is the one that may be written to."""
        return self._tree.inode(number).key == ControlKey(Control.REFRESH)

    async def write(self, handle: int, text: bytes) -> None:
        """Do what is written to ``refresh``, in all stores at once. Raises the first error when all is done."""
        if not self.takes_requests(handle):
            raise ReadOnly("write")
        await refresh({root: self._view(key.component) for root, key in self._roots.items()}, requested(text))

    def read(self, handle: int, offset: int, size: int) -> bytes:
        """Read from an open file."""
        content = self._version(handle).content
        if content is None:
            raise Superseded(f"inode {handle} is not open")
        return content[offset : offset + size]

    def close(self, handle: int) -> None:
        """Close an open file."""
        version = self._version(handle)
        self._open_files -= not isinstance(version.key, ControlKey)
        self._tree.close(version)
        if not version.opens:
            self._polls.pop(handle, None)

    async def getxattr(self, number: int, name: str) -> bytes:
        """Return an extended attribute of a value or of a multi-valued secret. Raises `NoSuchAttribute`."""
        key = self._tree.inode(number).key
        if not isinstance(key, SecretKey | ValueKey) or name not in _XATTRS:
            raise NoSuchAttribute(name)
        value = _XATTRS[name](await self._ask(key.component, lambda view: view.secret(key.name)))
        if not value:
            raise NoSuchAttribute(name)
        return value.encode()

    def listxattr(self, number: int) -> tuple[str, ...]:
        """Return the names of the extended attributes, without fetching anything: ``ls -l`` asks for every entry."""
        key = self._tree.inode(number).key
        if not isinstance(key, SecretKey | ValueKey):
            return ()
        secret = self._view(key.component).peek(key.name)
        return tuple(name for name, read in _XATTRS.items() if secret is None or read(secret))

    # What `secretfs.publish` needs to make a change visible.

    def known(self, key: DirectoryKey | LeafKey) -> Inode | None:
        """Return the inode of a place if the kernel may know it."""
        return self._tree.known(key)

    def successor(self, key: DirectoryKey | LeafKey) -> Inode:
        """Return a new version for a file's place, or the directory of a directory's."""
        if isinstance(key, DirectoryKey):
            return self._tree.directory(key)
        return self._tree.successor(key)

    def entry_of(self, inode: Inode) -> Attributes:
        """Count a reference to an inode and return what the kernel may know of it without asking again."""
        self._tree.remember(inode)
        if isinstance(inode, Directory):
            return self._directory_attributes(inode, DIRECTORY_TIMEOUT)
        return self._file_attributes(inode, 0.0, DIRECTORY_TIMEOUT)

    def succeed(self, version: Version) -> None:
        """Let a version take its place, and wake who polls the one before."""
        superseded = self._tree.succeed(version)
        if superseded is not None:
            self._wake(superseded.number)

    def gone(self, inode: Inode) -> None:
        """Let no path lead to what was deleted upstream, and wake who polls it."""
        self._tree.retire(inode)
        self._wake(inode.number)

    def discard(self, inode: Inode) -> None:
        """Drop an inode that the kernel did not come to know."""
        self._tree.discard(inode)

    async def exists(self, key: ValueKey) -> bool:
        """Whether there is such a value now."""
        try:
            await self._content(key)
        except (NoSuchEntry, SecretNotFound):
            return False
        return True

    async def folder(self, key: RootKey | FolderKey) -> Mapping[bytes, DirectoryKey | LeafKey] | None:
        """Return what is listed in a folder; nothing if it is gone, None if it may not be listed."""
        if isinstance(key, RootKey):
            return self._roots
        try:
            return (await self._ask(key.component, lambda view: view.entries(key.segments)))[0]
        except NoSuchEntry:
            return {}
        except AccessDenied:
            return None

    def known_at(self, key: FolderKey) -> list[Inode]:
        """Return what the kernel may know at the place of a folder: it, or a secret of that name."""
        name = "/".join(key.segments)
        view = self._views.get(key.component)
        single_valued = view is not None and not view.multi_valued  # else that value is inside the secret's directory
        secret = ValueKey(key.component, name, name) if single_valued else SecretKey(key.component, name)
        return [inode for place in (key, secret) if (inode := self._tree.known(place)) is not None]

    def place(self, key: ValueKey) -> tuple[bytes, DirectoryKey]:
        """Return the path segment of a value and the directory it is in."""
        if self._view(key.component).multi_valued:
            return encode(key.key), SecretKey(key.component, key.name)
        *above, own = split(key.name)
        return encode(own), FolderKey(key.component, tuple(above))

    def path(self, key: DirectoryKey) -> bytes:
        """Return the path of a directory below the mount point."""
        match key:
            case FolderKey(component, segments):
                return b"/".join(map(encode, (component, *segments)))
            case SecretKey(component, name):
                return b"/".join(map(encode, (component, *split(name))))
        return b""

    def poll(self, number: int, notify: Callable[[], None] | None) -> bool:
        """Whether a file has been superseded or deleted. If not, ``notify`` is called once when it is, or before."""
        version = self._version(number)
        if not self._tree.is_current(version):
            return True
        if notify is not None:
            if len(self._polls.setdefault(number, [])) >= POLLS * version.opens:
                self._wake(number)  # whoever still waits polls again
            self._polls.setdefault(number, []).append(notify)
        return False

    def _wake(self, number: int) -> None:
        for notify in self._polls.pop(number, ()):
            notify()

    def tidy(self) -> None:
        """Let what is open count as used, and forget what was made of secrets and is not used. Call it at times."""
        self._bulks.drop_idle(BULK_IDLE)
        self._tree.grow_older()
        for view in self._views.values():
            view.tidy()
        for key in self._tree.open_files():
            if isinstance(key, ValueKey | SecretBulkKey) and key.component in self._views:
                self._views[key.component].touch(key.name)

    def _pass_on(self, component: str, change: Change) -> None:
        for form in Bulk:
            self._bulks.expire(BulkKey(component, form))
        self._changed(component, change)

    def _view(self, component: str) -> StoreView:
        """Return a store. Raises `NoSuchEntry` for one that has been taken away."""
        view = self._views.get(component)
        if view is None:
            raise NoSuchEntry(component)
        return view

    async def _ask(self, component: str, question: Callable[[StoreView], Awaitable[T]]) -> T:
        """Ask a store. What one answers that has been replaced meanwhile is not true any more: then ask the next."""
        while True:
            view = self._view(component)
            try:
                answer = await question(view)
            except DeadlineExceeded:  # the next store would be waited for as long again
                raise
            except SecretFSError:
                if self._views.get(component) is view:
                    raise
            else:
                if self._views.get(component) is view:
                    return answer

    def _directory(self, number: int) -> Directory:
        inode = self._tree.inode(number)
        if not isinstance(inode, Directory):
            raise NotADirectoryError(number)  # the kernel asks for no such thing: a defect
        return inode

    def _version(self, number: int) -> Version:
        inode = self._tree.inode(number)
        if not isinstance(inode, Version):
            raise IsADirectoryError(number)  # likewise
        return inode

    async def _find(self, parent: DirectoryKey, segment: bytes) -> tuple[DirectoryKey | LeafKey, float]:
        """Return what is at this segment of a directory, and for how many seconds that holds."""
        match parent:
            case RootKey() if segment == CONTROL:
                return ControlsKey(), DIRECTORY_TIMEOUT
            case FolderKey(component, ()) if segment in _BULK_FORMS:
                return BulkKey(component, _BULK_FORMS[segment]), DIRECTORY_TIMEOUT
            case FolderKey(component, segments):
                return await self._ask(component, lambda view: view.entry(segments, segment))
            case SecretKey(component, name) if segment in _BULK_FORMS:
                secret = await self._ask(component, lambda view: view.secret(name))
                return SecretBulkKey(component, name, _BULK_FORMS[segment]), secret.remaining
        for listed, key, expires in await self._entries(parent):
            if listed == segment:
                return key, max(0.0, expires - trio.current_time())
        raise NoSuchEntry(segment.decode(errors="replace"))

    async def _entries(self, parent: DirectoryKey) -> list[tuple[bytes, DirectoryKey | LeafKey, float]]:
        """Return segment, key and expiry of all that is listed in a directory, sorted."""
        found: Mapping[bytes, DirectoryKey | LeafKey] = self._roots
        remaining = DIRECTORY_TIMEOUT
        match parent:
            case ControlsKey():
                found = {name: ControlKey(control) for name, control in FILES.items()}
            case FolderKey(component, segments):
                found, remaining = await self._ask(component, lambda view: view.entries(segments))
            case SecretKey(component, name):
                secret = await self._ask(component, lambda view: view.secret(name))
                found = {encode(key): ValueKey(component, name, key) for key in sorted(secret.value.values)}
                remaining = secret.remaining
        expires = trio.current_time() + remaining
        return [(segment, key, expires) for segment, key in found.items()]

    def _entry(self, key: DirectoryKey | LeafKey, remaining: float) -> Attributes:
        """Count a reference and say what is known without waiting: of a value that is not at hand, only the name."""
        if isinstance(key, DirectoryKey):
            directory = self._tree.directory(key)
            self._tree.remember(directory)
            return self._directory_attributes(directory, remaining)
        if isinstance(key, ControlKey):
            return self._control_entry(key)
        content = self._content_at_hand(key)
        version = self._bind(key, content) if content else self._tree.current(key)
        self._tree.remember(version)
        return self._file_attributes(version, content.remaining if content else 0.0, remaining)

    def _control_entry(self, key: ControlKey) -> Attributes:
        """Count a reference to a control file as it is now; it is looked up each time that it is opened.

        ``refresh`` is another inode each time, because the kernel takes one write at a time for an inode.
        """
        if key.control is Control.STATUS:
            data = self._status()
            version = self._bind(key, Content(data, time.time(), 0.0, next(self._handles)))
            version.content = data
        else:
            version = self._tree.successor(key)
            self._tree.succeed(version)
        self._tree.remember(version)
        return self._control_attributes(version, key.control)

    def _status(self) -> bytes:
        mount = MountStatus(self._app_id, os.getpid(), self._born, self._tree.count(), self._open_files)
        return status(mount, {name: view.statistics() for name, view in self._views.items()})

    async def _current_content(self, version: Version) -> Content:
        """Fetch what the path of a version leads to. Raises `Superseded` if that is not, or no longer, this version.

        One that was replaced by another of the same content will do: the kernel may have been told of it just before.
        """
        if not isinstance(version.key, ControlKey):
            content = await self._content(version.key)
            if self._tree.is_current(version):
                suits = self._bind(version.key, content) is version
            else:
                suits = self._tree.suits(version, content.data, content.modified)
            if suits:
                return content
        raise Superseded(f"inode {version.number} was replaced")

    def _bind(self, key: LeafKey, content: Content) -> Version:
        before = self._tree.known(key)
        seen = isinstance(before, Version) and before.answer == content.serial
        version = self._tree.bind(key, content.serial, content.data, content.modified)
        if not seen:
            version.confirmed = trio.current_time()
        if before is not None and before is not version:
            self._wake(before.number)
        return version

    async def _content(self, key: ValueKey | BulkKey | SecretBulkKey) -> Content:
        if isinstance(key, BulkKey):
            return _bulk_content(await self._bulks.get(key))
        return _content_of(key, await self._ask(key.component, lambda view: view.secret(key.name)))

    def _content_at_hand(self, key: ValueKey | BulkKey | SecretBulkKey) -> Content | None:
        if isinstance(key, BulkKey):
            bulk = self._bulks.peek(key)
            return _bulk_content(bulk) if bulk else None
        secret = self._view(key.component).peek(key.name)
        return _content_of(key, secret) if secret else None

    async def _render(self, key: BulkKey) -> Fresh[bytes]:
        """Render a bulk file from one snapshot of its store, in a thread: the store may be large."""
        view = self._view(key.component)
        secrets = await view.every_secret()

        def render() -> bytes:
            if key.form is Bulk.JSON:
                return render_json(secrets.value)
            return render_env(secrets.value, multi_valued=view.multi_valued)

        try:
            rendered = await trio.to_thread.run_sync(render)
        except StoreError as error:  # not the store's fault, so nobody has logged it
            if self._unrenderable.get(key) != str(error):
                self._unrenderable[key] = str(error)
                log.warning("%s: %s", key.component, error)
            raise
        self._unrenderable.pop(key, None)
        return Fresh(rendered, secrets.fetched, secrets.expires, secrets.fetched_at, secrets.stale)

    def _control_attributes(self, version: Version, control: Control) -> Attributes:
        modified = version.modified or self._born
        return Attributes(version.number, S_IFREG | MODES[control], version.size, modified, 0.0, 0.0, control=True)

    def _directory_attributes(self, directory: Directory, entry_timeout: float = 0.0) -> Attributes:
        if isinstance(directory.key, ControlsKey):
            mode = S_IFDIR | DIRECTORY_MODE
            return Attributes(directory.number, mode, 0, self._born, DIRECTORY_TIMEOUT, entry_timeout, control=True)
        return Attributes(directory.number, self._directory_mode, 0, self._born, DIRECTORY_TIMEOUT, entry_timeout)

    def _file_attributes(self, version: Version, attr_timeout: float, entry_timeout: float = 0.0) -> Attributes:
        modified = version.modified or self._born
        return Attributes(version.number, self._file_mode, version.size, modified, attr_timeout, entry_timeout)


def _is_secret(key: DirectoryKey | LeafKey) -> TypeGuard[SecretKey | ValueKey]:
    return isinstance(key, SecretKey | ValueKey)


def _roots(views: Mapping[str, StoreView]) -> dict[bytes, FolderKey]:
    return {encode(component): FolderKey(component) for component in sorted(views)}


def _content_of(key: ValueKey | SecretBulkKey, secret: Fresh[Secret]) -> Content:
    """Cut a file out of a secret. Raises `NoSuchEntry` if this version of the secret has no such key."""
    if isinstance(key, SecretBulkKey):
        data = render_secret(secret.value, key.form)
    elif key.key in secret.value.values:
        data = secret.value.values[key.key]
    else:
        raise NoSuchEntry(key.key)
    return Content(data, secret.value.modified or secret.fetched_at, secret.remaining, secret.serial)


def _bulk_content(bulk: Fresh[bytes]) -> Content:
    return Content(bulk.value, bulk.fetched_at, bulk.remaining, bulk.serial)
