"""Background processes: started so that the caller knows whether they came up."""

import contextlib
import os
import subprocess
from collections.abc import Callable, Sequence


def start_in_background(command: Callable[[int], Sequence[str]]) -> int:
    """Start a program, and wait until it is ready or has ended. Returns an exit status.

    ``command`` is given the descriptor to which the program writes a byte when it is ready. Until then it shares this
    terminal, so that its errors are seen. It must not leave the session before: an automount lets only the process
    group that asked for the mount through to the mount point.
    """
    read_end, write_end = os.pipe()
    child = subprocess.Popen(command(write_end), pass_fds=[write_end])  # noqa: S603 - no shell
    os.close(write_end)
    came_up = os.read(read_end, 1)
    os.close(read_end)
    if came_up:
        child.returncode = 0  # it goes on without us, which Popen would warn of
        return 0
    code = child.wait()
    return code if code >= 0 else 128 - code


def leave_terminal() -> None:
    """Leave the terminal for a session without one; standard streams become /dev/null."""
    with contextlib.suppress(PermissionError):  # it leads a session already
        os.setsid()
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    os.close(null)
