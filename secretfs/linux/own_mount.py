"""System calls in our own mount, and nowhere else, whatever path is asked for.

Who asks may have been taken over, may rename directories on the way to the mount point, and answers for the file system
itself. So the mount point is said before that, what is mounted there has to be a secretfs, as the table of mounts says,
and below it a path is followed over no link and into no other mount.
"""

import ctypes
import errno
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from secretfs.linux.beneath import open_beneath
from secretfs.linux.mount_api import writable
from secretfs.linux.mountinfo import FSTYPE, mounts

_AT_EMPTY_PATH, _AT_STATX_DONT_SYNC = 0x1000, 0x4000  # linux/fcntl.h
_STATX: Final = 256  # bytes of struct statx (linux/stat.h), and where the device is in it
_DEVICE: Final = struct.Struct("=II")
_DEVICE_AT: Final = 136

_LIBC: Final = ctypes.CDLL(None, use_errno=True)


class OwnMount:
    """The file system at a mount point, if it is of our type.

    ``device``, if given, is the minor device number of the mount. It is read-only then, and a call is made through
    another mount of it, which is writable and which nobody else sees. All calls raise OSError: EPERM for a path that is
    not of the mount point, ENOENT if there is no mount of ours, or another file system covers it.

    ``found`` is called with a descriptor of its root when it is used for the first time.
    """

    def __init__(self, mountpoint: bytes, found: Callable[[int], None] = lambda _: None, fstype: str = FSTYPE) -> None:
        self._mountpoint = mountpoint
        self._found = found
        self._fstype = fstype
        self._device: tuple[int, int] | None = None
        """The device that the table of mounts was looked up for. To read it takes long where there are many mounts."""

    def rename(self, device: int | None, old: bytes, new: bytes) -> None:
        """Rename an entry of a directory."""
        directory, name = self._split(old)
        target, new_name = self._split(new)
        if target != directory:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        with self._open(directory, device) as parent:
            os.rename(name, new_name, src_dir_fd=parent, dst_dir_fd=parent)

    def mkdir(self, device: int | None, path: bytes) -> None:
        """Make a directory."""
        with self._entry(device, path) as (parent, name):
            os.mkdir(name, dir_fd=parent)

    def unlink(self, device: int | None, path: bytes) -> None:
        """Remove a file."""
        with self._entry(device, path) as (parent, name):
            os.unlink(name, dir_fd=parent)

    def rmdir(self, device: int | None, path: bytes) -> None:
        """Remove a directory."""
        with self._entry(device, path) as (parent, name):
            os.rmdir(name, dir_fd=parent)

    def lstat(self, device: int | None, path: bytes) -> None:
        """Look an entry up, and ask for its attributes."""
        with self._entry(device, path) as (parent, name):
            os.stat(name, dir_fd=parent, follow_symlinks=False)

    def statvfs(self, device: int | None, path: bytes) -> None:
        """Look a path up, and ask the file system about itself."""
        if not self._relative(path):
            with self._open(b"", device) as root:
                os.fstatvfs(root)
            return
        with self._entry(device, path) as (parent, name):
            found = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            try:
                os.fstatvfs(found)
            finally:
                os.close(found)

    @contextmanager
    def directory(self, path: bytes, device: int | None = None) -> Iterator[int]:
        """Open a directory, without the right to read it."""
        with self._open(self._relative(path), device) as opened:
            yield opened

    @contextmanager
    def _entry(self, device: int | None, path: bytes) -> Iterator[tuple[int, bytes]]:
        """Open the directory of an entry. Yields its descriptor, and the name in it."""
        directory, name = self._split(path)
        with self._open(directory, device) as parent:
            yield parent, name

    def _split(self, path: bytes) -> tuple[bytes, bytes]:
        """Return the directory and the name of an entry."""
        directory, _, name = self._relative(path).rpartition(b"/")
        if name in (b"", b".", b".."):
            raise PermissionError(errno.EPERM, "that is no entry")
        return directory, name

    def _relative(self, path: bytes) -> bytes:
        if path == self._mountpoint:
            return b""
        if not path.startswith(self._mountpoint + b"/"):
            raise PermissionError(errno.EPERM, "that is not below the mount point")
        return path[len(self._mountpoint) + 1 :].rstrip(b"/")

    @contextmanager
    def _open(self, directory: bytes, device: int | None) -> Iterator[int]:
        with self._root(device) as root:
            if not directory:
                yield root
                return
            opened = open_beneath(root, directory)
            try:
                self._require_ours(opened, device)  # without openat2(2) it may be another's
                yield opened
            finally:
                os.close(opened)

    @contextmanager
    def _root(self, device: int | None) -> Iterator[int]:
        if device is not None:
            with writable(self._mountpoint) as mount:
                self._require_ours(mount, device)
                yield mount
            return
        root = os.open(self._mountpoint, os.O_PATH | os.O_CLOEXEC)
        try:
            self._require_ours(root, device)
            yield root
        finally:
            os.close(root)

    def _require_ours(self, descriptor: int, minor: int | None) -> None:
        device = device_of(descriptor)
        if minor is not None and device != (0, minor):
            raise _nothing_of_ours()
        if device != self._device:
            there = f"{device[0]}:{device[1]}", self._fstype, str(Path(os.fsdecode(self._mountpoint)))
            if not any((mount.device, mount.fstype, mount.path) == there for mount in mounts()):
                raise _nothing_of_ours()
            if self._device is None:
                self._found(descriptor)
            self._device = device


def device_of(descriptor: int) -> tuple[int, int]:
    """Return the device of what a descriptor is of, major and minor, and ask no file system. Raises OSError."""
    answer = ctypes.create_string_buffer(_STATX)
    if _LIBC.statx(descriptor, b"", _AT_EMPTY_PATH | _AT_STATX_DONT_SYNC, 0, answer) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    major, minor = _DEVICE.unpack_from(answer, _DEVICE_AT)
    return major, minor


def _nothing_of_ours() -> OSError:
    return FileNotFoundError(errno.ENOENT, "nothing of ours is mounted there")
