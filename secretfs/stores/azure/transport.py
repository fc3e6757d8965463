"""How the Key Vault store speaks HTTP: one transport for everything that Azure's SDKs send, and what failures mean.

The SDKs know the protocols; this module knows connections, trust and time. One `DeadlineTransport` carries the requests
to the vault, to the token authority and to an identity endpoint of the machine. Compared with the transport that the
SDKs make for themselves (one requests session each): no wait is longer than the deadline (theirs is 300 s),
certificates are verified against the system's authorities (theirs are those of certifi), no answer is compressed or
larger than a limit, and of the environment only the proxy variables count, and only for https (requests would also take
CA bundles and the passwords in ~/.netrc from it).

The transport is safe to use from several threads. All requests that a thread sends within one
`DeadlineTransport.time` share one deadline. The outcome of a thread's last request is kept, because the SDKs wrap
failures in texts that quote the answer.
"""

import email.utils
import re
import threading
import time
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from http.client import responses
from http.cookiejar import DefaultCookiePolicy
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3
from azure.core.exceptions import AzureError, DecodeError, HttpResponseError
from azure.core.pipeline.transport import RequestsTransport
from requests.adapters import HTTPAdapter
from requests.utils import get_environ_proxies

from secretfs.errors import AccessDenied, MalformedAnswer, SecretNotFound, StoreError, StoreUnavailable
from secretfs.stores._http.body import read_body
from secretfs.stores._http.connections import equip
from secretfs.stores._http.deadline import Deadline
from secretfs.stores._http.failures import transport_error
from secretfs.stores._http.trust import Trust, system_trust

# The pipelines of the SDKs retry nothing. `secretfs.stores._http.connections` replaces a connection that was closed
# while it was idle; `retry_after` says about throttling; all else is the business of secretfs.cache.
RETRIES: Mapping[str, Any] = {"retry_total": 0}

_CONNECTIONS = 16
_LARGEST_ANSWER = 1 << 20  # a page of 25 secrets, each with its tags
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
    """The result of one request."""

    host: str = ""
    status: int = 0
    """0 when there was no answer."""
    error: Exception | None = None


class DeadlineTransport(RequestsTransport):  # type: ignore[misc]  # it is imported when asked for, which hides its type
    """Carries the requests of one store."""

    def __init__(self, component: str, deadline: float) -> None:
        trust = system_trust(component)
        self.time = Deadline(deadline)
        """How long each thread may still wait."""
        session = requests.Session()
        session.trust_env = False
        session.headers["Accept-Encoding"] = "identity"
        session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))
        for scheme in ("https://", "http://"):
            session.mount(scheme, _Adapter(trust, self.time))
        super().__init__(session=session, session_owner=False)
        self._requests = session
        self._thread = threading.local()

    @property
    def outcome(self) -> Outcome:
        """The outcome of this thread's last request since `forget`."""
        outcome: Outcome = getattr(self._thread, "outcome", Outcome())
        return outcome

    def forget(self) -> None:
        """Forget the last outcome."""
        self._thread.outcome = Outcome()

    def send(self, request: Any, *, proxies: MutableMapping[str, str] | None = None, **kwargs: Any) -> Any:
        """Send a request of an SDK. Waits until the deadline at most."""
        host = urlsplit(request.url).hostname or ""
        try:
            self.time.remaining(host)
            response = super().send(request, proxies=_proxies(request.url), **kwargs)
        except StoreError as error:
            self._thread.outcome = Outcome(error=error)
            raise
        except AzureError as error:
            self._thread.outcome = Outcome(host, error=error)
            raise
        self._thread.outcome = Outcome(host, response.status_code)
        return response

    def answers(self, url: str, timeout: float) -> bool:
        """Tell whether a GET of a plain http URL gets any answer within ``timeout`` seconds."""
        self.time.remaining()
        try:
            with self.time.within(timeout):
                self._requests.get(url, allow_redirects=False)
        except (requests.RequestException, StoreError):
            return False
        return True

    def shut(self) -> None:
        """Close all connections. The SDKs' own ``close`` leaves them open, because they are shared."""
        self._requests.close()


class _Adapter(HTTPAdapter):
    """Sends the requests of a session through our pools, and reads each answer to a limit."""

    def __init__(self, trust: Trust, deadline: Deadline) -> None:
        self._trust = trust
        self._deadline = deadline
        super().__init__(pool_maxsize=_CONNECTIONS)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        equip(self.poolmanager, self._trust)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        if proxy.lower().startswith("socks"):  # its pools would have none of what ours do
            raise requests.exceptions.InvalidProxyURL("the proxy is no HTTP proxy")
        known = proxy in self.proxy_manager
        manager = super().proxy_manager_for(proxy, **kwargs)
        if not known:
            equip(manager, self._trust)
        return manager

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        """Do nothing: `Trust` decides."""

    def send(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        where = urlsplit(request.url).hostname or ""
        kwargs["timeout"] = urllib3.Timeout(total=self._deadline.remaining(where))
        response = super().send(request, **kwargs)
        # As requests itself does when it reads an answer, with a limit.
        response._content = read_body(where, response.raw, _LARGEST_ANSWER)  # noqa: SLF001
        response._content_consumed = True  # noqa: SLF001
        return response


def _proxies(url: str) -> dict[str, str]:
    """Return the environment's proxies for an https URL; none for http, which identity endpoints of machines speak."""
    return get_environ_proxies(url) if url.startswith("https:") else {}


# --- what failures mean ---


def unanswered(outcome: Outcome) -> StoreError:
    """Turn an outcome without an answer into an error."""
    error = outcome.error
    if isinstance(error, StoreError):
        return type(error)(str(error))
    return transport_error(outcome.host, _innermost(error))


def _innermost(error: Any) -> BaseException | None:
    """Find the error of urllib3 inside those of azure-core and requests."""
    error = getattr(error, "inner_exception", None) or error
    if isinstance(error, requests.RequestException):
        error = next(iter(error.args), None)
    return getattr(error, "reason", None) if isinstance(error, urllib3.exceptions.MaxRetryError) else error


def refusal(where: str, error: HttpResponseError) -> StoreError:
    """Turn a refusal of the vault into an error. Known codes in its text decide; the text is never shown."""
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
    """Tell whether the vault accepts our identity and only denies this operation."""
    return error.status_code == 403 and codes(error)[1] in _LACKS_RIGHT


def codes(error: HttpResponseError) -> tuple[str, str]:
    """Return the code and the inner code of an error of Key Vault."""
    answer = error.error
    inner = getattr(answer, "innererror", None)
    inner_code = inner.get("code") if isinstance(inner, Mapping) else None
    return str(getattr(answer, "code", "")), str(inner_code or "")


def _token_fault(error: HttpResponseError) -> str:
    found = re.search(r"\bAKV[0-9]{5}\b", error.message)
    if not found:
        return ""
    fault = _TOKEN_FAULTS.get(found[0])
    return f": {fault}, {found[0]}" if fault else f": {found[0]}"


def retry_after(error: HttpResponseError) -> float | None:
    """Return the seconds after which the server allows a throttled request again; None if it does not say."""
    headers: Mapping[str, str] = getattr(error.response, "headers", {})
    text = headers.get("Retry-After", "")
    if re.fullmatch(r"[0-9]{1,6}(\.[0-9]+)?", text):
        return float(text)
    date = email.utils.parsedate_tz(text)
    return None if date is None else max(0.0, email.utils.mktime_tz(date) - time.time())
