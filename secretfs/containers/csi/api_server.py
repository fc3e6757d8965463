"""The API server of the cluster, asked with the service account of the driver."""

import http.client
import os
import ssl
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from secretfs.containers.csi.failures import Unavailable

SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
PATIENCE: Final = 10.0
"""Seconds that the API server has for an answer."""
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

    def call(self, method: str, path: str, content: bytes | None = None) -> tuple[int, bytes]:
        """Return the status and the body of an answer. Raises `Unavailable` if there is none."""
        with self._failures(), closing(self._connect()) as connection:
            headers = {"Content-Type": "application/json"} if content else {}
            connection.request(method, path, content, self._headers() | headers)
            response = connection.getresponse()
            return response.status, response.read(LARGEST)

    def _connect(self) -> http.client.HTTPSConnection:
        tls = ssl.create_default_context(cafile=str(self._account / "ca.crt"))
        return http.client.HTTPSConnection(self._host, self._port, timeout=PATIENCE, context=tls)

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
