"""What a service manager and a service say to each other: sd_notify(3), sd_listen_fds(3), sd_watchdog_enabled(3).

Each function takes its variables out of the environment: they are for this process and not for what it starts.
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
    """The service manager that has started this process, systemd as a rule."""

    address: str | bytes | int
    """Of its socket; an abstract one begins with a NUL byte. Or a descriptor of a socket that is connected to it."""
    watchdog: float | None = None
    """Seconds after which we are killed if we have not sent ``WATCHDOG=1``; None without a watchdog."""

    def notify(self, *descriptors: int, **state: object) -> None:
        """Send one message, such as ``READY=1, STATUS="mounted"``, and copies of ``descriptors`` with it.

        Never waits: a manager that reads a file of ours at this moment would wait for us. Raises `BlockingIOError` if
        it is that busy, another `OSError` if it is gone.
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
        """Have a copy of ``descriptor`` kept while this process is killed or restarted; see `stored_descriptors`.

        It is the unit that says how many are kept (``FileDescriptorStoreMax=``). Another one of the same name does not
        take the place of the first: `remove` that before.
        """
        # Without FDPOLL=0 the manager is woken by each request of the kernel that arrives at a descriptor of /dev/fuse.
        self.notify(descriptor, FDSTORE=1, FDNAME=name, FDPOLL=0)

    def remove(self, name: str) -> None:
        """Have all descriptors of that name closed."""
        self.notify(FDSTOREREMOVE=1, FDNAME=name)


def service_manager(
    environ: MutableMapping[str, str] = os.environ, channel: int | None = None
) -> ServiceManager | None:
    """Return the service manager that wants to hear from us, if there is one; ``channel`` is a socket to it.

    Raises `ConfigurationError` for an address that is none of a Unix socket.
    """
    told = environ.pop("NOTIFY_SOCKET", "")
    watchdog = _watchdog(environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", ""))
    if channel is not None:
        return ServiceManager(channel, watchdog)
    if not told:
        return None
    if told[0] not in "/@" or len(told) == 1:
        raise ConfigurationError(f"NOTIFY_SOCKET is {told!r}, which is neither a path nor @ and a name")
    return ServiceManager(b"\0" + os.fsencode(told[1:]) if told[0] == "@" else told, watchdog)


def stored_descriptors(environ: MutableMapping[str, str] = os.environ) -> dict[str, int]:
    """Return the descriptors that the service manager has handed to this process, by name; nobody inherits them.

    The newest of several with one name is in the result, and the others are closed.
    """
    pid, count, names = (environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if pid != str(os.getpid()):  # meant for a parent that passed its environment on
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
