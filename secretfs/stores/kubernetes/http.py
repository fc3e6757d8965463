"""Requests to a Kubernetes API server, by the official client.

What it sends and receives is raw JSON: its typed models take a multiple of the time. Who we are is read anew when the
server no longer accepts it, so tokens that rotate and plugins that hand out short-lived ones just work.
"""

import contextlib
import http.client
import json
import logging
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, cast

from kubernetes.client import ApiClient, ApiException
from kubernetes.config import ConfigException
from urllib3 import HTTPResponse, Retry, disable_warnings
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    InsecureRequestWarning,
    NameResolutionError,
    NewConnectionError,
    ProtocolError,
    ProxyError,
    ReadTimeoutError,
    SSLError,
)

from secretfs import __version__
from secretfs.errors import (
    AccessDenied,
    DeadlineExceeded,
    MalformedAnswer,
    SecretNotFound,
    StoreError,
    StoreUnavailable,
)
from secretfs.stores.kubernetes.login import Access, Login

Query = Sequence[tuple[str, str]]

_LARGEST_ANSWER = 256 << 20  # a page of a hundred secrets, each as large as etcd takes them
_LARGEST_EVENT = 16 << 20
_CONNECTIONS = 32
_NO_RETRIES = Retry(total=False, redirect=0, raise_on_redirect=False)
_LOG_IN_AGAIN = 1.0  # seconds between two attempts to get other credentials
# A peer that is gone without a word is noticed after 25 s; a watch says nothing by itself for minutes.
_SOCKET_OPTIONS = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)

logger = logging.getLogger(__name__)


class Expired(StoreUnavailable):
    """The server no longer knows the state of things that we would like to continue from (410)."""


