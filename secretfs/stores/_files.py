"""What stores that read files share: whether a file has changed, and how to read one while others write it."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from secretfs.errors import MalformedAnswer, StoreUnavailable

ATTEMPTS = 5
"""How often something that changes while it is read is read again."""
LARGEST = 16 << 20
"""Bytes, as of an answer of a server: the whole file is in memory."""


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """What changes when a file is edited or replaced."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> "FileIdentity":
        """Take it from what stat(2) says."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def read_file(path: Path, largest: int = LARGEST) -> tuple[FileIdentity, bytes]:
    """Read a regular file together with its identity. Raises `StoreError` and OSError."""
    # O_NONBLOCK: opening a FIFO must not wait for a writer.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        return read_unchanging(file, str(path), largest)


def read_unchanging(file: IO[bytes], name: str, largest: int = LARGEST) -> tuple[FileIdentity, bytes]:
    """Read an open regular file together with the identity that it had during the whole read.

    Raises `StoreError`, whose text begins with ``name``, and OSError.
    """
    for _ in range(ATTEMPTS):
        before = os.fstat(file.fileno())
        if not stat.S_ISREG(before.st_mode):
            raise StoreUnavailable(f"{name}: not a regular file")
        file.seek(0)
        data = b"" if before.st_size > largest else file.read(largest + 1)
        if max(len(data), before.st_size) > largest:
            raise MalformedAnswer(f"{name}: larger than {largest >> 20} MiB")
        if _same_content(before, os.fstat(file.fileno())):
            return FileIdentity.of(before), data
    raise StoreUnavailable(f"{name}: changes faster than it can be read")


def _same_content(before: os.stat_result, after: os.stat_result) -> bool:
    """Tell whether an open file was not written to between two stats. A rename over it is no write to it."""
    if after.st_nlink < before.st_nlink:  # that has set its ctime, which proves nothing any more
        return (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
    return FileIdentity.of(before) == FileIdentity.of(after)
