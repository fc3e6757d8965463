"""The supervisor: the parent of the process that serves a mount, which keeps the mount alive between two of them.

It is to its worker what systemd is to a service, and speaks the same protocol (sd_notify(3), sd_listen_fds(3)): it
stores the descriptors that the worker sends, and passes them to the next worker. While there is none, the kernel lets
readers wait. The supervisor holds no secret, needs no library and has no thread. It imports nothing late: by then the
machine may be out of memory, or the package may be half upgraded.

It is a program of its own,
``python -m secretfs.daemon.supervisor [--follow SOCKET | --first PID TURN] READY LOG MOUNTPOINT WORKER...``.
READY is a descriptor that gets a byte when the mount answers, or -1 for a supervisor that stays in the foreground. LOG
is a file, "-" for standard error, or empty for syslog; with "json:" before it, lines are JSON. WORKER is the command
line of a worker; a live mount of an older version runs that command of the version that is installed now, so its
meaning must not change. With SOCKET it goes on where the supervisor there ends: `secretfs.daemon.succession`. PID is a
child that waits at the descriptor TURN to be the first worker: `secretfs.daemon.beginning`.
"""

import contextlib
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
from secretfs.daemon.standby import Standby
from secretfs.daemon.stored import API, CHANNEL, CONNECTION, MODULES, VALUES, WATCHDOG
from secretfs.daemon.succession import Succession
from secretfs.daemon.worker_process import WorkerProcess, open_working_directory
from secretfs.errors import ConfigurationError, MountError
from secretfs.linux.daemonize import leave_terminal
from secretfs.linux.environment import hide_environment
from secretfs.linux.log import AS_JSON, log_to, log_to_stderr, printable, say
from secretfs.linux.log_destinations import describe_fallback, open_log, open_syslog
from secretfs.linux.mountinfo import secretfs_at
from secretfs.linux.mountpoint import unmount
from secretfs.linux.precedence import prefer_session
from secretfs.linux.process import hide_memory, set_name

SPAWN_RETRY: Final = 2.0
"""Seconds until the next attempt, when the machine has no memory or process id for a worker."""
STOP_TIMEOUT: Final = 10.0
"""Seconds that a worker has to end after SIGTERM."""
UNMOUNT_TIMEOUT: Final = 1.0
"""Seconds that a worker has to end after the mount is gone."""
START_TIMEOUT: Final = 30.0
"""Seconds that a worker has to be ready. The first one has no limit: its user sees that it is not ready yet."""

_PROCESS_NAME = "secretfs"
_STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
_MESSAGE_LIMIT = 8192
_OPTIONS = {"--follow": 2, "--first": 3}  # with so many words

log = logging.getLogger(__name__)


