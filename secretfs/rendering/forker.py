"""The process that forks one for each file, as the daemon sees it. Its own side is `secretfs.rendering.server`."""

import array
import os
import select
import signal
import socket
from contextlib import suppress

import trio

from secretfs.errors import StoreError
from secretfs.rendering.check import PROGRAM, environment
from secretfs.rendering.conversation import PATIENCE, Asked, Closed, Conversation, Misbehaves, limits_exceeded
from secretfs.rendering.job import WITH_CRYPTOGRAPHY, WITH_JINJA, Job, Mode

_ONE_DESCRIPTOR = array.array("i").itemsize


class Ended(Exception):
    """The process has ended, or what it has forked did before it began: no template is to blame."""


class Hangs(Exception):
    """The process forks none within `PATIENCE`."""


class Forker:
    """A process that renders. Belongs to one trio thread."""

    def __init__(self, pid: int, process: int, requests: socket.socket) -> None:
        self.pid = pid
        self._process = process
        """A descriptor of it."""
        self._requests = trio.socket.from_stdlib_socket(requests)

    @classmethod
    async def start(cls) -> "Forker":
        """Start the process. Raises `StoreError`."""
        try:
            return cls(*await trio.to_thread.run_sync(_spawn))
        except OSError as error:
            raise StoreError(f"no process renders: {error.strerror}") from None

    async def render(self, job: Job, asked: Asked, mode: Mode) -> bytes:
        """Return a file. Raises `Ended`, `Hangs`, `Misbehaves`, `StoreError`, and whatever ``asked`` raises."""
        ours, theirs = _socket_pair()
        with ours:
            with theirs:
                await self._request(WITH_CRYPTOGRAPHY if job.takes_cryptography else WITH_JINJA, theirs)
            process = await _introduced(ours)
            try:
                return await Conversation(trio.SocketStream(ours)).run(job, mode, asked)
            except Closed:
                if self._has_ended:
                    raise Ended from None
                raise limits_exceeded() from None
            finally:
                _kill(process)

    def end(self) -> None:
        """End it, and with it what it has forked."""
        self._requests.close()
        _kill(self._process)
        _reap(self.pid)

    @property
    def _has_ended(self) -> bool:
        """Whether it has, or we have ended it. Its socket is closed before what it has forked is killed."""
        if self._requests.fileno() < 0:
            return True
        poller = select.poll()
        poller.register(self._requests, 0)
        return bool(poller.poll(0))

    async def _request(self, kind: bytes, end: socket.socket) -> None:
        """Have a process forked that gets the end of a socket. Raises `Ended` or `Hangs`."""
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [end.fileno()]))
        try:
            with trio.fail_after(PATIENCE):
                await self._requests.sendmsg([kind], [rights])
        except trio.TooSlowError:
            raise Hangs from None
        except (OSError, trio.ClosedResourceError):
            raise Ended from None


def _socket_pair() -> tuple[trio.socket.SocketType, socket.socket]:
    """Return two ends. The second is for a process that waits for what it reads. Raises `StoreError`."""
    try:
        ours, theirs = socket.socketpair()
    except OSError as error:
        raise StoreError(f"no process renders: {error.strerror}") from None
    return trio.socket.from_stdlib_socket(ours), theirs


def _spawn() -> tuple[int, int, socket.socket]:
    """Return the process id, a descriptor of the process, and our end of its socket. Raises OSError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = 0
    try:
        with theirs:
            moved = [(os.POSIX_SPAWN_DUP2, theirs.fileno(), 0)]
            pid = os.posix_spawn(PROGRAM[0], PROGRAM, environment(), file_actions=moved, setsigmask=[])
        return pid, os.pidfd_open(pid), ours
    except OSError:
        ours.close()  # it ends when its socket is closed
        if pid:
            _reap(pid)
        raise


async def _introduced(ours: trio.socket.SocketType) -> int:
    """Return a descriptor of the process that renders a file. Raises `Ended`, `Hangs`, `Misbehaves`, `StoreError`."""
    try:
        with trio.fail_after(PATIENCE):
            data, ancillary, flags, _ = await ours.recvmsg(1, socket.CMSG_LEN(_ONE_DESCRIPTOR), socket.MSG_CMSG_CLOEXEC)
    except trio.TooSlowError:
        raise Hangs from None
    except OSError:
        raise Ended from None
    if not data:
        raise Ended
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            return int(array.array("i", content)[0])
    if flags & socket.MSG_CTRUNC:
        raise StoreError("no process renders: there are too many open files")
    raise Misbehaves


def _kill(process: int) -> None:
    """Kill a process, and close the descriptor of it."""
    try:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(process, signal.SIGKILL)
    finally:
        os.close(process)


def _reap(pid: int) -> None:
    with suppress(ChildProcessError):  # where SIGCHLD is ignored, the kernel has
        os.waitpid(pid, 0)
