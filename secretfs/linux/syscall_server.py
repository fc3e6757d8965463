"""The helper process: it makes system calls on request, until the daemon that asks for them has gone.

It never sees a secret: it is forked before any store is opened, or started as a program of its own, and closes every
descriptor but one, a socket. ``python -m secretfs.linux.syscall_server MOUNTPOINT`` serves the socket that is its
standard input. No path leads it out of our own mount: see `secretfs.linux.own_mount`.
"""

import contextlib
import ctypes
import errno
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from typing import Final, NoReturn

from secretfs.linux.confinement import confine_helper, restrict_helper
from secretfs.linux.environment import forget_environment
from secretfs.linux.fanotify import mark_opens, open_group
from secretfs.linux.mount_api import writable
from secretfs.linux.own_mount import OwnMount

LARGEST: Final = 64 << 10
"""Bytes of a request at most: three paths of PATH_MAX and some."""
HELD: Final = 100
"""The descriptor that `hold_writable` opens in the helper. A path below /proc/PID/fd/ leads to what it is of."""


class SystemCalls:
    """What may be asked for. A path is one of the mount point, or below it. A device is that of `OwnMount`."""

    def __init__(self, mount: OwnMount) -> None:
        self._mount = mount
        self.by_name: Final[Mapping[str, Callable[..., object]]] = {
            "statvfs": mount.statvfs,
            "lstat": mount.lstat,
            "rename": mount.rename,
            "mkdir": mount.mkdir,
            "unlink": mount.unlink,
            "rmdir": mount.rmdir,
            "open_group": self._open_group,
            "mark_opens": self._mark_opens,
            "hold_writable": self._hold_writable,
            "release": self._release,
            "write_each": self._write_each,
        }
        """By name. A descriptor that comes with a request is the first argument after the device; the rest is texts."""

    def _open_group(self, _: int | None) -> int:
        return open_group()

    def _mark_opens(self, _: int | None, group: int, path: bytes) -> None:
        with self._mount.directory(path) as directory:
            mark_opens(group, b".", directory)

    def _hold_writable(self, device: int | None, path: bytes) -> None:
        """Keep a writable mount of a directory open, until `_release`. Until then others may look at us.

        Else only who may trace every process could follow the path.
        """
        with self._mount.directory(path, device) as directory, writable(directory) as mount:
            os.dup2(mount, HELD, inheritable=False)
            _set_dumpable(1)

    def _release(self, _: int | None) -> None:
        """Let go of what `_hold_writable` keeps, if anything."""
        _set_dumpable(0)
        with contextlib.suppress(OSError):
            os.close(HELD)

    def _write_each(self, _: int | None, descriptor: int, *messages: bytes) -> None:
        """Write messages, in hexadecimal digits, with one write(2) each. What one ends with prevents no other."""
        for message in messages:
            with contextlib.suppress(OSError):
                os.write(descriptor, bytes.fromhex(message.decode("ascii")))


OPENING: Final = frozenset({b"open_group"})
"""Those that return a descriptor, which goes back with the answer."""

_NAME: Final = b"secretfs-helper"
_PR_SET_DUMPABLE, _PR_SET_NAME = 4, 15  # linux/prctl.h


def leave_daemon(name: bytes, requests: socket.socket) -> None:
    """Be a process that is called so, ends after the daemon, and has nothing open but the socket of its requests."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name, 0, 0, 0)
    _set_dumpable(0)  # a program of its own does not inherit that
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP):
        signal.signal(number, signal.SIG_IGN)  # these are for the daemon
    os.chdir("/")
    forget_environment(lambda variable: variable == "PATH" or variable.startswith("PYTHON"))
    _close_all_but(requests)


def serve(requests: socket.socket, mountpoint: bytes) -> NoReturn:
    """Answer requests for `SystemCalls` with an errno or 0. Ends the process when the other end is closed."""
    try:
        leave_daemon(_NAME, requests)
        confine_helper()
        calls = SystemCalls(OwnMount(mountpoint, found=restrict_helper)).by_name
        while (received := socket.recv_fds(requests, LARGEST, 1))[0]:
            request, descriptors, _, _ = received
            name, device, *paths = request.split(b"\0")
            code, opened = 0, list[int]()
            try:
                result = calls[name.decode()](int(device) if device else None, *descriptors, *paths)
                opened = [result] if name in OPENING and isinstance(result, int) else []
            except OSError as error:
                code = error.errno or errno.EIO
            socket.send_fds(requests, [code.to_bytes(2, "big")], opened)
            for descriptor in (*descriptors, *opened):
                os.close(descriptor)
    finally:
        os._exit(0)


def _set_dumpable(value: int) -> None:
    """Say whether other processes of this user may trace us, and look at what we have open."""
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, value, 0, 0, 0)


def _close_all_but(kept: socket.socket) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for stream in {0, 1, 2} - {kept.fileno()}:
        os.dup2(null, stream)
    last, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if kept.fileno() > 2:
        os.closerange(3, kept.fileno())
    os.closerange(max(3, kept.fileno() + 1), last)


if __name__ == "__main__":
    serve(socket.socket(fileno=0), os.fsencode(sys.argv[1]))
