"""What this process uses: memory, files, CPU time."""

import os
import re
import time
from pathlib import Path
from typing import NamedTuple


class Usage(NamedTuple):
    """What a process uses at one moment."""

    resident_bytes: int
    locked_bytes: int
    """Memory that is never written to swap."""
    open_files: int
    cpu_seconds: float


def usage() -> Usage:
    """Return what this process uses."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    kilobytes = dict(re.findall(r"^(Vm\w+):\s+(\d+) kB$", status, re.MULTILINE))
    return Usage(
        int(kilobytes.get("VmRSS", 0)) << 10,
        int(kilobytes.get("VmLck", 0)) << 10,
        len(os.listdir("/proc/self/fd")) - 1,  # noqa: PTH208 - one of them is for this listing
        time.process_time(),
    )
