"""The helper process: it makes system calls on request, until the daemon that asks for them has gone.

It never sees a secret: it is forked before any store is opened, or started as a program of its own, and closes every
descriptor but one, a socket. ``python -m secretfs.linux.syscall_server`` serves the socket that is its standard input.
"""

import contextlib
import ctypes
import errno
import os
import resource
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import Final, NoReturn

from secretfs.linux.fanotify import mark_opens, open_group
from secretfs.linux.mount_api import writable

LARGEST: Final = 64 << 10
"""Bytes of a request at most: three paths of PATH_MAX and some."""
HELD: Final = 100
"""The descriptor that `hold_writable` opens in the helper. A path below /proc/PID/fd/ leads to what it is of."""


def hold_writable(path: bytes, device: bytes) -> None:
    """Keep a writable mount of a directory of a device open, until `release`. Until then others may look at us.

    Else only who may trace every process could follow the path.
    """
    with writable(path) as mount:
        _require_device(mount, device)
        os.dup2(mount, HELD, inheritable=False)
        _set_dumpable(1)


def release() -> None:
    """Let go of what `hold_writable` keeps, if anything."""
    _set_dumpable(0)
    with contextlib.suppress(OSError):
        os.close(HELD)


def write_each(descriptor: int, *messages: bytes) -> None:
    """Write messages, in hexadecimal digits, with one write(2) each. What one of them ends with prevents no other."""
    for message in messages:
        with contextlib.suppress(OSError):
            os.write(descriptor, bytes.fromhex(message.decode("ascii")))


SYSCALLS: Final[Mapping[str, Callable[..., object]]] = {
    "statvfs": os.statvfs,
    "lstat": os.lstat,
    "rename": os.rename,
    "mkdir": os.mkdir,
    "unlink": os.unlink,
    "rmdir": os.rmdir,
    "open_group": open_group,
    "mark_opens": mark_opens,
    "hold_writable": hold_writable,
    "release": release,
    "write_each": write_each,
}
"""What may be asked for, by name. A descriptor that comes with a request is the first argument; the rest is texts."""
OPENING: Final = frozenset({"open_group"})
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
    _close_all_but(requests)


def serve(requests: socket.socket) -> NoReturn:
    """Answer requests for `SYSCALLS` with an errno or 0. Ends the process when the other end is closed."""
    try:
        leave_daemon(_NAME, requests)
        while (received := socket.recv_fds(requests, LARGEST, 1))[0]:
            request, descriptors, _, _ = received
            name, within, device, *paths = request.split(b"\0")
            code, opened = _call(name.decode(), within, device, *descriptors, *paths)
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


def _call(name: str, within: bytes, device: bytes, *arguments: int | bytes) -> tuple[int, list[int]]:
    """Make a call. Returns an errno or 0, and the descriptor that it has opened."""
    try:
        with _working_in(within, device):
            result = SYSCALLS[name](*arguments)
    except OSError as error:
        return error.errno or errno.EIO, []
    return 0, [result] if name in OPENING and isinstance(result, int) else []


@contextlib.contextmanager
def _working_in(path: bytes, device: bytes) -> Iterator[None]:
    """Have relative paths begin in a mount, in a writable one that nobody else sees."""
    if not path:
        yield
        return
    with writable(path) as mount:
        _require_device(mount, device)
        os.fchdir(mount)
        try:
            yield
        finally:
            os.chdir("/")


def _require_device(mount: int, device: bytes) -> None:
    """Raise OSError if another file system has come to the path: a call would do there what was meant for ours."""
    if os.fstat(mount).st_dev != os.makedev(0, int(device)):
        raise FileNotFoundError(errno.ENOENT, "another file system is mounted there")


if __name__ == "__main__":
    serve(socket.socket(fileno=0))
