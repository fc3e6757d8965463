"""The service's side of the service manager protocol: sd_notify(3), sd_listen_fds(3), sd_watchdog_enabled(3).

Each function removes its variables from the environment: they are for this process, not for its children.
"""

import os
import socket
from collections.abc import MutableMapping, Sequence
from contextlib import closing
from dataclasses import dataclass

from secretfs.errors import ConfigurationError

_FIRST_DESCRIPTOR = 3  # SD_LISTEN_FDS_START
_UNNAMED = "unknown"  # as sd_listen_fds_with_names(3) has it


@dataclass(frozen=True, slots=True)
class ServiceManager:
    """The service manager that started this process: systemd, or our own supervisor."""

    address: str | bytes | int
    """Of its socket; an abstract one begins with a NUL byte. Or a descriptor of a socket that is connected to it."""
    watchdog: float | None = None
    """Seconds without a ``WATCHDOG=1`` after which this process is killed; None if there is no watchdog."""

    def notify(self, *descriptors: int, **state: object) -> None:
        """Send one message, such as ``READY=1, STATUS="mounted"``, and copies of ``descriptors`` with it.

        Never blocks: the manager may be reading a file of our mount, and would wait for us. Raises `BlockingIOError` if
        its queue is full, another `OSError` if it is gone.
        """
        message = "\n".join(f"{name}={_one_line(value)}" for name, value in state.items())
        with closing(self._channel()) as channel:
            if descriptors:
                socket.send_fds(channel, [message.encode()], descriptors)
            else:
                channel.send(message.encode())

    def _channel(self) -> socket.socket:
        if isinstance(self.address, int):
            channel = socket.socket(fileno=os.dup(self.address))
            channel.settimeout(0)
            return channel
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        channel.settimeout(0)
        try:
            channel.connect(self.address)
        except OSError:
            channel.close()
            raise
        return channel

    def store(self, name: str, descriptor: int) -> None:
        """Have the manager store a copy of ``descriptor`` for the next process; see `stored_descriptors`.

        The unit limits their number (``FileDescriptorStoreMax=``). A second one of the same name does not replace the
        first: `remove` that before.
        """
        # Without FDPOLL=0 each request of the kernel at a descriptor of /dev/fuse wakes the manager.
        self.notify(descriptor, FDSTORE=1, FDNAME=name, FDPOLL=0)

    def remove(self, name: str) -> None:
        """Have the manager close all descriptors of that name."""
        self.notify(FDSTOREREMOVE=1, FDNAME=name)


def service_manager(
    environ: MutableMapping[str, str] = os.environ, channel: int | None = None
) -> ServiceManager | None:
    """Return the service manager that expects notifications, if there is one; ``channel`` is a socket to it.

    Raises `ConfigurationError` for an address that is not that of a Unix socket.
    """
    address = environ.pop("NOTIFY_SOCKET", "")
    watchdog = _watchdog(environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", ""))
    if channel is not None:
        return ServiceManager(channel, watchdog)
    if not address:
        return None
    if address[0] not in "/@" or len(address) == 1:
        raise ConfigurationError(f"NOTIFY_SOCKET is {address!r}, which is neither a path nor @ and a name")
    return ServiceManager(b"\0" + os.fsencode(address[1:]) if address[0] == "@" else address, watchdog)


def stored_descriptors(environ: MutableMapping[str, str] = os.environ) -> dict[str, int]:
    """Return the descriptors that the service manager stored for this process, by name. No child inherits them.

    Of several with one name, the newest is returned and the others are closed.
    """
    pid, count, names = (environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if pid != str(os.getpid()):  # they are for a parent that passed its environment on
        return {}
    descriptors = range(_FIRST_DESCRIPTOR, _FIRST_DESCRIPTOR + int(count))
    kept: dict[str, int] = {}
    for name, descriptor in zip(_names(names, len(descriptors)), descriptors, strict=True):
        os.set_inheritable(descriptor, False)  # noqa: FBT003 - positional only
        if kept.setdefault(name, descriptor) != descriptor:  # systemd hands out the newest first
            os.close(descriptor)
    return kept


def _names(listed: str, count: int) -> Sequence[str]:
    return listed.split(":") if listed else [_UNNAMED] * count


def _watchdog(microseconds: str, pid: str) -> float | None:
    if not microseconds or pid not in ("", str(os.getpid())):
        return None
    return int(microseconds) / 1e6


def _one_line(value: object) -> str:
    """Keep a text from being read as further assignments."""
    return " ".join(str(value).splitlines())
