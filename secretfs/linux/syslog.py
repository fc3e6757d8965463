"""Syslog, for a daemon that must not wait for it."""

import logging.handlers
import socket

from secretfs.linux.log import CountsLost


class Syslog(CountsLost, logging.handlers.SysLogHandler):
    """Never waits: a line may be lost when syslog hangs, but no reader of a secret hangs with it.

    Raises OSError where nobody listens at ``address``; ``ident`` is before each line.
    """

    socket: socket.socket

    def __init__(self, address: str, ident: str) -> None:
        super().__init__(address, logging.handlers.SysLogHandler.LOG_DAEMON)
        self.socket.getpeername()  # logging says nothing of a socket that is not there, or that nobody listens at
        self.ident = ident

    def _connect_unixsocket(self, address: str) -> None:
        super()._connect_unixsocket(address)  # type: ignore[misc]
        self.socket.settimeout(0)
