"""A worker as its supervisor sees it: a process that gets the stored descriptors when it starts."""

import contextlib
import fcntl
import os
import signal
import time
from collections.abc import Collection, Mapping
from typing import Final, NoReturn

_FIRST_DESCRIPTOR: Final = 3  # SD_LISTEN_FDS_START


class WorkerProcess:
    """A process that serves the mount, from its start to its end."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.descriptor = os.pidfd_open(pid)
        """Readable when it has ended."""
        self.ready = False
        self.status = ""
        """Its last ``STATUS=``."""
        self.heard_at = self.ready_at = time.monotonic()
        self.killed_by_us = False
        self.disconnected = False
        """The kernel has ended the connection, as an unmount does, so the worker has to end."""
        self.leaving = False
        """The mount is gone, and the worker gives back what the stores were lent. Nobody waits for that."""
        self.waits = False
        """It ends as soon as another process stands by."""

    @classmethod
    def start(
        cls,
        command: list[str],
        environment: Mapping[bytes, bytes],
        directory: int,
        stored: Mapping[str, int],
        blocked: Collection[signal.Signals],
    ) -> "WorkerProcess":
        """Start a worker, with the stored descriptors as sd_listen_fds(3) has them. Raises OSError.

        ``directory`` is a descriptor of its working directory. Signals in ``blocked`` that arrive before the worker's
        program runs are delivered to the worker.
        """
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
        pid = os.fork()
        if pid:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        else:
            try:
                _become_worker(command, environment, directory, stored, mask)
            except OSError as error:
                os.write(2, f"secretfs: cannot start a worker: {error.strerror}\n".encode())
            finally:
                os._exit(127)
        try:
            return cls(pid)
        except OSError:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise

    def ask_to_end(self) -> None:
        """Ask a worker to end, which may have done so already and may have been reaped."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.descriptor, signal.SIGTERM)

    def kill(self) -> None:
        """Kill a worker that does not answer."""
        self.killed_by_us = True
        os.kill(self.pid, signal.SIGKILL)

    def reap(self) -> int | None:
        """Reap all exited children, which are many for process 1 of a container. Returns the worker's wait status."""
        status = None
        while True:
            try:
                pid, exited = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return status
            if not pid:
                return status
            if pid == self.pid:
                status = exited


def open_working_directory() -> int:
    """Open the working directory for all workers. Its path may lead through the mount.

    If it has been removed, the root takes its place: absolute paths still lead to the same files.
    """
    try:
        return os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _become_worker(
    command: list[str],
    environment: Mapping[bytes, bytes],
    directory: int,
    stored: Mapping[str, int],
    mask: Collection[int],
) -> NoReturn:
    """Run the worker's program in this forked process."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the worker handles it: it is about to read all configuration
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    os.fchdir(directory)
    last = _FIRST_DESCRIPTOR + len(stored)
    high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, last) for descriptor in stored.values()]
    for target, descriptor in enumerate(high, _FIRST_DESCRIPTOR):
        os.dup2(descriptor, target)
    os.closerange(last, os.sysconf("SC_OPEN_MAX"))
    names = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(high)), "LISTEN_FDNAMES": ":".join(stored)}
    named = {os.fsencode(name): os.fsencode(value) for name, value in names.items()}
    os.execve(command[0], command, {**environment, **named})  # noqa: S606 - no shell
