"""Where the Secrets API listens: ``unix:/run/shop.sock`` or ``127.0.0.1:3500``.

A socket file belongs to the owner of the secrets, with mode 0600. A port is open to every user of the machine, so there
a token is required (``DAPR_API_TOKEN``, as for Dapr's sidecar); and it is a port of this machine only, because nothing
here is encrypted.
"""

import contextlib
import errno
import ipaddress
import os
import socket
from pathlib import Path
from typing import Final

from secretfs.errors import ConfigurationError
from secretfs.observe.address import PUBLIC, Address, listen, parse_address, remove_dead

TOKEN_VARIABLE: Final = "DAPR_API_TOKEN"  # noqa: S105 - a name
"""The environment variable with the token that clients have to send."""

_BACKLOG: Final = 128
"""Clients that may connect while no worker serves."""


def parse_api_address(text: str) -> Address:
    """Read ``unix:PATH``, ``127.0.0.1:PORT`` or ``[::1]:PORT``. Raises `ValueError` with what is wrong."""
    if text.startswith("unix:"):
        return parse_address(text)
    address = parse_address(f"{PUBLIC}{text}")
    if not ipaddress.ip_address(address.host).is_loopback:
        raise ValueError(f"lets secrets leave this machine, and unencrypted; write 127.0.0.1:{address.port}")
    if not address.port:
        raise ValueError("is not unix:PATH, 127.0.0.1:PORT or [::1]:PORT")
    return address


class Listener:
    """A socket that listens at an address. The next worker goes on with a copy of its descriptor."""

    def __init__(self, listening: socket.socket, address: Address) -> None:
        self.socket = listening
        self.address = address

    @classmethod
    def open(cls, address: Address, uid: int | None = None, gid: int | None = None) -> "Listener":
        """Begin to listen; a socket file belongs to ``uid`` and ``gid``. Raises `ConfigurationError`."""
        listener = cls(listen(address, "the Secrets API"), address)
        listener.socket.listen(_BACKLOG)
        if address.path is not None and (uid, gid) != (None, None):
            try:
                os.chown(address.path, -1 if uid is None else uid, -1 if gid is None else gid, follow_symlinks=False)
            except OSError as error:
                listener.remove()
                needed = " (it takes CAP_CHOWN)" if error.errno == errno.EPERM else ""
                message = f"--api: the socket cannot be given to the owner of the files: {error.strerror}{needed}"
                raise ConfigurationError(message) from None
        return listener

    @classmethod
    def inherit(cls, descriptor: int) -> "Listener":
        """Go on with the socket of the worker before this one."""
        listening = socket.socket(fileno=descriptor)
        name = listening.getsockname()
        if listening.family == socket.AF_UNIX:
            return cls(listening, Address(path=Path(os.fsdecode(name))))
        return cls(listening, Address(host=name[0], port=name[1]))

    def remove(self) -> None:
        """End to listen, also for those who hold a copy of the socket, and remove its file."""
        with contextlib.suppress(OSError):  # it was shut down before
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        if self.address.path is not None:
            with contextlib.suppress(OSError):  # it is gone; or somebody else listens there by now
                remove_dead(self.address.path)
