"""What keeps a mount alive while the process that serves it is killed, crashes or is replaced: a parent that holds it.

It is to its worker what systemd is to a service, and speaks the same protocol (sd_notify(3), sd_listen_fds(3)): it
keeps the descriptors that the worker hands it, and passes them to the next one. Nothing else: no secret, no library, no
thread. Nor is anything imported late, when the machine may lack something or the package is just being replaced. While
the worker is away the kernel lets those who read wait.

It is a program of its own, ``python -m secretfs.daemon.supervisor READY LOG MOUNTPOINT WORKER...``. READY is a
descriptor that gets a byte when the mount answers, or -1 for a supervisor that stays in the foreground; LOG is a file,
"-" for standard error, or nothing for syslog.
"""

import contextlib
import ctypes
import fcntl
import logging
import math
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Final, NoReturn

from secretfs.daemon.processes import record_failure, set_process_name
from secretfs.errors import ConfigurationError, MountError
from secretfs.linux.daemonize import leave_terminal
from secretfs.linux.log import describe_fallback, log_to, log_to_stderr, open_log, open_syslog, printable, say
from secretfs.linux.mountinfo import secretfs_at
from secretfs.linux.mountpoint import unmount

CHANNEL: Final = "supervisor"
"""Name of the descriptor by which a worker talks to us. An address, as systemd has one, anybody could flood."""

WATCHDOG: Final = 20.0
"""Seconds after which a worker that has not shown that it serves is killed."""
FAILURES: Final = 6
"""Workers in a row that end at once; then we give up, and readers get ENOTCONN instead of waiting for ever."""
AT_ONCE: Final = 2.0
"""Seconds. A worker that crashes sooner after it was ready has ended at once."""
PAUSES: Final = (0.0, 0.0, 0.1, 0.5, 1.0, 2.0)
"""Seconds before the next worker, by how many in a row have ended at once."""
LACKING: Final = 2.0
"""Seconds before we try again to start a worker that the machine had no room for."""
LAST_WORDS: Final = 10.0
"""Seconds that a worker has to end when it is asked to."""
GOOD_BYE: Final = 1.0
"""Seconds that a worker has to notice that the mount is gone."""
START: Final = 30.0
"""Seconds that a worker has to be ready. The first one may take its time: whoever waits for it sees that."""

_FIRST_DESCRIPTOR = 3  # SD_LISTEN_FDS_START
_PR_SET_DUMPABLE, _PR_SET_NAME = 4, 15  # linux/prctl.h
_NAME = b"secretfs"
_STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
_LARGEST = 8192

log = logging.getLogger(__name__)


