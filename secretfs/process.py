"""What the process that holds secrets does about itself: no core dumps, no ptrace, no swap."""

import ctypes
import logging
import os
import resource
from pathlib import Path

_PR_SET_DUMPABLE = 4  # linux/prctl.h
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4  # asm-generic/mman.h
_EVERYBODY = ["0", "0", "4294967295"]  # user_namespaces(7): the map of the initial user namespace

log = logging.getLogger(__name__)


def protect_memory() -> None:
    """Keep secrets in memory: off the disk as a core dump or in swap, and away from other processes of this user."""
    libc = ctypes.CDLL(None, use_errno=True)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    dump_no_core()
    if not _may_lock_everything():
        if _has_swap():
            log.warning("memory may be swapped out: raise the limit for locked memory (LimitMEMLOCK=infinity)")
        return
    # ONFAULT: lock pages when they are touched, not the whole stack of every thread that is ever started.
    if libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) != 0:
        log.warning("cannot lock memory: %s", os.strerror(ctypes.get_errno()))


def dump_no_core() -> None:
    """Leave no core dump, whatever the limits say, and let nobody trace us. Programs that are started may do both."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        log.warning("cannot forbid core dumps and ptrace: %s", os.strerror(ctypes.get_errno()))


def _may_lock_everything() -> bool:
    """Under a finite limit a later allocation would fail, which is worse than a page that can be swapped."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return soft == resource.RLIM_INFINITY or _has_ipc_lock()


def _has_ipc_lock() -> bool:
    """Whether the limit does not count. In a user namespace it does, whatever one may do there (can_do_mlock)."""
    if Path("/proc/self/uid_map").read_text("ascii").split() != _EVERYBODY:
        return False
    effective = next(
        line.split()[1]
        for line in Path("/proc/self/status").read_text("ascii").splitlines()
        if line.startswith("CapEff")
    )
    return bool(int(effective, 16) & 1 << 14)  # CAP_IPC_LOCK


def _has_swap() -> bool:
    swaps = Path("/proc/swaps")  # absent from a kernel that cannot swap
    return swaps.exists() and len(swaps.read_bytes().splitlines()) > 1
