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
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import count

import trio

from secretfs.cache.change import Change
from secretfs.errors import (
    NoSuchAttribute,
    NoSuchEntry,
    ReadOnly,
    SecretFSError,
    Superseded,
)
from secretfs.fs.attributes import DIRECTORY_TIMEOUT, XATTRS, AttributePolicy, Attributes, PermissionPolicy
from secretfs.fs.caller import UNKNOWN, Caller
from secretfs.fs.changes import Changes
from secretfs.fs.content import Content, Contents
from secretfs.fs.control_files import (
    FILES,
    UNDECLARED,
    ControlFile,
    Declared,
    MountStatus,
    RefreshFile,
    ReloadFile,
    RenderedFile,
    RequestFile,
    StatusFile,
)
from secretfs.fs.estale import Retries
from secretfs.fs.handles import DirectoryHandles, PollWaiters, Snapshot, directory_of
from secretfs.fs.inodes import Directory, Tree, Version
from secretfs.fs.journal import Journal
from secretfs.fs.keys import (
    AppKey,
    Bulk,
    BulkKey,
    Control,
    ControlKey,
    ControlsKey,
    DirectoryKey,
    FolderKey,
    LeafKey,
    RootKey,
    SecretBulkKey,
    SecretKey,
    ValueKey,
)
from secretfs.fs.listing import Listing, make_listing
from secretfs.fs.names import BULK_ENV, BULK_JSON, CONTROL
from secretfs.fs.view import StoreView

log = logging.getLogger(__name__)

GRACE = 0.1
"""Seconds for which a version can be opened from when it was right, whatever happens: `SHORTEST_TTL` of the cache."""
_BULK_FORMS = {BULK_JSON: Bulk.JSON, BULK_ENV: Bulk.ENV}


