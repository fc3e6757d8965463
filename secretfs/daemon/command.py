"""A command with secrets mounted for it alone: its daemon, its signals, its restarts and its exit status.

Three processes share a mount namespace. The first is the parent of the others: single-threaded, and without a secret
unless some are variables of the command. The daemon has a session of its own, so that no signal for the command reaches
it; it ends when its pipe to the parent is closed. The command is in the process group of the parent: the terminal sends
Ctrl-C and Ctrl-Z to both, so the parent passes on only signals that a process has sent.

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
from functools import partial
from pathlib import Path
from typing import Final, NoReturn

import trio

from secretfs.daemon.masking import MaskedOutput
from secretfs.daemon.on_change import Hook, HookRunner, OnChange
from secretfs.daemon.variables import Variables
from secretfs.errors import CommandError, SecretFSError
from secretfs.linux.process import forbid_dumps, hide_memory

GRACE: Final = 10.0
"""Seconds from SIGTERM to SIGKILL for a command that is restarted, and for what has to end with it."""

SIGNALS: Final = frozenset(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP}
ENDING: Final = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM})
_TERMINAL_STOPS: Final = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)

_READY, _CHANGED = b"ready", b"changed"

log = logging.getLogger(__name__)


def run(
    work: Callable[["ParentPipe"], int],
    command: Sequence[str],
    mountpoint: Path,
    on_change: OnChange,
    variables: Variables,
    *,
    mask: bool = False,
) -> int:
    """Run ``work`` in the daemon and, once it is ready, the command. Returns its exit status; a signal is negative.

    ``work`` has to return when its `ParentPipe` ends. If it returns before it is ready, the command is not started and
    the result is that of ``work``. Raises `CommandError` for a command that cannot be run,
    and what `Variables.read` does. ``mask`` hides values of variables in the command's output.
    """
    signals = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # a caller that ignores it leaves us no exit status
    daemon = _Daemon.fork(work)
    try:
        failed = daemon.wait_until_ready()
        if failed is not None:
            return failed
        started = _Command(command, mountpoint, variables, signals, on_change, daemon, MaskedOutput() if mask else None)
        asked_to_end = signal.sigtimedwait(_ending(), 0)  # reading the variables may have taken some time
        return started.run() if asked_to_end is None else -asked_to_end.si_signo
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
        ending = _ending()
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
        _wait_for_end(self.pid, "the daemon")


def _ending() -> set[int]:
    """Return the signals that are to end us before there is a command."""
    return {number for number in ENDING if signal.getsignal(number) != signal.SIG_IGN}  # nohup(1) ignores one


def _wait_for_end(pid: int, name: str) -> None:
    """Wait until a child has ended that was told to, and kill it if it does not."""
    process = os.pidfd_open(pid)
    if not select.select([process], [], [], GRACE)[0]:
        log.error("%s does not end, and is killed", name)
        os.kill(pid, signal.SIGKILL)
    os.close(process)
    os.waitpid(pid, 0)


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
        mountpoint: Path,
        variables: Variables,
        mask: Iterable[int],
        on_change: OnChange,
        daemon: _Daemon,
        output: MaskedOutput | None,
    ) -> None:
        """Read the variables. Starts nothing yet."""
        if variables:
            hide_memory()  # from now on there are secrets in it
        environment = {**os.environb, b"SECRETFS": os.fsencode(mountpoint)}
        self._command = command
        self._environment = environment
        self._read_variables = partial(variables.read, mountpoint)
        self._variables = self._read_variables()
        self._output = output
        self._mask = mask
        self._on_change = on_change
        self._hook = (
            HookRunner(on_change.step, environment, mask, output.ends.get(2) if output else 2 if sys.stderr else None)
            if isinstance(on_change.step, Hook)
            else None
        )
        self._daemon = daemon
        self._pid = 0
        self._status: int | None = None
        self._due: float | None = None
        """When the next step after a change is due, on the monotonic clock."""
        self._last: float | None = None
        """When the last step was taken."""
        self._stopped = False
        """As by Ctrl-Z."""
        self._stopping = False
        """It was sent SIGTERM because of a change."""
        self._restarting = False
        """It is restarted when it has ended."""

    def run(self) -> int:
        """Run the command. Returns its exit status; a signal is negative."""
        self._start()
        try:
            while self._status is None:
                self._go_on(self._wait())
        finally:
            self._end_hook()
            if self._output:
                self._output.end(lambda: bool(signal.sigpending() & _ending()))
        return self._status

    def _go_on(self, info: signal.struct_siginfo | None) -> None:
        """Do what a signal is for; None means that a step is due."""
        if info is None:
            self._take_step()
        elif info.si_signo == signal.SIGCHLD:
            self._reap_children()
        elif info.si_signo == signal.SIGIO and info.si_code > 0:
            self._receive()
        else:
            self._pass_on(info)

    def _start(self) -> None:
        """Start the command with the signals, limits and descriptors of our caller, and more variables."""
        name = self._command[0]
        if self._output:
            self._output.mask(self._variables.values())
        try:
            self._pid = os.posix_spawnp(
                name,
                list(self._command),
                {**self._environment, **self._variables},
                file_actions=self._output.actions if self._output else (),
                setsigmask=self._mask,
                setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],  # Python ignores these two
            )
        except OSError as error:
            raise CommandError(name, error) from None
        self._due, self._stopping, self._restarting, self._stopped = None, False, False, False

    def _refresh_variables(self, otherwise: str) -> bool:
        """Read the variables again. If that fails, keep them, say why and what is done, and return False."""
        try:
            self._variables = self._read_variables()
        except SecretFSError as error:
            log.warning("%s %s: %s", self._command[0], otherwise, error)
            return False
        return True

    def _wait(self) -> signal.struct_siginfo | None:
        """Wait for a signal, or until the next step is due."""
        if self._due is None:
            return signal.sigwaitinfo(SIGNALS)
        return signal.sigtimedwait(SIGNALS, max(0.0, self._due - time.monotonic()))

    def _receive(self) -> None:
        """Schedule a step for a change. Changes before the step count as one."""
        changed = _CHANGED in list(self._daemon.received())
        if changed and self._on_change.step != "ignore" and self._due is None and not self._stopping:
            self._due = self._on_change.due(time.monotonic(), self._last)

    def _take_step(self) -> None:
        """Take the step that is due: that of ``on_change``, or SIGKILL after the SIGTERM of a restart."""
        self._due = None
        if self._stopping:
            log.warning("%s has not ended %g s after SIGTERM, and is killed", self._command[0], GRACE)
            os.kill(self._pid, signal.SIGKILL)
            return
        if self._on_change.step == "restart" and not self._refresh_variables("is not restarted"):
            return
        self._last = time.monotonic()
        if isinstance(self._on_change.step, int):
            os.kill(self._pid, self._on_change.step)
        elif self._hook is not None:
            self._hook.start()
        else:
            self._stopping = self._restarting = True
            self._due = self._last + GRACE
            os.kill(self._pid, signal.SIGTERM)
            os.kill(self._pid, signal.SIGCONT)  # a stopped command could not end

    def _pass_on(self, info: signal.struct_siginfo) -> None:
        """Pass a signal on, unless the command got it as well."""
        if info.si_signo in ENDING and self._on_change.step == "restart":
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
            elif self._hook is not None and pid == self._hook.pid and ended:
                self._hook.ended(status)

    def _end(self, status: int) -> None:
        """Restart the command, or end as it did."""
        if self._restarting:
            self._refresh_variables("is restarted with the variables that it had")
            self._start()
        else:
            self._status = os.waitstatus_to_exitcode(status)

    def _end_hook(self) -> None:
        """Let no hook outlive the command."""
        if self._hook is not None and self._hook.pid:
            os.kill(self._hook.pid, signal.SIGTERM)
            _wait_for_end(self._hook.pid, "the program of --on-change")


def _stop_too(number: int) -> None:
    """Stop as the terminal stopped the command: the shell that started us waits for us."""
    if number in _TERMINAL_STOPS:
        os.kill(os.getpid(), number)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})  # we stop here, until SIGCONT
        signal.pthread_sigmask(signal.SIG_BLOCK, {number})
