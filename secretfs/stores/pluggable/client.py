"""gRPC calls to one plug-in through one connection, and what its status codes mean.

The text of a status is never shown: many servers put the text of an exception there, which may quote a secret.
"""

import threading
from typing import Final
from urllib.parse import quote

import grpc

from secretfs.errors import (
    AccessDenied,
    DeadlineExceeded,
    MalformedAnswer,
    SecretNotFound,
    StoreError,
    StoreUnavailable,
)

LARGEST_ANSWER: Final = 16 << 20
"""Bytes. gRPC's own limit, and with it Dapr's, is 4 MiB, which a BulkGet of a large store does not fit into."""

_OPTIONS: Final = (
    ("grpc.enable_retries", 0),
    ("grpc.max_receive_message_length", LARGEST_ANSWER),
    ("grpc.use_local_subchannel_pool", 1),  # else a new connection waits for the back-off of one before it
)
_TOO_LARGE: Final = "larger than max"
"""What gRPC's own status says of an answer that is over the limit; a plug-in that has one of its own says the same."""


class ConnectionLost(StoreUnavailable):
    """Nobody answers on this connection any more: whoever does next has to be initialised."""


class ConnectionEnded(ConnectionLost):
    """We have disconnected before the call: another one has found that nobody answers."""


class NotImplementedByPlugIn(MalformedAnswer):
    """The plug-in has no such method, or no such service."""


_UNAVAILABLE: Final = (StoreUnavailable, "it failed")
_MEANINGS: Final[dict[grpc.StatusCode, tuple[type[StoreError], str]]] = {
    grpc.StatusCode.NOT_FOUND: (SecretNotFound, "not found"),
    grpc.StatusCode.PERMISSION_DENIED: (AccessDenied, "it refuses"),
    grpc.StatusCode.UNAUTHENTICATED: (AccessDenied, "it refuses"),
    grpc.StatusCode.DEADLINE_EXCEEDED: (DeadlineExceeded, "no answer in time"),
    grpc.StatusCode.UNIMPLEMENTED: (NotImplementedByPlugIn, "not implemented"),
    grpc.StatusCode.DATA_LOSS: (MalformedAnswer, "its data are damaged"),
    # It has lost its settings: a plug-in that was started again by somebody who keeps its socket.
    grpc.StatusCode.FAILED_PRECONDITION: (ConnectionLost, "it is not ready"),
    grpc.StatusCode.UNAVAILABLE: (ConnectionLost, "it does not answer"),
    # An error of Go, an Error of JavaScript and an exception of Python arrive as UNKNOWN, "not found" among them.
}


class Connection:
    """A connection to the process that is behind a socket now. Thread-safe.

    gRPC connects when the first call is made, within the deadline of that call.
    """

    def __init__(self, path: str, instance: str) -> None:
        self._channel = grpc.insecure_channel(f"unix:{quote(path)}", options=_OPTIONS)
        self._metadata = (("x-component-instance", instance),)
        self._lock = threading.Lock()
        self._calls = 0
        self._ended = False

    def call(self, method: str, request: bytes, seconds: float) -> bytes:
        """Call ``/SERVICE/METHOD``, and return its answer. Raises `StoreError` with the name of the method."""
        name = method.rpartition("/")[2]
        if seconds <= 0:
            raise DeadlineExceeded(f"{name}: no answer in time")
        self._begin()
        try:
            answer: bytes = self._channel.unary_unary(method)(request, timeout=seconds, metadata=self._metadata)
        except grpc.RpcError as error:
            raise _meaning(name, error) from None
        finally:
            self._finish()
        return answer

    def end(self) -> None:
        """Disconnect, as soon as no call is under way: a plug-in that is stopped may still answer them."""
        with self._lock:
            self._ended = True
            idle = not self._calls
        if idle:
            self._channel.close()

    def _begin(self) -> None:
        with self._lock:
            if self._ended:
                raise ConnectionEnded("it is asked no more on this connection")
            self._calls += 1

    def _finish(self) -> None:
        with self._lock:
            self._calls -= 1
            over = self._ended and not self._calls
        if over:
            self._channel.close()


def _meaning(method: str, error: grpc.RpcError) -> StoreError:
    code = error.code()
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and _TOO_LARGE in (error.details() or ""):
        return MalformedAnswer(f"{method}: the answer is larger than {LARGEST_ANSWER >> 20} MiB")
    kind, reason = _MEANINGS.get(code, _UNAVAILABLE)
    if kind is SecretNotFound and method != "Get":
        kind, reason = _UNAVAILABLE
    return kind(f"{method}: {reason} ({code.name})")
