"""Connections to servers in another network namespace, from the tests' own process."""

import ctypes
import http.client
import os
import socket
import ssl
import threading
from collections.abc import Mapping
from pathlib import Path

from tests.support.waiting import PATIENCE

_CLONE_NEWNET = 0x40000000


def connect(pid: int, host: str, port: int) -> socket.socket:
    """Connect from the network namespace of process ``pid``. A thread of its own enters it, and ends there."""
    made: list[socket.socket | OSError] = []

    def run() -> None:
        try:
            namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
            try:
                if ctypes.CDLL(None, use_errno=True).setns(namespace, _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            finally:
                os.close(namespace)
            made.append(socket.create_connection((host, port), PATIENCE))
        except OSError as error:
            made.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    (result,) = made
    if isinstance(result, OSError):
        raise result
    return result


class HTTPS(http.client.HTTPSConnection):
    """A TLS connection to a server in the network namespace of a process, made anew when it has ended."""

    def __init__(self, pid: int, host: str, port: int, authority: Path) -> None:
        self._pid = pid
        self._tls = ssl.create_default_context(cafile=authority)
        self._tls.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        super().__init__(host, port, timeout=PATIENCE, context=self._tls)

    def connect(self) -> None:
        """Connect; `http.client` calls it."""
        self.sock = self._tls.wrap_socket(connect(self._pid, self.host, self.port), server_hostname=self.host)

    def ask(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> tuple[int, bytes]:
        """Send a request; returns status and body. Raises `OSError` or `http.client.HTTPException`."""
        try:
            self.request(method, path, body, dict(headers))
            answer = self.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            self.close()
            raise
