"""Keep a process, and all that it starts, from writing to the system's directories and from tracing: landlock(7).

What credentials, caches and logs the programs of stores write is not known, so everything may be written but what is
the system's. Reading and running are as free as before. Landlock also forbids to trace, and to look into, all processes
but those that the process starts: see ptrace(2), PTRACE_MODE_READ.
"""

import ctypes
import errno
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

SYSTEM: Final = frozenset(
    ["bin", "boot", "efi", "etc", "lib", "lib32", "lib64", "libx32", "proc", "run", "sbin", "sys", "usr"]
)
"""Entries of ``/`` that are not written to."""

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # asm-generic/unistd.h, the same on all architectures
_VERSION, _PATH_BENEATH = 1, 1  # linux/landlock.h, as all below
_RULE: Final = struct.Struct("=Qi")  # struct landlock_path_beneath_attr
_WRITE_FILE: Final = 1 << 1
_REMOVE_AND_MAKE: Final = sum(1 << bit for bit in range(4, 13))  # REMOVE_DIR to MAKE_SYM
_REFER, _TRUNCATE = 1 << 13, 1 << 14
_RIGHTS: Final = {1: _WRITE_FILE | _REMOVE_AND_MAKE, 2: _REFER, 3: _TRUNCATE}
"""The rights to write, by the version that brought them. A version before `_REFER` refuses to move a file to another
directory (EXDEV), wherever that is; one before `_TRUNCATE` refuses nobody to empty a file."""


def restrict(places: Iterable[Path]) -> bool:
    """Allow to write only to the directories ``places``, those of this user in /run, and all that are not `SYSTEM`.

    Returns whether that holds: not where the kernel has no Landlock, or a filter of system calls keeps us from it. What
    is not there is left out, so it may not be written to when it comes to be. That is true of a new directory in ``/``,
    and of a file system that is mounted on one, too. It takes no_new_privs; call it before there are threads. Raises
    OSError.
    """

    def allow(ruleset: int, rights: int) -> None:
        for place in (*_not_of_the_system(), *_of_this_user(), *places):
            _allow(ruleset, place, rights)

    return _restrict(allow)


def restrict_to(directory: int) -> bool:
    """Allow to write only below a directory, whose descriptor this is. Returns whether that holds, as `restrict`.

    It is one of its file system: through another mount of that it may be written to, too.
    """
    return _restrict(lambda ruleset, rights: _call(_ADD_RULE, ruleset, _PATH_BENEATH, _RULE.pack(rights, directory), 0))


def _restrict(allow: Callable[[int, int], object]) -> bool:
    """Allow what is allowed by a function of a ruleset and the rights to write. Returns whether there is Landlock."""
    known = _version()
    if not known:
        return False
    rights = sum(bits for since, bits in _RIGHTS.items() if since <= known)
    attributes = struct.pack("=Q", rights)
    ruleset = _call(_CREATE_RULESET, attributes, len(attributes), 0)
    try:
        allow(ruleset, rights)
        _call(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)
    return True


def _not_of_the_system() -> Iterator[Path]:
    """Yield the entries of ``/``. Looks at none of them: it might be a mount that does not answer, even our own."""
    return (Path("/", name) for name in os.listdir("/") if name not in SYSTEM)  # noqa: PTH208 - names are enough


def _of_this_user() -> Iterator[Path]:
    """Yield directories in /run and /proc that programs of this user write to, and those that the environment names."""
    yield Path("/proc/self")
    yield Path(f"/run/user/{os.geteuid()}")
    for name in ("XDG_RUNTIME_DIR", "RUNTIME_DIRECTORY", "TMPDIR"):  # the second one of systemd.exec(5)
        yield from map(Path, filter(None, os.environ.get(name, "").split(":")))


def _allow(ruleset: int, directory: Path, rights: int) -> None:
    # A link in / leads to what has a rule of its own, or to the system's (/vmlinuz). O_PATH waits for no automount.
    link = os.O_NOFOLLOW if directory.parent == Path("/") else 0
    try:
        descriptor = os.open(directory, os.O_PATH | os.O_CLOEXEC | link)
    except OSError:  # it is not there, or what is mounted there is dead
        return
    try:
        _call(_ADD_RULE, ruleset, _PATH_BENEATH, _RULE.pack(rights, descriptor), 0)
    except OSError as error:
        if error.errno != errno.EINVAL:  # it is no directory: a link, /swapfile
            raise
    finally:
        os.close(descriptor)


def _version() -> int:
    if _is_filtered() and not _survives(_ask_version):
        return 0
    try:
        return _ask_version()
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP):  # it is not built, or not started
            return 0
        raise


def _ask_version() -> int:
    return _call(_CREATE_RULESET, None, 0, _VERSION)


def _is_filtered() -> bool:
    return "\nSeccomp:\t0\n" not in Path("/proc/self/status").read_text("ascii", "replace")


def _survives(attempt: Callable[[], object]) -> bool:
    """Whether a child survives an attempt: a ``SystemCallFilter=`` that does not know the call kills who makes it."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            with suppress(OSError):
                attempt()
            os.write(writing, b"1")
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as file:  # noqa: PTH123 - a descriptor
        survived = file.read() != b""
    with suppress(ChildProcessError):  # SIGCHLD is ignored, and the kernel has reaped it
        os.waitpid(pid, 0)
    return survived


def _call(number: int, *arguments: int | bytes | None) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    result: int = libc.syscall(number, *(ctypes.c_long(each) if isinstance(each, int) else each for each in arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
