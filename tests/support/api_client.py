"""Clients of the Secrets API: HTTP over a socket file or a port, and gRPC with the stubs of the ``dapr`` package."""

import http.client
import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from dapr.proto.runtime.v1.dapr_pb2_grpc import DaprStub

from tests.support.waiting import PATIENCE

Where = Path | int
"""A socket file, or a port of this machine."""


class Answer(NamedTuple):
    """What an HTTP request was answered with."""

    status: int
    type: str | None
    body: bytes

    @property
    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)


def connect(where: Where) -> socket.socket:
    """Connect to the API."""
    if isinstance(where, int):
        return socket.create_connection(("127.0.0.1", where), PATIENCE)
    client = socket.socket(socket.AF_UNIX)
    try:
        client.connect(str(where))  # without a timeout it waits for a place in a queue that is full
    except OSError:
        client.close()
        raise
    client.settimeout(PATIENCE)
    return client


def ask(
    where: Where,
    path: str,
    headers: Mapping[str, str] | None = None,
    *,
    method: str = "GET",
    body: bytes | None = None,
) -> Answer:
    """Send one HTTP request, on a connection of its own."""
    connection = http.client.HTTPConnection("x", timeout=PATIENCE)
    connection.sock = connect(where)
    try:
        connection.request(method, path, body, dict(headers or {}))
        response = connection.getresponse()
        return Answer(response.status, response.getheader("content-type"), response.read())
    finally:
        connection.close()


def get_secret(where: Where, store: str, name: str) -> Answer:
    """Ask for a secret."""
    return ask(where, f"/v1.0/secrets/{store}/{name}")


@contextmanager
def dapr_stub(where: Where) -> Iterator[Any]:
    """Connect to Dapr's gRPC service."""
    target = f"127.0.0.1:{where}" if isinstance(where, int) else f"unix:{where}"
    with grpc.insecure_channel(target, [("grpc.enable_http_proxy", 0)]) as channel:
        yield DaprStub(channel)  # type: ignore[no-untyped-call]
