"""The privileges of this process, and the protection of its secrets: no core dumps, no ptrace, no swap."""

import ctypes
import logging
import os
import resource
from pathlib import Path
from typing import Final

from secretfs.errors import ConfigurationError, Notice
from secretfs.linux.secret_memory import has_swap

CAP_DAC_OVERRIDE: Final = 1  # linux/capability.h
CAP_IPC_LOCK: Final = 14
CAP_SYS_ADMIN: Final = 21

_PR_SET_DUMPABLE = 4  # linux/prctl.h
_PR_SET_NAME = 15
_EVERYBODY = ["0", "0", "4294967295"]  # user_namespaces(7): the map of the initial user namespace
_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8  # malloc.h
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4  # asm-generic/mman.h

_LOCKED: Final = list[bool]()
"""Not empty once all memory is locked. That some is, the kernel tells; secret memory always is."""

log = logging.getLogger(__name__)


def protect_memory() -> None:
    """Keep secrets out of core dumps, out of swap, and from other processes of this user."""
    return_freed_memory()
    for notice in (forbid_dumps(), lock_memory()):
        if notice is not None:
            notice.log_to(log)


def return_freed_memory() -> None:
    """Let every block of 2 MiB or more go back to the system when it is freed, and what it held with it.

    Left to itself, glibc keeps blocks of up to 32 MiB for reuse once some have been freed: eight values of 15 MiB, read
    at once, left 500 MiB behind. And it keeps memory for each thread (an arena), which another cannot use: 1 MiB for a
    store that calls a server. Threads of Python hardly ever allocate at the same time. A libc without mallopt(3) has no
    such habits.

    Call it before there are threads.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 2 << 20)  # a read through the kernel is of 1 MiB at most
        mallopt(_M_ARENA_MAX, 1)


def forbid_dumps() -> Notice | None:
    """Forbid core dumps of this process and those that it starts, and ptrace by other processes of its user.

    Returns a notice if that fails.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return hide_memory()


def hide_memory() -> Notice | None:
    """Forbid core dumps of this process alone, and ptrace by others of its user. Returns a notice if that fails."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) == 0:
        return None
    reason = os.strerror(ctypes.get_errno())
    fix = "let the seccomp filter here allow prctl(2)"
    return Notice(f"cannot forbid core dumps and ptrace: {reason}", fix=fix, unsafe=True)


def lock_memory() -> Notice | None:
    """Keep the memory of this process out of swap, if there is any. Returns a notice if that fails."""
    if not _may_lock_everything():
        if not has_swap():
            return None
        fix = "raise the limit for locked memory (LimitMEMLOCK=infinity)"
        return Notice("memory may be swapped out", fix=fix, unsafe=True)
    # ONFAULT: lock pages when they are touched, not the whole stack of every thread that is ever started.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) == 0:
        _LOCKED.append(True)
        return None
    reason = os.strerror(ctypes.get_errno())
    fix = "encrypt the swap, or do without it (swapoff -a)"
    return Notice(f"cannot lock memory: {reason}", fix=fix, unsafe=True)


def memory_is_locked() -> bool:
    """Whether `lock_memory` has locked all memory of this process, that which it gets later included."""
    return bool(_LOCKED)


def has_capability(number: int) -> bool:
    """Tell whether this process has a capability in its user namespace (capabilities(7))."""
    return bool(int(_status("CapEff"), 16) & 1 << number)


def may_gain_privileges() -> bool:
    """Tell whether a setuid program that this process starts gets its owner's rights (PR_SET_NO_NEW_PRIVS)."""
    return _status("NoNewPrivs") == "0"


def set_name(name: str) -> None:
    """Set the name of this process, of at most 15 bytes, and of those that it forks: what ps -c and top show."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)


def _status(field: str) -> str:
    text = Path("/proc/self/status").read_text("ascii", errors="replace")
    return next(line.split()[1] for line in text.splitlines() if line.startswith(f"{field}:"))


def require_owner(uid: int | None) -> None:
    """Raise `ConfigurationError` if we could not get into a mount that belongs to this user, as publishing takes."""
    if uid not in (None, os.geteuid()) and not has_capability(CAP_DAC_OVERRIDE):
        raise ConfigurationError(
            f"--uid {uid}: only root may give the files to another user; leave --uid out, mount as user {uid}, "
            "or let others in with --allow-other and --gid or --mode"
        )


def _may_lock_everything() -> bool:
    """Under a finite limit a later allocation would fail, which is worse than a page that can be swapped."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return soft == resource.RLIM_INFINITY or (has_capability(CAP_IPC_LOCK) and _is_in_initial_namespace())


def _is_in_initial_namespace() -> bool:
    """Whether rights lift limits: in a user namespace of our own the limit counts all the same (can_do_mlock)."""
    return Path("/proc/self/uid_map").read_text("ascii").split() == _EVERYBODY
