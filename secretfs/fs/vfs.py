"""What a tree of secrets is as a file system: inodes and paths, errors and freshness, but no FUSE and no store.

Every method takes inode numbers the kernel knows and answers with `Attributes`, bytes or a `SecretFSError`.

Freshness is in the entries: `lookup` says for how long a path leads to an inode, which is what is left of ttl. The
kernel asks again after that, and such a look-up fetches the value. The first look-up of a name does not, because the
kernel may hold up others in that directory until it is answered: an entry whose value is not known is answered with an
attribute timeout of 0, and the kernel then asks `getattr`. (The keys of a multi-valued secret are names that only its
value tells; all its look-ups wait for the same one.)

Content that has changed means a new inode: what the kernel knows of an inode, its size and its bytes, stays right.
"""

import logging
import os
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from itertools import count

import trio

from secretfs.cache.change import Change
from secretfs.cache.warm_restart import WarmMemory
from secretfs.errors import NoSuchEntry, ReadOnly, SecretFSError, Superseded
from secretfs.fs.attributes import AttributePolicy, Attributes, PermissionPolicy
from secretfs.fs.by_name import SecretsByName
from secretfs.fs.caller import UNKNOWN, Caller
from secretfs.fs.changes import Changes
from secretfs.fs.content import Content, Contents
from secretfs.fs.control_files import (
    UNDECLARED,
    ControlDirectory,
    Declared,
    Link,
    MountStatus,
    RenderedFile,
    RequestFile,
)
from secretfs.fs.descriptions import Descriptions
from secretfs.fs.directories import Directories
from secretfs.fs.entries import find
from secretfs.fs.handles import FailedLookups, PollWaiters, directory_of
from secretfs.fs.inode import Directory, Version, require_app
from secretfs.fs.inodes import Tree
from secretfs.fs.journal import Journal
from secretfs.fs.kernel import Kernel
from secretfs.fs.keys import (
    ControlKey,
    DirectoryKey,
    FileKey,
    LeafKey,
    PinnedSecretKey,
    PinnedValueKey,
    ValueKey,
    VersionValueKey,
)
from secretfs.fs.listing import Key
from secretfs.fs.pinned import PinnedSecrets
from secretfs.fs.requests import RequestPlaces, Requests
from secretfs.fs.uses import Uses
from secretfs.fs.view import StoreView
from secretfs.fs.xattrs import get_xattr, list_xattrs

