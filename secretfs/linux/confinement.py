"""What the worker gives up before it opens a store, for itself and for all programs that it starts.

A helper process mounts for it (`secretfs.linux.mounter`). Whatever a store, a library or a hostile answer makes of the
worker, it can neither mount nor load modules nor become another user. Nor can it read the memory of another process, or
write to the directories of the system, unless it is to keep CAP_SYS_PTRACE.
"""

import ctypes
import logging
import os
import resource
import struct
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from secretfs.linux.landlock import restrict, restrict_to
from secretfs.linux.process import CAP_DAC_OVERRIDE, CAP_IPC_LOCK, memory_is_locked
from secretfs.linux.secret_memory import has_swap
from secretfs.linux.system_calls import REFUSED, filter_system_calls

CAP_DAC_READ_SEARCH: Final = 2  # linux/capability.h
CAP_NET_BIND_SERVICE: Final = 10
CAP_SYS_PTRACE: Final = 19
CAP_SYS_ADMIN: Final = 21

NAMES: Final = {
    CAP_DAC_OVERRIDE: "CAP_DAC_OVERRIDE",
    CAP_DAC_READ_SEARCH: "CAP_DAC_READ_SEARCH",
    CAP_NET_BIND_SERVICE: "CAP_NET_BIND_SERVICE",
    CAP_IPC_LOCK: "CAP_IPC_LOCK",
    CAP_SYS_PTRACE: "CAP_SYS_PTRACE",
}
"""Capabilities that a worker may have a use for: to read files and connect to sockets of any owner, and to lock memory
beyond a limit; with some options, to serve metrics at a port below 1024, and to find out whose program opens what."""

_PR_GET_DUMPABLE, _PR_CAPBSET_READ, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 3, 23, 24, 38  # linux/prctl.h
_VERSION_3: Final = 0x20080522  # linux/capability.h
_SETS: Final = struct.Struct("=6I")  # effective, permitted and inheritable; the lower halves, then the upper ones

_FILTERED: Final = list[bool]()
"""Not empty once the filter is there. The kernel tells only that there is a filter, which may be that of a unit."""

log = logging.getLogger(__name__)


class Protection(NamedTuple):
    """What keeps the secrets of a worker, and whether it does."""

    name: str
    holds: bool
    how: str
    """By what it holds, or why it does not."""


_FILES: Final = [Protection("files", holds=False, how="it may write to all directories, and look into other processes")]
"""One, which `confine` replaces: the kernel does not tell."""


def confine(keep: Collection[int], written: Collection[Path] = ()) -> None:
    """Give up all capabilities but those to ``keep``, every way to get one back, and the system calls of `REFUSED`.

    Of the system's directories only those that are ``written`` can be written to from now on, and no process can be
    looked into but those that this one starts. That is not for who keeps CAP_SYS_PTRACE to look into others.

    Call it before there are threads: each has rights of its own. What cannot be done is logged, and the rest is done.
    """
    _attempt(partial(_give_up_rights, keep))
    _attempt(_forbid_new_rights)
    if CAP_SYS_PTRACE in keep:
        _FILES[0] = _FILES[0]._replace(how="with an audit log it has to look into other processes")
    else:
        _attempt(partial(_restrict_files, written))
    if _attempt(filter_system_calls):
        _FILTERED.append(True)


def confine_helper() -> None:
    """Give up, in a process that only makes system calls in our own mount, what that does not take.

    It takes CAP_SYS_ADMIN to make a mount that nobody else sees, and to learn from fanotify(7) who opens a file. See
    `restrict_helper` for the rest. Nobody can be told what cannot be done.
    """
    for give_up in (
        partial(_give_up_rights, (CAP_DAC_OVERRIDE, CAP_SYS_ADMIN)),
        _forbid_new_rights,
        partial(filter_system_calls, ("open_tree", "mount_setattr")),
    ):
        with suppress(OSError):
            give_up()


def restrict_helper(mount: int) -> None:
    """Have such a process write to no file system but the one that ``mount`` is the root of, where there is Landlock.

    Nor can it read the memory of another process. (Since Linux 6.16 CAP_SYS_ADMIN is enough for its environment.)
    """
    with suppress(OSError):
        restrict_to(mount)


def _attempt(give_up: Callable[[], None]) -> bool:
    try:
        give_up()
    except OSError as error:
        log.warning("this process keeps rights that it does not need: %s", error.strerror)
        return False
    return True


def _give_up_rights(keep: Collection[int]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    number = 0
    while libc.prctl(_PR_CAPBSET_READ, number, 0, 0, 0) >= 0:
        if number not in keep:
            libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)  # it takes CAP_SETPCAP; without it, the last step will do
        number += 1
    kept = sum(1 << number for number in keep)
    header = ctypes.create_string_buffer(struct.pack("=Ii", _VERSION_3, 0))
    sets = ctypes.create_string_buffer(_SETS.size)
    _require(libc.capget(header, sets))
    halves = (kept & 0xFFFFFFFF, kept >> 32)
    left = (value & halves[place // 3] for place, value in enumerate(_SETS.unpack(sets.raw[: _SETS.size])))
    _require(libc.capset(header, ctypes.create_string_buffer(_SETS.pack(*left))))


def _forbid_new_rights() -> None:
    _require(ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def _restrict_files(written: Collection[Path]) -> None:
    if not restrict(written):  # as before Linux 5.13: nobody has to be told at each start
        _FILES[0] = _FILES[0]._replace(how="the kernel has no Landlock for it")
    elif Path("/") in written:
        _FILES[0] = _FILES[0]._replace(how="it may write to all directories: an option names a file in /")
    else:
        how = "it may write to no directory of the system, nor look into other processes"
        _FILES[0] = Protection("files", holds=True, how=how)


def _require(result: int) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def protections() -> Iterator[Protection]:
    """Say what protects this process now, and what does not."""
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text("ascii", "replace").splitlines())
    dumpable = ctypes.CDLL(None).prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0) != 0
    dumps = dumpable or resource.getrlimit(resource.RLIMIT_CORE) != (0, 0)
    how = "there may be core dumps of it" if dumps else "it leaves no core dump, and may not be traced"
    yield Protection("core_dumps", not dumps, how)
    locked = memory_is_locked()
    yield Protection("memory", locked or not has_swap(), _memory(locked=locked))
    rights = _capabilities(status["CapPrm"])
    spare = [NAMES.get(number, str(number)) for number in sorted(rights)]
    yield Protection("rights", rights <= NAMES.keys(), f"it has {', '.join(spare) or 'no capability'}")
    closed = status["NoNewPrivs"] == "1"
    how = "no program that it starts gets more" if closed else "a setuid program that it starts gets more"
    yield Protection("no_new_privileges", closed, how)
    how = f"{len(REFUSED)} system calls are refused" if _FILTERED else "it filters no system calls"
    yield Protection("system_calls", bool(_FILTERED), how)
    yield from _FILES


def _memory(*, locked: bool) -> str:
    if locked:
        return "its memory is locked"
    return "its memory may be swapped out" if has_swap() else "its memory is not locked, and there is no swap"


def _capabilities(mask: str) -> set[int]:
    bits = int(mask, 16)
    return {number for number in range(bits.bit_length()) if bits >> number & 1}
