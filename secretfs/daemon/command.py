"""A command with secrets mounted for it alone: its daemon, its signals, its restarts and its exit status.

Three processes share a mount namespace. We are the first: single-threaded, without a secret, and the parent of the
others. The daemon is in a session of its own, so that nothing that is meant for the command stops or ends it; it ends
when its line to us does. The command is in our process group. What a terminal does to us (Ctrl-C, Ctrl-Z) it therefore
does to the command as well, and we pass on only what a process has sent.

Whatever happens comes as a signal, and all of them are blocked and waited for: SIGCHLD when a child stops or ends,
SIGIO when the daemon says something, the others for the command.
"""

import contextlib
import fcntl
import logging
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, Literal, NoReturn

import trio

from secretfs.errors import CommandError
from secretfs.linux.process import forbid_dumps

SETTLE: Final = 0.5
"""Seconds from a change until the command is notified. What changes together is noticed one after the other."""
GRACE: Final = 10.0
"""Seconds that a command has from SIGTERM to SIGKILL when it is restarted, and the daemon to end."""

HEARD: Final = frozenset(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP}
ENDING: Final = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM})
_TERMINAL_STOPS: Final = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)

OnChange = Literal["ignore", "restart"] | int
"""What happens to the command when a secret changes; a number is a signal."""

_READY, _CHANGED = b"ready", b"changed"

log = logging.getLogger(__name__)


def run(work: Callable[["ParentPipe"], int], command: Sequence[str], mountpoint: Path, on_change: OnChange) -> int:
    """Run ``work`` in the daemon and, once it is ready, the command. Returns how that ended: a signal is negative.

    ``work`` has to return when its `ParentPipe` ends. If it returns before it is ready, the command is not started
    and the result is that of ``work``. Raises `CommandError` for a command that cannot be run.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, HEARD)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if our caller ignores it, no child leaves a status
    daemon = _Daemon.fork(work)
    try:
        failed = daemon.wait_until_ready()
        if failed is not None:
            return failed
        environment = {**os.environb, b"SECRETFS": os.fsencode(mountpoint)}
        return _Command(command, environment, mask, on_change, daemon).run()
    finally:
        daemon.end()


def end_as(status: int) -> NoReturn:
    """End as the command did: with its exit code or by its signal, as timeout(1) does, so that a shell sees which."""
    if status < 0:
        number = -status
        forbid_dumps()
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        os.kill(os.getpid(), number)
        status = 128 + number  # the first process of a container does not die by a signal of its own
    sys.exit(status)


class ParentPipe:
    """What the daemon has of us. Nothing is ever sent to it: only the end is."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    def ready(self) -> None:
        """Let the command be started."""
        self._say(_READY)

    def changed(self) -> None:
        """Say that a secret has changed."""
        self._say(_CHANGED)

    async def ended(self) -> None:
        """Wait until the command has ended, or we have."""
        await trio.lowlevel.wait_readable(self._socket)

    def _say(self, word: bytes) -> None:
        with contextlib.suppress(BlockingIOError, BrokenPipeError):  # it has not heard the last; it is gone
            self._socket.send(word, socket.MSG_DONTWAIT)


