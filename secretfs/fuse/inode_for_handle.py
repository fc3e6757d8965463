"""Requests without a handle get the number of their inode, on their way from libfuse to pyfuse3.

Where the kernel opens files by itself (`secretfs.fuse.handshake`) READ, WRITE and READDIR carry the handle 0, and the
inode. pyfuse3 passes the handle on and not the inode. So there is a step between the two, in front of libfuse's
``fuse_session_process_buf``: compiled with this package where a compiler is, and found by the dynamic linker; else a
callback of ``ctypes``, put into the one place where pyfuse3 has the address of that function. Whether requests really
come that way is known when FUSE_INIT has.

docs/upstream has the change to pyfuse3 that makes this unnecessary.
"""

import ctypes
import os
import platform
from collections.abc import Callable
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any, Final, NamedTuple

_FUNCTION: Final = "fuse_session_process_buf"
_LIBRARY: Final = Path(__file__).with_name("_inode_for_handle")
CHOICE: Final = "SECRETFS_INODE_FOR_HANDLE"
"""A variable of the environment by which tests choose a way: ``compiled``, ``patched`` or ``none``."""

LACKING: Final = "requests to read do not get their inode as handle: there is neither a compiled step nor a patched one"
"""Why the kernel cannot be left to open files by itself."""

_WITH_HANDLE: Final = frozenset({15, 16, 28, 44})  # READ, WRITE, READDIR, READDIRPLUS: linux/fuse.h
_IS_FD: Final = 1 << 1  # FUSE_BUF_IS_FD: fuse_common.h of libfuse
_FLAGS, _MEMORY = 8, 16  # where struct fuse_buf has them, in bytes, on machines of 64 bits
_OPCODE, _NODE, _HANDLE = 4, 16, 40  # where a request has them: linux/fuse.h

_RTLD_DI_LINKMAP: Final = 2  # dlfcn.h
_SLOTS: Final = {"x86_64": {6, 7}, "aarch64": {1025, 1026}}
"""Relocations that are the address of a function (GLOB_DAT, JUMP_SLOT), by machine: elf.h."""
_PLTRELSZ, _STRTAB, _SYMTAB, _RELA, _RELASZ, _JMPREL = 2, 5, 6, 7, 8, 23  # entries of a dynamic section: elf.h
_SYMBOL_SIZE, _RELA_SIZE = 24, 24  # bytes; ELF64


class Hook(NamedTuple):
    """A way in which requests get their inode as handle."""

    name: str
    requests: Callable[[], int]
    """Return how many requests have come this way."""


class _LinkMap(ctypes.Structure):
    """What the dynamic linker tells of a library: link.h."""

    _fields_ = (("address", ctypes.c_size_t), ("name", ctypes.c_char_p), ("dynamic", ctypes.c_void_p))


_compiled: list[ctypes.CDLL] = []
_kept: list[Any] = []  # what C has pointers to
_hooks: list[Hook] = []


def load() -> None:
    """Load what was compiled. To be called before pyfuse3 is loaded: then the dynamic linker finds it first."""
    if os.environ.get(CHOICE, "compiled") != "compiled":
        return
    for suffix in EXTENSION_SUFFIXES:
        path = _LIBRARY.with_name(_LIBRARY.name + suffix)
        if path.exists():
            try:
                _compiled.append(ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL))
            except OSError:  # compiled for another machine
                continue
            return


def installed() -> Hook | None:
    """Return the way that requests take; None if they reach pyfuse3 as they are."""
    return _hooks[0] if _hooks else None


def install(pyfuse3: str) -> Hook | None:
    """Put the step in front of the library pyfuse3, a path, which has been loaded; returns `installed`."""
    hook = _install(pyfuse3)
    _hooks[:] = [hook] if hook else []
    return hook


