"""How the Vault store speaks HTTP: an hvac adapter on a urllib3 connection pool.

hvac knows the API and its paths; this module sends the requests and turns failures into errors. Compared with hvac's
own adapter, which uses requests, a read takes half the CPU time, nothing comes from the environment (requests reads
proxies and CA bundles from it), and no redirect is followed. Every failure is a `secretfs.errors.StoreError`; hvac's
exceptions, which carry the text of the answer, are never raised.

The pool is safe to use from several threads and keeps their connections alive (`secretfs.stores._http.connections`).
All requests that a thread sends within one `Connections.within` share one deadline.
"""

import http.client
import json as jsonlib
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlencode

import urllib3
from hvac.adapters import Adapter
from hvac.utils import format_url
from urllib3.exceptions import HTTPError, InsecureRequestWarning

from secretfs.errors import AccessDenied, ConfigurationError, SecretNotFound
from secretfs.stores._http.body import read_body
from secretfs.stores._http.clock import ServerClock
from secretfs.stores._http.connections import NO_RETRIES, SEND_ONCE, SOCKET_OPTIONS, PlainPool, TLSPool, log_no_headers
from secretfs.stores._http.deadline import Deadline
from secretfs.stores._http.failures import transport_error
from secretfs.stores._http.trust import Trust
from secretfs.stores.vault.http_errors import refusal
from secretfs.stores.vault.response import Response

__all__ = ["Connections", "Credential", "Endpoint", "PoolAdapter", "Response"]

_CONNECTIONS = 32


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the server is and how to trust it."""

    address: str
    deadline: float
    """Seconds that connecting and answering may take together."""
    trust: Trust
    server_name: str | None = None
    """Sent as SNI and expected in the certificate, instead of the host of the address."""
    namespace: str = ""
    """Sent as X-Vault-Namespace."""


class Credential(Protocol):
    """Where the token of a request comes from."""

    @property
    def revokes_at_close(self) -> bool:
        """Whether closing revokes the token, and with it all that was leased with it."""

    def __call__(self) -> str:
        """Return the token to send now. Raises `StoreError` when there is none."""

    def accepted(self, target: str) -> None:
        """Note that the server accepted the token for ``target``."""

    def replaced(self, token: str, target: str) -> bool:
        """After a refusal, tell whether the token was the reason and there is a new one by now."""

    def close(self) -> None:
        """Stop the renewal of the token. A token that we logged in for is revoked."""


class Connections:
    """The connections to one server. Thread-safe."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._url = _parse(endpoint.address)
        self._namespace = endpoint.namespace
        self._pool = _pool(self._url, endpoint)
        self._deadline = Deadline(endpoint.deadline)
        self.where = f"{self._url.scheme}://{self._url.netloc}"
        self.clock = ServerClock()

    @contextmanager
    def within(self, seconds: float | None = None) -> Iterator[None]:
        """Bound all requests of this thread in the context, together, by ``seconds`` or the endpoint's deadline."""
        with self._deadline.within(seconds):
            yield

    def remaining(self) -> float:
        """Return the seconds that this thread may wait for its next answer. Raises `DeadlineExceeded` when none."""
        return self._deadline.remaining(self.where)

    def exchange(
        self, method: str, target: str, token: str, body: bytes | None, *, once: bool = False
    ) -> tuple[int, bytes]:
        """Send a request; never twice if ``once``. Returns the status and the body of the answer."""
        headers = {"X-Vault-Request": "true"}
        if token:
            headers["X-Vault-Token"] = token
        if self._namespace:
            headers["X-Vault-Namespace"] = self._namespace
        timeout = urllib3.Timeout(total=self.remaining())
        target = (self._url.path or "").rstrip("/") + target
        try:
            response = self._pool.urlopen(
                method, target, headers=headers, body=body, timeout=timeout,
                retries=SEND_ONCE if once else NO_RETRIES, redirect=False, preload_content=False,
            )  # fmt: skip
        except (HTTPError, http.client.HTTPException, OSError) as error:
            # from None: some of these quote what the server sent.
            raise transport_error(self.where, error) from None
        content = read_body(self.where, response)
        self.clock.note(response.headers.get("Date"))
        return response.status, content

    def close(self) -> None:
        """Close all connections."""
        self._pool.close()


