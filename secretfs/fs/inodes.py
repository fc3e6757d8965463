"""The tree: inodes, what they stand for, and what the kernel still knows of them.

Synchronous, without trio or FUSE: whatever must be atomic is a plain function here. A directory is one inode for as
long as the kernel knows it. A file is a place in the tree, and each version of its content is an inode of its own:
`Version` is immutable once bound, so its size is always true, the page cache is always right, and a reader that has it
open keeps it whatever happens upstream.

The kernel counts its references (FUSE's nlookup); what it has forgotten and nobody has open is dropped here.

What the kernel knows is in the journal before it knows it, so that a process which takes over finds the same tree.
"""

import time
from collections import defaultdict
from collections.abc import Collection

from secretfs.cache.warm_restart import WarmMemory
from secretfs.errors import JournalUnreadable
from secretfs.fs.inode import Directory, Inode, Version, is_known
from secretfs.fs.inode_numbers import InodeNumbers
from secretfs.fs.inode_records import InodeRecords
from secretfs.fs.inode_table import InodeTable
from secretfs.fs.journal import Journal, Record
from secretfs.fs.keys import (
    DirectoryKey,
    FolderKey,
    LeafKey,
    PinnedSecretKey,
    PinnedValueKey,
    RootKey,
    ValueKey,
    app_of_key,
)

ROOT_INODE = 1