def _install(pyfuse3: str) -> Hook | None:
    library = ctypes.CDLL(pyfuse3)  # its own dependencies are searched for the function, not what was loaded globally
    address = ctypes.cast(library[_FUNCTION], ctypes.c_void_p).value
    if _compiled:
        hook = _compiled[0]
        ctypes.c_void_p.in_dll(hook, "secretfs_process_buf").value = address
        requests = ctypes.c_ulong.in_dll(hook, "secretfs_requests")
        return Hook("compiled", lambda: requests.value)
    if os.environ.get(CHOICE) == "none" or address is None:
        return None
    try:
        return _patch(library, address)
    except (LookupError, OSError):
        return None


def _patch(library: ctypes.CDLL, address: int) -> Hook:
    """Have a library call us instead of libfuse. Raises LookupError or OSError where that cannot be done."""
    _kept.append(library)
    return _patched(_slot(library, address), address)


def _patched(slot: int, address: int) -> Hook:
    """Put ourselves in a place that has the address of a function, and call that."""
    prototype = ctypes.PYFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)  # it keeps the GIL, as pyfuse3 expects
    process = prototype(address)
    count = 0

    def process_buf(session: int, buffer: int) -> None:
        nonlocal count
        count += 1
        if not _word(buffer + _FLAGS, 4) & _IS_FD:
            request = _word(buffer + _MEMORY)
            if _word(request + _OPCODE, 4) in _WITH_HANDLE and not _word(request + _HANDLE):
                ctypes.c_uint64.from_address(request + _HANDLE).value = _word(request + _NODE)
        process(session, buffer)

    hook = prototype(process_buf)
    _kept.extend((process, hook))
    _write(slot, ctypes.cast(hook, ctypes.c_void_p).value or 0)
    return Hook("patched", lambda: count)


def _write(slot: int, address: int) -> None:
    """Write an address where the linker may have forbidden writing, once it was done (RELRO)."""
    page = os.sysconf("SC_PAGESIZE")
    libc = ctypes.CDLL(None, use_errno=True)
    readable_writable = 1 | 2
    if libc.mprotect(ctypes.c_void_p(slot & -page), ctypes.c_size_t(page), readable_writable):
        raise OSError(ctypes.get_errno(), "mprotect")
    ctypes.c_uint64.from_address(slot).value = address


def _slot(library: ctypes.CDLL, address: int) -> int:
    """Return where a library has the address of the function. Raises LookupError if it is at no place that we know."""
    kinds = _SLOTS.get(platform.machine()) if ctypes.sizeof(ctypes.c_void_p) == 8 else None
    if kinds is None:
        raise LookupError(platform.machine())
    base, entries = _dynamic(library)
    for table, size in ((_JMPREL, _PLTRELSZ), (_RELA, _RELASZ)):
        start = entries.get(table, 0)
        for at in range(start, start + entries.get(size, 0), _RELA_SIZE):
            offset, kind, symbol = _word(at), _word(at + 8, 4), _word(at + 12, 4)
            if kind in kinds:
                name = entries[_STRTAB] + _word(entries[_SYMTAB] + _SYMBOL_SIZE * symbol, 4)
                if ctypes.string_at(name) == _FUNCTION.encode() and _word(base + offset) == address:
                    return base + offset
    raise LookupError(_FUNCTION)


def _dynamic(library: ctypes.CDLL) -> tuple[int, dict[int, int]]:
    """Return where a library is loaded, and the entries of its dynamic section. Raises OSError."""
    found = ctypes.POINTER(_LinkMap)()
    libc = ctypes.CDLL(None)
    if libc.dlinfo(ctypes.c_void_p(library._handle), _RTLD_DI_LINKMAP, ctypes.byref(found)):  # noqa: SLF001 - no other way
        raise OSError("dlinfo")
    base, at = found.contents.address, found.contents.dynamic
    entries: dict[int, int] = {}
    while tag := _word(at):
        entries[tag] = _word(at + 8)
        at += 16
    for table in (_STRTAB, _SYMTAB, _RELA, _JMPREL):
        if 0 < entries.get(table, 0) < base:  # glibc has made addresses of them, musl has not
            entries[table] += base
    return base, entries


def _word(address: int, size: int = 8) -> int:
    kind = ctypes.c_uint64 if size == 8 else ctypes.c_uint32
    return kind.from_address(address).value
