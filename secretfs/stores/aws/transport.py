"""How the AWS stores speak HTTP: everything that botocore sends goes through one `Transport`.

botocore knows the protocols and signs; this module knows connections, trust and time. Compared with botocore's own
session: the deadline holds for all requests of a call together, with the last byte of the last answer; certificates are
verified against the system's authorities, or AWS_CA_BUNDLE; answers are bounded and not compressed; connections that
died while they were idle are replaced. Safe to use from several threads.
"""

import os
import time
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import urllib3
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.utils import get_environ_proxies
from urllib3.exceptions import HTTPError

from secretfs.errors import ConfigurationError, StoreUnavailable
from secretfs.stores._http.body import read_body
from secretfs.stores._http.connections import SEND_AGAIN, equip
from secretfs.stores._http.deadline import Deadline
from secretfs.stores._http.failures import transport_error
from secretfs.stores._http.trust import Trust, file_identity, system_trust, tls_context

_CONNECTIONS: Final = 16


class Transport:
    """Carries the requests of one store."""

    def __init__(self, component: str, deadline: float) -> None:
        self.time = Deadline(deadline)
        """How long each thread may still wait."""
        self.skew: float | None = None
        """By how many seconds the clock of AWS is ahead of ours, as the latest answer says."""
        self._trust = _trust(component)
        self._managers: dict[str, urllib3.PoolManager] = {}

    def send_for_sdk(self, request: AWSPreparedRequest, **_: object) -> AWSResponse:
        """Send a signed request in place of botocore. Raises `StoreError`, which botocore passes on."""
        return self.send(request)

    def send(self, request: AWSPreparedRequest) -> AWSResponse:
        """Send a request. None has effects that a second one would not have: a broken connection is replaced."""
        where = urlsplit(request.url).hostname or ""
        timeout = urllib3.Timeout(total=self.time.remaining(where))
        try:
            response = self._manager(request.url).urlopen(
                request.method,
                request.url,
                body=request.body,
                headers=request.headers,
                timeout=timeout,
                retries=SEND_AGAIN,
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
        except HTTPError as error:
            reason = getattr(error, "reason", None) if isinstance(error, urllib3.exceptions.MaxRetryError) else error
            failure = transport_error(where, reason if isinstance(reason, BaseException) else None)
        else:
            self._note_date(response.headers.get("Date"))
            body = read_body(where, response)
            return AWSResponse(request.url, response.status, response.headers, _Body(body))
        raise failure  # here, where no error is being handled whose text may quote an answer

    def close(self) -> None:
        """Close the connections that are idle."""
        for manager in list(self._managers.values()):
            manager.clear()

    def _manager(self, url: str) -> urllib3.PoolManager:
        proxy = _proxy(url)
        manager = self._managers.get(proxy)
        if manager is None:
            manager = _make_manager(proxy)
            equip(manager, self._trust)
            manager = self._managers.setdefault(proxy, manager)
        return manager

    def _note_date(self, date: str | None) -> None:
        try:
            self.skew = parsedate_to_datetime(date).timestamp() - time.time() if date else self.skew
        except ValueError:
            self.skew = None


class _Body:
    """The body of an answer that has been read, as botocore reads one."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def stream(self) -> Any:
        """Yield it."""
        yield self._body


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


def _proxy(url: str) -> str:
    """Return the environment's proxy for an https URL; none for http, which agents on the machine speak."""
    if not url.startswith("https:"):
        return ""
    proxies = get_environ_proxies(url)
    return str(proxies.get("https") or proxies.get("all") or "")


def _trust(component: str) -> Trust:
    bundle = os.environ.get("AWS_CA_BUNDLE")
    if not bundle:
        return system_trust(component)

    def make() -> Any:
        try:
            return tls_context([Path(bundle).read_text(encoding="ascii")])
        except (OSError, UnicodeError):
            raise ConfigurationError("AWS_CA_BUNDLE cannot be read") from None

    return Trust(component, make, lambda: file_identity(bundle))
