"""How the Key Vault store speaks HTTP: one transport for everything that Azure's SDKs send, and what failures mean.

The SDKs know the protocols; this module knows connections, trust and time. One `DeadlineTransport` carries the requests
to the vault, to the token authority and to an identity endpoint of the machine. Compared with the transport that the
SDKs make for themselves (one requests session each): no wait is longer than the deadline (theirs is 300 s),
certificates are verified against the system's authorities (theirs are those of certifi), and of the environment only
the proxy variables count, and only for https (requests would also take CA bundles and the passwords in ~/.netrc from
it).

The transport is safe to use from several threads. All requests that a thread sends within one
`DeadlineTransport.within` share one deadline. What became of the last one of them is kept, because the SDKs wrap
failures in texts that quote the answer.
"""

import email.utils
import re
import ssl
import threading
import time
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException, responses
from http.cookiejar import DefaultCookiePolicy
from typing import Any
from urllib.parse import urlsplit

import requests
from azure.core.exceptions import (
    AzureError,
    DecodeError,
    HttpResponseError,
    IncompleteReadError,
    ServiceRequestTimeoutError,
    ServiceResponseTimeoutError,
)
from azure.core.pipeline.transport import RequestsTransport
from requests.adapters import HTTPAdapter
from requests.utils import get_environ_proxies
from urllib3.exceptions import NameResolutionError, NewConnectionError, ProxyError, ReadTimeoutError

from secretfs.errors import (
    AccessDenied,
    DeadlineExceeded,
    MalformedAnswer,
    SecretNotFound,
    StoreError,
    StoreUnavailable,
)

# How the pipelines of the SDKs retry: once, at once, when there was no answer, because a connection that was closed
# while it was idle is noticed by using it. All else is the business of secretfs.cache; `retry_after` says about
# throttling.
RETRIES: Mapping[str, Any] = {"retry_total": 1, "retry_connect": 1, "retry_read": 1, "retry_status": 0}

_CONNECTIONS = 16
_FORBIDDEN = {
    "AccessDenied": "no access policy of the vault lets this identity do that",
    "ForbiddenByRbac": "no role assignment lets this identity do that",
    "ForbiddenByFirewall": "the vault's firewall does not let this address in",
    "ForbiddenByConnection": "the vault takes no requests from public networks",
    "ForbiddenByPolicy": "a policy of the vault forbids it",
}
_LACKS_RIGHT = frozenset({"AccessDenied", "ForbiddenByRbac"})
_TOKEN_FAULTS = {"AKV10022": "it is for another audience", "AKV10032": "it is from another tenant"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one request."""

    host: str = ""
    status: int = 0
    """0 when there was no answer."""
    error: Exception | None = None


class DeadlineTransport(RequestsTransport):  # type: ignore[misc]  # it is imported when asked for, which hides its type
    """Carries the requests of one store."""

    def __init__(self, deadline: float) -> None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        tls.minimum_version = ssl.TLSVersion.TLSv1_2
        tls.load_default_certs()
        session = requests.Session()
        session.trust_env = False
        session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))
        session.mount("https://", _SystemTrust(tls))
        session.mount("http://", HTTPAdapter(pool_maxsize=_CONNECTIONS))
        super().__init__(session=session, session_owner=False)
        self._requests = session
        self._deadline = deadline
        self._thread = threading.local()

    @contextmanager
    def within(self) -> Iterator[None]:
        """Bound all that this thread asks in the context, together, by the deadline."""
        self._thread.end = time.monotonic() + self._deadline
        try:
            yield
        finally:
            del self._thread.end

    def left(self) -> float:
        """Return the seconds until the deadline of this thread; of none, or less, there are 0."""
        end = getattr(self._thread, "end", None)
        return self._deadline if end is None else max(0.0, end - time.monotonic())

    def remaining(self) -> float:
        """Return the seconds that this thread may wait. Raises `DeadlineExceeded` when none."""
        left = self.left()
        if not left:
            raise DeadlineExceeded("no answer in time")
        return left

    @property
    def outcome(self) -> Outcome:
        """What became of this thread's last request since `forget`."""
        outcome: Outcome = getattr(self._thread, "outcome", Outcome())
        return outcome

    def forget(self) -> None:
        """Forget the last outcome."""
        self._thread.outcome = Outcome()

    def send(self, request: Any, *, proxies: MutableMapping[str, str] | None = None, **kwargs: Any) -> Any:
        """Send a request of an SDK, and wait no longer than until the deadline."""
        host = urlsplit(request.url).hostname or ""
        left = self.left()
        if not left:
            late = DeadlineExceeded(f"{host}: no answer in time")
            self._thread.outcome = Outcome(error=late)
            raise late
        try:
            kwargs |= {"connection_timeout": left, "read_timeout": left}
            response = super().send(request, proxies=_proxies(request.url), **kwargs)
        except AzureError as error:
            self._thread.outcome = Outcome(host, error=error)
            raise
        self._thread.outcome = Outcome(host, response.status_code)
        return response

    def answers(self, url: str, patience: float) -> bool:
        """Say whether anything at all answers a GET of a plain http URL in time."""
        timeout = min(patience, self.remaining())
        try:
            self._requests.get(url, timeout=timeout, allow_redirects=False, stream=True).close()
        except requests.RequestException:
            return False
        return True

    def shut(self) -> None:
        """Close all connections. The SDKs' own ``close`` leaves them open, because they are shared."""
        self._requests.close()


class _SystemTrust(HTTPAdapter):
    """Verifies with one TLS context, in which requests changes nothing."""

    def __init__(self, tls: ssl.SSLContext) -> None:
        self._tls = tls
        super().__init__(pool_maxsize=_CONNECTIONS)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs, ssl_context=self._tls)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        return super().proxy_manager_for(proxy, **kwargs, ssl_context=self._tls)

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        conn.cert_reqs = "CERT_REQUIRED"


