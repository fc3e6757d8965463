"""The API server of the cluster, asked with the service account of the driver."""

import http.client
import os
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path
from typing import Final

from secretfs.containers.csi.failures import Unavailable

SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
PATIENCE: Final = 10.0
"""Seconds that the API server has for an answer, or for the next part of one."""
LARGEST: Final = 4 << 20
"""Bytes of an answer that are read, such as a pod. etcd takes 1.5 MiB of an object at most."""


class ApiServer:
    """The API server that a pod is told of by its environment. Each call makes a connection of its own."""

    def __init__(self, host: str, port: int, account: Path = SERVICE_ACCOUNT) -> None:
        self._host = host
        self._port = port
        self._account = account

    @classmethod
    def of_this_pod(cls, environ: Mapping[str, str] = os.environ) -> "ApiServer | None":
        """Return the API server of the cluster that this process is a pod of; None if it is none."""
        host, port = environ.get("KUBERNETES_SERVICE_HOST"), environ.get("KUBERNETES_SERVICE_PORT")
        return cls(host, int(port)) if host and port else None

    def call(
        self, method: str, path: str, content: bytes | None = None, *, largest: int = LARGEST
    ) -> tuple[int, bytes]:
        """Return the status and the body of an answer, which is cut off after ``largest`` bytes.

        Raises `Unavailable` if there is none.
        """
        with self._failures(), closing(self._connect(PATIENCE)) as connection:
            headers = {"Content-Type": "application/json"} if content else {}
            connection.request(method, path, content, self._headers() | headers)
            response = connection.getresponse()
            return response.status, response.read(largest)

    @contextmanager
    def stream(self, path: str, patience: float) -> Iterator["Stream"]:
        """Give an answer that is read line by line, each within ``patience`` seconds. Raises `Unavailable`."""
        with self._failures():
            connection = self._connect(patience)
        with closing(connection):
            with self._failures():
                connection.request("GET", path, headers=self._headers())
                response = connection.getresponse()
            yield Stream(response, connection.sock, self._failures)

    def _connect(self, patience: float) -> http.client.HTTPSConnection:
        # Not the default context: that of Python 3.13 refuses certificates of clusters which Go trusts.
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        tls.load_verify_locations(self._account / "ca.crt")
        connection = http.client.HTTPSConnection(self._host, self._port, timeout=PATIENCE, context=tls)
        connection.connect()
        connection.sock.settimeout(patience)
        return connection

    def _headers(self) -> dict[str, str]:
        token = (self._account / "token").read_text("ascii").strip()
        return {"Authorization": f"Bearer {token}", "Accept": "application/json"}

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
            raise Unavailable(f"cannot ask the API server at {self._host}:{self._port}: {reason}") from None


class Stream:
    """An answer as it arrives. One thread reads; any thread may `stop` it."""

    def __init__(
        self,
        response: http.client.HTTPResponse,
        connected: socket.socket,
        failures: Callable[[], AbstractContextManager[None]],
    ) -> None:
        """``failures`` says what goes wrong while something is read."""
        self._response = response
        self._connected = connected
        self._failures = failures

    @property
    def status(self) -> int:
        """The status code of the answer."""
        return self._response.status

    def lines(self, largest: int) -> Iterator[bytes]:
        """Yield lines, none of them longer than ``largest`` bytes, until the answer ends. Raises `Unavailable`."""
        while line := self._line(largest + 1):
            if len(line) > largest:
                raise Unavailable(f"the API server sends a line of more than {largest} bytes")
            yield line

    def _line(self, largest: int) -> bytes:
        with self._failures():
            return self._response.readline(largest)

    def stop(self) -> None:
        """Wake the reader, for whom the answer has ended."""
        with suppress(OSError):  # it has just ended by itself
            socket.socket.shutdown(self._connected, socket.SHUT_RDWR)  # TLS's own would take the reader's state away
