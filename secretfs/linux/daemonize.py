"""Work in the background, started so that nobody has to guess whether it came up."""

import contextlib
import os
import subprocess
from collections.abc import Callable, Sequence


def start_in_background(command: Callable[[int], Sequence[str]]) -> int:
    """Start a program that serves, and wait until it says that it is ready or has ended. Returns an exit status.

    ``command`` is given the descriptor to which the program writes a byte when it is ready. Until then it shares this
    terminal, so its errors are seen; then it leaves the session (not before: an automount lets only the process group
    that asked for the mount through to the mount point).
    """
    read_end, write_end = os.pipe()
    child = subprocess.Popen(command(write_end), pass_fds=[write_end])  # noqa: S603 - no shell
    os.close(write_end)
    came_up = os.read(read_end, 1)
    os.close(read_end)
    if came_up:
        child.returncode = 0  # it goes on without us: no reason for Popen to warn of that
        return 0
    code = child.wait()
    return code if code >= 0 else 128 - code


def leave_terminal() -> None:
    """Go on without a terminal, in a session of one's own."""
    with contextlib.suppress(PermissionError):  # it leads one already
        os.setsid()
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    os.close(null)