class PoolAdapter(Adapter):  # type: ignore[misc]  # hvac has no types
    """What asks one Vault server, with a credential or without."""

    def __init__(self, connections: Connections, credential: Credential | None = None, token: str = "") -> None:
        # hvac's own __init__ is left out: all it does is to make a requests session and to remember its options.
        self.connections = connections
        self._credential = credential
        self._token = token

    def bearing(self, token: str) -> "PoolAdapter":
        """Return an adapter on the same connections that sends this token, and takes a refusal for final."""
        return PoolAdapter(self.connections, token=token)

    def request(
        self, method: str, url: str, *, params: Mapping[str, Any] | None = None, json: Mapping[str, Any] | None = None
    ) -> Response:
        """Send a request for hvac's ``url``, a path that hvac has quoted. Raises `StoreError`."""
        return self.ask(method.upper(), url + (f"?{urlencode(params)}" if params else ""), json=json)[0]

    def ask(
        self, method: str, target: str, *, json: Mapping[str, Any] | None = None, once: bool = False
    ) -> tuple[Response, str]:
        """Send a request, and return the answer with the token that it was given to.

        With ``once`` a connection that breaks does not make it sent again: it has effects. A refused request has none:
        it is sent again if the credential says that only the token was to blame.
        """
        body = None if json is None else jsonlib.dumps(json).encode()
        if self._credential is None:
            return self._send(method, target, self._token, body, once=once), self._token
        token = self._credential()
        try:
            answer = self._send(method, target, token, body, once=once)
        except AccessDenied:
            if not self._credential.replaced(token, target):
                raise
            token = self._credential()
            answer = self._send(method, target, token, body, once=once)
        self._credential.accepted(target)
        return answer, token

    def prepare(self) -> None:
        """Get a token, if there is none yet: what is refused from now on is refused to that token."""
        if self._credential is not None:
            self._credential()

    def mount(self, engine: str) -> dict[str, Any]:
        """Ask what is mounted at a path, which any token may that has some right in it."""
        mount: dict[str, Any] = self.get(format_url("/v1/sys/internal/ui/mounts/{path}", path=engine)).data
        if str(mount.get("path", engine)).strip("/") != engine:
            raise SecretNotFound("no engine is mounted there, only further up")
        return mount

    def get_login_token(self, response: Response) -> str:
        """Refuse: hvac calls it for logins with ``use_token``, and here `Session` has the token."""
        raise NotImplementedError

    def close(self) -> None:
        """Give the token back, if it is ours, and close all connections."""
        if self._credential is not None:
            self._credential.close()
        self.connections.close()

    def _send(self, method: str, target: str, token: str, body: bytes | None, *, once: bool) -> Response:
        status, content = self.connections.exchange(method, target, token, body, once=once)
        if status == 204 and method in ("POST", "PUT"):
            return Response("{}", {})
        if status != 200:
            raise refusal(self.connections.where, method, status, content)
        return Response.parse(content)


def _parse(address: str) -> urllib3.util.Url:
    try:
        url = urllib3.util.parse_url(address)
    except HTTPError:
        raise ConfigurationError("vaultAddr is not a URL") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigurationError("vaultAddr is not a URL that starts with https:// or http://")
    if url.auth or url.query or url.fragment:
        raise ConfigurationError("vaultAddr has more than scheme, host, port and path")
    return url


def _pool(url: urllib3.util.Url, endpoint: Endpoint) -> PlainPool | TLSPool:
    log_no_headers()
    host = str(url.host)
    options: dict[str, Any] = {"maxsize": _CONNECTIONS, "socket_options": SOCKET_OPTIONS}
    if url.scheme == "http":
        return PlainPool(host, url.port or 80, **options)
    context = endpoint.trust.context()
    if context.verify_mode == ssl.CERT_NONE:
        # urllib3 would warn at every request; the store has said it once.
        urllib3.disable_warnings(InsecureRequestWarning)
    if endpoint.server_name is not None:
        try:
            context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname=endpoint.server_name)
        except ValueError:
            raise ConfigurationError("tlsServerName is not a host name") from None
    return TLSPool(host, url.port or 443, trust=endpoint.trust, server_hostname=endpoint.server_name, **options)