log = logging.getLogger(__name__)


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
        kernel: Kernel | None = None,
        memory: WarmMemory | None = None,
        apps: Collection[str] | None = None,
        declared: Declared = UNDECLARED,
        read_only: bool = False,
        metrics: Callable[[], Awaitable[bytes]] | None = None,
    ) -> None:
        """Begin a file system, or go on with the one that a journal and a memory have. Raises `JournalUnreadable`.

        With ``apps``, each of them has a directory at the root, and the views are named ``APP/COMPONENT``.
        """
        self._kernel = kernel or Kernel()
        self._journal = journal or Journal()
        self._contents = Contents(views, nursery, apps, PinnedSecrets(self._journal.digest_key))
        self._serials = count(1)
        self._polls = PollWaiters(self._journal, self._kernel.wake)
        self._failed = FailedLookups()
        self._requests = RequestPlaces()
        self._tree = Tree(self._journal, memory)
        self._attributes = AttributePolicy(permissions, self._journal.born)
        self.uses = Uses(self._tree, self._contents, lambda: self._journal.kernel_opens)
        """For those who find out what is in use."""
        self.secrets = SecretsByName(self._contents)
        """For those who ask by name."""
        self.changes = Changes(self._tree, self._contents, self._polls, self._attributes)
        """For those who publish what changes."""
        self.descriptions = Descriptions(self._tree, self._contents, app_id)
        """For those who tell what happens."""
        self._app_id = app_id
        self._controls = ControlDirectory(
            self.status, lambda: self._contents.views, declared, read_only=read_only, metrics=metrics
        )
        self._directories = Directories(self._tree, self._contents, self._controls, self._kernel, self._journal.born)

    def request(self, handle: int, uid: int | None) -> Requests:
        """Return a context manager for a request of a user, if it names one, so that nobody takes all places."""
        return self._requests.of(self._tree.inode(directory_of(handle)).key, None if self._contents.apps else uid)

    def observe(self, change: Change) -> Change:
        """Take note of a change upstream, before it is published. Returns what of it this app may see."""
        self._directories.note(change)
        return self._contents.observe(change)

    @property
    def views(self) -> Mapping[str, StoreView]:
        """What is shown, by ``COMPONENT`` or ``APP/COMPONENT``."""
        return self._contents.views

    def doubt(self, components: Collection[str]) -> None:
        """Take nothing for right that is known of the files of stores, until they say so."""
        for component in components:
            self._tree.invalidate(component)
            self._directories.note_all(component)

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
        before = self._contents.apps | self._tree.inodes.apps()
        gone = before - frozenset(apps or ())
        self.doubt(self._contents.replace(views, apps))
        for version in [version for component in changed for version in self._tree.detach_store(component)]:
            self._polls.wake(version.number)
        if gone:
            opened = self._tree.revoke(gone)
            log.info("removed %s: files that are still open fail, %d at most", ", ".join(sorted(gone)), opened)
        shown = changed | {f"{app}/" for app in (before ^ self._contents.apps) | self.changes.apps_to_drop}
        for component in shown:
            self._directories.note(Change(component, whole=True))
        return shown

    async def lookup(self, parent: int, segment: bytes, caller: Caller = UNKNOWN) -> Attributes:
        """Find an entry of a directory. The kernel holds a reference to what is returned until `forget`."""
        directory = self._tree.require_directory(parent)
        require_app(directory)
        key, remaining = await find(self._contents, self._controls, directory.key, segment)
        if isinstance(key, ControlKey):
            await self._controls.prepare(key.control)
        content = None if isinstance(key, DirectoryKey | ControlKey) else await self._revalidate(key, caller)
        found = self._entry(key, remaining, content)
        self.uses.note_empty(found.inode)
        return found

    def forget(self, inode: int, lookups: int) -> None:
        """Take back references of the kernel."""
        key = self._tree.inode(inode).key
        self._tree.drop_refs(inode, lookups)
        if inode not in self._tree:
            self._polls.forget(inode)
            if isinstance(key, PinnedSecretKey) and self._tree.known(key) is None:
                self._contents.forget(key)

    async def getattr(self, number: int, caller: Caller = UNKNOWN) -> Attributes:
        """Return attributes with the true size. Of a version that has no content yet, that means to fetch the value."""
        inode = self._tree.inode(number)
        require_app(inode)
        if isinstance(inode, Directory):
            return self._attributes.of_directory(inode, trio.current_time())
        await self._bind_unbound(inode)
        self.uses.note_empty(number)
        return self._attributes.of_file(inode)

    async def open_directory(self, number: int, caller: Caller = UNKNOWN) -> int:
        """Take a snapshot of a directory's entries; returns a handle for `read_directory` and `close_directory`."""
        require_app(self._tree.require_directory(number))
        return await self._directories.open(number)

    async def read_directory(self, handle: int, start: int) -> Iterator[tuple[int, bytes, Attributes]]:
        """Return ``(position of the next, segment, attributes)`` from ``start`` on, without fetching any value.

        The handle is that of `open_directory`, or the inode number if the kernel opens directories by itself. What is
        yielded counts as a reference that the kernel holds; `forget` what did not reach it. Raises `Superseded` if the
        directory was opened before this process took over, and holds other names by now.
        """
        require_app(self._tree.require_directory(directory_of(handle)))
        listed, remaining = await self._directories.read(handle, start)
        return self._with_attributes(listed, remaining)

    def _with_attributes(
        self, listed: Iterator[tuple[int, bytes, Key]], remaining: float
    ) -> Iterator[tuple[int, bytes, Attributes]]:
        for following, segment, key in listed:
            try:
                attributes = self._entry(key, remaining)
            except NoSuchEntry:  # a key that the secret lost since the directory was opened
                continue
            yield following, segment, attributes

    def close_directory(self, handle: int) -> None:
        """Drop a snapshot."""
        self._directories.close(handle)

    async def open(self, number: int, caller: Caller = UNKNOWN) -> int:
        """Open a file at the version of this inode. The handle is the inode number: it carries no state of its own.

        Raises `Superseded` for a version that a process before us or a store before this one had, if its store has
        another one by now: the kernel then looks the path up again, and finds that.
        """
        version = self._tree.require_version(number)
        if isinstance(version.key, ControlKey):
            if version.content is None and isinstance(self._controls[version.key.control], RenderedFile):
                raise Superseded("another process rendered it")
            return number
        require_app(version)
        await self._bind_unbound(version)
        if version.in_doubt:
            await self._confirm(version, version.key)
        self.uses.note(number)
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

    def link_target(self, number: int) -> bytes:
        """Return the name of the control file that a link leads to."""
        return self._controls.link_target(self._tree.inode(number).key)

    def _request_file(self, number: int) -> RequestFile | None:
        return self._controls.request_file(self._tree.inode(number).key)

    async def read(self, handle: int, offset: int, size: int) -> bytes:
        """Read from a version. Raises `Superseded` if its bytes were lost with the process that had them."""
        version = self._tree.require_version(handle)
        require_app(version)
        if version.content is None:
            if isinstance(version.key, ControlKey):
                raise Superseded("another process rendered it")
            content = await self._contents.get(version.key)
            if not self._tree.has_content(version, content.data, content.modified):
                raise Superseded(f"inode {handle} was replaced")
        self.uses.note_request(handle)
        return (version.content or b"")[offset : offset + size]

    async def getxattr(self, number: int, name: str, caller: Caller = UNKNOWN) -> bytes:
        """Return an extended attribute of a value or of a multi-valued secret. Raises `NoSuchAttribute`."""
        return (await get_xattr(self._contents, self._tree.inode(number).key, name)).encode()

    def listxattr(self, number: int) -> tuple[str, ...]:
        """Return the names of the extended attributes, without fetching anything: ``ls -l`` asks for every entry."""
        return list_xattrs(self._contents, self._tree.inode(number).key)

    def poll(self, number: int, waiter: bytes | None) -> bool:
        """Whether a file has been superseded or deleted. If not, ``waiter`` is woken once when it is, or before."""
        version = self._tree.require_version(number)
        self.uses.note_request(number)
        if not self._tree.is_current(version) or version.outdated:
            return True
        if isinstance(version.key, PinnedValueKey) and self._contents.is_outdated(version.key.directory):
            return True
        if waiter is not None:
            self._polls.add(number, waiter)
        return False

    def evict_idle(self) -> None:
        """Forget what was made of secrets and is not used. Call it at times."""
        self._contents.drop_idle()
        self._directories.drop_idle()
        self._failed.drop_old(trio.current_time())
        self._requests.forget_idle()

    def _entry(self, key: DirectoryKey | LeafKey, remaining: float, content: Content | None = None) -> Attributes:
        """Count a reference and say what is known without waiting, and for how long the path leads there."""
        if not isinstance(key, ValueKey):  # which it is, a thousand times in a listing
            if isinstance(key, DirectoryKey):
                self._tree.add_ref(directory := self._tree.directory(key))
                return self._attributes.of_directory(directory, trio.current_time(), remaining)
            if isinstance(key, ControlKey):
                return self._control_entry(key)
        now = trio.current_time()
        secret = None if content else self._contents.peek_secret(key)
        version = self._tree.known(key)
        if secret is not None and isinstance(version, Version) and version.answer == secret.serial:  # mostly
            remaining = min(remaining, secret.expires - now)
        else:
            if secret is not None or not isinstance(key, ValueKey):
                content = content or self._contents.peek(key)
            version = self._bind(key, content) if content else self._tree.current(key)
            if content and isinstance(key, ValueKey):
                remaining = max(0.0, min(remaining, content.expires - now))
            elif isinstance(key, PinnedValueKey | VersionValueKey):
                remaining = min(remaining, self._contents.idle(key))  # it never leads to another one
            elif version.digest or not isinstance(key, ValueKey):  # a bulk file: nobody renames when a secret changes
                remaining = 0.0
        version.entry_expires = max(version.entry_expires, now + remaining)
        if version.cached and self.uses.unasked:
            self.uses.note_entry(version)
        self._tree.add_ref(version)
        return self._attributes.of_file(version, remaining)

    def _control_entry(self, key: ControlKey) -> Attributes:
        """Count a reference to a control file as it is now; it is looked up each time that it is opened.

        A file that takes requests is another inode each time: the kernel sends one write at a time for an inode.
        """
        file = self._controls[key.control]
        if isinstance(file, RenderedFile):
            data = file.render()
            version = self._bind(key, Content(data, time.time(), 0.0, next(self._serials)))
            version.content = data
        elif isinstance(file, Link):
            version = self._tree.current(key)
        else:
            version = self._tree.successor(key)
            self._tree.promote(version)
        self._tree.add_ref(version)
        return self._attributes.of_file(version)

    def status(self) -> MountStatus:
        """Return how the mount does as a whole."""
        journal = self._journal
        return MountStatus(
            self._app_id, os.getpid(), journal.born, self._tree.inodes.count(), takeovers=journal.generation,
            requests=self._requests.work, all_requests=self._requests.total, warm_reads=self._kernel.warm_reads,
        )  # fmt: skip

    async def _revalidate(self, key: FileKey, caller: Caller) -> Content | None:
        """Fetch what is in a file again if the kernel has it at an entry that has expired.

        Only then: without an entry, or while it has never asked for the size, the kernel holds up others with this
        look-up. What fails is looked up once more by the kernel, for the same caller, and fails the same way at once.
        """
        version = self._tree.known(key)
        known = isinstance(version, Version) and version.lookups and version.digest
        if not known or self._contents.peek(key) is not None:
            return None
        self._failed.raise_again(caller, key, trio.current_time())
        try:
            return await self._contents.get(key)
        except SecretFSError as error:
            self._failed.add(caller, key, trio.current_time(), error)
            raise

    async def _bind_unbound(self, version: Version) -> None:
        """Fetch the content of a version that has none yet."""
        if version.digest or isinstance(version.key, ControlKey):
            return
        content = await self._contents.get(version.key)
        if self._tree.is_current(version):
            self._bind(version.key, content)
        else:
            self._tree.has_content(version, content.data, content.modified)

    async def _confirm(self, version: Version, key: FileKey) -> None:
        """Find out whether the store still has the content of a version. Raises `Superseded` if it has another one.

        If nobody has opened that version before, and its bytes are lost, it becomes the one that the store has now: the
        kernel repeats a call only once, and a kill may come in the middle of that.
        """
        content = await self._contents.get(key)
        if self._tree.has_content(version, content.data, content.modified):
            return
        if version.content is not None or version.opened:
            raise Superseded(f"inode {version.number} was replaced")
        self._tree.rebind(version, content.data, content.modified)
        self._kernel.forget_attributes(version.number)

    def _bind(self, key: LeafKey, content: Content) -> Version:
        before = self._tree.known(key)
        if isinstance(before, Version) and before.answer == content.serial:
            return before
        version = self._tree.bind(key, content.serial, content.data, content.modified)
        version.label = content.label
        if before is not None and before is not version:
            self._polls.wake(before.number)
        return version
