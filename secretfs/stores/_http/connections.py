"""Connection pools of urllib3 for secret stores: deadlines that hold, dead connections replaced, no compression.

The deadline of a request holds to the last byte of its answer, however slowly the bytes drip. A connection that died
while it was idle, because a server or a load balancer closed it, costs no reader an error: see `_Pool`. An answer that
is compressed although nobody asked for that is refused before it is read: a few bytes could become gigabytes.
"""

import http.client
import io
import logging
import socket
import ssl
import time
from functools import partial
from typing import Any, Final

import urllib3
from urllib3 import PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection

from secretfs.errors import MalformedAnswer
from secretfs.stores._http.trust import Trust

NO_RETRIES: Final = urllib3.Retry(total=False, redirect=0, raise_on_redirect=False)
"""What is worth another attempt is decided here and in `secretfs.cache`, not by urllib3."""

SEND_ONCE: Final = urllib3.Retry(total=False, redirect=0, raise_on_redirect=False)
"""The same for a request that has effects although its method is one of `_READS`."""

SEND_AGAIN: Final = urllib3.Retry(total=False, redirect=0, raise_on_redirect=False)
"""The same for a request that has no effects although its method is none of `_READS`."""

_READS = frozenset({"GET", "HEAD", "LIST"})
_YOUNG = 1.0  # seconds that a connection may have been idle to carry a request that has effects
_DEAD = (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError)
_SHORTEST = 0.001  # seconds; urllib3 takes no timeout of 0
# A peer that is gone without a word is noticed after 25 s, in the pool as well as in a watch.
SOCKET_OPTIONS: Final = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)


def equip(manager: PoolManager, trust: Trust) -> None:
    """Make a pool manager of an SDK use the pools of this module."""
    log_no_headers()
    manager.pool_classes_by_scheme = {"http": PlainPool, "https": partial(TLSPool, trust=trust)}  # type: ignore[dict-item]
    manager.connection_pool_kw["socket_options"] = SOCKET_OPTIONS


def log_no_headers() -> None:
    """Keep urllib3 from logging headers that it cannot parse, and what follows them."""
    logging.getLogger("urllib3.connection").addFilter(_shows_no_answer)


class _UntilTimeout(io.RawIOBase):
    """Reads from a socket until its timeout, which counts from now on and not from one byte to the next."""

    def __init__(self, sock: socket.socket) -> None:
        self._end = time.monotonic() + (sock.gettimeout() or 0)
        self._sock = sock
        self._raw = sock.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._sock.settimeout(left)
        return self._raw.readinto(buffer)

    def makefile(self, _mode: str) -> io.BufferedReader:
        """Stand in for the socket, from which `http.client.HTTPResponse` makes a file."""
        return io.BufferedReader(self)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **options: Any) -> None:
        super().__init__(_UntilTimeout(sock), *args, **options)  # type: ignore[arg-type]


class _PlainConnection(HTTPConnection):
    response_class = _Response
    idle_since = 0.0  # on the monotonic clock; 0 for a connection that has carried nothing yet

    def connect(self) -> None:
        """Connect."""
        self.idle_since = 0.0
        super().connect()


class _TLSConnection(HTTPSConnection):
    response_class = _Response
    idle_since = 0.0
    trust: Trust

    def connect(self) -> None:
        """Connect with the certificates as they are now."""
        self.idle_since = 0.0
        self.ssl_context = self.trust.context()
        self.cert_reqs = self.ssl_context.verify_mode
        super().connect()


class _Pool:
    """What both kinds of pool do about connections that died while they were idle.

    A read is sent again, once and at once, when its connection had served before and broke before the first byte of
    the answer (as in Go's net/http). A request with effects cannot be repeated, so it does not go over a connection
    that may have died: one that was idle for longer than a second, or that has shown an outdated certificate.
    """

    def _make_request(
        self, conn: Any, method: str, url: str, *, timeout: Any = None, retries: Any = None, **request: Any
    ) -> Any:
        began = time.monotonic()
        tunnels = conn.proxy_is_tunneling  # which conn no longer knows when it is closed
        reused = not conn.is_closed and conn.idle_since > 0
        has_effects = retries is not SEND_AGAIN and (method not in _READS or retries is SEND_ONCE)
        if reused and has_effects and not _is_fresh(conn, began):
            self._reopen(conn, tunnels=tunnels)
        send = super()._make_request  # type: ignore[misc]  # that of urllib3's pool
        try:
            response = send(conn, method, url, timeout=timeout, retries=retries, **request)
        except _DEAD:
            if not reused or has_effects:
                raise
            self._reopen(conn, tunnels=tunnels)
            response = send(conn, method, url, timeout=_rest(timeout, began), retries=retries, **request)
        _refuse_compressed(self, response)
        return response

    def _put_conn(self, conn: Any) -> None:
        if conn is not None:
            conn.idle_since = time.monotonic()
        super()._put_conn(conn)  # type: ignore[misc]

    def _reopen(self, conn: Any, *, tunnels: bool) -> None:
        """Close a connection so that the next request reconnects."""
        conn.close()
        if tunnels:
            self._prepare_proxy(conn)  # type: ignore[attr-defined]


class PlainPool(_Pool, urllib3.HTTPConnectionPool):  # type: ignore[misc]
    """The connections to a server that speaks HTTP without TLS."""

    ConnectionCls = _PlainConnection


class TLSPool(_Pool, urllib3.HTTPSConnectionPool):  # type: ignore[misc]
    """The connections to a server that speaks HTTP over TLS. Each is made with what ``trust`` says at that time."""

    ConnectionCls = _TLSConnection

    def __init__(self, host: str, port: int | None = None, *, trust: Trust, **options: Any) -> None:
        self._trust = trust
        super().__init__(host, port, **options)

    def _new_conn(self) -> Any:
        conn: Any = super()._new_conn()
        conn.trust = self._trust
        return conn


def _is_fresh(conn: Any, now: float) -> bool:
    if now >= conn.idle_since + _YOUNG:
        return False
    return not isinstance(conn, _TLSConnection) or conn.ssl_context is conn.trust.context()


def _rest(timeout: urllib3.Timeout, began: float) -> urllib3.Timeout:
    """Return the rest of a total timeout. A timeout without a total is returned as it is."""
    if not isinstance(timeout.total, int | float):
        return timeout
    return urllib3.Timeout(total=max(_SHORTEST, timeout.total - (time.monotonic() - began)))


def _refuse_compressed(pool: Any, response: Any) -> None:
    if response.headers.get("Content-Encoding", "").strip().lower() in ("", "identity"):
        return
    response.close()
    raise MalformedAnswer(f"{pool.scheme}://{pool.host}:{pool.port}: the answer is compressed, which was not asked for")


def _shows_no_answer(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("Failed to parse headers")
