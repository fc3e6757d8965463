"""A command with secrets mounted for it alone: its daemon, its signals, its restarts and its exit status.

Three processes share a mount namespace. The first is the parent of the others: single-threaded, without a secret. The
daemon has a session of its own, so that no signal for the command reaches it; it ends when its pipe to the parent is
closed. The command is in the process group of the parent: the terminal sends Ctrl-C and Ctrl-Z to both, so the parent
passes on only signals that a process has sent.

Every event is a signal, and all signals are blocked and waited for: SIGCHLD when a child stops or ends, SIGIO when the
daemon sends something, the others are for the command.
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
"""Seconds from a change until the command gets its signal: values that change together are noticed one by one."""
GRACE: Final = 10.0
"""Seconds from SIGTERM to SIGKILL for a command that is restarted, and for a daemon that has to end."""

SIGNALS: Final = frozenset(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP}
ENDING: Final = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM})
_TERMINAL_STOPS: Final = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)

OnChange = Literal["ignore", "restart"] | int
"""What happens to the command when a secret changes; a number is the signal that it gets."""

_READY, _CHANGED = b"ready", b"changed"

log = logging.getLogger(__name__)


def run(work: Callable[["ParentPipe"], int], command: Sequence[str], mountpoint: Path, on_change: OnChange) -> int:
    """Run ``work`` in the daemon and, once it is ready, the command. Returns its exit status; a signal is negative.

    ``work`` has to return when its `ParentPipe` ends. If it returns before it is ready, the command is not started and
    the result is that of ``work``. Raises `CommandError` for a command that cannot be run.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # a caller that ignores it leaves us no exit status
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
    """End as the command did, with its exit code or by its signal, so that a shell sees which (as timeout(1) does)."""
    if status < 0:
        number = -status
        forbid_dumps()
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        os.kill(os.getpid(), number)
        status = 128 + number  # process 1 of a container cannot kill itself
    sys.exit(status)


