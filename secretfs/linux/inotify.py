"""Whether entries of directories come, go or are replaced: inotify(7)."""

import ctypes
import os
from pathlib import Path
from typing import Final

# sys/inotify.h
_MASK: Final = 0x8 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x800
"""IN_CLOSE_WRITE, IN_MOVED_FROM, IN_MOVED_TO, IN_CREATE, IN_DELETE, IN_DELETE_SELF, IN_MOVE_SELF."""
_ONLY_DIRECTORIES: Final = 0x01000000


class DirectoryWatches:
    """Watches on directories, which keep no mount busy. ``descriptor`` is readable when something has changed."""

    def __init__(self) -> None:
        """Begin without any. Raises OSError if this user has no more of them."""
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.descriptor: int = self._libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if self.descriptor < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def add(self, directory: Path) -> None:
        """Watch a directory; twice is no error. Raises OSError."""
        mask = _MASK | _ONLY_DIRECTORIES
        if self._libc.inotify_add_watch(self.descriptor, os.fsencode(directory), mask) < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(directory))

    def close(self) -> None:
        """End all watches."""
        os.close(self.descriptor)
