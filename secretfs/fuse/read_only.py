"""The requests of FUSE that would change something."""

import errno
from typing import NoReturn

import pyfuse3
from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FileNameT,
    FlagT,
    InodeT,
    ModeT,
    RequestContext,
    SetattrFields,
    XAttrNameT,
)


class ReadOnlyOperations(pyfuse3.Operations):
    """Refuses every request that would change something, with EROFS.

    The file system itself cannot be ``ro``: `secretfs.fs.publish` renames in it, and a user's mount is writable. The
    answer of pyfuse3 is ENOSYS, which the kernel remembers and shows to programs as "not implemented".
    """

    async def setattr(
        self, inode: InodeT, attr: EntryAttributes, fields: SetattrFields, fh: FileHandleT | None, ctx: RequestContext
    ) -> EntryAttributes:
        """Refuse chmod, chown, truncate and utime."""
        _refuse()

    async def mknod(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        """Refuse."""
        _refuse()

    async def create(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, flags: FlagT, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        """Refuse."""
        _refuse()

    async def symlink(
        self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        """Refuse."""
        _refuse()

    async def link(
        self, inode: InodeT, new_parent_inode: InodeT, new_name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        """Refuse."""
        _refuse()

    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        """Refuse."""
        _refuse()

    async def setxattr(self, inode: InodeT, name: XAttrNameT, value: bytes, ctx: RequestContext) -> None:
        """Refuse."""
        _refuse()

    async def removexattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> None:
        """Refuse."""
        _refuse()


def _refuse() -> NoReturn:
    raise pyfuse3.FUSEError(errno.EROFS)