class ParentPipe:
    """The daemon's end of the pipe to its parent. The parent sends nothing: only its end is noticed."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    def ready(self) -> None:
        """Let the command be started."""
        self._send(_READY)

    def changed(self) -> None:
        """Say that a secret has changed."""
        self._send(_CHANGED)

    async def ended(self) -> None:
        """Wait until the command has ended, or we have."""
        await trio.lowlevel.wait_readable(self._socket)

    def _send(self, word: bytes) -> None:
        with contextlib.suppress(BlockingIOError, BrokenPipeError):  # the last word is still unread; the parent is gone
            self._socket.send(word, socket.MSG_DONTWAIT)


class _Daemon:
    """The daemon, as its parent sees it."""

    def __init__(self, pid: int, line: socket.socket) -> None:
        self.pid = pid
        self.over = False
        """It has ended, and left its status."""
        self._pipe = line

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
        """Wait until the daemon is ready. Returns None, or an exit status if we have to end; a signal is negative."""
        ending = {number for number in ENDING if signal.getsignal(number) != signal.SIG_IGN}  # nohup(1) ignores one
        while True:
            info = signal.sigwait({signal.SIGIO, signal.SIGCHLD, *ending})
            if info in ending:
                return -info
            if _READY in self.received():
                return None
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.over = True
                code = os.waitstatus_to_exitcode(status)
                return 128 - code if code < 0 else code or os.EX_SOFTWARE  # not ready is never a success

    def received(self) -> Iterator[bytes]:
        """Yield what the daemon has sent since the last call."""
        with contextlib.suppress(OSError):  # no more; or the daemon is gone, and SIGCHLD follows
            while word := self._pipe.recv(len(_CHANGED)):
                yield word

    def end(self) -> None:
        """Close the pipe, and wait until the daemon has ended."""
        self._pipe.close()
        if self.over:
            return
        process = os.pidfd_open(self.pid)
        if not select.select([process], [], [], GRACE)[0]:
            log.error("the daemon does not end, and is killed")
            os.kill(self.pid, signal.SIGKILL)
        os.close(process)
        os.waitpid(self.pid, 0)


def _serve(work: Callable[[ParentPipe], int], end: socket.socket) -> NoReturn:
    """Run the daemon, in the forked process. Signals stay blocked, here and in its threads."""
    status = os.EX_SOFTWARE
    try:
        os.setsid()
        end = socket.socket(fileno=fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 3))  # not 0, 1 or 2
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1) if sys.stderr else (0, 1, 2):  # readers of our output must not wait for the daemon
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
        """When the next step after a change is due, on the monotonic clock."""
        self._stopped = False
        """As by Ctrl-Z."""
        self._stopping = False
        """It was sent SIGTERM because of a change."""
        self._restarting = False
        """It is restarted when it has ended."""

    def run(self) -> int:
        """Run the command. Returns its exit status; a signal is negative."""
        self._start()
        while self._status is None:
            info = self._wait()
            if info is None:
                self._take_step()
            elif info.si_signo == signal.SIGCHLD:
                self._reap_children()
            elif info.si_signo == signal.SIGIO and info.si_code > 0:
                self._receive()
            else:
                self._pass_on(info)
        return self._status

    def _start(self) -> None:
        """Start the command with the signals, limits and descriptors of our caller, and one more variable."""
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
        self._due, self._stopping, self._restarting, self._stopped = None, False, False, False

    def _wait(self) -> signal.struct_siginfo | None:
        """Wait for a signal, or until the next step is due."""
        if self._due is None:
            return signal.sigwaitinfo(SIGNALS)
        return signal.sigtimedwait(SIGNALS, max(0.0, self._due - time.monotonic()))

    def _receive(self) -> None:
        """Schedule a step for a change. Changes before the step count as one."""
        changed = _CHANGED in list(self._daemon.received())
        if changed and self._on_change != "ignore" and self._due is None and not self._stopping:
            self._due = time.monotonic() + SETTLE

    def _take_step(self) -> None:
        """Take the step that is due: send the signal of ``on_change``, or SIGTERM, or SIGKILL."""
        self._due = None
        if self._stopping:
            log.warning("%s has not ended %g s after SIGTERM, and is killed", self._command[0], GRACE)
            os.kill(self._pid, signal.SIGKILL)
        elif isinstance(self._on_change, int):
            os.kill(self._pid, self._on_change)
        else:
            self._stopping = self._restarting = True
            self._due = time.monotonic() + GRACE
            os.kill(self._pid, signal.SIGTERM)
            os.kill(self._pid, signal.SIGCONT)  # a stopped command could not end

    def _pass_on(self, info: signal.struct_siginfo) -> None:
        """Pass a signal on, unless the command got it as well."""
        if info.si_signo in ENDING and self._on_change == "restart":
            self._cancel_restart()
        from_terminal = info.si_code > 0  # to the whole group; a hang-up only to the leader of the session
        if from_terminal and not (info.si_signo == signal.SIGHUP and os.getsid(0) == os.getpid()):
            return
        if info.si_signo == signal.SIGCONT:
            self._reap_children()
            if not self._stopped:  # the shell sent it to the group; Ctrl-Z may follow
                return
        if info.si_pid != self._pid:
            os.kill(self._pid, info.si_signo)

    def _cancel_restart(self) -> None:
        """Cancel a restart: the command was asked to end."""
        self._restarting = False
        if not self._stopping:
            self._due = None

    def _reap_children(self) -> None:
        """Reap children that stopped or ended. Process 1 of a container gets orphans of others, too."""
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
                log.error("the daemon has ended: %s gets ENOTCONN for its secrets from now on", self._command[0])

    def _end(self, status: int) -> None:
        """Restart the command, or end as it did."""
        if self._restarting:
            self._start()
        else:
            self._status = os.waitstatus_to_exitcode(status)


def _stop_too(number: int) -> None:
    """Stop as the terminal stopped the command: the shell that started us waits for us."""
    if number in _TERMINAL_STOPS:
        os.kill(os.getpid(), number)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})  # we stop here, until SIGCONT
        signal.pthread_sigmask(signal.SIG_BLOCK, {number})