class Tree:
    """All inodes that the kernel knows, by number and by place."""

    def __init__(self, journal: Journal | None = None, memory: WarmMemory | None = None) -> None:
        """Begin a tree, or go on with the one in a journal, and in a memory of its key. Raises `JournalUnreadable`."""
        self._journal = journal or Journal()
        self._numbers = InodeNumbers(self._journal)
        self._memory = memory or WarmMemory(self._journal.digest_key)
        self._records = InodeRecords(self._journal, self._memory)
        self.inodes = InodeTable()
        """All of them."""
        self._doubted: set[str] = set()
        """The stores of which there may be versions in doubt."""
        self._revoked: set[Version] = set()
        self._directories = self.inodes.directories
        self._current = self.inodes.current
        self._superseded: defaultdict[LeafKey, list[Version]] = defaultdict(list)
        """The versions that are linked and not current any more, oldest first."""
        self.inherited: defaultdict[str, dict[LeafKey, float]] = defaultdict(dict)
        """The files that were opened while another worker kept the journal, by component.

        And when, in seconds since the epoch."""
        for record in self._journal.records():
            self._restore(record)
        self._memory.sweep()
        self.root = self.directory(RootKey())
        if not self.root.lookups:
            self.add_ref(self.root)  # the kernel holds the root for as long as the mount lives
        if self.root.number != ROOT_INODE:
            raise JournalUnreadable("it has no root")

    def __len__(self) -> int:
        return len(self.inodes)

    def __contains__(self, number: int) -> bool:
        return number in self.inodes.by_number

    def inode(self, number: int) -> Inode:
        """Return an inode that is known. Raises KeyError for any other number."""
        return self.inodes.by_number[number]

    def require_directory(self, number: int) -> Directory:
        """Return a directory. The kernel asks for nothing else where there must be one."""
        inode = self.inodes.by_number[number]
        if not isinstance(inode, Directory):
            raise NotADirectoryError(number)
        return inode

    def require_version(self, number: int) -> Version:
        """Return a version of a file. The kernel asks for nothing else where there must be one."""
        inode = self.inodes.by_number[number]
        if not isinstance(inode, Version):
            raise IsADirectoryError(number)
        return inode

    def directory(self, key: DirectoryKey) -> Directory:
        """Return the directory at this place, made on first use."""
        directory = self._directories.get(key)
        if directory is None:
            directory = self._directories[key] = Directory(self._numbers.take(key), key)
            self.inodes.add(directory)
        return directory

    def current(self, key: LeafKey) -> Version:
        """Return the version that the path to this place leads to, made unbound on first use."""
        return self._current.get(key) or self._replace(key)

    def known(self, key: DirectoryKey | LeafKey) -> Inode | None:
        """Return what is at this place, if there has been a reason to make an inode for it."""
        if isinstance(key, DirectoryKey):
            return self._directories.get(key)
        return self._current.get(key)

    def is_current(self, version: Version) -> bool:
        """Whether the path to its place still leads to this version."""
        return self._current.get(version.key) is version

    def bind(self, key: LeafKey, answer: int, content: bytes, modified: float) -> Version:
        """Return the version at this place that has this content: the current one, or a new one that replaces it.

        ``answer`` is the serial of the answer that holds the content; one that was seen before is not digested again.
        ``modified`` is when the content was written or first seen; a version keeps the time it was bound with.
        """
        version = self.current(key)
        if version.answer != answer:
            digest = self._memory.digest(content)
            if version.digest and version.digest != digest:
                version = self._replace(key)
            self._give(version, digest, content, modified)
            version.answer = answer
        version.in_doubt = False
        return version

    def successor(self, key: LeafKey) -> Version:
        """Return a new, unbound version that `promote` will make the current one, or `discard` will drop.

        It is another inode even if a reader has found the new content meanwhile: renaming an inode onto itself does
        nothing, and makes no event for watchers.
        """
        return self._new_version(key)

    def superseded(self, key: LeafKey) -> list[Version]:
        """Return the versions that are not current and that the kernel may still have at this place, oldest first.

        Readers were faster than publishing. A watch on one of them hears of the next when `promote` has replaced it.
        """
        return list(self._superseded.get(key, ()))

    def promote(self, version: Version, replaced: Version | None = None) -> Version | None:
        """Make a version the current one of its place. Returns the one that it supersedes.

        ``replaced`` is the one that the kernel had there until now.
        """
        superseded = self._current.get(version.key)
        self._current[version.key] = version
        self._mark(version)
        if replaced is not None:
            self._detach(replaced)
        if superseded is not None and superseded is not version:
            self._supersede(superseded)
        return superseded

    def unlink(self, inode: Inode) -> None:
        """Let no path lead to an inode any more. What comes to its place is another one: the kernel buries the dead."""
        if isinstance(inode, Directory):
            if self._directories.get(inode.key) is inode:
                del self._directories[inode.key]
        else:
            if self.is_current(inode):
                del self._current[inode.key]
            self._detach(inode)
        self._mark(inode)
        self.discard(inode)

    def invalidate(self, component: str) -> None:
        """Take no content of a store's files for right any more, until an answer says so again."""
        self._doubted.add(component)
        for version in self.inodes.files(component):
            version.in_doubt, version.answer = True, 0

    def in_doubt(self) -> list[Version]:
        """Return the versions that are in doubt."""
        found: list[Version] = []
        for component in list(self._doubted):
            doubted = [version for version in self.inodes.files(component) if version.in_doubt]
            found += doubted
            if not doubted:
                self._doubted.discard(component)
        return found

    def detach_store(self, component: str) -> list[Version]:
        """Let no path lead to what is in the directory of a store that has gone. Returns its files."""
        files: list[Version] = []
        for inode in filter(self.inodes.is_in_place, self.inodes.of_store(component)):
            if isinstance(inode, Version):
                files.append(inode)
            elif inode.key == FolderKey(component):
                inode.outdated = True
                self._mark(inode)
            else:
                self.unlink(inode)
        for version in files:
            self.unlink(version)
        return files

    def revoke(self, apps: Collection[str]) -> int:
        """Let nobody read the files of apps any more, whoever has them open. Returns how many may be open."""
        self._numbers.forget(apps)
        unreported = self._journal.kernel_opens  # the report of an open may be on its way
        opened = 0
        for inode in self.inodes.of_apps(apps):
            if isinstance(inode, Version):
                inode.revoked, inode.content = True, None
                self._revoked.add(inode)
                self._let_go(inode)
                opened += (inode.opened or unreported) and is_known(inode)
            elif isinstance(inode.key, PinnedSecretKey):
                inode.revoked = True
            self._mark(inode)
        return opened

    def revoked(self) -> list[tuple[str, Version]]:
        """Return the files of apps that have been removed and whose bytes the kernel may have, each with its app."""
        return [(app_of_key(version.key), version) for version in self._revoked if version.digest]

    def discard(self, inode: Inode) -> None:
        """Drop an inode that was made for the kernel, and that the kernel did not take."""
        if not is_known(inode):
            self._drop_unknown(inode)

    def has_content(self, version: Version, content: bytes, modified: float) -> bool:
        """Whether a version has this content, which it is given if it is unbound or was inherited without its bytes."""
        digest = self._memory.digest(content)
        if version.digest in (b"", digest):
            self._give(version, digest, content, modified)
            version.in_doubt = False
            return True
        return False

    def rebind(self, version: Version, content: bytes, modified: float) -> None:
        """Give a version other content than it had. Call it only if no program has seen its bytes or can see them."""
        version.digest = b""
        self.has_content(version, content, modified)

    def open(self, version: Version, more: float = 0.0) -> None:
        """Take note that a program opens a version now, and that others may for some more seconds."""
        version.opened = True
        used = time.time() + more
        inherited = self.inherited.get(version.key.component)
        if inherited and version.key in inherited:
            inherited[version.key] = used
        if version.slot:
            self._journal.note_use(version.slot, used)

    def holding(self, component: str) -> list[Version]:
        """Return the versions of a store's files whose content is in memory."""
        held = (file for file in self.inodes.files(component) if file.lookups and file.content is not None)
        return [version for version in held if not version.key.pin]

    def bound(self) -> list[Version]:
        """Return all versions of files that have content, or had in the process before us."""
        return [inode for inode in self.inodes if isinstance(inode, Version) and inode.digest]

    def add_ref(self, inode: Inode) -> None:
        """Count a reference that the kernel takes: a lookup, or an entry of a directory listing.

        An inode that was dropped since it was taken out, because the kernel gave up another reference, is back.
        """
        inode.lookups += 1
        if inode.lookups == 1:
            if inode.number not in self.inodes.by_number:
                self.inodes.add(inode)
            if isinstance(inode, Directory):
                self._directories.setdefault(inode.key, inode)
            else:
                self._keep(inode)
            if not inode.slot:
                self._records.write_down(inode, current=self.known(inode.key) is inode)
        self._journal.count(inode.slot, inode.lookups)

    def drop_refs(self, number: int, lookups: int) -> None:
        """Take back references that the kernel gave up."""
        inode = self.inodes.by_number[number]
        inode.lookups -= lookups
        if inode.slot:
            self._journal.count(inode.slot, inode.lookups)
        self._drop_unknown(inode)

    def _restore(self, record: Record) -> None:
        """Take an inode back from the journal."""
        if not record.lookups:  # written down for an answer that the kernel never got
            self._journal.drop(record.slot)
            return
        inode, current = self._records.restored(record)
        if isinstance(inode, Directory):
            if current:
                self._directories[inode.key] = inode
        elif current:
            key = inode.key
            before = self._current.get(key)
            self._current[key] = inode if before is None else max(inode, before, key=self._age)
            if isinstance(key, PinnedValueKey):  # what has to be found out is what its secret is now
                key = ValueKey(key.component, key.name, key.key)
            inherited = self.inherited[key.component]
            inherited[key] = max(record.used, inherited.get(key, 0.0))
        elif inode.linked:
            self._superseded[inode.key] = sorted([*self._superseded[inode.key], inode], key=self._age)
        if isinstance(inode, Version):
            self._keep(inode)
            if inode.in_doubt:
                self._doubted.add(inode.key.component)
            if inode.revoked:
                self._revoked.add(inode)
        self.inodes.add(inode)

    def _age(self, inode: Inode) -> int:
        return self._numbers.age(inode.number)

    def _mark(self, inode: Inode) -> None:
        """Write down what is true of an inode, if the kernel has heard of it."""
        self._records.mark(inode, current=self.known(inode.key) is inode)

    def _drop_unknown(self, inode: Inode) -> None:
        if is_known(inode):
            return
        self._remove(inode)
        if inode.slot:
            self._journal.drop(inode.slot)
            inode.slot = 0
        if isinstance(inode, Directory):
            if self._directories.get(inode.key) is inode:
                del self._directories[inode.key]
            return
        self._detach(inode)
        self._let_go(inode)
        if self.is_current(inode):
            del self._current[inode.key]
        elif inode.key in self._current:  # a successor that nobody has come to look at yet
            self._drop_unknown(self._current[inode.key])

    def _supersede(self, version: Version) -> None:
        """Let another version be the current one. This one stays as long as the kernel has it."""
        if not is_known(version):
            self._detach(version)
            self._let_go(version)
            self._remove(version)
        elif version.linked and version not in self._superseded[version.key]:
            self._superseded[version.key].append(version)
        self._mark(version)

    def _detach(self, version: Version) -> None:
        """Take note that the kernel has it at no path any more."""
        version.linked = False
        if version in self._superseded.get(version.key, ()):
            self._superseded[version.key].remove(version)
            if not self._superseded[version.key]:
                del self._superseded[version.key]
        self._mark(version)

    def _give(self, version: Version, digest: bytes, content: bytes, modified: float) -> None:
        """Bind a version, or keep the newest copy of the content that it has: the cache has the same one."""
        version.content = content
        if new := not version.digest:
            version.digest, version.size, version.modified = digest, len(content), modified
        self._keep(version)
        if new and version.slot:
            self._journal.bind(version.slot, digest, version.size, modified)

    def _keep(self, version: Version) -> None:
        """Take note that a version has content, and keep that for the next process: if the kernel knows it."""
        if version.lookups and version.content is not None:
            version.kept = version.kept or self._memory.hold(version.digest, version.content)

    def _remove(self, inode: Inode) -> None:
        self.inodes.remove(inode)
        if isinstance(inode, Version):
            self._revoked.discard(inode)

    def _let_go(self, version: Version) -> None:
        if version.kept:
            version.kept = False
            self._memory.release(version.digest)

    def _replace(self, key: LeafKey) -> Version:
        superseded = self._current.get(key)
        version = self._current[key] = self._new_version(key)
        if superseded is not None:
            self._supersede(superseded)
        return version

    def _new_version(self, key: LeafKey) -> Version:
        version = Version(self._numbers.take(key), key)
        self.inodes.add(version)
        return version
