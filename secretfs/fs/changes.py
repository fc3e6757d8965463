"""The difference between what the kernel knows and what the stores say: all that it takes to publish a change.

`secretfs.fs.publish` makes changes visible.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Final

import trio

from secretfs.cache.change import Change
from secretfs.errors import AccessDenied, NoSuchEntry, SecretNotFound
from secretfs.fs.attributes import AttributePolicy, Attributes
from secretfs.fs.content import UNREAD, Content, Contents
from secretfs.fs.control_files import LISTED, LISTED_READ_ONLY
from secretfs.fs.handles import PollWaiters
from secretfs.fs.inode import Directory, Inode, Version
from secretfs.fs.inodes import Tree
from secretfs.fs.keys import (
    AppKey,
    Bulk,
    BulkKey,
    Control,
    ControlKey,
    ControlsKey,
    DirectoryKey,
    FileKey,
    FolderKey,
    LeafKey,
    PinnedSecretKey,
    PinnedValueKey,
    RootKey,
    SecretBulkKey,
    SecretKey,
    ValueKey,
    VersionKey,
    VersionsKey,
    VersionValueKey,
)
from secretfs.fs.names import CONTROL, DATA, VERSIONS, encode, split

_CONTROL_NAMES: Final[dict[Control, bytes]] = {
    control: name for names in (LISTED_READ_ONLY, LISTED) for name, control in names.items()
}

IDLE_PART: Final = 0.5
"""Of the time after which what nobody uses is dropped: when the kernel is asked whether anybody still does."""


class Changes:
    """The inode table and the contents, as far as publishing a change needs them."""

    def __init__(self, tree: Tree, contents: Contents, polls: PollWaiters, attributes: AttributePolicy) -> None:
        self._tree = tree
        self._contents = contents
        self._polls = polls
        self._attributes = attributes

    def stores(self) -> dict[str, str]:
        """Return the component that is opened for each store that is shown."""
        return {component: view.store_name for component, view in self._contents.views.items()}

    def reads_have_effects(self, key: DirectoryKey | LeafKey) -> bool:
        """Whether to read what is at a place may issue a credential."""
        return isinstance(key, ValueKey | SecretBulkKey) and self._contents.view(key.component).issues(key.name)

    def is_current(self, directory: Directory) -> bool:
        """Whether a directory of a single version, if the kernel still has it, is that of the last one known."""
        key = directory.key
        return self.known(key) is directory and isinstance(key, PinnedSecretKey) and not self._contents.is_outdated(key)

    def has_versions(self, secret: SecretKey) -> bool:
        """Whether somebody may know directories of single versions of a secret, or watch for them."""
        if not self._contents.view(secret.component).multi_valued:
            return False
        return self._tree.known(secret) is not None or bool(self._tree.inodes.pinned.versions(secret))

    def known(self, key: DirectoryKey | LeafKey) -> Inode | None:
        """Return the inode of a place if the kernel may know it."""
        return self._tree.known(key)

    def directory_of(self, number: int) -> Directory | None:
        """Return the directory that a file is in, if the kernel may know it; None for a directory or a control file."""
        version = self._tree.inode(number) if number in self._tree else None
        if not isinstance(version, Version) or isinstance(version.key, ControlKey):
            return None
        with suppress(NoSuchEntry):  # its store is gone
            directory = self._tree.known(self.place(version.key)[1])
            return directory if isinstance(directory, Directory) else None
        return None

    def directories_in_use(self) -> list[Directory]:
        """Return the directories of all files whose content the kernel may have."""
        found = (self.directory_of(version.number) for version in self._tree.bound())
        return list({directory.number: directory for directory in found if directory}.values())

    def directory(self, number: int) -> Directory | None:
        """Return a directory that the kernel may know."""
        inode = self._tree.inode(number) if number in self._tree else None
        return inode if isinstance(inode, Directory) else None

    def entries(self) -> list[tuple[int, bytes]]:
        """Return where the kernel may have versions that are to be confirmed: inode of the directory, and name."""
        found: dict[tuple[int, bytes], None] = {}
        for version in self._tree.in_doubt():
            if not (version.digest and version.linked):
                continue
            with suppress(NoSuchEntry):  # its store is gone, and its directory with that
                segment, parent = self.place(version.key)
                directory = self._tree.known(parent)
                if directory is not None:
                    found[directory.number, segment] = None
        return list(found)

    def successor(self, key: DirectoryKey | LeafKey) -> Inode:
        """Return a new version for a file's place, with what is in it if that is known, or a directory's directory."""
        if isinstance(key, DirectoryKey):
            return self._tree.directory(key)
        version, content = self._tree.successor(key), self._peek(key)
        if content is not None:
            self._tree.has_content(version, content.data, content.modified)
            version.answer, version.label = content.serial, content.label
        return version

    def entry_of(self, inode: Inode) -> Attributes:
        """Count a reference to an inode and return what the kernel may know of it, and for how long."""
        self._tree.add_ref(inode)
        if isinstance(inode, Directory):
            return self._attributes.of_directory(inode, trio.current_time())
        content = self._peek(inode.key)
        fresh = content is not None and content.serial == inode.answer
        renamed = isinstance(inode.key, ValueKey)  # whenever it changes; a bulk file is looked up each time
        remaining = max(0.0, content.expires - trio.current_time()) if content and fresh and renamed else 0.0
        inode.entry_expires = max(inode.entry_expires, trio.current_time() + remaining)
        return self._attributes.of_file(inode, remaining)

    def overtaken(self, key: LeafKey) -> list[tuple[Version, Version]]:
        """Return which version is to be renamed over which because readers found it before it was published.

        The kernel may still have each older one, and a watch on it sees an event only if it is replaced.
        """
        superseded = self._tree.superseded(key)
        return list(zip([*superseded[1:], self._tree.current(key)], superseded, strict=True)) if superseded else []

    def has_content(self, key: LeafKey, content: Content) -> bool:
        """Whether the version that a path leads to has this content."""
        current = self._tree.known(key)
        if content is UNREAD or not isinstance(current, Version):
            return False
        return self._tree.has_content(current, content.data, content.modified)

    def promote(self, version: Version, replaced: Version | None) -> None:
        """Let a version take its place, and wake those who poll the ones before."""
        for past in (self._tree.promote(version, replaced), replaced):
            if past is not None and past is not version:
                self._polls.wake(past.number)

    def gone(self, inode: Inode) -> None:
        """Let no path lead to what was deleted upstream, and wake the programs that poll it."""
        self._tree.unlink(inode)
        self._polls.wake(inode.number)

    def discard(self, inode: Inode) -> None:
        """Drop an inode that the kernel did not come to know."""
        self._tree.discard(inode)

    async def pin(self, secret: SecretKey) -> PinnedSecretKey | None:
        """Return the directory of the version that a secret has now; None if it is gone, or nobody may ask for it."""
        try:
            return await self._contents.pin_without_effects(secret)
        except (NoSuchEntry, SecretNotFound):
            return None

    def outdate(self, secret: SecretKey, pin: PinnedSecretKey | None) -> None:
        """Wake those who poll files of other versions of a secret than this one, or of all if it is gone."""
        for directory, version in self._tree.inodes.pinned.files(secret):
            version.outdated = directory != pin
            if version.outdated:
                self._polls.wake(version.number)
        if pin is not None and self._tree.known(pin) is None:
            self._contents.forget(pin)  # nobody has come to look at it

    @property
    def apps_to_drop(self) -> frozenset[str]:
        """The apps that have been removed, and of whose files the kernel may have bytes."""
        return frozenset(app for app, _ in self._tree.revoked())

    def take_revoked(self, app: str) -> list[Version]:
        """Return the files of an app that has been removed of which the kernel may have bytes. Returns them once."""
        files = [version for owner, version in self._tree.revoked() if owner == app]
        for version in files:
            version.size, version.digest = 0, b""
        return files

    def bulk_files(self, holder: FolderKey | SecretKey) -> list[BulkKey | SecretBulkKey]:
        """Return the bulk files of a store or of a secret, of those that the kernel may know."""
        files: list[BulkKey | SecretBulkKey]
        if isinstance(holder, SecretKey):
            files = [SecretBulkKey(holder.component, holder.name, form) for form in Bulk]
        else:
            files = [BulkKey(holder.component, form) for form in Bulk]
        return [key for key in files if self._tree.known(key) is not None]

    async def content(self, key: FileKey) -> Content | None:
        """Return what is in a file now; None if it is gone. Where a read has effects the next reader finds out."""
        try:
            if self.reads_have_effects(key):
                return self._contents.peek(key) or UNREAD
            return await self._contents.get(key)
        except (NoSuchEntry, SecretNotFound):
            return None

    def idle(self, component: str) -> list[Inode]:
        """Return the files of a store that nobody has used for half the time after which they leave memory.

        With them the directories of single versions. Those that were returned before and that the kernel still has
        count as used: they are open, mapped or watched, or somebody's working directory.
        """
        found: list[Inode] = []
        now = trio.current_time()
        files = [v for v in self._tree.holding(component) if self._tree.is_current(v) and v.entry_expires <= now]
        candidates: list[Inode] = [*files, *self._tree.inodes.pinned_directories(component)]
        for inode in candidates:
            key = inode.key
            if not isinstance(key, FileKey | PinnedSecretKey):
                continue
            if self._contents.idle_for(key) < IDLE_PART:
                inode.evicting = False
            elif inode.evicting:
                inode.evicting = False
                if not isinstance(key, PinnedSecretKey) or not self._contents.is_outdated(key):
                    self._contents.use(key)
            else:
                inode.evicting = True
                found.append(inode)
        return found

    def idles(self) -> dict[str, float]:
        """Return for each store the seconds after which what nobody uses leaves memory."""
        return {component: view.idle for component, view in self._contents.views.items()}

    def _peek(self, key: LeafKey) -> Content | None:
        if isinstance(key, ControlKey):
            return None
        try:
            return self._contents.peek(key)
        except NoSuchEntry:
            return None

    async def folder(self, key: RootKey | AppKey | FolderKey) -> Mapping[bytes, DirectoryKey | LeafKey] | None:
        """Return what is listed in a folder; nothing if it is gone, None if it may not be listed."""
        if isinstance(key, RootKey | AppKey):
            return self._contents.top(key)
        try:
            return (await self._contents.ask(key.component, lambda view: view.entries(key.segments)))[0]
        except NoSuchEntry:
            return {}
        except AccessDenied:
            return None

    def known_at(self, key: AppKey | FolderKey) -> list[Inode]:
        """Return what the kernel may know at the place of a folder: it, or a secret of that name."""
        if isinstance(key, AppKey):
            return [inode for inode in (self._tree.known(key),) if inode is not None]
        name = "/".join(key.segments)
        view = self._contents.views.get(key.component)
        single_valued = view is not None and not view.multi_valued  # else that value is inside the secret's directory
        secret = ValueKey(key.component, name, name) if single_valued else SecretKey(key.component, name)
        return [inode for place in (key, secret) if (inode := self._tree.known(place)) is not None]

    def place(self, key: LeafKey) -> tuple[bytes, DirectoryKey]:
        """Return the path segment of a file and the directory it is in. Raises `NoSuchEntry` if its store is gone."""
        match key:
            case PinnedValueKey() | VersionValueKey():
                return encode(key.key), key.directory
            case ControlKey(control):
                return _CONTROL_NAMES[control], ControlsKey()
            case BulkKey(component, form):
                return form.segment, FolderKey(component)
            case SecretBulkKey(component, name, form):
                return form.segment, SecretKey(component, name)
            case ValueKey():
                return self._place_of_value(key)

    def _place_of_value(self, key: ValueKey) -> tuple[bytes, DirectoryKey]:
        if self._contents.view(key.component).multi_valued:
            return encode(key.key), SecretKey(key.component, key.name)
        *above, own = split(key.name)
        return encode(own), FolderKey(key.component, tuple(above))

    def path(self, key: DirectoryKey) -> bytes:
        """Return the path of a directory below the mount point."""
        return b"/".join(segment for segment, _ in _steps(key))

    def way(self, key: DirectoryKey) -> dict[tuple[int, bytes], Directory]:
        """Return the directories on the way to one that the kernel knows, by the inode above each and its name."""
        known: dict[tuple[int, bytes], Directory] = {}
        above = self._tree.root
        for segment, step in _steps(key):
            directory = self._tree.known(step)
            if not isinstance(directory, Directory) or directory.outdated:
                break
            known[above.number, segment] = above = directory
        return known

    def way_to(self, number: int) -> dict[tuple[int, bytes], Directory]:
        """Return the directories on the `way` to one, by its number."""
        directory = self.directory(number)
        return {} if directory is None else self.way(directory.key)

    def inherited(self, component: str) -> list[LeafKey]:
        """Return the files of a store that were in use before the takeover: opened less than ``idle`` seconds ago.

        Returns them once: later changes are announced by the cache. Returns none of a store that is gone.
        """
        view, mine = self._contents.views.get(component), self._tree.inherited.pop(component, {})
        return [key for key, used in mine.items() if view is not None and used > time.time() - view.idle]

    async def change_of_value(self, key: ValueKey) -> Change:
        """Return how a file differs from what the kernel knows of it. Raises what prevents the comparison."""
        try:
            same = await self._is_unchanged(key)
        except AccessDenied:  # until that ends there is nothing to see
            same = True
        return Change(key.component, values=frozenset() if same else frozenset({(key.name, key.key)}))

    async def _is_unchanged(self, key: ValueKey) -> bool:
        version, secret = self._tree.known(key), SecretKey(key.component, key.name)
        if self._tree.superseded(key):
            return False  # a reader was faster than we
        bound = version if isinstance(version, Version) and version.digest else None
        pins = self._tree.inodes.pinned.versions(secret)
        if not (bound or pins) or self.reads_have_effects(key):  # where it has, the next reader finds out
            return True
        try:
            content = await self._contents.get(key)
        except (NoSuchEntry, SecretNotFound):
            return False
        self._contents.use(key)  # as it was for the process before us
        if pins and all(map(self._contents.is_outdated, pins)):
            return False
        return bound is None or self._tree.has_content(bound, content.data, content.modified)

    async def change_of_names(self, folder: FolderKey, names: Iterable[str]) -> Change:
        """Return which of the names that the kernel knows in a folder are not listed any more.

        Raises what prevents the comparison.
        """
        listed = await self.folder(folder)
        gone = [name for name in names if listed is not None and encode(split(name)[-1]) not in listed]
        return Change(folder.component, names=frozenset(gone))

    def known_names(self, component: str) -> Mapping[FolderKey, Sequence[str]]:
        """Return the names of the secrets and folders of a store that the kernel knows, by the folder they are in."""
        names: dict[FolderKey, list[str]] = {}
        for name in self._tree.inodes.names(component):
            names.setdefault(FolderKey(component, split(name)[:-1]), []).append(name)
        return names


def _steps(key: DirectoryKey) -> list[tuple[bytes, DirectoryKey]]:
    """Return name and place of each directory on the way to a place, with the one that is there."""
    match key:
        case ControlsKey():
            return [(CONTROL, key)]
        case AppKey(app):
            return [(encode(app), key)]
        case FolderKey(component, segments):
            below: list[tuple[bytes, DirectoryKey]] = []
        case SecretKey(component, name):
            *above, own = split(name)
            segments, below = tuple(above), [(encode(own), key)]
        case PinnedSecretKey() | VersionsKey():
            return [*_steps(key.secret), (DATA if isinstance(key, PinnedSecretKey) else VERSIONS, key)]
        case VersionKey(version=version):
            return [*_steps(key.above), (encode(version), key)]
        case _:
            return []
    *apps, own = component.split("/")
    folders = [(encode(each), FolderKey(component, segments[:depth])) for depth, each in enumerate(segments, 1)]
    return [*((encode(app), AppKey(app)) for app in apps), (encode(own), FolderKey(component)), *folders, *below]
