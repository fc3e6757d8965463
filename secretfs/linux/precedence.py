"""Whose turn it is on a busy machine: a daemon for whom everybody waits goes before programs that keep it busy.

A program that floods a mount of root's, with many processes, leaves the daemon one part of the processors among many.
See setpriority(2), and sched(7) for the groups of sessions, among which that of a process means nothing.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

NICE: Final = -10
"""A weight of ten processes. With more, programs that ask get too little to go on: they are slower again."""


def go_first() -> None:
    """Have this process, with the threads that it starts, go before others, if we are root and nobody has said another.

    Programs that it starts inherit that.
    """
    if os.geteuid() == 0 and os.getpriority(os.PRIO_PROCESS, 0) == 0:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, NICE)
        prefer_session(os.getpid())


def prefer_session(pid: int) -> None:
    """Have the session of a process that does go before others, if no program is in it but us, and we may."""
    with suppress(OSError):
        leader = os.getsid(pid)
        goes_first = os.getpriority(os.PRIO_PROCESS, pid) == NICE
        if goes_first and leader in (pid, os.getpid()) and not _has_terminal(pid):
            Path(f"/proc/{pid}/autogroup").write_text(str(NICE))


def _has_terminal(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2].split()[4] != b"0"  # tty_nr
