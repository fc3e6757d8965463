"""All inodes, by number, by place and by store: what is done about one store looks at no other's. Pure."""

from collections import defaultdict
from collections.abc import Collection, Iterator

from secretfs.fs.inode import Directory, Inode, Version, is_of
from secretfs.fs.keys import (
    AppKey,
    ControlKey,
    ControlsKey,
    DirectoryKey,
    FolderKey,
    LeafKey,
    SecretKey,
    ValueKey,
    app_of,
)
from secretfs.fs.pinned import PinnedInodes


class InodeTable:
    """The inodes of a mount."""

    def __init__(self) -> None:
        self.by_number: dict[int, Inode] = {}
        """For those who only look: each request asks."""
        self._of: defaultdict[str, set[Inode]] = defaultdict(set)
        """By the component of their places."""
        self.directories: dict[DirectoryKey, Directory] = {}
        """The directory that is at a place."""
        self.current: dict[LeafKey, Version] = {}
        """The version that the path to a place leads to."""
        self.pinned = PinnedInodes()
        """Those of single versions of a secret."""

    def __len__(self) -> int:
        return len(self.by_number)

    def __iter__(self) -> Iterator[Inode]:
        return iter(self.by_number.values())

    def add(self, inode: Inode) -> None:
        """Add an inode."""
        self.by_number[inode.number] = inode
        self._of[inode.key.component].add(inode)
        if inode.key.pin:
            self.pinned.add(inode)

    def remove(self, inode: Inode) -> None:
        """Remove an inode, if it is there."""
        if self.by_number.pop(inode.number, None) is None:
            return
        others = self._of[inode.key.component]
        others.remove(inode)
        if not others:
            del self._of[inode.key.component]
        if inode.key.pin:
            self.pinned.discard(inode)

    def is_in_place(self, inode: Inode) -> bool:
        """Whether an inode is what is at its place."""
        if isinstance(inode, Directory):
            return self.directories.get(inode.key) is inode
        return self.current.get(inode.key) is inode

    def of_store(self, component: str) -> list[Inode]:
        """Return those in the directory of a store, with that directory."""
        return [inode for inode in self._of.get(component, ()) if is_of(component, inode.key)]

    def directories_of(self, component: str) -> list[Directory]:
        """Return the directories that are at a place in a store."""
        known = filter(self.is_in_place, self.of_store(component))
        return [inode for inode in known if isinstance(inode, Directory)]

    def pinned_directories(self, component: str) -> list[Directory]:
        """Return the directories of single versions of a store's secrets."""
        return [inode for inode in self._of.get(component, ()) if isinstance(inode, Directory) and inode.key.pin]

    def files(self, component: str) -> list[Version]:
        """Return the versions of a store's files."""
        return [inode for inode in self._of.get(component, ()) if isinstance(inode, Version)]

    def names(self, component: str) -> set[str]:
        """Return the names of all secrets and folders of a store that have a place here."""
        names: set[str] = set()
        for inode in filter(self.is_in_place, self.of_store(component)):
            if isinstance(inode.key, ValueKey | SecretKey):
                names.add(inode.key.name)
            elif isinstance(inode.key, FolderKey) and inode.key.segments:
                names.add("/".join(inode.key.segments))
        return names

    def apps(self) -> frozenset[str]:
        """Return the apps whose directories are here."""
        return frozenset(component for component in self._of if AppKey(component) in self.directories)

    def of_apps(self, apps: Collection[str]) -> list[Inode]:
        """Return those in the stores of apps."""
        return [inode for component, inodes in self._of.items() if app_of(component) in apps for inode in inodes]

    def count(self) -> int:
        """Return how many there are, without those of control files."""
        return len(self) - sum(isinstance(inode.key, ControlsKey | ControlKey) for inode in self._of.get("", ()))
