"""``python -m secretfs.daemon.replace_workers``: what an upgrade of a package does with mounts that have a supervisor.

A daemon imports some of its modules when it needs them. After an upgrade they are those of another version, so each
daemon is asked to make room for the next one. Readers do not notice (takeover-20). A daemon without a supervisor of
ours is systemd's to restart, or ends with a command.
"""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from secretfs.daemon.processes import daemon_pids
from secretfs.linux.mountinfo import secretfs_mounts


def replace_workers() -> None:
    """Ask the daemon of every supervised mount that this process sees to be replaced. Waits for none of them."""
    for pid in _supervised():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


def _supervised() -> Iterator[int]:
    """Yield the workers whose parent serves the same mount."""
    for mount in secretfs_mounts(os.geteuid()):
        pids = daemon_pids(mount)
        yield from (pid for pid in pids if _parent(pid) in pids)


def _parent(pid: int) -> int:
    """Return the parent of a process, or 0 if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text("ascii", "replace")
    except OSError:
        return 0
    return int(status.partition("\nPPid:")[2].split()[0])


if __name__ == "__main__":
    replace_workers()
