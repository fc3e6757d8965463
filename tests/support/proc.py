"""What /proc says of processes that open and close, start and end while it is read: proc(5)."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def opened(pid: int) -> dict[Path, str]:
    """Map the descriptors of a process to what they are of. What it closes meanwhile is left out."""
    found: dict[Path, str] = {}
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found[descriptor] = os.readlink(descriptor)  # noqa: PTH115 - it may be no path
    return found


def texts(pid: int, pattern: str) -> Iterator[str]:
    """Yield the files of a process that match. What has ended or is closed meanwhile is left out."""
    for path in Path(f"/proc/{pid}").glob(pattern):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            yield path.read_text("ascii", "replace")