class Api:
    """An API server. Logs in with the first request, and again when it is refused. Thread-safe."""

    def __init__(self, login: Login, deadline: float) -> None:
        self.deadline = deadline
        self._login = login
        self._session: _Session | None = None
        self._logging_in = threading.Lock()

    def get(self, path: str, query: Query = (), *, accept: str = "application/json") -> dict[str, Any]:
        """Read a JSON object. Raises `StoreError`."""
        return self._exchange(_Request("GET", path, query, accept=accept, timeout=self.deadline))

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Put a question that has a body. Raises `StoreError`."""
        return self._exchange(_Request("POST", path, body=body, timeout=self.deadline))

    def watch(self, path: str, query: Query, timeout: float) -> "Stream":
        """Begin to read events; silence for longer than ``timeout`` seconds is an error. Raises `StoreError`."""
        return Stream(*self._open(_Request("GET", path, query, timeout=timeout)))

    def close(self) -> None:
        """Close the connections that are not in use."""
        if self._session is not None:
            self._session.close()

    def _exchange(self, request: "_Request") -> dict[str, Any]:
        where, response = self._open(request)
        try:
            text = response.read(_LARGEST_ANSWER + 1)
        except (HTTPError, http.client.HTTPException, OSError) as error:
            response.close()
            raise _transport_error(where, error) from None
        except BaseException:
            response.close()
            raise
        if len(text) > _LARGEST_ANSWER:
            response.close()
            raise MalformedAnswer(f"{where}: the answer is larger than {_LARGEST_ANSWER >> 20} MiB")
        response.release_conn()
        return _json_object(where, text)

    def _open(self, request: "_Request") -> tuple[str, HTTPResponse]:
        """Send a request, and return the server's address and its answer, of which only the head is read."""
        session = self._logged_in(None)
        answer = self._send(session, request)
        if isinstance(answer, _NotAccepted):
            renewed = self._logged_in(session)
            if renewed is not session:
                session = renewed
                answer = self._send(session, request)
        if isinstance(answer, StoreError):
            raise answer
        return session.where, answer

    def _send(self, session: "_Session", request: "_Request") -> HTTPResponse | StoreError:
        """Send a request once. Errors are returned, because those of the client quote answers."""
        where, client = session.where, session.client
        headers = {**client.default_headers, "Accept": request.accept}
        try:
            client.update_params_for_auth(headers, [], ["BearerToken"])
            # Not call_api, which fails itself over an error that has no body, or one that is no UTF-8.
            response: HTTPResponse = client.request(
                request.method,
                where + request.path,
                query_params=list(request.query),
                headers=headers,
                body=request.body,
                _preload_content=False,
                _request_timeout=(self.deadline, request.timeout),
            )
            return response  # noqa: TRY300 - the client has no types
        except ApiException as error:
            return _problem(where, error)
        except (HTTPError, http.client.HTTPException, OSError) as error:
            return _transport_error(where, error)
        except (ConfigException, ValueError):  # the token file is gone; no HTTP header can carry the token
            return StoreUnavailable(f"{where}: there is no usable token")

    def _logged_in(self, refused: "_Session | None") -> "_Session":
        """Return a session that is not ``refused``; that one itself if it is too early for another."""
        if not self._logging_in.acquire(timeout=self.deadline):
            raise DeadlineExceeded("logging in takes too long")
        try:
            current = self._session
            if current is None or (current is refused and time.monotonic() >= current.since + _LOG_IN_AGAIN):
                self._session = _Session.start(self._login())
                if current is not None:
                    current.close()
            return cast("_Session", self._session)
        finally:
            self._logging_in.release()


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    path: str
    query: Query = ()
    body: Mapping[str, Any] | None = None
    accept: str = "application/json"
    timeout: float = 0.0
    """Seconds that any part of the answer may take."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class _Session:
    """A client that is logged in."""

    client: ApiClient
    where: str
    since: float

    @classmethod
    def start(cls, access: Access) -> Self:
        configuration = access.configuration
        configuration.retries = _NO_RETRIES
        configuration.connection_pool_maxsize = _CONNECTIONS
        client = ApiClient(configuration)
        client.user_agent = f"secretfs/{__version__}"
        pool = client.rest_client.pool_manager.connection_pool_kw
        pool["ssl_context"] = access.tls
        pool["socket_options"] = _SOCKET_OPTIONS
        if access.tls.verify_mode == ssl.CERT_NONE:
            # urllib3 would warn at every request.
            disable_warnings(InsecureRequestWarning)
            logger.warning("insecure-skip-tls-verify: whoever answers for %s is given the token", configuration.host)
        return cls(client, configuration.host, time.monotonic())

    def close(self) -> None:
        """Close the connections that nobody uses; the others are closed by those who do."""
        self.client.rest_client.pool_manager.clear()
        self.client.close()


class Stream:
    """The events of a watch, as they come. One thread reads; any may `stop`."""

    def __init__(self, where: str, response: HTTPResponse) -> None:
        self._where = where
        self._response = response

    def batches(self) -> Iterator[list[dict[str, Any]]]:
        """Yield the events that came together. Ends when the server ends it. Raises `StoreError`."""
        rest = b""
        try:
            for chunk in self._response.stream(1 << 20):
                *lines, rest = (rest + chunk).split(b"\n")
                if len(rest) > _LARGEST_EVENT:
                    raise MalformedAnswer(f"{self._where}: an event is larger than {_LARGEST_EVENT >> 20} MiB")
                yield [_json_object(self._where, line) for line in lines if line]
        except (HTTPError, http.client.HTTPException, OSError, ValueError) as error:
            raise _transport_error(self._where, error) from None

    def stop(self) -> None:
        """Wake up who reads: there will be no more."""
        with contextlib.suppress(OSError, RuntimeError, ValueError):  # it has just ended by itself
            self._response.shutdown()

    def close(self) -> None:
        """Close the connection."""
        self._response.close()


class _NotAccepted(AccessDenied):
    """The server does not know who we are (401)."""


_STATUS: dict[int, tuple[type[StoreError], str]] = {
    400: (MalformedAnswer, "the server does not understand the request; are the selectors right?"),
    401: (_NotAccepted, "the credentials are not accepted"),
    403: (AccessDenied, "forbidden"),
    # A load balancer that has lost the API server, for one.
    404: (StoreUnavailable, "whoever answers there is not a Kubernetes API server"),
    410: (Expired, "too long ago for the server to continue from"),
    429: (StoreUnavailable, "too many requests"),
}


def _json_object(where: str, text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        # Raised here: the error of the parser carries the whole document.
        raise MalformedAnswer(f"{where}: the answer is not a JSON object")
    return value


def _problem(where: str, error: ApiException) -> StoreError:
    """Say what a status means. The answer is searched for what it is and never shown."""
    if not error.status:  # the client's way to pass on an error of TLS
        return _transport_error(where, error.__context__)
    status = int(error.status)
    if status == 404 and _is_missing_secret(error.body):
        return SecretNotFound(f"{where}: not found (404)")
    kind, reason = _STATUS.get(status, (MalformedAnswer, "unexpected status"))
    if status >= 500:
        kind, reason = StoreUnavailable, http.client.responses.get(status, "server error").lower()
    elif 300 <= status < 400:
        kind, reason = StoreUnavailable, "it sends us elsewhere, and a token does not follow redirects"
    return kind(f"{where}: {reason} ({status})")


def _is_missing_secret(body: Any) -> bool:
    try:
        status = json.loads(body)
        return bool(status["kind"] == "Status" and status["details"]["kind"] == "secrets")
    except (ValueError, RecursionError, KeyError, TypeError):
        return False


def _transport_error(where: str, error: BaseException | None) -> StoreError:
    """Say what went wrong before there was an answer, or in the middle of it."""
    kind: type[StoreError] = StoreUnavailable
    match error:
        case NameResolutionError():
            reason = "the host name cannot be resolved"
        case NewConnectionError():  # which is a ConnectTimeoutError, too
            cause = error.__cause__
            reason = f"cannot connect: {(isinstance(cause, OSError) and cause.strerror) or 'no connection'}"
        case ConnectTimeoutError() | ReadTimeoutError():
            kind, reason = DeadlineExceeded, "no answer in time"
        case ProxyError():
            reason = "the proxy does not let us through"
        case SSLError():
            reason = f"TLS: {_tls_reason(error)}"
        case ProtocolError() if any(_not_http(inner) for inner in error.args):
            kind, reason = MalformedAnswer, "the answer is not HTTP"
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
