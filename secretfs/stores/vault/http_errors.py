"""What a failure to get an answer from Vault means, as an error that shows nothing of the answer."""

import http.client
import ssl
from typing import Any

from urllib3.exceptions import (
    ConnectTimeoutError,
    DecodeError,
    NameResolutionError,
    NewConnectionError,
    ProtocolError,
    ReadTimeoutError,
    SSLError,
)

from secretfs.errors import (
    AccessDenied,
    DeadlineExceeded,
    MalformedAnswer,
    SecretNotFound,
    StoreError,
    StoreUnavailable,
)


def transport_error(where: str, error: Exception) -> StoreError:
    """Say what went wrong before there was an answer."""
    kind: type[StoreError] = StoreUnavailable
    match error:
        case NameResolutionError():
            reason = "the host name cannot be resolved"
        case NewConnectionError():  # which is a ConnectTimeoutError, too
            reason = f"cannot connect: {_os_reason(error.__cause__)}"
        case ConnectTimeoutError() | ReadTimeoutError():
            kind, reason = DeadlineExceeded, "no answer in time"
        case SSLError():
            reason = f"TLS: {_tls_reason(error)}"
        case ProtocolError() if any(_not_http(inner) for inner in error.args):
            kind, reason = MalformedAnswer, "the answer is not HTTP"
        case DecodeError():
            kind, reason = MalformedAnswer, "the answer cannot be decompressed"
        case _:
            reason = "the connection broke"
    return kind(f"{where}: {reason}")


def _not_http(error: Any) -> bool:
    # RemoteDisconnected is a BadStatusLine for an answer of no bytes at all: a closed connection.
    return isinstance(error, http.client.HTTPException) and not isinstance(
        error, http.client.RemoteDisconnected | http.client.IncompleteRead
    )


def _tls_reason(error: SSLError) -> str:
    cause = error.args[0] if error.args else None
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"the server's certificate is refused: {cause.verify_message}"
    reason = (cause.reason if isinstance(cause, ssl.SSLError) else None) or "handshake failed"
    return reason.replace("_", " ").lower()


def _os_reason(cause: BaseException | None) -> str:
    return (isinstance(cause, OSError) and cause.strerror) or "no connection"


def refusal(where: str, method: str, status: int, body: bytes) -> StoreError:
    """Say what a status means. ``body`` is searched for known phrases and never shown."""
    kind: type[StoreError] = StoreUnavailable
    match status:
        case 400 | 404 | 405:
            kind, reason = _objection(method, status, body)
        case 401 | 403:
            kind, reason = AccessDenied, _denial(body)
        case 429:
            reason = "too many requests"
        case 503 if b"sealed" in body:
            reason = "Vault is sealed"
        case 301 | 302 | 303 | 307 | 308:
            reason = "it sends us elsewhere, and a token does not follow redirects"
        case 500 if b"cannot renew" in body:  # past its longest life
            kind, reason = AccessDenied, "not renewed"
        case _ if status == 412 or status >= 500:
            reason = http.client.responses.get(status, "server error").lower()
        case _:
            kind, reason = MalformedAnswer, "unexpected status"
    return kind(f"{where}: {reason} ({status})")


def _objection(method: str, status: int, body: bytes) -> tuple[type[StoreError], str]:
    """Say what is wrong with the request."""
    if method == "LIST" and (status == 405 or b"unsupported path" in body):
        return AccessDenied, "the engine lists no names there"
    match status:
        case 404:
            what: tuple[type[StoreError], str] = SecretNotFound, "not found"
        case 400 if b"HTTP request to an HTTPS server" in body:
            what = MalformedAnswer, "the server speaks TLS, so vaultAddr must start with https://"
        case 400 if not body:  # go-cleanhttp's PrintablePathCheckHandler, which guards every path of the server
            what = SecretNotFound, "the server takes no such name"
        case 400 if b"Upgrading from non-versioned" in body:
            what = StoreUnavailable, "the engine is being upgraded to KV version 2"
        case 400 if method in ("POST", "PUT"):  # credentials that are wrong, a lease that is over
            what = AccessDenied, "refused"
        case _:
            what = MalformedAnswer, "unexpected status"
    return what


def _denial(body: bytes) -> str:
    # Vault gives one status to both, so that nobody without rights learns which engines there are.
    if b"preflight capability check" in body:
        return "no such engine, or the token has no rights in it"
    return "permission denied"
