"""Which files programs use. A use is an open; a stat or a listing is none.

What is in use is kept fresh in the background, and leaves memory only ``idle`` after its last use.
"""

from secretfs.fs.content import Contents
from secretfs.fs.inode import Version
from secretfs.fs.inodes import Tree
from secretfs.fs.keys import ControlKey, PinnedSecretKey


class Uses:
    """Takes note of opens, whoever tells of them: the kernel by a request, or `secretfs.fuse.opens`."""

    def __init__(self, tree: Tree, contents: Contents) -> None:
        self._tree = tree
        self._contents = contents

    def note(self, number: int) -> None:
        """Take note that a file has been opened. One that is not known any more, and a control file, do not count."""
        inode = self._tree.inode(number) if number in self._tree else None
        if isinstance(inode, Version) and not isinstance(inode.key, ControlKey):
            self._tree.open(inode)
            self._contents.use(inode.key)

    def note_all(self) -> None:
        """Take note that any file may have been opened."""
        for component in self._contents.views:
            for version in self._tree.holding(component):
                self.note(version.number)
            for directory in self._tree.inodes.pinned_directories(component):
                if isinstance(directory.key, PinnedSecretKey):
                    self._contents.use(directory.key)
