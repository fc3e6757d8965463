"""System calls on our own mount, made by a helper process.

A thread of the daemon must not make them. If the daemon is killed while one of its threads waits for an answer that the
daemon itself owes, that thread cannot die, the descriptor of the connection stays open with it, and the kernel never
ends the wait (seen after a kill -9: fuse_statfs, request_wait_answer, for ever). A process of its own holds no such
descriptor: when the daemon goes, the call is answered by its successor or, if there is none, ends with the connection.
"""

import contextlib
import errno
import gc
import logging
import os
import socket
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import trio

from secretfs.linux.syscall_server import LARGEST, serve

_PROGRAM: list[str | bytes] = [sys.executable, "-P", "-m", "secretfs.linux.syscall_server"]

_NONE = -1

log = logging.getLogger(__name__)

Start = Callable[[socket.socket], int]
"""Starts a helper that serves a socket, and returns its process id. Raises OSError."""


class SyscallHelper:
    """The helper process as the daemon sees it. It ends when this is closed, or when the daemon ends."""

    def __init__(self, pid: int, ours: socket.socket, start: Start) -> None:
        self.pid = pid
        """The kernel names this process as the caller. Changes when the helper is replaced; -1 while there is none."""
        self._socket = ours
        self._start = start
        self._one_at_a_time: trio.Lock | None = None

    @classmethod
    def fork(cls, mountpoint: Path, start: Start | None = None) -> "SyscallHelper":
        """Fork the helper of a mount point, which ``start`` replaces if it ends.

        Call it before there are threads or secrets.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        gc.freeze()  # a collection would write to every page that we share with it, and each would be copied
        pid = os.fork()
        if pid == 0:
            serve(theirs, os.fsencode(mountpoint))
        theirs.close()
        return cls(pid, ours, start or partial(start_program, mountpoint))

    @classmethod
    def started_when_needed(cls, start: Start) -> "SyscallHelper":
        """Return a helper that is started, as a program of its own, by the first call."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.close()
        return cls(_NONE, ours, start)

    async def call(
        self, name: str, *paths: bytes, device: int | None = None, descriptor: int | None = None
    ) -> int | None:
        """Make one of `SystemCalls` on paths, and a descriptor of ours. Raises the OSError that it raises.

        Paths are absolute, and of our mount. If that is read-only, ``device`` is its minor device number, and the call
        is made through another mount, which is writable. Returns a new descriptor if the call is one of `OPENING`.

        A helper that has ended is replaced, and the call is made again, so it may be made twice. Raises an OSError if
        no helper can be started, EPIPE if the new one ends, too.
        """
        self._one_at_a_time = self._one_at_a_time or trio.Lock()
        request = b"\0".join([name.encode(), b"" if device is None else b"%d" % device, *paths])
        descriptors = [] if descriptor is None else [descriptor]
        async with self._one_at_a_time:
            if self.pid == _NONE:
                await trio.to_thread.run_sync(self._replace)
            answer, opened = await self._ask(request, descriptors)
            if not answer:
                log.warning("helper process %d has ended: another is started", self.pid)
                await trio.to_thread.run_sync(self._replace)
                answer, opened = await self._ask(request, descriptors)
        code = int.from_bytes(answer, "big") if answer else errno.EPIPE
        if code:
            raise OSError(code, os.strerror(code))
        return opened[0] if opened else None

    async def _ask(self, request: bytes, descriptors: Sequence[int]) -> tuple[bytes, list[int]]:
        """Return the answer to a request, with a descriptor that it brings; nothing if the helper has ended."""
        try:
            socket.send_fds(self._socket, [request], descriptors)  # there is room: the one before has been answered
            await trio.lowlevel.wait_readable(self._socket)
            answer, opened, _, _ = socket.recv_fds(self._socket, LARGEST, 1)
        except OSError:
            return b"", []
        for descriptor in opened:
            os.set_inheritable(descriptor, False)  # noqa: FBT003 - the library's signature
        return answer, opened

    def _replace(self) -> None:
        """Start another helper, as a program: a process that holds secrets and has threads is not to be forked."""
        self._reap(0)
        self.pid = _NONE
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                self.pid = self._start(theirs)
        except OSError:
            ours.close()
            raise
        self._socket.close()
        self._socket = ours

    def close(self) -> None:
        """Let the helper end, and do not wait for that: it may be waiting for an answer that we owe."""
        self._socket.close()
        self._reap(os.WNOHANG)

    def _reap(self, options: int) -> None:
        if self.pid != _NONE:  # an attempt to replace it has failed
            with contextlib.suppress(ChildProcessError):  # the kernel or another process of ours reaps it
                os.waitpid(self.pid, options)


def start_program(mountpoint: Path, theirs: socket.socket) -> int:
    """Start the helper of a mount point, which serves a socket, as a program. Returns its id. Raises OSError."""
    environment = {name: value for name, value in os.environ.items() if name.startswith("PYTHON")}
    return os.posix_spawn(
        _PROGRAM[0],
        [*_PROGRAM, os.fsencode(mountpoint)],
        environment,
        file_actions=[(os.POSIX_SPAWN_DUP2, theirs.fileno(), 0)],
        setsigmask=[],
    )
