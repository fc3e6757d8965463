"""A helper: a small process that makes system calls on our own mount for us.

A thread of the daemon must not make them. If the daemon is killed while one of its threads waits for an answer that the
daemon itself owes, that thread cannot die, the descriptor of the connection stays open with it, and the kernel never
ends the wait (seen after a kill -9: fuse_statfs, request_wait_answer, for ever). A process of its own holds no such
descriptor: when the daemon goes, the call is answered by its successor or, if there is none, ends with the connection.

It knows no secret: it is forked before any store is opened, and closes all it inherits but one socket.
"""

import contextlib
import ctypes
import errno
import os
import resource
import signal
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, NoReturn

import trio

_LARGEST: Final = 64 << 10  # bytes of a message; two paths of PATH_MAX and some

_PR_SET_NAME: Final = 15  # linux/prctl.h

CALLS: Final[Mapping[str, Callable[..., object]]] = {
    "statvfs": os.statvfs,
    "rename": os.rename,
    "mkdir": os.mkdir,
    "unlink": os.unlink,
    "rmdir": os.rmdir,
}
"""What a helper can do, by name."""


class SyscallHelper:
    """The process, as the daemon sees it. Close it, or end, and it ends."""

    def __init__(self, pid: int, ours: socket.socket) -> None:
        self.pid = pid
        """The kernel tells us this pid as the caller's."""
        self._socket = ours
        self._one_at_a_time: trio.Lock | None = None

    @classmethod
    def fork(cls) -> "SyscallHelper":
        """Fork a helper. Call it before there are threads."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            _serve(theirs)
        theirs.close()
        return cls(pid, ours)

    async def call(self, name: str, *paths: bytes) -> None:
        """Make a call of `CALLS` on absolute paths. Raises the OSError that it raises."""
        self._one_at_a_time = self._one_at_a_time or trio.Lock()
        async with self._one_at_a_time:
            await trio.lowlevel.wait_writable(self._socket)
            try:
                self._socket.send(b"\0".join([name.encode(), *paths]))
                await trio.lowlevel.wait_readable(self._socket)
                answer = self._socket.recv(_LARGEST)
            except OSError:
                answer = b""
        code = int.from_bytes(answer, "big") if answer else errno.EPIPE
        if code:
            raise OSError(code, os.strerror(code))

    def close(self) -> None:
        """Let the process end. Who waits for that may wait for himself: it may be waiting for an answer that we owe."""
        self._socket.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, os.WNOHANG)


@dataclass(frozen=True, slots=True)
class SyscallHelpers:
    """Two of them. One may have to wait for a store, and must not keep us from finding out whether we serve at all."""

    publishing: SyscallHelper
    asking: SyscallHelper

    @classmethod
    def fork(cls) -> "SyscallHelpers":
        """Fork both. Call it before there are threads."""
        return cls(SyscallHelper.fork(), SyscallHelper.fork())

    def close(self) -> None:
        """Let both end."""
        self.publishing.close()
        self.asking.close()


def _serve(requests: socket.socket) -> NoReturn:
    """Do what is asked until nobody is there to ask. Runs in the forked process and never returns."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_NAME, b"secretfs-helper", 0, 0, 0)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP):
            signal.signal(number, signal.SIG_IGN)  # the daemon decides; ours is to end after it
        os.chdir("/")
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        last, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        os.closerange(3, requests.fileno())
        os.closerange(requests.fileno() + 1, last)
        while request := requests.recv(_LARGEST):
            name, *paths = request.split(b"\0")
            requests.send(_call(name.decode(), paths).to_bytes(2, "big"))
    finally:
        os._exit(0)


def _call(name: str, paths: list[bytes]) -> int:
    try:
        CALLS[name](*paths)
    except OSError as error:
        return error.errno or errno.EIO
    return 0
