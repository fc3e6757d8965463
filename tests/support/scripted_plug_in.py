"""A gRPC server on a Unix socket that answers with the bytes, or the status, that a test gives it for each method."""

import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from secretfs.stores.pluggable.plug_in import SERVICE

Answer = Callable[[bytes, Any], bytes]
"""Takes the request and its context (`grpc.ServicerContext`), and returns the answer."""

REFLECTION = "/grpc.reflection.{}.ServerReflection/ServerReflectionInfo"


def message(number: int, data: bytes) -> bytes:
    """Encode one field with a length."""
    head = number << 3 | 2
    length, encoded = len(data), bytearray([head])
    while length > 0x7F:
        encoded.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes([*encoded, length]) + data


def pair(key: bytes, value: bytes) -> bytes:
    """Encode an entry of a map in field 1."""
    return message(1, message(1, key) + message(2, value))


def listed(*services: str) -> bytes:
    """Encode what reflection answers where these services are."""
    return message(6, b"".join(message(1, message(1, name.encode())) for name in services))


def says(answer: bytes) -> Answer:
    return lambda request, context: answer


def fails(code: grpc.StatusCode, details: str = "") -> Answer:
    def fail(request: bytes, context: Any) -> bytes:
        context.abort(code, details)
        raise AssertionError

    return fail


class ScriptedPlugIn(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Serves what is in ``answers``, by ``Get`` for a method of a secret store, or ``/SERVICE/METHOD``; the rest is
    not implemented."""

    def __init__(self) -> None:
        self.server: Any = None
        self.calls: list[str] = []
        self.over = threading.Event()
        """Set at the end."""
        self.answers: dict[str, Answer] = {
            REFLECTION.format("v1alpha"): says(listed(SERVICE)),
            "Init": says(b""),
            "Features": says(b""),
            "Get": says(pair(b"value", b"1")),
            "BulkGet": says(b""),
            "Ping": says(b""),
        }

    def service(self, call: Any) -> Any:
        """Return who answers a call, as gRPC wants it."""
        name = call.method.removeprefix(f"/{SERVICE}/")
        self.calls.append(name)
        answer = self.answers.get(name)
        return None if answer is None else grpc.unary_unary_rpc_method_handler(answer)

    def hang(self, request: bytes, context: Any) -> bytes:
        """Answer at the end of the test."""
        self.over.wait()
        return b""

    def hang_up(self, request: bytes, context: Any) -> bytes:
        """Break the connection."""
        self.server.stop(None)
        return self.hang(request, context)


@contextmanager
def scripted_plug_in(socket: Path, script: ScriptedPlugIn | None = None) -> Iterator[ScriptedPlugIn]:
    """Serve on a socket; one that is there is replaced."""
    script = script or ScriptedPlugIn()
    socket.unlink(missing_ok=True)
    with futures.ThreadPoolExecutor(8) as threads:
        server = script.server = grpc.server(threads, handlers=(script,))
        server.add_insecure_port(f"unix:{socket}")
        server.start()
        try:
            yield script
        finally:
            script.over.set()
            server.stop(None).wait()
