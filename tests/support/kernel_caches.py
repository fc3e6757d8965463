"""The kernel's caches belong to the whole machine, and so to all tests that run at once.

Whoever empties them does so for every mount. A test that rests on what the kernel has kept says so, and nobody empties
the caches meanwhile.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from enum import Enum
from pathlib import Path

_DROP = Path("/proc/sys/vm/drop_caches")


class Caches(Enum):
    """What can be emptied: proc_sys_vm(5)."""

    PAGES = "1"
    NAMES = "2"
    """Dentries and inodes."""
    ALL = "3"


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Have no other test empty the kernel's caches. Without root no test here can, and nothing is to do."""
    if os.geteuid() != 0:
        yield
        return
    with _DROP.open("w", encoding="ascii") as lock:  # nothing is written
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield


def drop(caches: Caches) -> None:
    """Have the kernel empty its caches, as root, as soon as no test rests on them. Not to be called within `kept`."""
    with _DROP.open("w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(caches.value)
