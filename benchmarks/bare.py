"""The least a file system on pyfuse3 can do: what secretfs costs beyond it is our own doing.

    python -m benchmarks.bare NAMES MOUNTPOINT

One directory, ``store``, with NAMES files whose bytes are in memory. The kernel is told the same as by secretfs: mount
options, timeouts, keep_cache, FLUSH answered with ENOSYS. It counts the requests of the kernel and tells the number as
the extended attribute ``user.requests`` of its root. Prints a line once it answers.
"""

import errno
import os
import stat
import sys

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileHandleT, FileInfo, FileNameT, FlagT, InodeT, ReaddirToken, RequestContext

from benchmarks.names import STORE, file_names, value

# As in secretfs/mount.py and secretfs/vfs.py, which are not imported: they would bring the rest of secretfs along.
_MOUNT_OPTIONS = {"ro", "nosuid", "nodev", "noexec", "fsname=bare", "subtype=bare"}
_MAX_TASKS = 10_000
_DIRECTORY_TIMEOUT = 60.0
_FILE_TIMEOUT = 3600.0

_STORE_INODE = InodeT(pyfuse3.ROOT_INODE + 1)


class Bare(pyfuse3.Operations):
    """Files in memory, by inode number."""

    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(self, names: int) -> None:
        super().__init__()
        first = _STORE_INODE + 1
        self._inodes = {name.encode(): InodeT(first + index) for index, name in enumerate(file_names(names))}
        self._contents = {InodeT(first + index): value(index) for index in range(names)}
        self._requests = 0

    async def lookup(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> EntryAttributes:
        """Find a name."""
        self._requests += 1
        if parent_inode == pyfuse3.ROOT_INODE and name == STORE.encode():
            return self._attributes(_STORE_INODE)
        if parent_inode == _STORE_INODE and name in self._inodes:
            return self._attributes(self._inodes[name])
        raise pyfuse3.FUSEError(errno.ENOENT)

    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        """Return attributes."""
        self._requests += 1
        return self._attributes(inode)

    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        """Open a directory."""
        self._requests += 1
        return FileHandleT(inode)

    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        """List a directory."""
        self._requests += 1
        entries = list(self._inodes.items()) if fh == _STORE_INODE else [(STORE.encode(), _STORE_INODE)]
        for offset, (name, inode) in enumerate(entries[start_id:], start_id + 1):
            if not pyfuse3.readdir_reply(token, FileNameT(name), self._attributes(inode), offset):
                break

    async def releasedir(self, fh: FileHandleT) -> None:
        """Close a directory."""
        self._requests += 1

    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        """Open a file."""
        self._requests += 1
        return FileInfo(fh=FileHandleT(inode), keep_cache=True)

    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        """Read from a file."""
        self._requests += 1
        return self._contents[InodeT(fh)][off : off + size]

    async def flush(self, fh: FileHandleT) -> None:
        """Make the kernel stop asking."""
        self._requests += 1
        raise pyfuse3.FUSEError(errno.ENOSYS)

    async def release(self, fh: FileHandleT) -> None:
        """Close a file."""
        self._requests += 1

    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        """Answer."""
        self._requests += 1
        return pyfuse3.StatvfsData()

    async def getxattr(self, inode: InodeT, name: bytes, ctx: RequestContext) -> bytes:
        """Say how many requests there were; this kind is not counted."""
        if name != b"user.requests":
            raise pyfuse3.FUSEError(pyfuse3.ENOATTR)
        return str(self._requests).encode()

    def _attributes(self, inode: InodeT) -> EntryAttributes:
        entry = EntryAttributes()
        entry.st_ino = inode
        entry.st_nlink = 1
        if inode in self._contents:
            entry.st_mode = stat.S_IFREG | 0o400
            entry.st_size = len(self._contents[inode])
            entry.attr_timeout = entry.entry_timeout = _FILE_TIMEOUT
        else:
            entry.st_mode = stat.S_IFDIR | 0o500
            entry.attr_timeout = entry.entry_timeout = _DIRECTORY_TIMEOUT
        entry.st_uid, entry.st_gid = os.getuid(), os.getgid()
        return entry


async def _announce(mountpoint: str) -> None:
    await trio.to_thread.run_sync(os.statvfs, mountpoint)
    print("mounted", flush=True)


async def _serve(mountpoint: str) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_announce, mountpoint)
        await pyfuse3.main(max_tasks=_MAX_TASKS)


def main() -> None:
    """Mount and serve until unmounted."""
    names, mountpoint = sys.argv[1:]
    pyfuse3.init(Bare(int(names)), mountpoint, {*pyfuse3.default_options, *_MOUNT_OPTIONS})
    try:
        trio.run(_serve, mountpoint)
    finally:
        pyfuse3.close()


if __name__ == "__main__":
    main()
