"""Notice that the content of files changes, in mounts that may come and go meanwhile.

A change is a file that has other content than when it was last read, or one that was never there before. A file that
goes, as all do at an unmount, is none: whether it comes back as it was is decided then. Contents are compared by keyed
hashes, so no value stays in memory.

Every look reads all files. That also keeps their values in use, without which a mount announces no change of them.
"""

import contextlib
import hashlib
import logging
import os
import secrets
import select
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from secretfs.linux.inotify import DirectoryWatches

LOOK_EVERY: Final = 60.0
"""Seconds from one look to the next if nothing happens."""
RETRY_AFTER: Final = 5.0
"""Seconds until the next look if a file could not be read."""

_BLOCK: Final = 1 << 20  # bytes

log = logging.getLogger(__name__)


class PathWatch:
    """The files at and below some paths. A path need not exist yet."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = tuple(paths)
        self._key = secrets.token_bytes(32)
        self._known: dict[Path, bytes] = {}
        self._unread = dict[Path, str]()
        """Files that could not be read at the last look, with the reasons."""
        self._watches = DirectoryWatches()
        self._mounts = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)

    @property
    def next_look(self) -> float:
        """Seconds until the next look if nothing happens."""
        return RETRY_AFTER if self._unread else LOOK_EVERY

    def register(self, poll: select.poll) -> None:
        """Have ``poll`` wake when a look is worth while. Register again after every look."""
        poll.register(self._watches.descriptor, select.POLLIN)
        poll.register(self._mounts, select.POLLPRI)  # something was mounted or unmounted (proc_pid_mountinfo(5))

    def look(self) -> bool:
        """Read all files. Returns whether one has changed since the last look."""
        before, self._watches = self._watches, DirectoryWatches()
        before.close()  # a directory may have become another one
        unread, self._unread = self._unread, {}
        changed = False
        for path in self._paths:
            self._watch_above(path)
            for file in self._files(path):
                digest = self._digest(file)
                if digest is not None and self._known.get(file) != digest:
                    self._known[file] = digest
                    changed = True
        for path, reason in self._unread.items():
            if unread.get(path) != reason:
                log.warning("%s: %s; it is tried again", path, reason)
        return changed

    def _watch_above(self, path: Path) -> None:
        """Watch the directory that a path is in, or the nearest one above it."""
        for directory in path.parents:
            with contextlib.suppress(OSError):
                self._watches.add(directory)
                return

    def _files(self, path: Path) -> Iterator[Path]:
        """Yield the files at or below a path. Each directory is watched before it is read: nothing is missed."""
        try:
            self._watches.add(path)
            below = sorted(path.iterdir())
        except NotADirectoryError:
            yield path
        except OSError as error:
            self._failed(path, error)
        else:
            for entry in below:
                yield from self._files(entry)

    def _digest(self, file: Path) -> bytes | None:
        """Return a hash of what is in a file, or None if it cannot be read."""
        digest = hashlib.blake2b(key=self._key)
        try:
            with file.open("rb", buffering=0) as opened:
                while block := opened.read(_BLOCK):
                    digest.update(block)
        except OSError as error:
            self._failed(file, error)
            return None
        return digest.digest()

    def _failed(self, path: Path, error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            self._unread[path] = error.strerror or type(error).__name__
