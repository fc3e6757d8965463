"""A hunt for test secrets: in the memory of processes, in what the kernel tells of them, and in files."""

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.support.canary import leaked

_ANONYMOUS_OR_FILE = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) r\S+ \S+ \S+ \S+ *(.*)$")
_PIECE = 4 << 20  # bytes that are read at once


def in_memory(pid: int, marks: Iterable[bytes]) -> set[bytes]:
    """Return which of the marks are anywhere in the memory of a process that can be read: not in memfd_secret(2)."""
    looked_for = re.compile(b"|".join(map(re.escape, sorted(marks, key=len, reverse=True))))
    found: set[bytes] = set()
    for piece in _memory(pid):
        found.update(match[0] for match in looked_for.finditer(piece))
    return found


def _memory(pid: int) -> Iterator[bytes]:
    overlap = 256
    descriptor = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    try:
        for line in Path(f"/proc/{pid}/maps").read_text("utf-8", "replace").splitlines():
            region = _ANONYMOUS_OR_FILE.match(line)
            if region is None or region[3] in ("[vvar]", "[vsyscall]", "[vvar_vclock]"):
                continue
            at, end = int(region[1], 16), int(region[2], 16)
            while at < end:
                with contextlib.suppress(OSError):  # secret memory; or it has been unmapped meanwhile
                    yield os.pread(descriptor, min(_PIECE + overlap, end - at), at)
                at += _PIECE
    finally:
        os.close(descriptor)


def told_of(pid: int) -> str:
    """Return what everybody may see of a process, and what its user may: arguments and environment."""
    return "".join(Path(f"/proc/{pid}/{name}").read_text("utf-8", "replace") for name in ("cmdline", "environ", "comm"))


def in_files(directory: Path, *but: Path) -> list[Path]:
    """Return the regular files below a directory, other than those named, in which a test secret is."""
    files = [path for path in directory.rglob("*") if path.is_file() and not path.is_symlink() and path not in but]
    return [path for path in files if leaked(path.read_bytes().decode("latin-1"))]


def swapped(pid: int) -> int:
    """Return how many bytes of a process are in swap."""
    status = Path(f"/proc/{pid}/status").read_text("ascii", "replace")
    return sum(int(number) << 10 for number in re.findall(r"^VmSwap:\s+(\d+) kB$", status, re.MULTILINE))
