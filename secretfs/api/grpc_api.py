"""Dapr's Secrets API over gRPC: frames, methods and status codes. Neither grpcio nor protobuf is needed for that.

The protocol is https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md, the service that of
``dapr/proto/runtime/v1/dapr.proto``.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Final, NamedTuple, TypeVar
from urllib.parse import quote

import trio

from secretfs.api.messages import (
    bulk_response,
    metadata_response,
    read_bulk_request,
    read_secret_request,
    secret_response,
)
from secretfs.api.secrets_api import Refusal, SecretsApi, rendered
from secretfs.store import Secret

T = TypeVar("T")

CONTENT_TYPE: Final = "application/grpc"
SERVICE: Final = "dapr.proto.runtime.v1.Dapr"
LARGEST_MESSAGE: Final = 4 * 1024 * 1024
"""Bytes of an answer: what a client accepts unless told otherwise, and Dapr's ``--max-body-size``."""

_PREFIX: Final = 5
"""Bytes before a message: whether it is compressed, and its length."""


class Status(NamedTuple):
    """How a call ended; 0 is well."""

    code: int
    message: str = ""


class Answer(NamedTuple):
    """What a call is answered with."""

    status: Status
    frame: bytes = b""

    @property
    def trailers(self) -> list[tuple[bytes, bytes]]:
        """The status as HTTP/2 carries it."""
        message = quote(self.status.message, safe=" !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~", errors="backslashreplace")
        return [(b"grpc-status", b"%d" % self.status.code), (b"grpc-message", message.encode())]


MISSING_TOKEN: Final = Answer(Status(16, "missing api token in request metadata"))
INVALID_TOKEN: Final = Answer(Status(16, "authentication error: api token mismatch"))
TOO_LARGE: Final = Answer(Status(8, "grpc: received message larger than max"))
DEFECT: Final = Answer(Status(13, "a defect in secretfs; its log has the place"))


class _Failure(Exception):
    """A call that ends with another status than that of a `Refusal`."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.status = Status(code, message)


async def answer(api: SecretsApi, path: str, body: bytes) -> Answer:
    """Answer a call."""
    try:
        method = _method(path)
        message = await method(api, _message(body))
    except _Failure as failure:
        return Answer(failure.status)
    except Refusal as refusal:
        return Answer(Status(refusal.kind.grpc, refusal.message))
    if len(message) > LARGEST_MESSAGE:
        reason = f"grpc: trying to send message larger than max ({len(message)} vs. {LARGEST_MESSAGE})"
        return Answer(Status(8, reason))
    return Answer(Status(0), b"\0" + len(message).to_bytes(4, "big") + message)


def _method(path: str) -> "_Method":
    service, _, name = path.lstrip("/").partition("/")
    if service != SERVICE:
        raise _Failure(12, f"unknown service {service}")
    if name not in _METHODS:
        raise _Failure(12, f"unknown method {name} for service {service}")
    return _METHODS[name]


def _message(body: bytes) -> bytes:
    """Take the one message out of a request."""
    if body[:1] not in (b"\0", b""):
        raise _Failure(12, "grpc: compressed requests are not supported: send them without grpc-encoding")
    if len(body) < _PREFIX or len(body) - _PREFIX != int.from_bytes(body[1:_PREFIX], "big"):
        raise _Failure(13, "grpc: a call has one message, and this has not")
    return body[_PREFIX:]


def _read(read: Callable[[bytes], T], message: bytes) -> T:
    try:
        return read(message)
    except ValueError as error:
        reason = "a string is not UTF-8" if isinstance(error, UnicodeError) else str(error)
        raise _Failure(13, f"grpc: error unmarshalling request: {reason}") from None


async def _get_secret(api: SecretsApi, message: bytes) -> bytes:
    request = _read(read_secret_request, message)
    secret = await api.get(request.store, request.key, request.metadata)
    return await rendered(secret, lambda secret: secret_response(_text(secret)))


async def _get_bulk_secret(api: SecretsApi, message: bytes) -> bytes:
    secrets = await api.get_all(_read(read_bulk_request, message).store)
    return await trio.to_thread.run_sync(_render, secrets)


async def _get_metadata(api: SecretsApi, message: bytes) -> bytes:
    metadata = api.metadata()
    return metadata_response(metadata.app_id, metadata.components, metadata.extended, metadata.version)


def _render(secrets: Mapping[str, Secret]) -> bytes:
    return bulk_response({name: _text(secret) for name, secret in secrets.items()})


def _text(secret: Secret) -> dict[str, str]:
    return {key: value.decode() for key, value in secret.values.items()}


_Method = Callable[[SecretsApi, bytes], Awaitable[bytes]]

_METHODS: Final[Mapping[str, _Method]] = {
    "GetSecret": _get_secret,
    "GetBulkSecret": _get_bulk_secret,
    "GetMetadata": _get_metadata,
}
