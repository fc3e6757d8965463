"""Directories as the kernel reads them: snapshots of their names, and when the kernel is to list them anew.

Where the kernel opens directories by itself it keeps what it has listed. `secretfs.fs.inode.Directory` says how that
expires; here it is ended at once, when names change.
"""

import time
from collections.abc import Iterator
from dataclasses import replace

import trio

from secretfs.cache.change import Change
from secretfs.errors import Superseded
from secretfs.fs.content import Contents
from secretfs.fs.control_files import ControlDirectory
from secretfs.fs.entries import list_directory
from secretfs.fs.handles import DirectoryHandles, directory_of, locate, position
from secretfs.fs.inode import Directory
from secretfs.fs.inodes import Tree
from secretfs.fs.kernel import Kernel
from secretfs.fs.keys import DirectoryKey, FolderKey, RootKey, SecretKey, parent_of
from secretfs.fs.listing import Key, Listing
from secretfs.fs.names import split


class Directories:
    """Lists the directories of a tree for the kernel. ``born`` is when it was mounted, in seconds since the epoch."""

    def __init__(self, tree: Tree, contents: Contents, controls: ControlDirectory, kernel: Kernel, born: float) -> None:
        self._tree = tree
        self._contents = contents
        self._controls = controls
        self._kernel = kernel
        self._born = born
        self._handles = DirectoryHandles()

    async def open(self, number: int) -> int:
        """Take a snapshot of a directory; returns a handle for `read` and `close`."""
        return self._handles.open(number, *await self._list(self._tree.require_directory(number)))

    async def read(self, handle: int, start: int) -> tuple[Iterator[tuple[int, bytes, Key]], float]:
        """Return ``(position of the next, segment, key)`` from ``start`` on, and for how many seconds they hold.

        The handle is that of `open`, or the inode number of a directory that the kernel has opened by itself. Raises
        `Superseded` if the directory was opened before this process took over, and holds other names by now.
        """
        opened, place = locate(handle, start)
        number = directory_of(handle)
        directory = self._tree.require_directory(number)
        if opened == number and not start:
            opened = await self._begin_to_read(directory)
        snapshot = self._handles.get(opened, trio.current_time())
        if snapshot is None:
            listing = await list_directory(self._contents, self._controls, directory.key)
            snapshot = self._handles.restore(opened, *listing)
            if snapshot is None:
                raise Superseded(f"directory {number} has changed since it was opened")
        entries = snapshot.listing.starting_at(place)
        listed = ((position(handle, snapshot, following), segment, key) for following, segment, key in entries)
        return listed, max(0.0, snapshot.expires - trio.current_time())

    async def _begin_to_read(self, directory: Directory) -> int:
        """List a directory for the kernel, which may keep what it gets."""
        before, known = directory.modified, directory.listed
        listing, expires = await self._list(directory)
        if directory.modified != before or known not in (None, listing.digest):
            self._change(directory)  # while we have looked, or without anybody's notice
        directory.listed, directory.listed_until = listing.digest, expires
        if directory.known_until > expires:
            self._forget_attributes(directory)
        return self._handles.keep(directory.number, listing, expires)

    async def _list(self, directory: Directory) -> tuple[Listing, float]:
        listing, expires = await list_directory(self._contents, self._controls, directory.key)
        if isinstance(directory.key, FolderKey):
            self._contents.view(directory.key.component).note_listing(listing)
        return listing, expires

    def close(self, handle: int) -> None:
        """Drop a snapshot."""
        self._handles.close(handle)

    def drop_idle(self) -> None:
        """Drop the snapshots whose end nobody tells us. Call it at times."""
        self._handles.drop_idle(trio.current_time())

    def note(self, change: Change) -> None:
        """Have the kernel list anew what a change concerns. The time of a directory tells no app of what is hidden."""
        view = self._contents.views.get(change.component)
        names = change.names if view is None else frozenset(filter(view.may_show, change.names))
        for key in _concerned(replace(change, names=names)):
            directory = self._tree.known(key)
            if isinstance(directory, Directory):
                self._change(directory)

    def note_all(self, component: str) -> None:
        """Have the kernel list every directory of a store anew: another one is shown there, or another part of it."""
        for directory in self._tree.inodes.directories_of(component):
            self._change(directory)

    def _change(self, directory: Directory) -> None:
        directory.change(time.time(), self._born)
        self._forget_attributes(directory)

    def _forget_attributes(self, directory: Directory) -> None:
        """Have the kernel ask for the attributes again, if it may still take others for right."""
        if directory.lookups and directory.known_until > trio.current_time():
            directory.known_until = 0.0
            self._kernel.forget_attributes(directory.number)


def _concerned(change: Change) -> set[DirectoryKey]:
    """Return the directories whose names a change may have changed."""
    keys: set[DirectoryKey] = {SecretKey(change.component, name) for name, _ in change.values}
    for name in change.names:
        path = split(name)
        keys.update(FolderKey(change.component, path[:depth]) for depth in range(len(path)))
    if change.whole:
        keys.add(parent_of(change.component))
        if change.component.endswith("/"):  # an app; of its stores no other app is to see anything
            keys.add(RootKey())
    return keys