class Worker:
    """A process that serves the mount, from its start to its end."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.process = os.pidfd_open(pid)
        self.ready = False
        self.said = ""
        """The last it said of itself (``STATUS=``)."""
        self.heard_at = self.ready_at = time.monotonic()
        self.killed_by_us = False
        self.abandoned = False
        """The kernel has ended the connection, as it does when it is unmounted: the worker has to end."""

    @property
    def ended_at_once(self) -> bool:
        """Whether it did not get so far as to serve, or not for long."""
        return not self.ready or time.monotonic() < self.ready_at + AT_ONCE


class Supervisor:
    """Starts workers one after the other. ``command`` is their program, ``handler`` where to log once one is ready."""

    def __init__(self, command: list[str], mountpoint: str, ready: int, handler: logging.Handler | None) -> None:
        self._command = command
        self._log = handler
        self._mountpoint = mountpoint
        self._tell_ready = ready
        self._directory = _working_directory()
        self._kept: dict[str, int] = {}
        self._stopping = False
        self._failures = 0
        self._hurried = 0
        """Workers in a row that ended at once, whoever ended them: one that is killed for its memory will be again."""
        self._was_ready = False
        self._device = -1
        """Minor number of the mount, by which another one at the same place is told from it."""
        self._signals, wakeup = socket.socketpair()
        for end in (self._signals, wakeup):
            end.settimeout(0)
        signal.set_wakeup_fd(wakeup.fileno())
        self._wakeup = wakeup
        for number in (*_STOP, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        signal.signal(signal.SIGTSTP, signal.SIG_IGN)  # Ctrl-Z would stop everybody who reads; a worker inherits this
        self._channel, self._workers_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._channel.settimeout(0)
        self._mounts = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)

    def run(self) -> int:
        """Keep a worker running until the mount is gone. Returns the exit status."""
        while True:
            worker = self._start_when_possible()
            if worker is None:
                return self._unmount()
            code = os.waitstatus_to_exitcode(self._attend(worker))
            done = self._conclude(worker, code)
            if done is not None:
                return done
            self._sleep(PAUSES[min(self._hurried, len(PAUSES) - 1)])
            if self._stopping:
                return self._unmount()

    # --- a worker's life ---

    def _start_when_possible(self) -> Worker | None:
        """Start a worker, however long the machine lacks memory or processes for it; None if we are asked to stop.

        To hold the connection takes neither, and who reads waits.
        """
        while not self._stopping:
            try:
                return self._start()
            except OSError as error:
                log.error("cannot start a process: %s; trying again", error.strerror)  # noqa: TRY400 - not a defect
                if not self._was_ready:
                    raise
                self._sleep(LACKING)
        return None

    def _start(self) -> Worker:
        environment = os.environ | {"WATCHDOG_USEC": str(int(WATCHDOG * 1e6))}
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, (*_STOP, signal.SIGHUP))  # what comes now is for the worker
        pid = os.fork()
        if pid:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        else:
            try:
                self._become_worker(environment, mask)
            except OSError as error:
                os.write(2, f"secretfs: cannot become a worker: {error.strerror}\n".encode())
            finally:
                os._exit(127)
        try:
            return Worker(pid)
        except OSError:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise

    def _become_worker(self, environment: Mapping[str, str], mask: Collection[int]) -> NoReturn:
        """Run the worker's program in this forked process, with what is kept for it."""
        signal.set_wakeup_fd(-1)
        for number in (*_STOP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the worker listens: it is about to read everything anyway
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.fchdir(self._directory)
        passed = {**self._kept, CHANNEL: self._workers_end.fileno()}
        last = _FIRST_DESCRIPTOR + len(passed)
        high = [fcntl.fcntl(held, fcntl.F_DUPFD, last) for held in passed.values()]
        for target, held in enumerate(high, _FIRST_DESCRIPTOR):
            os.dup2(held, target)
        os.closerange(last, os.sysconf("SC_OPEN_MAX"))
        names = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(high)), "LISTEN_FDNAMES": ":".join(passed)}
        os.execve(self._command[0], self._command, {**environment, **names})  # noqa: S606 - no shell

    def _attend(self, worker: Worker) -> int:
        """Do what a worker asks for, and what signals ask for, until it has ended. Returns its wait status."""
        poll = select.poll()
        for source in (worker.process, self._channel.fileno(), self._signals.fileno()):
            poll.register(source, select.POLLIN)
        poll.register(self._mounts, select.POLLPRI)  # something was mounted or unmounted (proc_pid_mountinfo(5))
        ended: int | None = None
        while ended is None:
            patience = self._patience(worker) - (time.monotonic() - worker.heard_at)
            happened = dict(poll.poll(None if patience == math.inf else max(0.0, patience) * 1000))
            self._take_signals(worker)
            if self._mounts in happened and not worker.abandoned and self._is_disconnected():
                worker.abandoned, worker.heard_at = True, time.monotonic()
            ended = _reap(worker.pid)  # before its messages: what it said last counts
            self._take_messages(worker)
            if patience <= 0 and ended is None and not worker.killed_by_us:
                self._kill(worker)
        os.close(worker.process)
        return ended

    def _patience(self, worker: Worker) -> float:
        """Return for how many seconds a worker may be silent."""
        if self._stopping:
            return LAST_WORDS
        if worker.abandoned:
            return GOOD_BYE
        if worker.ready:
            return WATCHDOG
        return START if self._was_ready else math.inf

    def _kill(self, worker: Worker) -> None:
        worker.killed_by_us = True
        log.error("process %d does not answer: it is killed", worker.pid)
        os.kill(worker.pid, signal.SIGKILL)

    def _conclude(self, worker: Worker, code: int) -> int | None:
        """Decide what follows from the end of a worker: an exit status, or None for another worker."""
        if self._was_ready and not self._kept and code == 0:
            return 0  # it was unmounted
        if self._stopping:
            return self._unmount()
        if not self._was_ready:
            self._abandon()
            return code if code >= 0 else 128 - code
        crashed = worker.ended_at_once and not (worker.ready and code == -signal.SIGKILL and not worker.killed_by_us)
        self._failures = self._failures + 1 if crashed else 0
        self._hurried = self._hurried + 1 if worker.ended_at_once else 0
        reason = f"killed by {signal.Signals(-code).name}" if code < 0 else worker.said or f"exit status {code}"
        if worker.killed_by_us:
            reason = "it did not answer"
        if self._failures < FAILURES:
            log.warning("process %d ended (%s): another takes over", worker.pid, reason)
            return None
        log.critical("%d processes in a row ended at once, the last with: %s; giving up", self._failures, reason)
        record_failure(self._mountpoint, reason)
        return code if code >= 0 else 128 - code

    # --- what it hears ---

    def _take_signals(self, worker: Worker) -> None:
        try:
            numbers = self._signals.recv(64)
        except BlockingIOError:
            return
        for number in numbers:
            if number in _STOP and not self._stopping:
                self._stopping = True
                worker.heard_at = time.monotonic()
                os.kill(worker.pid, signal.SIGTERM)
            elif number == signal.SIGHUP:
                os.kill(worker.pid, number)

    def _take_messages(self, worker: Worker) -> None:
        while True:
            try:
                # socket.recv_fds drops the flags in Python 3.11, and every worker would inherit what it receives.
                message, ancillary, _, _ = self._channel.recvmsg(_LARGEST, 256, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return
            descriptors: list[int] = []
            for _, _, data in ancillary:
                descriptors += struct.unpack(f"{len(data) // 4}i", data[: len(data) // 4 * 4])
            lines = (line.partition("=") for line in message.decode(errors="replace").splitlines())
            state = {name: value for name, _, value in lines}
            if "FDSTORE" in state and len(descriptors) == 1:
                self._keep(state.get("FDNAME", ""), descriptors.pop())
            for descriptor in descriptors:
                os.close(descriptor)
            self._hear(worker, state)

    def _hear(self, worker: Worker, state: Mapping[str, str]) -> None:
        if not worker.abandoned:
            worker.heard_at = time.monotonic()
        if not worker.ready or "READY" not in state:
            worker.said = state.get("STATUS", worker.said)
        if "FDSTOREREMOVE" in state:
            self._let_go(state.get("FDNAME", ""))
        if "READY" in state and not worker.ready:
            worker.ready, worker.ready_at = True, time.monotonic()
            self._sign()
            if not self._was_ready:
                self._was_ready = True
                self._announce()

    def _keep(self, name: str, descriptor: int) -> None:
        self._let_go(name)
        self._device = -1  # another mount, if it is another connection
        self._kept[name] = descriptor

    def _let_go(self, name: str) -> None:
        descriptor = self._kept.pop(name, None)
        if descriptor is not None:
            os.close(descriptor)

    def _announce(self) -> None:
        """Tell who waits for the mount that it is there, and leave the terminal."""
        if self._log:
            if notice := describe_fallback(self._log):
                log.warning("%s", notice)
            log_to(self._log)
        if self._tell_ready < 0:
            return
        leave_terminal()
        with contextlib.suppress(BrokenPipeError):  # who asked for the mount is gone; its users are not
            os.write(self._tell_ready, b"\0")
        os.close(self._tell_ready)

    def _sign(self) -> None:
        """Take the name of those who serve what is mounted now: `unmount --force` ends us before our worker."""
        if self._device != -1:
            return  # what is at that place now may be somebody else's
        with contextlib.suppress(MountError, OSError):  # it has just been unmounted; the machine lacks something
            self._device = set_process_name(Path(self._mountpoint))

    def _is_disconnected(self) -> bool:
        """Whether the kernel has ended the connection. It is not waited for: each request would wake us."""
        poll = select.poll()
        for descriptor in self._kept.values():
            poll.register(descriptor, 0)
        return bool(poll.poll(0))

    # --- the end ---

    def _sleep(self, seconds: float) -> None:
        """Wait, unless a signal asks us to stop."""
        end = time.monotonic() + seconds
        while not self._stopping and (left := end - time.monotonic()) > 0:
            if select.select([self._signals], [], [], left)[0]:
                self._stopping = any(number in _STOP for number in self._signals.recv(64))

    def _abandon(self) -> None:
        """Leave nothing of a mount that has never answered."""
        if self._kept:
            self._unmount()

    def _unmount(self) -> int:
        path = Path(self._mountpoint)
        try:
            there = secretfs_at(path)
            if there is not None and self._device in (there.minor, -1) and not self._is_disconnected():
                unmount(path, lazy=True)
        except MountError as error:
            log.error("%s", error)  # noqa: TRY400 - not a defect
            return error.exit_code
        return 0


def _reap(worker: int) -> int | None:
    """Bury the dead: who is process 1 of a container gets more than its own. Returns the worker's status if it died."""
    status = None
    while True:
        try:
            pid, its = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return status
        if not pid:
            return status
        if pid == worker:
            status = its


def _working_directory() -> int:
    """Hold the working directory. By its path it may be below the mount point, where it is us who would have to answer.

    It may also be gone by now: then the root will do, as what is named from there is found all the same.
    """
    try:
        return os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _protect() -> None:
    """Keep the environment, which may hold credentials, out of core dumps and of the reach of this user's processes."""
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_NAME, _NAME, 0, 0, 0)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def _open_log(log_file: str, mountpoint: Path) -> logging.Handler | None:
    if log_file == "-":
        return None
    return open_log(Path(log_file)) if log_file else open_syslog(mountpoint)


def main(arguments: Sequence[str]) -> int:
    """Run as a program. Returns the exit status."""
    ready, log_file, mountpoint, *command = arguments
    log_to_stderr()
    try:
        handler = _open_log(log_file, Path(mountpoint))
    except ConfigurationError as error:
        say(f"secretfs: {printable(str(error))}")
        return error.exit_code
    _protect()
    return Supervisor(command, mountpoint, int(ready), handler).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
