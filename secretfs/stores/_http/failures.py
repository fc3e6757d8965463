"""What a failure to get an answer means, as an error that shows nothing of the answer."""

import http.client
import ssl
from collections.abc import Callable
from typing import Any, TypeVar

from urllib3.exceptions import (
    ConnectTimeoutError,
    NameResolutionError,
    NewConnectionError,
    ProtocolError,
    ProxyError,
    ReadTimeoutError,
    SSLError,
)

from secretfs.errors import AccessDenied, DeadlineExceeded, MalformedAnswer, StoreError, StoreUnavailable, TLSFailure

T = TypeVar("T")

SPEAKS_TLS = "the server speaks TLS, so the address must start with https://"
SPEAKS_NO_TLS = "the server does not speak TLS: does its address start with http://?"

_PLAIN_TEXT_REFUSED = (
    b"HTTP request to an HTTPS server",  # Go
    b"plain HTTP request was sent to HTTPS port",  # nginx
    b"speaking plain HTTP to an SSL-enabled server port",  # Apache
)
_TLS_ALERT = "\x15\x03"  # type and version of the record, where a status line should be
# What OpenSSL makes of the first bytes of an answer that is no TLS record.
_NO_TLS = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "UNKNOWN_PROTOCOL"})


class NotKnown(AccessDenied):
    """The server does not accept who we say we are: other credentials may help, as when those of a file are new."""


class LacksRight(AccessDenied):
    """The server knows us and refuses the operation."""


def about(subject: str, call: Callable[[], T]) -> T:
    """Call, and let the text of a `StoreError` start with what was asked for."""
    try:
        return call()
    except StoreError as error:
        raise type(error)(f"{subject}: {error}") from None


def transport_error(where: str, error: BaseException | None) -> StoreError:
    """Say why there is no answer, or no end of it. ``error`` is one of urllib3, http.client or the system."""
    kind: type[StoreError] = StoreUnavailable
    match error:
        case NameResolutionError():
            reason = "the host name cannot be resolved"
        case NewConnectionError():  # which is a ConnectTimeoutError, too
            reason = f"cannot connect: {_os_reason(error.__cause__)}"
        case ConnectTimeoutError() | ReadTimeoutError():
            kind, reason = DeadlineExceeded, "no answer in time"
        case ProxyError() if not isinstance(error.original_error, http.client.HTTPException):
            reason = "the proxy does not connect us"
        case SSLError():
            kind, reason = TLSFailure, f"TLS: {_tls_reason(error)}"
        case ProtocolError() if not_http := [inner for inner in error.args if _not_http(inner)]:
            kind, reason = MalformedAnswer, "the answer is not HTTP"
            if str(getattr(not_http[0], "line", "")).startswith(_TLS_ALERT):
                reason = SPEAKS_TLS
        # OpenSSL, unlike Go, closes a connection on which plain HTTP comes without a word.
        case ProtocolError() if where.startswith("http:") and any(
            isinstance(inner, ConnectionError) for inner in error.args
        ):
            reason = "the connection broke; if the server speaks TLS, the address must start with https://"
        case _:
            reason = "the connection broke"
    return kind(f"{where}: {reason}" if where else reason)


def wants_tls(status: int, body: bytes) -> bool:
    """Tell whether an answer says that plain HTTP came where TLS was expected."""
    return status == 400 and any(phrase in body for phrase in _PLAIN_TEXT_REFUSED)


def _not_http(error: Any) -> bool:
    # RemoteDisconnected is a BadStatusLine for an answer of no bytes at all: a closed connection.
    return isinstance(error, http.client.HTTPException) and not isinstance(
        error, http.client.RemoteDisconnected | http.client.IncompleteRead
    )


def _tls_reason(error: SSLError) -> str:
    cause = error.args[0] if error.args else None
    if isinstance(cause, ssl.SSLCertVerificationError):
        # A wrong host name has no verify_message if Python finds it, and not OpenSSL.
        message = getattr(cause, "verify_message", "it is for another host")
        return f"the server's certificate is refused: {message}"
    reason = (cause.reason if isinstance(cause, ssl.SSLError) else None) or "handshake failed"
    text = reason.replace("_", " ").lower()
    return f"{text}; {SPEAKS_NO_TLS}" if reason in _NO_TLS else text


def _os_reason(cause: BaseException | None) -> str:
    return (isinstance(cause, OSError) and cause.strerror) or "no connection"
