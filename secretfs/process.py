"""What the process that holds secrets does about itself, and what it may do: no core dumps, no ptrace, no swap."""

import ctypes
import logging
import os
import resource
from pathlib import Path

from secretfs.errors import ConfigurationError

_PR_SET_DUMPABLE = 4  # linux/prctl.h
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4  # asm-generic/mman.h

log = logging.getLogger(__name__)


def protect_memory() -> None:
    """Keep secrets in memory: off the disk as a core dump or in swap, and away from other processes of this user."""
    libc = ctypes.CDLL(None, use_errno=True)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        log.warning("cannot forbid core dumps and ptrace: %s", os.strerror(ctypes.get_errno()))
    if not _may_lock_everything():
        if _has_swap():
            log.warning("memory may be swapped out: raise the limit for locked memory (LimitMEMLOCK=infinity)")
        return
    # ONFAULT: lock pages when they are touched, not the whole stack of every thread that is ever started.
    if libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) != 0:
        log.warning("cannot lock memory: %s", os.strerror(ctypes.get_errno()))


def require_owner(uid: int | None) -> None:
    """Raise `ConfigurationError` if we could not get into a mount that belongs to this user, as publishing takes."""
    if uid not in (None, os.geteuid()) and not _capabilities() & 1 << 1:  # CAP_DAC_OVERRIDE
        raise ConfigurationError(
            f"--uid {uid}: only root may give the files to another user; leave --uid out, mount as user {uid}, "
            "or let others in with --allow-other and --gid or --mode"
        )


def _may_lock_everything() -> bool:
    """Under a finite limit a later allocation would fail, which is worse than a page that can be swapped."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return soft == resource.RLIM_INFINITY or _has_ipc_lock()


def _has_ipc_lock() -> bool:
    return bool(_capabilities() & 1 << 14)  # CAP_IPC_LOCK


def _capabilities() -> int:
    effective = next(
        line.split()[1]
        for line in Path("/proc/self/status").read_text("ascii").splitlines()
        if line.startswith("CapEff")
    )
    return int(effective, 16)


def _has_swap() -> bool:
    swaps = Path("/proc/swaps")  # absent from a kernel that cannot swap
    return swaps.exists() and len(swaps.read_bytes().splitlines()) > 1
