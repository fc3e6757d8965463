"""The process with the right to mount. The worker, which parses what others send, gives that right up.

Forked from the worker before there are threads, stores or secrets, it mounts, unmounts and starts helper processes, all
on request. It makes no call that our own mount answers, so it waits for nobody and ends with the worker. Where to mount
is said when it is forked, and no link is followed to there: whoever takes the worker over cannot have it mount over
/etc, nor unmount anything else.
"""

import contextlib
import errno
import gc
import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn

import trio

from secretfs.errors import MountError
from secretfs.linux.fuse_mount import connect
from secretfs.linux.mountpoint import detach, unmount
from secretfs.linux.preflight import may_mount
from secretfs.linux.syscall_helper import SyscallHelper, start_program
from secretfs.linux.syscall_server import leave_daemon

NAME: Final = b"secretfs-mount"
"""What ps -c and top show."""
_LARGEST: Final = 64 << 10
"""Bytes of a request or an answer at most: a path of PATH_MAX, or what fusermount3 says."""


class Mounter:
    """That process as the worker sees it. It ends when this is closed, or when the worker ends."""

    def __init__(self, pid: int, ours: socket.socket) -> None:
        self.pid = pid
        self._socket = ours
        self._one_at_a_time = threading.Lock()

    @classmethod
    def fork(cls, mountpoint: Path) -> "Mounter":
        """Fork the one for a mount point. Call it before there are threads or secrets."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        gc.freeze()  # a collection would write to every page that we share with it, and each would be copied
        pid = os.fork()
        if pid == 0:
            _serve(theirs, mountpoint)
        theirs.close()
        return cls(pid, ours)

    def mount(self, source: str, *, allow_other: bool) -> tuple[int, str]:
        """Mount as `connect` does. Raises `MountError`."""
        notice, (descriptor,) = self._ask("mount", source, allow_other)
        return descriptor, notice

    def unmount(self) -> None:
        """Unmount lazily: files that are open stay readable. Raises `MountError`."""
        self._ask("unmount")

    def start_helper(self, theirs: socket.socket) -> int:
        """Start a helper process with the right to mount, which serves a socket. Returns its id. Raises OSError."""
        try:
            pid, _ = self._ask("start_helper", descriptors=[theirs.fileno()])
        except MountError as error:
            raise OSError(str(error)) from None
        return int(pid)

    def _ask(self, name: str, *arguments: object, descriptors: Sequence[int] = ()) -> tuple[Any, list[int]]:
        """Return the answer to a request, with the descriptors that it brings. Raises `MountError`, OSError."""
        with self._one_at_a_time:
            try:
                socket.send_fds(self._socket, [json.dumps([name, *arguments]).encode()], descriptors)
                answer, opened, _, _ = socket.recv_fds(self._socket, _LARGEST, 1)
            except OSError:
                answer, opened = b"", []
        if not answer:
            raise self._error()
        for descriptor in opened:
            os.set_inheritable(descriptor, False)  # noqa: FBT003 - the library's signature
        said = json.loads(answer)
        if "refused" in said:
            raise MountError(*said["refused"])
        if "errno" in said:
            raise OSError(said["errno"], os.strerror(said["errno"]))
        return said["done"], opened

    async def ended(self) -> None:
        """Wait until it has ended, which it does before us only if it is killed. Then raises `MountError`.

        Without it there is no helper any more that could replace one; the next worker has another.
        """
        process = os.pidfd_open(self.pid)
        try:
            await trio.lowlevel.wait_readable(process)
        finally:
            os.close(process)
        raise self._error()

    def _error(self) -> MountError:
        return MountError(f"process {self.pid}, which mounts for us, has ended")

    def close(self) -> None:
        """Let it end, and do not wait for that."""
        self._socket.close()
        with contextlib.suppress(ChildProcessError):  # SIGCHLD is ignored, and the kernel reaps it
            os.waitpid(self.pid, os.WNOHANG)


class HelperProcesses(NamedTuple):
    """The mounter and two helpers.

    One may have to wait for a store, and must not keep us from finding out whether we serve at all.
    """

    mounter: Mounter
    publishing: SyscallHelper
    asking: SyscallHelper

    @classmethod
    def fork(cls, mountpoint: Path) -> "HelperProcesses":
        """Fork those of a mount point. Call it before there are threads or secrets."""
        mounter = Mounter.fork(mountpoint)
        publishing, asking = (SyscallHelper.fork(mountpoint, mounter.start_helper) for _ in range(2))
        return cls(mounter, publishing, asking)

    def close(self) -> None:
        """Let them end."""
        self.publishing.close()
        self.asking.close()
        self.mounter.close()


class _Server:
    """The calls that may be asked for. Each takes the descriptors of its request and its arguments."""

    def __init__(self, mountpoint: Path) -> None:
        self._mountpoint = mountpoint
        self._helpers: set[int] = set()
        self.calls: Mapping[str, Callable[..., tuple[object, list[int]]]] = {
            "mount": self._mount,
            "unmount": self._unmount,
            "start_helper": self._start_helper,
        }

    def _mount(self, source: str, allow_other: bool) -> tuple[object, list[int]]:  # noqa: FBT001 - from a request
        descriptor, notice = connect(self._mountpoint, source, allow_other=allow_other)
        return notice, [descriptor]

    def _unmount(self) -> tuple[object, list[int]]:
        if may_mount():
            detach(self._mountpoint)
        else:
            unmount(self._mountpoint, lazy=True)
        return None, []

    def _start_helper(self, descriptor: int) -> tuple[object, list[int]]:
        with socket.socket(fileno=os.dup(descriptor)) as theirs:
            pid = start_program(self._mountpoint, theirs)
        self._helpers.add(pid)
        return pid, []

    def reap(self, *_: object) -> None:
        """Reap helpers that have ended. What fusermount3 ends with is for who has started it."""
        for pid in list(self._helpers):
            with contextlib.suppress(ChildProcessError):  # reaped by another call, which a signal made in this one
                if os.waitpid(pid, os.WNOHANG) == (0, 0):
                    continue
            self._helpers.discard(pid)


def _serve(requests: socket.socket, mountpoint: Path) -> NoReturn:
    """Answer requests. Ends the process when the other end is closed."""
    try:
        leave_daemon(NAME, requests)
        server = _Server(mountpoint)
        signal.signal(signal.SIGCHLD, server.reap)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        while (received := socket.recv_fds(requests, _LARGEST, 1))[0]:
            request, descriptors, _, _ = received
            name, *arguments = json.loads(request)
            answer: dict[str, object]
            opened: list[int] = []
            try:
                done, opened = server.calls[name](*descriptors, *arguments)
                answer = {"done": done}
            except MountError as error:
                answer = {"refused": [error.reason, error.fix]}
            except OSError as error:
                answer = {"errno": error.errno or errno.EIO}
            socket.send_fds(requests, [json.dumps(answer).encode()], opened)
            for descriptor in (*descriptors, *opened):
                os.close(descriptor)
    finally:
        os._exit(0)
