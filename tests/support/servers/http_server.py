"""HTTP on loopback that keeps connections and fails as networks do. A subclass says what it answers.

    with MyServer() as server:
        server.faults.append(dropped)

What a client sends that makes the subclass raise does not belong there: it is a complaint, raised at the end.
"""

import json
import socket
import ssl
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from tests.support.servers.keep_alive import End, close
from tests.support.waiting import PATIENCE, wait_until


@dataclass(frozen=True)
class Request:
    """A request."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    """By lower-case name."""
    body: bytes
    host: str = ""
    """Whom a proxy was asked to connect to."""

    @property
    def form(self) -> dict[str, str]:
        """The fields of a form in the body."""
        return _single(parse_qs(self.body.decode(), strict_parsing=True, keep_blank_values=True))


def _single(fields: Mapping[str, list[str]]) -> dict[str, str]:
    assert all(len(values) == 1 for values in fields.values()), "a parameter is given twice"
    return {name: values[0] for name, values in fields.items()}


@dataclass(frozen=True)
class Answer:
    """What the server answers. The headers are those besides the usual ones, or instead of them."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def json(cls, status: int, value: Any, headers: Mapping[str, str] | None = None) -> Self:
        """Answer with JSON."""
        return cls(status, json.dumps(value).encode(), headers or {})


Fault = Callable[[], Answer | None]
"""Takes the place of an answer; one that returns None ends the connection instead, as `HttpServer.ends` says."""


def saying(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> Fault:
    """Answer with these bytes."""
    return lambda: Answer(status, body, headers or {})


def dropped() -> None:
    """End the connection without an answer."""


class Handler(BaseHTTPRequestHandler):
    """Reads the requests of a connection, and sends what the server answers."""

    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # head and body in one segment
    server: "Listener"
    host = ""

    def _serve(self) -> None:
        owner = self.server.owner
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        try:
            query = _single(parse_qs(url.query, keep_blank_values=True))
            answer = self.server.answer(Request(self.command, url.path, query, headers, body, self.host))
        except Exception as error:  # noqa: BLE001 - the test is to see it, not this thread
            owner.complaints.append(f"{self.command} {self.host}{url.path}: {type(error).__name__}: {error}")
            answer = Answer(500, b"a request that does not belong here")
        if answer is None:
            self.close_connection = True
            if owner.ends(self.connection):
                self.rfile.read()  # until the client has had enough
            return
        self.send_response(answer.status)
        sent = {**owner.usual_headers(), "Content-Length": str(len(answer.body)), **answer.headers}
        for name, value in sent.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.body)

    do_GET = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815 - names that http.server looks for

    def handle(self) -> None:
        """Serve until the connection ends, in whatever way."""
        with suppress(OSError):
            super().handle()

    def finish(self) -> None:
        """Close the connection, which may have become another one since its start."""
        with suppress(OSError):
            super().finish()
        self.connection.close()
        self.server.connections.discard(self.connection)

    def date_time_string(self, timestamp: float | None = None) -> str:
        """Tell the time as the server's clock has it."""
        return super().date_time_string(int((timestamp or time.time()) + self.server.owner.clock))

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Listener(ThreadingHTTPServer):
    """A port, and the connections to it."""

    daemon_threads = True  # each ends with its connection, for which `stop` waits
    request_queue_size = 64

    def __init__(
        self,
        owner: "HttpServer",
        answer: Callable[[Request], Answer | None],
        handler: type[Handler],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.owner = owner
        self.answer = answer
        self.connections: set[socket.socket] = set()
        self._tls = tls
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})
        super().__init__(("127.0.0.1", 0), handler)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.server_address[1])

    def start(self) -> None:
        """Take connections."""
        self._thread.start()

    def stop(self) -> None:
        """End everything."""
        self.shutdown()
        self._thread.join()
        self.drop()
        wait_until(lambda: not self.connections)
        self.server_close()

    def drop(self) -> None:
        """Close all connections."""
        for connection in list(self.connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Take a connection."""
        connection, address = super().get_request()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls is not None:
            connection = self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        self.connections.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        """Close a connection that nobody could serve."""
        self.connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Complain of what is wrong outside of a request."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            self.owner.complaints.append(f"{type(error).__name__}: {error}")


class HttpServer:
    """A server, what it was asked, and what a test can do to it."""

    def __init__(self, handler: type[Handler] = Handler) -> None:
        self.requests: Counter[str] = Counter()
        """By kind, as the subclass counts them."""
        self.faults: deque[Fault] = deque()
        """For the next requests that show a good token or signature."""
        self.always: Fault | None = None
        """For all of them."""
        self.login_faults: deque[Fault] = deque()
        """For the next requests for credentials."""
        self.ends: End = close
        """How a connection ends whose request was `dropped`."""
        self.clock = 0.0
        """Seconds by which the clock of the server is ahead."""
        self.complaints: list[str] = []
        self.released = threading.Event()
        """Ends what hangs."""
        self._lock = threading.Lock()
        self._listeners = [Listener(self, self.answer, handler)]

    def __enter__(self) -> Self:
        for listener in self._listeners:
            listener.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.released.set()
        for listener in self._listeners:
            listener.stop()
        assert kind or self.complaints == [], self.complaints

    @property
    def address(self) -> str:
        """The URL of the server."""
        return f"http://127.0.0.1:{self._listeners[0].port}"

    def drop_connections(self) -> None:
        """Close all connections."""
        for listener in self._listeners:
            listener.drop()

    def hang(self) -> None:
        """Be a fault: answer nothing until the end of the test."""
        self.released.wait(PATIENCE)

    # --- for the subclass ---

    def answer(self, request: Request) -> Answer | None:
        """Answer a request, or return None to end its connection."""
        raise NotImplementedError

    def usual_headers(self) -> dict[str, str]:
        """Return the headers of an answer that has no others of these names."""
        return {"Content-Type": "application/json"}

    def count(self, kind: str) -> None:
        """Count a request."""
        with self._lock:
            self.requests[kind] += 1

    def next_fault(self) -> Fault | None:
        """Return what takes the place of the next answer, if something does."""
        return self.faults.popleft() if self.faults else self.always