def _proxies(url: str) -> dict[str, str]:
    """Return the proxies for ``url``: those of the environment for https; identity endpoints are on this machine."""
    return get_environ_proxies(url) if url.startswith("https:") else {}


# --- what failures mean ---


def unanswered(outcome: Outcome) -> StoreError:
    """Say what went wrong before there was an answer."""
    error = outcome.error
    where = f"{outcome.host}: " if outcome.host else ""
    if isinstance(error, StoreError):
        return type(error)(f"{where}{error}")
    cause = getattr(error, "inner_exception", None) or error
    if _is_timeout(error, cause):
        return DeadlineExceeded(f"{where}no answer in time")
    if isinstance(error, IncompleteReadError):
        return StoreUnavailable(f"{where}the connection broke")
    return StoreUnavailable(where + _reason(cause))


def _is_timeout(error: Exception | None, cause: Any) -> bool:
    if isinstance(error, ServiceRequestTimeoutError | ServiceResponseTimeoutError):
        return True
    # The timeout of a read within a body is a ConnectionError to requests.
    return isinstance(cause, requests.Timeout) or any(isinstance(inner, ReadTimeoutError) for inner in _args(cause))


def _reason(cause: Any) -> str:
    inner = getattr(next(iter(_args(cause)), None), "reason", None)
    match cause, inner:
        case requests.exceptions.ProxyError(), ProxyError() if not isinstance(inner.original_error, HTTPException):
            reason = "the proxy of the environment does not connect us"
        case requests.exceptions.SSLError(), _:
            reason = f"TLS: {_tls_reason(inner)}"
        case _, NameResolutionError():
            reason = "the host name cannot be resolved"
        case _, NewConnectionError():
            os_error = inner.__cause__
            reason = f"cannot connect: {(isinstance(os_error, OSError) and os_error.strerror) or 'no connection'}"
        case _:
            reason = "the connection broke"
    return reason


def _tls_reason(error: Any) -> str:
    cause = next(iter(_args(error)), None)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"the server's certificate is refused: {getattr(cause, 'verify_message', 'it is another one')}"
    reason = (cause.reason if isinstance(cause, ssl.SSLError) else None) or "handshake failed"
    return reason.replace("_", " ").lower()


def _args(error: Any) -> tuple[Any, ...]:
    return error.args if isinstance(error, BaseException) else ()


def refusal(where: str, error: HttpResponseError) -> StoreError:
    """Say what an answer of the vault means. Its text is searched for known codes and never shown."""
    status = error.status_code or 0
    code, inner = codes(error)
    kind: type[StoreError] = StoreUnavailable
    match status:
        case 401:
            kind, reason = AccessDenied, f"the token is refused{_token_fault(error)}"
        case 403 if inner == "SecretDisabled":
            # What is disabled is not listed either: to a reader it is not there.
            kind, reason = SecretNotFound, "the secret is disabled"
        case 403:
            kind, reason = AccessDenied, _FORBIDDEN.get(inner, "permission denied")
        case 404 if code == "SecretNotFound":
            kind, reason = SecretNotFound, "not found"
        case 429:
            reason = "too many requests"
        case 300 | 301 | 302 | 303 | 307 | 308:
            reason = "it sends us elsewhere, and a token does not follow redirects"
        case _ if status >= 500:
            reason = responses.get(status, "server error").lower()
        case _ if isinstance(error, DecodeError):
            kind, reason = MalformedAnswer, "the answer is not JSON"
        case _:
            kind, reason = MalformedAnswer, "unexpected status"
    return kind(f"{where}: {reason} ({status})")


def lacks_right(error: HttpResponseError) -> bool:
    """Say whether the vault knows who we are and only does not let us do this."""
    return error.status_code == 403 and codes(error)[1] in _LACKS_RIGHT


def codes(error: HttpResponseError) -> tuple[str, str]:
    """Return the code and the inner code of an answer that Key Vault gave."""
    told = error.error
    inner = getattr(told, "innererror", None)
    inner_code = inner.get("code") if isinstance(inner, Mapping) else None
    return str(getattr(told, "code", "")), str(inner_code or "")


def _token_fault(error: HttpResponseError) -> str:
    found = re.search(r"\bAKV[0-9]{5}\b", error.message)
    if not found:
        return ""
    fault = _TOKEN_FAULTS.get(found[0])
    return f": {fault}, {found[0]}" if fault else f": {found[0]}"


def retry_after(error: HttpResponseError) -> float | None:
    """Return the seconds after which a throttled request may be sent again, if the server says so."""
    headers: Mapping[str, str] = getattr(error.response, "headers", {})
    text = headers.get("Retry-After", "")
    if re.fullmatch(r"[0-9]{1,6}(\.[0-9]+)?", text):
        return float(text)
    date = email.utils.parsedate_tz(text)
    return None if date is None else max(0.0, email.utils.mktime_tz(date) - time.time())
