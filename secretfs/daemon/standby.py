"""The standby: a process that has imported all that a worker needs, and waits to be the next one.

When a worker is killed, readers wait until the next one serves. Most of that time is Python's: to start, and to import
libraries. A standby has that behind it. It holds no secret and no descriptor of the mount: it gets both with the word
to begin. It reads no configuration before, so that it serves what is declared then.

Part of the supervisor, which imports nothing late and needs no library.
"""

import contextlib
import logging
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import secretfs
from secretfs.daemon.stored import CHANNEL, MODULES, TURN
from secretfs.daemon.worker_process import WorkerProcess

ENDS_WITHIN: Final = 1.0
"""Seconds that a killed process may take to end. It waits for nothing, so it takes none."""

_WORKER: Final = ["-P", "-m", "secretfs"]
_PROGRAM: Final = "secretfs.cli.standby"
_PROGRAM_FILE: Final = Path(secretfs.__file__).parent / "cli/standby.py"

log = logging.getLogger(__name__)

Start = Callable[[list[str], Mapping[str, int]], WorkerProcess]


class Standby:
    """The next worker of ``command``, if it has been started. ``start`` starts a process with descriptors by name."""

    def __init__(self, command: Sequence[str], start: Start) -> None:
        self._command = _standby_command(command)
        self._start = start
        self._process: WorkerProcess | None = None
        self._turn: socket.socket | None = None
        self._installed: tuple[int, ...] = ()

    def start(self, modules: int, channel: int, *, renew: bool) -> bool:
        """Start one, unless there is one; with ``renew`` in any case. Returns whether it could be started.

        ``modules`` is a descriptor of a file that names what to import. When that is done, the process sends
        STANDS_BY=1 through ``channel``.
        """
        there = self._process is not None and _is_alive(self._process)
        if there and not renew:
            return True
        if not self._command or not _PROGRAM_FILE.is_file():  # an older version has none
            return False
        self.end()
        self._installed = _installed()
        try:
            self._turn, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                self._turn.settimeout(0)
                self._process = self._start(self._command, {TURN: theirs.fileno(), MODULES: modules, CHANNEL: channel})
        except OSError as error:  # the next worker starts as the first one did
            log.warning("no process stands by: %s", error.strerror)
            self.end()
            return False
        return True

    def adopt(self, pid: int, turn: int) -> None:
        """Take a child that has been started for us before we were: see `secretfs.daemon.beginning`."""
        self._turn = socket.socket(fileno=turn)
        self._turn.set_inheritable(False)
        self._turn.settimeout(0)
        self._installed = _installed()
        self._process = WorkerProcess(pid)

    def become_worker(self, stored: Mapping[str, int]) -> WorkerProcess | None:
        """Give it the stored descriptors and have it serve. Returns None if none stands by that could.

        One that was started before the package was upgraded does not serve: it would run the code of the old version.
        """
        process, turn = self._process, self._turn
        if process is None or turn is None or not _is_alive(process) or self._installed != _installed():
            self.end()
            return None
        try:
            socket.send_fds(turn, [":".join(stored).encode()], list(stored.values()))
        except OSError:
            self.end()
            return None
        turn.close()
        self._process = self._turn = None
        process.heard_at = process.ready_at = time.monotonic()
        return process

    def end(self) -> None:
        """End it, if there is one."""
        if self._turn is not None:
            self._turn.close()
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):  # it has been reaped
                signal.pidfd_send_signal(self._process.descriptor, signal.SIGKILL)
                _is_alive(self._process, ENDS_WITHIN)
                os.waitpid(self._process.pid, os.WNOHANG)
            os.close(self._process.descriptor)
        self._process = self._turn = None


def _standby_command(worker: Sequence[str]) -> list[str]:
    """Return the command line of a standby; nothing for a worker that is not ours, which has none."""
    python, *program = worker[:4]
    return [python, "-P", "-m", _PROGRAM, *worker[4:]] if program == _WORKER else []


def _is_alive(process: WorkerProcess, within: float = 0.0) -> bool:
    """Whether a process has not ended, and does not end within so many seconds."""
    poll = select.poll()
    poll.register(process.descriptor, select.POLLIN)
    return not poll.poll(within * 1000)


def _installed() -> tuple[int, ...]:
    """Return what is different once another version of the package is installed in the place of this one.

    Not when the directory has changed: Python does that, when it first compiles what nobody has compiled before.
    """
    try:
        with os.scandir(Path(secretfs.__file__).parent) as entries:
            modules = sorted((entry.name, entry.stat()) for entry in entries if entry.name.endswith(".py"))
    except OSError:  # in the middle of that
        return (-1,)
    return tuple(number for _, state in modules for number in (state.st_ino, state.st_mtime_ns))
