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
import logging
import math
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from secretfs.daemon.processes import record_failure, set_process_name
from secretfs.daemon.restarts import End, Restarts
from secretfs.daemon.worker_process import WorkerProcess
from secretfs.errors import ConfigurationError, MountError
from secretfs.linux.daemonize import leave_terminal
from secretfs.linux.log import describe_fallback, log_to, log_to_stderr, open_log, open_syslog, printable, say
from secretfs.linux.mountinfo import secretfs_at
from secretfs.linux.mountpoint import unmount

CHANNEL: Final = "supervisor"
"""Name of the descriptor by which a worker talks to us. An address, as systemd has one, anybody could flood."""

WATCHDOG: Final = 20.0
"""Seconds after which a worker that has not shown that it serves is killed."""
LACKING: Final = 2.0
"""Seconds before we try again to start a worker that the machine had no room for."""
LAST_WORDS: Final = 10.0
"""Seconds that a worker has to end when it is asked to."""
GOOD_BYE: Final = 1.0
"""Seconds that a worker has to notice that the mount is gone."""
START: Final = 30.0
"""Seconds that a worker has to be ready. The first one may take its time: whoever waits for it sees that."""

_PR_SET_DUMPABLE, _PR_SET_NAME = 4, 15  # linux/prctl.h
_NAME = b"secretfs"
_STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
_LARGEST = 8192

log = logging.getLogger(__name__)


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
        self._restarts = Restarts()
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
            gone = self._wait(self._restarts.pause)
            if self._stopping:
                return self._unmount()
            if gone:
                return _exit_status(code)

    # --- a worker's life ---

    def _start_when_possible(self) -> WorkerProcess | None:
        """Start a worker, however long the machine lacks memory or processes for it; None if we are asked to stop.

        To hold the connection takes neither, and readers wait.
        """
        while not self._stopping:
            try:
                return self._start()
            except OSError as error:
                log.error("cannot start a process: %s; trying again", error.strerror)  # noqa: TRY400 - not a defect
                if not self._was_ready:
                    raise
                self._wait(LACKING)
        return None

    def _start(self) -> WorkerProcess:
        environment = os.environ | {"WATCHDOG_USEC": str(int(WATCHDOG * 1e6))}
        kept = {**self._kept, CHANNEL: self._workers_end.fileno()}
        return WorkerProcess.start(self._command, environment, self._directory, kept, (*_STOP, signal.SIGHUP))

    def _attend(self, worker: WorkerProcess) -> int:
        """Do what a worker asks for, and what signals ask for, until it has ended. Returns its wait status."""
        poll = select.poll()
        for source in (worker.descriptor, self._channel.fileno(), self._signals.fileno()):
            poll.register(source, select.POLLIN)
        poll.register(self._mounts, select.POLLPRI)  # something was mounted or unmounted (proc_pid_mountinfo(5))
        ended: int | None = None
        while ended is None:
            left = self._patience(worker) - (time.monotonic() - worker.heard_at)
            happened = dict(poll.poll(None if left == math.inf else max(0.0, left) * 1000))
            self._take_signals(worker)
            if self._mounts in happened and not worker.abandoned and self._is_disconnected():
                worker.abandoned, worker.heard_at = True, time.monotonic()
            ended = worker.reap()  # before its messages: what it said last counts
            self._take_messages(worker)
            if left <= 0 and ended is None and not worker.killed_by_us:
                log.error("process %d does not answer: it is killed", worker.pid)
                worker.kill()
        os.close(worker.descriptor)
        return ended

    def _patience(self, worker: WorkerProcess) -> float:
        """Return for how many seconds a worker may be silent."""
        if self._stopping:
            return LAST_WORDS
        if worker.abandoned:
            return GOOD_BYE
        if worker.ready:
            return WATCHDOG
        return START if self._was_ready else math.inf

    def _conclude(self, worker: WorkerProcess, code: int) -> int | None:
        """Decide what follows from the end of a worker: an exit status, or None for another worker."""
        if self._was_ready and not self._kept and (code == 0 or worker.abandoned):
            return 0  # it was unmounted
        if self._stopping:
            return self._unmount()
        if not self._was_ready:
            self._abandon()
            return _exit_status(code)
        served = time.monotonic() - worker.ready_at if worker.ready else None
        self._restarts.count(End(code, served, hung=worker.killed_by_us))
        reason = f"killed by {signal.Signals(-code).name}" if code < 0 else worker.status or f"exit status {code}"
        if worker.killed_by_us:
            reason = "it did not answer"
        if not self._restarts.given_up:
            log.warning("process %d ended (%s): another takes over", worker.pid, reason)
            return None
        return self._give_up(code, reason)

    def _give_up(self, code: int, reason: str) -> int | None:
        """Let readers have ENOTCONN, and say why. Returns an exit status if there is no use in trying again later."""
        for name in list(self._kept):
            self._let_go(name)
        record_failure(self._mountpoint, reason)
        if code == MountError.exit_code:
            log.critical("giving up: %s", reason)
            return code
        log.critical("giving up, trying again in %g s or at SIGHUP: %s", self._restarts.pause, reason)
        return None

    # --- what it hears ---

    def _take_signals(self, worker: WorkerProcess) -> None:
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

    def _take_messages(self, worker: WorkerProcess) -> None:
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

    def _hear(self, worker: WorkerProcess, state: Mapping[str, str]) -> None:
        if not worker.abandoned:
            worker.heard_at = time.monotonic()
        if not worker.ready or "READY" not in state:
            worker.status = state.get("STATUS", worker.status)
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

    def _wait(self, seconds: float) -> bool:
        """Wait until it is time for the next worker, or a signal asks for it or for the end.

        Returns whether the mount is gone: after giving up nothing else tells us that.
        """
        poll = select.poll()
        poll.register(self._signals, select.POLLIN)
        if self._restarts.given_up:
            poll.register(self._mounts, select.POLLPRI)
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if self._restarts.given_up and not self._is_there():
                return True
            if self._signals.fileno() in dict(poll.poll(left * 1000)):
                numbers = set(self._signals.recv(64))
                self._stopping = not numbers.isdisjoint(_STOP)
                if self._stopping or signal.SIGHUP in numbers:
                    return False
        return False

    def _is_there(self) -> bool:
        """Whether our mount, alive or dead, is at its place."""
        there = secretfs_at(Path(self._mountpoint))
        return there is not None and self._device in (there.minor, -1)

    def _abandon(self) -> None:
        """Leave nothing of a mount that has never answered."""
        if self._kept:
            self._unmount()

    def _unmount(self) -> int:
        path = Path(self._mountpoint)
        try:
            if self._is_there() and not self._is_disconnected():
                unmount(path, lazy=True)
        except MountError as error:
            log.error("%s", error)  # noqa: TRY400 - not a defect
            return error.exit_code
        return 0


def _exit_status(code: int) -> int:
    """Return an exit status as a shell has it: 128 and the signal for a process that was killed."""
    return code if code >= 0 else 128 - code


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