class _Daemon:
    """The daemon, as its parent sees it."""

    def __init__(self, pid: int, line: socket.socket) -> None:
        self.pid = pid
        self.over = False
        """It has ended, and left its status."""
        self._line = line

    @classmethod
    def fork(cls, work: Callable[[ParentPipe], int]) -> "_Daemon":
        """Fork the daemon. Call it before there are threads."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(0)
        fcntl.fcntl(ours, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(ours, fcntl.F_SETFL, os.O_NONBLOCK | os.O_ASYNC)  # SIGIO to us
        pid = os.fork()
        if pid == 0:
            ours.close()
            _serve(work, theirs)
        theirs.close()
        return cls(pid, ours)

    def wait_until_ready(self) -> int | None:
        """Wait. Returns an exit status if nothing comes of it; a signal that asks us to end is negative."""
        ending = {number for number in ENDING if signal.getsignal(number) != signal.SIG_IGN}  # nohup(1) ignores one
        while True:
            heard = signal.sigwait({signal.SIGIO, signal.SIGCHLD, *ending})
            if heard in ending:
                return -heard
            if _READY in self.said():
                return None
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.over = True
                code = os.waitstatus_to_exitcode(status)
                return 128 - code if code < 0 else code or os.EX_SOFTWARE  # never a success that nothing was done for

    def said(self) -> Iterator[bytes]:
        """Yield what it has said since it was asked last."""
        with contextlib.suppress(OSError):  # nothing more; or it is gone, which SIGCHLD reports
            while word := self._line.recv(len(_CHANGED)):
                yield word

    def end(self) -> None:
        """Let it end, and wait until it has."""
        self._line.close()
        if self.over:
            return
        process = os.pidfd_open(self.pid)
        if not select.select([process], [], [], GRACE)[0]:
            log.error("the daemon does not end, and is killed")
            os.kill(self.pid, signal.SIGKILL)
        os.close(process)
        os.waitpid(self.pid, 0)


def _serve(work: Callable[[ParentPipe], int], end: socket.socket) -> NoReturn:
    """Be the daemon. Runs in the forked process and never returns. Signals stay blocked, here and in its threads."""
    status = os.EX_SOFTWARE
    try:
        os.setsid()
        end = socket.socket(fileno=fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 3))  # below, if our caller has closed those
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1) if sys.stderr else (0, 1, 2):  # no reader of a pipe shall wait for us
            os.dup2(null, stream)
        status = work(ParentPipe(end))
    finally:
        logging.shutdown()
        os._exit(status)


class _Command:
    """The command, from its first start to its last end."""

    def __init__(
        self,
        command: Sequence[str],
        environment: dict[bytes, bytes],
        mask: Iterable[int],
        on_change: OnChange,
        daemon: _Daemon,
    ) -> None:
        self._command = command
        self._environment = environment
        self._mask = mask
        self._on_change = on_change
        self._daemon = daemon
        self._pid = 0
        self._status: int | None = None
        self._due: float | None = None
        """When something has to be done about a change."""
        self._stopped = False
        """As by Ctrl-Z."""
        self._stopping = False
        """It has been asked to end because of a change."""
        self._again = False
        """It is started again when it ends."""

    def run(self) -> int:
        """Run it. Returns how it ended."""
        self._start()
        while self._status is None:
            heard = self._wait()
            if heard is None:
                self._act()
            elif heard.si_signo == signal.SIGCHLD:
                self._look_at_children()
            elif heard.si_signo == signal.SIGIO and heard.si_code > 0:
                self._listen()
            else:
                self._pass_on(heard)
        return self._status

    def _start(self) -> None:
        """Start it as it would have been without us: the same signals, limits and descriptors, one variable more."""
        name = self._command[0]
        try:
            self._pid = os.posix_spawnp(
                name,
                list(self._command),
                self._environment,
                setsigmask=self._mask,
                setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],  # Python ignores these two
            )
        except OSError as error:
            raise CommandError(name, error) from None
        self._due, self._stopping, self._again, self._stopped = None, False, False, False

    def _wait(self) -> signal.struct_siginfo | None:
        """Wait for a signal, or until something is due."""
        if self._due is None:
            return signal.sigwaitinfo(HEARD)
        return signal.sigtimedwait(HEARD, max(0.0, self._due - time.monotonic()))

    def _listen(self) -> None:
        """Hear of changes. Those that come before the last one was acted upon are one with it."""
        changed = _CHANGED in list(self._daemon.said())
        if changed and self._on_change != "ignore" and self._due is None and not self._stopping:
            self._due = time.monotonic() + SETTLE

    def _act(self) -> None:
        """Do what is due: send the signal, or the first or the second that makes it end."""
        self._due = None
        if self._stopping:
            log.warning("%s has not ended %g s after SIGTERM, and is killed", self._command[0], GRACE)
            os.kill(self._pid, signal.SIGKILL)
        elif isinstance(self._on_change, int):
            os.kill(self._pid, self._on_change)
        else:
            self._stopping = self._again = True
            self._due = time.monotonic() + GRACE
            os.kill(self._pid, signal.SIGTERM)
            os.kill(self._pid, signal.SIGCONT)  # stopped, it could not end

    def _pass_on(self, heard: signal.struct_siginfo) -> None:
        """Pass a signal on, unless the command has it already."""
        if heard.si_signo in ENDING and self._on_change == "restart":
            self._call_off()
        from_terminal = heard.si_code > 0  # and so to the whole group, but for a hang-up: to the leader of the session
        if from_terminal and not (heard.si_signo == signal.SIGHUP and os.getsid(0) == os.getpid()):
            return
        if heard.si_signo == signal.SIGCONT:
            self._look_at_children()
            if not self._stopped:  # a shell has sent it to the whole group; and Ctrl-Z may follow at once
                return
        if heard.si_pid != self._pid:
            os.kill(self._pid, heard.si_signo)

    def _call_off(self) -> None:
        """Do not restart: somebody wants the command to end."""
        self._again = False
        if not self._stopping:
            self._due = None

    def _look_at_children(self) -> None:
        """Look for children that stopped or ended. As process 1 of a container we get the orphans of others, too."""
        while self._status is None:
            pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
            if pid == 0:
                return
            ended = os.WIFEXITED(status) or os.WIFSIGNALED(status)
            if pid == self._pid:
                self._stopped = os.WIFSTOPPED(status)
                if self._stopped:
                    _stop_too(os.WSTOPSIG(status))
                elif ended:
                    self._end(status)
            elif pid == self._daemon.pid and ended:
                self._daemon.over = True
                log.error("the daemon has ended, and with it the secrets of %s: ENOTCONN", self._command[0])

    def _end(self, status: int) -> None:
        """Start it again, or let its end be ours."""
        if self._again:
            self._start()
        else:
            self._status = os.waitstatus_to_exitcode(status)


def _stop_too(number: int) -> None:
    """Stop by the signal of a terminal that has stopped the command: the shell that has started us waits for us."""
    if number in _TERMINAL_STOPS:
        os.kill(os.getpid(), number)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})  # here it is that we stop, until SIGCONT
        signal.pthread_sigmask(signal.SIG_BLOCK, {number})