class Supervisor:
    """Starts one worker after another with ``command``. Logs to ``handler`` as soon as the first one is ready."""

    def __init__(
        self,
        command: list[str],
        mountpoint: str,
        ready: int,
        handler: logging.Handler | None,
        succession: Succession,
        first: tuple[int, int] | None = None,
    ) -> None:
        self._command = command
        self._standby = Standby(command, self._execute)
        if first:
            self._standby.adopt(*first)
        self._log = handler
        self._mountpoint = mountpoint
        self._ready_descriptor = ready
        self._directory = open_working_directory()
        self._succession = succession
        self._stored = succession.inherited
        self._stopping = False
        self._restarts = Restarts()
        self._was_ready, self._announced = CONNECTION in self._stored, False
        self._device = -1
        """Minor device number of our mount, which another mount at the same place does not have; -1 if unknown."""
        self._signals, wakeup = socket.socketpair()
        for end in (self._signals, wakeup):
            end.settimeout(0)
        signal.set_wakeup_fd(wakeup.fileno())
        self._wakeup = wakeup
        for number in (*_STOP, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        signal.signal(signal.SIGTSTP, signal.SIG_IGN)  # Ctrl-Z would stop all readers; workers inherit this
        self._channel, self._workers_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._channel.settimeout(0)
        self._mounts = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)

    def run(self) -> int:
        """Keep a worker running until the mount is gone. Returns the exit status."""
        try:
            return self._run()
        finally:
            self._standby.end()

    def _run(self) -> int:
        while True:
            worker = self._start_when_possible()
            if worker is None:
                return self._unmount()
            code = os.waitstatus_to_exitcode(self._watch(worker))
            if (done := self._decide(worker, code)) is not None:
                return done
            gone = self._wait(self._restarts.pause)
            if self._stopping:
                return self._unmount()
            if gone or self._succession.hand_over(self._stored):
                return _exit_status(code) if gone else 0

    # --- a worker's life ---

    def _start_when_possible(self) -> WorkerProcess | None:
        """Start a worker, as soon as the machine has the memory for it. Returns None if a signal asks us to stop.

        Meanwhile readers wait: to hold the connection takes no memory.
        """
        while not self._stopping:
            try:
                return self._start()
            except OSError as error:
                log.error("cannot start a process: %s; trying again", error.strerror)  # noqa: TRY400 - not a defect
                if not self._was_ready:
                    raise
                self._wait(SPAWN_RETRY)
        return None

    def _start(self) -> WorkerProcess:
        stored = {**self._stored, CHANNEL: self._workers_end.fileno()}
        return self._standby.become_worker(stored) or self._execute(self._command, stored)

    def _execute(self, command: list[str], stored: Mapping[str, int]) -> WorkerProcess:
        environment = os.environb | {b"WATCHDOG_USEC": b"%d" % int(WATCHDOG * 1e6)}  # texts would be copies
        return WorkerProcess.start(command, environment, self._directory, stored, (*_STOP, signal.SIGHUP))

    def _watch(self, worker: WorkerProcess) -> int:
        """Handle messages and signals until a worker has ended. Returns its wait status."""
        poll = select.poll()
        for source in (worker.descriptor, self._channel.fileno(), self._signals.fileno()):
            poll.register(source, select.POLLIN)
        if self._succession.watch(poll):
            worker.ask_to_end()
        poll.register(self._mounts, select.POLLPRI)  # something was mounted or unmounted (proc_pid_mountinfo(5))
        ended: int | None = None
        while ended is None:
            left = self._timeout(worker) - (time.monotonic() - worker.heard_at)
            happened = dict(poll.poll(None if left == math.inf else max(0.0, left) * 1000))
            self._handle_signals(worker)
            if self._succession.accept(poll):
                worker.ask_to_end()
            if self._mounts in happened and not worker.disconnected and self._is_disconnected():
                worker.disconnected, worker.heard_at = True, time.monotonic()
            ended = worker.reap()  # before its messages are read: the last ones count
            self._receive_messages(worker)
            if left <= 0 and ended is None and not worker.killed_by_us:
                log.error("process %d does not answer: it is killed", worker.pid, extra={"worker": worker.pid})
                worker.kill()
        os.close(worker.descriptor)
        return ended

    def _timeout(self, worker: WorkerProcess) -> float:
        """Return for how many seconds a worker may be silent now."""
        if self._stopping or worker.leaving:
            return STOP_TIMEOUT
        if worker.ready:
            return UNMOUNT_TIMEOUT if worker.disconnected else WATCHDOG
        return START_TIMEOUT if self._was_ready else math.inf

    def _decide(self, worker: WorkerProcess, code: int) -> int | None:
        """Decide what follows the end of a worker: an exit status, or None for another worker."""
        if self._was_ready and CONNECTION not in self._stored and (code == 0 or worker.disconnected):
            return 0  # it was unmounted
        if self._succession.hand_over(self._stored):
            return 0
        if self._stopping:
            return self._unmount()
        if not self._was_ready:
            if CONNECTION in self._stored:  # it has mounted, and was never ready
                self._unmount()
            return _exit_status(code)
        served = time.monotonic() - worker.ready_at if worker.ready else None
        self._restarts.count(End(code, served, hung=worker.killed_by_us))
        reason = f"killed by {signal.Signals(-code).name}" if code < 0 else worker.status or f"exit status {code}"
        if worker.killed_by_us:
            reason = "it did not answer"
        if not self._restarts.given_up:
            context = {"mountpoint": self._mountpoint, "worker": worker.pid}
            log.warning("process %d ended (%s): another takes over", worker.pid, reason, extra=context)
            return None
        return self._give_up(code, reason)

    def _give_up(self, code: int, reason: str) -> int | None:
        """Close the connection, so that readers get ENOTCONN. Returns an exit status if trying again cannot help.

        What stores were lent is kept: a later worker goes on with it. Values are not: nobody would drop them in time.
        """
        for name in [name for name in self._stored if name in (CONNECTION, API) or name.startswith(VALUES)]:
            self._remove(name)
        record_failure(self._mountpoint, reason)
        if code == MountError.exit_code:
            log.critical("giving up: %s", reason)
            return code
        log.critical("giving up, trying again in %g s or at SIGHUP: %s", self._restarts.pause, reason)
        return None

    # --- signals and messages ---

    def _handle_signals(self, worker: WorkerProcess) -> None:
        try:
            numbers = self._signals.recv(64)
        except BlockingIOError:
            return
        for number in numbers:
            if number in _STOP and not self._stopping:
                self._stopping = True
                worker.heard_at = time.monotonic()
                # SIGTERM alone would mean that another worker takes over: see `secretfs.daemon.serve`.
                os.kill(worker.pid, signal.SIGINT if worker.ready else signal.SIGTERM)
            elif number == signal.SIGHUP:
                os.kill(worker.pid, number)

    def _receive_messages(self, worker: WorkerProcess) -> None:
        while True:
            try:
                # socket.recv_fds drops the flags in Python 3.11, and every worker would inherit what it receives.
                message, ancillary, _, _ = self._channel.recvmsg(_MESSAGE_LIMIT, 256, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return
            descriptors: list[int] = []
            for _, _, data in ancillary:
                descriptors += struct.unpack(f"{len(data) // 4}i", data[: len(data) // 4 * 4])
            lines = (line.partition("=") for line in message.decode(errors="replace").splitlines())
            state = {name: value for name, _, value in lines}
            if state.get("FDNAME") == MODULES and descriptors:
                worker.waits = "RENEW" in state
                starts = not (self._stopping or self._succession.has_heir) and self._standby.start(
                    descriptors[0], self._workers_end.fileno(), renew=worker.waits
                )
                if worker.waits and not starts:
                    worker.ask_to_end()
            elif "FDSTORE" in state and len(descriptors) == 1:
                self._store(state.get("FDNAME", ""), descriptors.pop())
            for descriptor in descriptors:
                os.close(descriptor)
            self._handle_message(worker, state)

    def _handle_message(self, worker: WorkerProcess, state: Mapping[str, str]) -> None:
        if "STANDS_BY" in state:
            if worker.waits:
                worker.ask_to_end()
            return
        if not worker.disconnected and not self._stopping:  # a worker that has to end gets no more time by its messages
            worker.heard_at = time.monotonic()
        if not worker.ready or "READY" not in state:
            worker.status = state.get("STATUS", worker.status)
        if "STOPPING" in state:
            worker.leaving, worker.heard_at = True, time.monotonic()
            set_name(_PROCESS_NAME)  # `secretfs unmount` waits for those who serve
        if "FDSTOREREMOVE" in state:
            self._remove(state.get("FDNAME", ""))
        if "READY" in state and not worker.ready:
            worker.ready, worker.ready_at = True, time.monotonic()
            self._set_name()
            self._was_ready = True
            if not self._announced:
                self._announced = True
                self._announce()
            prefer_session(worker.pid)

    def _store(self, name: str, descriptor: int) -> None:
        self._remove(name)
        self._device = -1  # another mount, if it is another connection
        self._stored[name] = descriptor

    def _remove(self, name: str) -> None:
        descriptor = self._stored.pop(name, None)
        if descriptor is not None:
            os.close(descriptor)

    def _announce(self) -> None:
        """Report that the mount is ready to the process that asked for it, and leave the terminal."""
        if self._log:
            if notice := describe_fallback(self._log):
                log.warning("%s", notice)
            log_to(self._log)
        if self._ready_descriptor < 0:
            return
        leave_terminal()
        with contextlib.suppress(BrokenPipeError):  # that process is gone; the users of the mount are not
            os.write(self._ready_descriptor, b"\0")
        os.close(self._ready_descriptor)

    def _set_name(self) -> None:
        """Take the process name by which `unmount --force` finds us, and ends us before our worker."""
        if self._device != -1:
            return  # what is mounted at that place by now may be another mount
        with contextlib.suppress(MountError, OSError):  # it has just been unmounted; out of descriptors
            self._device = set_process_name(Path(self._mountpoint))

    def _is_disconnected(self) -> bool:
        """Whether the kernel has ended the connection. Not part of the poll: each request would wake us."""
        poll = select.poll()
        for descriptor in self._stored.values():
            poll.register(descriptor, 0)
        return bool(poll.poll(0))

    # --- the end ---

    def _wait(self, seconds: float) -> bool:
        """Wait before the next worker. SIGHUP ends the wait, and so do a signal to stop and a supervisor that follows.

        Returns whether the mount is gone, which nothing else notices after giving up.
        """
        poll = select.poll()
        poll.register(self._signals, select.POLLIN)
        self._succession.watch(poll)
        if self._restarts.given_up:
            poll.register(self._mounts, select.POLLPRI)
        end = time.monotonic() + seconds
        while not self._succession.accept(poll) and (left := end - time.monotonic()) > 0:
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


def _protect() -> None:
    """Protect the environment, which may hold credentials, from core dumps and from other processes of this user."""
    set_name(_PROCESS_NAME)
    hide_memory()
    hide_environment()


def _open_log(place: str, mountpoint: Path) -> logging.Handler | None:
    as_json, log_file = place.startswith(AS_JSON), place.removeprefix(AS_JSON)
    if log_file == "-":
        log_to_stderr(as_json=as_json)
        return None
    return open_log(Path(log_file), as_json=as_json) if log_file else open_syslog(mountpoint, as_json=as_json)


def main(arguments: Sequence[str]) -> int:
    """Run as a program. Returns the exit status."""
    option, *values = arguments[: _OPTIONS.get(arguments[0], 0)] or [""]
    ready, log_file, mountpoint, *command = arguments[_OPTIONS.get(option, 0) :]
    first = (int(values[0]), int(values[1])) if option == "--first" else None
    log_to_stderr()
    try:
        handler = _open_log(log_file, Path(mountpoint))
        succession = Succession(Path(values[0]) if option == "--follow" else None)
    except (ConfigurationError, MountError) as error:
        say(f"secretfs: {printable(str(error))}")
        if first:
            os.kill(first[0], signal.SIGKILL)
            os.waitpid(first[0], 0)
        return error.exit_code
    _protect()
    return Supervisor(command, mountpoint, int(ready), handler, succession, first).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
