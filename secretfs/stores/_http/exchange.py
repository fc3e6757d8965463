"""Requests of stores that have no HTTP client of their own: to any host, bounded in time and size, through proxies."""

import contextlib
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

import urllib3
from urllib3.exceptions import HTTPError, MaxRetryError

from secretfs.errors import StoreUnavailable
from secretfs.stores._http.body import parse_json, read_body
from secretfs.stores._http.clock import ServerClock
from secretfs.stores._http.connections import SEND_AGAIN, equip
from secretfs.stores._http.deadline import Deadline
from secretfs.stores._http.failures import transport_error
from secretfs.stores._http.trust import Trust

_CONNECTIONS: Final = 16


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, read to its end. Its body may be a secret, so ``repr`` does not show it."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def __repr__(self) -> str:
        return f"Answer({self.status})"

    def json(self) -> Any:
        """Return what the body says; None if it is not JSON."""
        with contextlib.suppress(ValueError, RecursionError):  # the first may carry the text
            return parse_json(self.body.decode())
        return None


class Exchange:
    """Sends the requests of one store. Thread-safe.

    All requests of a thread within one `time` share a deadline. None has effects that a second one would not have, so
    one is sent again whose connection had died while it was idle. Redirects are not followed.
    """

    def __init__(self, deadline: float, trust: Trust) -> None:
        self.time = Deadline(deadline)
        """How long each thread may still wait."""
        self.clock = ServerClock()
        self._trust = trust
        self._managers: dict[str, urllib3.PoolManager] = {}
        """By the server: to look for its proxy in the environment takes 75 us."""

    def send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None, timeout: float | None = None
    ) -> Answer:
        """Send a request, and wait for ``timeout`` seconds at most. Raises what `transport_error` returns."""
        parts = urlsplit(url)
        where = parts.hostname or ""
        left = self.time.remaining(where)
        try:
            response = self._manager(parts).urlopen(
                method,
                url,
                body=body,
                headers=headers,
                timeout=urllib3.Timeout(total=min(left, timeout or left)),
                retries=SEND_AGAIN,
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
        except HTTPError as error:
            failure = transport_error(where, error.reason if isinstance(error, MaxRetryError) else error)
        else:
            self.clock.note(response.headers.get("Date"))
            return Answer(response.status, response.headers, read_body(where, response))
        raise failure  # here, where no error is being handled whose text may quote an answer

    def close(self) -> None:
        """Close the connections that are idle."""
        for manager in list(self._managers.values()):
            manager.clear()

    def _manager(self, url: SplitResult) -> urllib3.PoolManager:
        server = f"{url.scheme}://{url.netloc}"
        manager = self._managers.get(server)
        if manager is None:
            manager = _make_manager(_proxy(url))
            equip(manager, self._trust)
            manager = self._managers.setdefault(server, manager)
        return manager


def _proxy(url: SplitResult) -> str:
    """Return the environment's proxy for an https URL; none for http, which agents on the machine speak."""
    if url.scheme != "https" or urllib.request.proxy_bypass(url.netloc):
        return ""
    proxies = urllib.request.getproxies()
    return str(proxies.get("https") or proxies.get("all") or "")


def _make_manager(proxy: str) -> urllib3.PoolManager:
    options: dict[str, Any] = {"maxsize": _CONNECTIONS}
    if not proxy:
        return urllib3.PoolManager(**options)
    if "://" not in proxy:
        proxy = f"http://{proxy}"
    try:
        url = urllib3.util.parse_url(proxy)
        headers = urllib3.make_headers(proxy_basic_auth=url.auth) if url.auth else None
        return urllib3.ProxyManager(proxy, proxy_headers=headers, **options)
    except (HTTPError, ValueError):  # such as a SOCKS proxy
        raise StoreUnavailable("the proxy of the environment is no HTTP proxy") from None