class SecretVFS:
    """The file system of one app: a directory for each of its stores, by component name."""

    def __init__(  # noqa: PLR0913 - the composition of a mount
        self,
        views: Mapping[str, StoreView],
        permissions: PermissionPolicy,
        nursery: trio.Nursery,
        app_id: str = "",
        journal: Journal | None = None,
        *,
        wake: Callable[[bytes], None] = lambda _: None,
        apps: Collection[str] | None = None,
        declared: Declared = UNDECLARED,
    ) -> None:
        """Begin a file system, or go on with the one that a journal tells of. Raises `JournalUnreadable`.

        With ``apps``, each of them has a directory at the root, and the views are named ``APP/COMPONENT``.

        ``wake`` is called with each waiter that `poll` was given, when it is time; at once with those in the journal.
        """
        self._contents = Contents(views, nursery, apps)
        self._listings = DirectoryHandles()
        self._serials = count(1)
        self._journal = journal or Journal()
        self._polls = PollWaiters(self._journal, wake)
        self._retries = Retries()
        self._tree = Tree(self._journal)
        self._attributes = AttributePolicy(permissions, self._journal.born)
        self.changes = Changes(self._tree, self._contents, self._polls, self._attributes)
        """For those who publish what changes."""
        self._app_id = app_id
        self._controls: dict[Control, ControlFile] = {
            Control.STATUS: StatusFile(self._mount_status, lambda: self._contents.views, declared.status),
            Control.RELOAD: ReloadFile(declared),
            # After a request, what was right a moment before is not good enough.
            Control.REFRESH: RefreshFile(lambda: self._contents.views, self._tree.invalidate),
        }

    def observe(self, change: Change) -> Change:
        """Take note of a change upstream, before it is published. Returns what of it this app may see."""
        return self._contents.observe(change)

    def replace(
        self,
        views: Mapping[str, StoreView],
        others: frozenset[str] = frozenset(),
        apps: Collection[str] | None = None,
        permissions: PermissionPolicy | None = None,
    ) -> frozenset[str]:
        """Show other stores from now on. Returns those that came or went, as ``APP/`` also apps, and ``others``.

        ``others`` are those that have nothing in common with the store of that name before: as if it went and came.
        """
        changed = frozenset(self._contents.views.keys() ^ views.keys()) | others
        if permissions is not None:
            self._attributes.permissions = permissions
        before = self._contents.apps | self._tree.apps
        for component in self._contents.replace(views, apps):
            self._tree.invalidate(component)
        for version in [version for component in changed for version in self._tree.detach_store(component)]:
            self._polls.wake(version.number)
        return changed | {f"{app}/" for app in before ^ self._contents.apps}

    async def lookup(self, parent: int, segment: bytes, caller: Caller = UNKNOWN) -> Attributes:
        """Find an entry of a directory. The kernel holds a reference to what is returned until `forget`."""
        key, remaining = await self._find(self._directory(parent).key, segment)
        return self._entry(key, remaining)

    def forget(self, inode: int, lookups: int) -> None:
        """Take back references of the kernel."""
        self._tree.drop_refs(inode, lookups)

    async def getattr(self, number: int, caller: Caller = UNKNOWN) -> Attributes:
        """Return attributes with the true size, which may mean to fetch the value. ``caller`` as in `open`."""
        inode = self._tree.inode(number)
        if isinstance(inode, Directory):
            return self._attributes.of_directory(inode)
        if isinstance(inode.key, ControlKey):
            return self._attributes.of_file(inode)
        if inode.opens and self._reads_have_effects(inode.key):
            return self._attributes.of_file(inode)  # fstat: lsof asks for what others have open
        try:
            content = await self._content_for(caller, inode)
        except SecretFSError:
            if inode.opens:  # fstat of an open file: it keeps its version, whatever became of the secret
                return self._attributes.of_file(inode)
            raise
        return self._attributes.of_file(inode, content.remaining)

    async def open_directory(self, number: int, caller: Caller = UNKNOWN) -> int:
        """Take a snapshot of a directory's entries; returns a handle for `read_directory` and `close_directory`."""
        directory = self._directory(number).key
        listing, expires = await self._list(directory)
        if isinstance(directory, FolderKey):
            self._contents.view(directory.component).note_listing(listing)
        return self._listings.open(number, listing, expires)

    async def read_directory(self, handle: int, start: int) -> Iterator[tuple[int, bytes, Attributes]]:
        """Return ``(offset of the next, segment, attributes)`` from ``start`` on, without fetching any value.

        What is yielded counts as a reference that the kernel holds; `forget` what did not reach it. Raises `Superseded`
        if the directory was opened before this process took over, and holds other names by now.
        """
        snapshot = self._listings.get(handle)
        if snapshot is None:
            number = directory_of(handle)
            snapshot = self._listings.restore(handle, *await self._list(self._directory(number).key))
            if snapshot is None:
                raise Superseded(f"directory {number} has changed since it was opened")
        return self._read_on(snapshot, start)

    def _read_on(self, snapshot: Snapshot, start: int) -> Iterator[tuple[int, bytes, Attributes]]:
        remaining = max(0.0, snapshot.expires - trio.current_time())
        for place, segment, key in snapshot.listing.starting_at(start):
            try:
                attributes = self._entry(key, remaining)
            except NoSuchEntry:  # a key that the secret lost since the directory was opened
                continue
            yield place + 1, segment, attributes

    def close_directory(self, handle: int) -> None:
        """Drop a snapshot."""
        self._listings.close(handle)

    async def open(self, number: int, caller: Caller = UNKNOWN) -> int:
        """Open a file at the version of this inode. The handle is the inode number: it carries no state of its own.

        Raises `Superseded` when the path by now leads to another version, unless this one was right a moment ago, or
        since ``caller`` was told so the last time: the kernel repeats the call only once, and a value that changes ten
        times a second must be possible to open.
        """
        version = self._version(number)
        if isinstance(version.key, ControlKey):
            if version.content is None and isinstance(self._controls[version.key.control], RenderedFile):
                raise Superseded("another process rendered it")
            self._tree.open(version, version.content or b"")
            return number
        self._tree.open(version, (await self._content_for(caller, version)).data)
        self._contents.use(version.key)
        return number

    def takes_requests(self, number: int) -> bool:
        """Whether a file may be written to."""
        return self._request_file(number) is not None

    async def write(self, handle: int, text: bytes) -> None:
        """Do what is written to a control file. Raises `ReadOnly` for any other file, else what the request raises."""
        file = self._request_file(handle)
        if file is None:
            raise ReadOnly("write")
        await file.write(text)

    def _request_file(self, number: int) -> RequestFile | None:
        key = self._tree.inode(number).key
        file = self._controls[key.control] if isinstance(key, ControlKey) else None
        return file if isinstance(file, RequestFile) else None

    async def read(self, handle: int, offset: int, size: int) -> bytes:
        """Read from an open file. Raises `Superseded` if this process took over and the version is not to be had."""
        version = self._version(handle)
        if version.content is None:
            self._tree.pin(version, (await self._current_content(version)).data)
        return (version.content or b"")[offset : offset + size]

    def close(self, handle: int) -> None:
        """Close an open file."""
        version = self._version(handle)
        self._tree.close(version)
        if not version.opens:
            self._polls.forget(handle)

    async def getxattr(self, number: int, name: str, caller: Caller = UNKNOWN) -> bytes:
        """Return an extended attribute of a value or of a multi-valued secret. Raises `NoSuchAttribute`."""
        key = self._tree.inode(number).key
        if not isinstance(key, SecretKey | ValueKey) or name not in XATTRS:
            raise NoSuchAttribute(name)
        secret = await self._contents.ask(key.component, lambda view: view.secret_without_effects(key.name))
        value = XATTRS[name](secret) if secret else ""
        if not value:
            raise NoSuchAttribute(name)
        return value.encode()

    def listxattr(self, number: int) -> tuple[str, ...]:
        """Return the names of the extended attributes, without fetching anything: ``ls -l`` asks for every entry."""
        key = self._tree.inode(number).key
        if not isinstance(key, SecretKey | ValueKey):
            return ()
        secret = self._contents.view(key.component).peek(key.name)
        unknown = not self._reads_have_effects(key)
        return tuple(name for name, read in XATTRS.items() if (read(secret) if secret else unknown))

    def poll(self, number: int, waiter: bytes | None) -> bool:
        """Whether a file has been superseded or deleted. If not, ``waiter`` is woken once when it is, or before."""
        version = self._version(number)
        if not self._tree.is_current(version):
            return True
        if waiter is not None:
            self._polls.add(number, waiter, version.opens)
        return False

    def evict_idle(self) -> None:
        """Let what is open count as used, and forget what was made of secrets and is not used. Call it at times."""
        self._contents.drop_idle()
        self._retries.drop_lost(trio.current_time())
        self._tree.evict()
        for key in self._tree.open_files():
            if not isinstance(key, ControlKey):
                self._contents.use(key)

    def _reads_have_effects(self, key: LeafKey | SecretKey) -> bool:
        view = None if isinstance(key, ControlKey) else self._contents.views.get(key.component)
        return view is not None and view.reads_have_effects

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
            case RootKey() | AppKey():
                return self._find_top(parent, segment), DIRECTORY_TIMEOUT
            case FolderKey(component, ()) if segment in _BULK_FORMS:
                return BulkKey(component, _BULK_FORMS[segment]), DIRECTORY_TIMEOUT
            case FolderKey(component, segments):
                return await self._contents.ask(component, lambda view: view.entry(segments, segment))
            case SecretKey(component, name) if segment in _BULK_FORMS:
                secret = await self._contents.ask(component, lambda view: view.secret(name))
                return SecretBulkKey(component, name, _BULK_FORMS[segment]), secret.remaining
            case SecretKey(component, name):
                return await self._contents.ask(component, lambda view: view.value(name, segment))
        listing, expires = await self._list(parent)
        if segment not in listing:
            raise NoSuchEntry(segment.decode(errors="replace"))
        return listing[segment], max(0.0, expires - trio.current_time())

    def _find_top(self, parent: RootKey | AppKey, segment: bytes) -> DirectoryKey:
        if segment == CONTROL and isinstance(parent, RootKey):
            return ControlsKey()
        found = self._contents.top(parent).get(segment)
        if found is None:
            raise NoSuchEntry(segment.decode(errors="replace"))
        return found

    async def _list(self, parent: DirectoryKey) -> tuple[Listing, float]:
        """Return what is listed in a directory, and until when that holds, on trio's clock."""
        found: Mapping[bytes, DirectoryKey | LeafKey] = {}
        remaining = DIRECTORY_TIMEOUT
        match parent:
            case RootKey() | AppKey():
                found = self._contents.top(parent)
            case FolderKey(component, segments):
                listing, remaining = await self._contents.ask(component, lambda view: view.listing(segments))
                return listing, trio.current_time() + remaining
            case ControlsKey():
                found = {name: ControlKey(control) for name, control in FILES.items()}
            case SecretKey(component, name):
                found, remaining = await self._contents.ask(component, lambda view: view.values(name))
        expires = trio.current_time() + remaining
        return await make_listing(found), expires

    def _entry(self, key: DirectoryKey | LeafKey, remaining: float) -> Attributes:
        """Count a reference and say what is known without waiting: of a value that is not at hand, only the name."""
        if isinstance(key, DirectoryKey):
            directory = self._tree.directory(key)
            self._tree.add_ref(directory)
            return self._attributes.of_directory(directory, remaining)
        if isinstance(key, ControlKey):
            return self._control_entry(key)
        content = self._contents.peek(key)
        version = self._bind(key, content) if content else self._tree.current(key)
        self._tree.add_ref(version)
        return self._attributes.of_file(version, content.remaining if content else 0.0, remaining)

    def _control_entry(self, key: ControlKey) -> Attributes:
        """Count a reference to a control file as it is now; it is looked up each time that it is opened.

        A file that takes requests is another inode each time: the kernel sends one write at a time for an inode.
        """
        file = self._controls[key.control]
        if isinstance(file, RenderedFile):
            data = file.render()
            version = self._bind(key, Content(data, time.time(), 0.0, next(self._serials)))
            version.content = data
        else:
            version = self._tree.successor(key)
            self._tree.promote(version)
        self._tree.add_ref(version)
        return self._attributes.of_file(version)

    def _mount_status(self) -> MountStatus:
        open_files = sum(not isinstance(key, ControlKey) for key in self._tree.open_files())
        journal = self._journal
        return MountStatus(
            self._app_id, os.getpid(), journal.born, self._tree.count(), open_files, takeovers=journal.generation
        )

    async def _content_for(self, caller: Caller, version: Version) -> Content:
        """Return what is in a version, for somebody who found it at its path. Raises `Superseded` once, as a rule."""
        asked = trio.current_time()
        will_do = self._retries.is_right(caller, version, asked)
        try:
            return await self._current_content(version)
        except Superseded:
            will_do = will_do or trio.current_time() <= version.confirmed + GRACE
            if version.content is None or not will_do:
                self._retries.told(caller, version, asked)
                raise
            return Content(version.content, version.modified, 0.0, version.answer)

    async def _current_content(self, version: Version) -> Content:
        """Fetch what the path of a version leads to. Raises `Superseded` if that is not, or no longer, this version.

        One that was replaced by another of the same content will do: the kernel may have been told of it just before.
        """
        if not isinstance(version.key, ControlKey):
            content = await self._contents.get(version.key)
            if self._tree.is_current(version):
                suits = self._bind(version.key, content) is version
            else:
                suits = self._tree.has_content(version, content.data, content.modified)
            if suits:
                return content
            # Whoever asked is about to come for this one, and may find that it was replaced as well: see `Retries`.
            successor = self._bind(version.key, content)
            successor.right_at = trio.current_time()
            self._tree.pin(successor, content.data)
        raise Superseded(f"inode {version.number} was replaced")

    def _bind(self, key: LeafKey, content: Content) -> Version:
        before = self._tree.known(key)
        if isinstance(before, Version) and before.answer == content.serial:
            return before
        version = self._tree.bind(key, content.serial, content.data, content.modified)
        version.confirmed = version.right_at = trio.current_time()
        if before is not None and before is not version:
            self._polls.wake(before.number)
        return version
