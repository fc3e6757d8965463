"""Requests to a Kubernetes API server, with the official client's login and our own connections.

Bodies are raw JSON, because the typed models of the client take a multiple of the time. Credentials are read again when
the server no longer accepts them, so rotated tokens and exec plugins with short-lived ones work.
"""

import contextlib
import http.client
import json
import logging
import ssl
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, cast
from urllib.parse import urlencode

from kubernetes.client import ApiClient
from kubernetes.config import ConfigException
from urllib3 import HTTPResponse, Timeout, disable_warnings
from urllib3.exceptions import HTTPError, InsecureRequestWarning

from secretfs import __version__
from secretfs.errors import (
    AccessDenied,
    DeadlineExceeded,
    MalformedAnswer,
    SecretNotFound,
    StoreError,
    StoreUnavailable,
    TLSFailure,
)
from secretfs.stores._http.body import LARGEST_ANSWER, parse_json, read_body
from secretfs.stores._http.connections import NO_RETRIES, equip
from secretfs.stores._http.deadline import Deadline
from secretfs.stores._http.failures import SPEAKS_TLS, transport_error, wants_tls
from secretfs.stores._http.trust import Trust
from secretfs.stores.kubernetes.login import Access, Login

Query = Sequence[tuple[str, str]]

_CONNECTIONS = 32
_LARGEST_ERROR = 1 << 20
_LOG_IN_AGAIN = 1.0  # seconds between two attempts to get other credentials

logger = logging.getLogger(__name__)


class Expired(StoreUnavailable):
    """The server no longer has the resourceVersion to continue from (410)."""


class Api:
    """An API server. Logs in with the first request, and again when it is refused. Thread-safe."""

    def __init__(self, login: Login, deadline: float) -> None:
        self.deadline = deadline
        self.time = Deadline(deadline)
        """How long each thread may still wait."""
        self._login = login
        self._session: _Session | None = None
        self._logging_in = threading.Lock()

    def get(self, path: str, query: Query = (), *, accept: str = "application/json") -> dict[str, Any]:
        """Read a JSON object. Raises `StoreError`."""
        return self._exchange(_Request("GET", path, query, accept=accept))

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Send a JSON object and read one. Raises `StoreError`."""
        return self._exchange(_Request("POST", path, body=body))

    def watch(self, path: str, query: Query, timeout: float) -> "Stream":
        """Begin to read events, for no longer than ``timeout`` seconds. Raises `StoreError`."""
        return Stream(*self._open(_Request("GET", path, query, timeout=timeout)))

    def close(self) -> None:
        """Close the connections that are not in use."""
        if self._session is not None:
            self._session.close()

    def _exchange(self, request: "_Request") -> dict[str, Any]:
        where, response = self._open(request)
        return _json_object(where, read_body(where, response))

    def _open(self, request: "_Request") -> tuple[str, HTTPResponse]:
        """Send a request, and return the server's address and its answer, of which only the head is read.

        When the server refuses our credentials, or one side refuses the other's certificate, all that we log in with is
        read again: the kubeconfig and the files that it names, the service account's authority.
        """
        session = self._logged_in(None)
        answer = self._send(session, request)
        if isinstance(answer, _NotAccepted | TLSFailure):
            renewed = self._logged_in(session)
            if renewed is not session:
                session = renewed
                answer = self._send(session, request)
        if isinstance(answer, StoreError):
            raise answer
        return session.where, answer

    def _send(self, session: "_Session", request: "_Request") -> HTTPResponse | StoreError:
        """Send a request once. Returns an error instead of raising it: the caller decides about another attempt."""
        where, client = session.where, session.client
        try:
            left = self.time.remaining(where)
            headers = {**client.default_headers, "Accept": request.accept, "Content-Type": "application/json"}
            client.update_params_for_auth(headers, [], ["BearerToken"])
            # Not the client's own request, which reads the whole of an error, however large.
            response: HTTPResponse = client.rest_client.pool_manager.request(
                request.method,
                where + request.path + (f"?{urlencode(request.query)}" if request.query else ""),
                headers=headers,
                body=None if request.body is None else json.dumps(request.body),
                timeout=Timeout(total=left) if request.timeout is None else Timeout(connect=left, read=request.timeout),
                preload_content=False,
            )
            if 200 <= response.status < 300:
                return response
            return _problem(where, response.status, read_body(where, response, _LARGEST_ERROR))
        except StoreError as error:
            return error
        except (HTTPError, http.client.HTTPException, OSError) as error:
            return transport_error(where, error)
        except (ConfigException, ValueError):  # the token file is gone; no HTTP header can carry the token
            return StoreUnavailable(f"{where}: there is no usable token")

    def _logged_in(self, refused: "_Session | None") -> "_Session":
        """Return a session other than ``refused``, or ``refused`` itself if the last login is too recent."""
        if not self._logging_in.acquire(timeout=self.time.left()):
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
    timeout: float | None = None
    """Seconds that the answer may take. None means the deadline, which includes connecting."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class _Session:
    """A client that is logged in."""

    client: ApiClient
    where: str
    since: float

    @classmethod
    def start(cls, access: Access) -> Self:
        configuration = access.configuration
        configuration.retries = NO_RETRIES
        configuration.connection_pool_maxsize = _CONNECTIONS
        client = ApiClient(configuration)
        client.user_agent = f"secretfs/{__version__}"
        equip(client.rest_client.pool_manager, Trust(configuration.host, lambda: access.tls))
        if access.tls.verify_mode == ssl.CERT_NONE:
            # urllib3 would warn at every request.
            disable_warnings(InsecureRequestWarning)
            logger.warning(
                "insecure-skip-tls-verify: any server that answers for %s gets the token", configuration.host
            )
        return cls(client, configuration.host, time.monotonic())

    def close(self) -> None:
        """Close the idle connections; each of the others is closed by its user."""
        self.client.rest_client.pool_manager.clear()
        self.client.close()


