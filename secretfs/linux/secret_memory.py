"""Memory for secrets that can be handed to another process: it has no name, and is never written to a disk.

memfd_secret(2) takes its pages out of the kernel's own view of the memory: they are not swapped, they are not in an
image of hibernation, and neither ptrace(2) nor /proc/PID/mem gets at them. Its file cannot be opened by its path in
/proc either; whoever has the descriptor maps it.
"""

import ctypes
import fcntl
import mmap
import os
from pathlib import Path
from typing import Final

_MEMFD_SECRET: Final = 447  # asm-generic/unistd.h, the same on all architectures that have it


def create(size: int) -> int:
    """Return the descriptor of new memory of a size in bytes.

    Where the kernel has no secret memory, or not that much for this user (RLIMIT_MEMLOCK), it is a memory file like any
    other, if there is no swap for it to be written to. Raises OSError if there is.
    """
    try:
        return _secret(size)
    except OSError:
        if has_swap():
            raise
    descriptor = os.memfd_create("secretfs-values", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return descriptor


def has_swap() -> bool:
    """Whether memory may be written to a disk."""
    swaps = Path("/proc/swaps")  # absent from a kernel that cannot swap
    return swaps.exists() and len(swaps.read_bytes().splitlines()) > 1


def _secret(size: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor: int = libc.syscall(_MEMFD_SECRET, os.O_CLOEXEC)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    try:
        os.ftruncate(descriptor, size)
        mmap.mmap(descriptor, size).close()  # what the limit forbids shows now
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