class Stream:
    """The events of a watch as they arrive. One thread reads; any thread may `stop` it."""

    def __init__(self, where: str, response: HTTPResponse) -> None:
        self._where = where
        self._response = response

    def batches(self) -> Iterator[list[dict[str, Any]]]:
        """Yield the events that arrived together, until the server ends the watch. Raises `StoreError`."""
        rest = b""
        try:
            for chunk in self._response.stream(1 << 20):
                *lines, rest = (rest + chunk).split(b"\n")
                if len(rest) > LARGEST_ANSWER:
                    raise MalformedAnswer(f"{self._where}: an event is larger than {LARGEST_ANSWER >> 20} MiB")
                yield [_json_object(self._where, line) for line in lines if line]
        except (HTTPError, http.client.HTTPException, OSError, ValueError) as error:
            raise transport_error(self._where, error) from None

    def stop(self) -> None:
        """Wake the reader: there will be no more."""
        with contextlib.suppress(OSError, RuntimeError, ValueError):  # it has just ended by itself
            self._response.shutdown()

    def close(self) -> None:
        """Close the connection."""
        self._response.close()


class _NotAccepted(AccessDenied):
    """The server does not accept our credentials (401)."""


_STATUS: dict[int, tuple[type[StoreError], str]] = {
    400: (MalformedAnswer, "the server does not understand the request; are the selectors right?"),
    401: (_NotAccepted, "the credentials are not accepted"),
    403: (AccessDenied, "forbidden"),
    # A load balancer that has lost the API server, for one.
    404: (StoreUnavailable, "what answers there is not a Kubernetes API server"),
    410: (Expired, "too long ago for the server to continue from"),
    429: (StoreUnavailable, "too many requests"),
}


def _json_object(where: str, body: bytes) -> dict[str, Any]:
    try:
        value = parse_json(body.decode())
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        # Raised here: the error of the parser carries the whole document.
        raise MalformedAnswer(f"{where}: the answer is not a JSON object")
    return value


def _problem(where: str, status: int, body: bytes) -> StoreError:
    """Turn a status into an error. The body decides between some of them; its text is never shown."""
    if status == 404 and _is_missing_secret(body):
        return SecretNotFound(f"{where}: not found (404)")
    kind, reason = _STATUS.get(status, (MalformedAnswer, "unexpected status"))
    if wants_tls(status, body):
        reason = SPEAKS_TLS
    elif status >= 500:
        kind, reason = StoreUnavailable, http.client.responses.get(status, "server error").lower()
    elif 300 <= status < 400:
        kind, reason = StoreUnavailable, "it sends us elsewhere, and a token does not follow redirects"
    return kind(f"{where}: {reason} ({status})")


def _is_missing_secret(body: bytes) -> bool:
    try:
        status = parse_json(body.decode())
        return bool(status["kind"] == "Status" and status["details"]["kind"] == "secrets")
    except (ValueError, RecursionError, KeyError, TypeError):
        return False
