"""An HTTP server that keeps connections, and ends those that have served in the ways of servers and load balancers."""

import contextlib
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from typing import BinaryIO, Self

_PAUSE = 0.05  # seconds from one byte of a drip to the next
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER

End = Callable[[socket.socket], bool]
"""Ends a connection on which a request has come. Returns whether the socket stays open."""


def close(_: socket.socket) -> bool:
    """Close the connection after the request, before the first byte of an answer."""
    return False


def reset(connection: socket.socket) -> bool:
    """Answer the request with a reset, as a load balancer does that has forgotten the connection."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    return False


def half_close(connection: socket.socket) -> bool:
    """End one direction only: the server still reads, and will send nothing."""
    connection.shutdown(socket.SHUT_WR)
    return True


def drip(connection: socket.socket) -> bool:
    """Give an answer that never comes to an end, a byte at a time: no wait for a byte is long."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n{")
    while True:  # until the client has had enough
        time.sleep(_PAUSE)
        connection.sendall(b" ")


Answer = tuple[int, bytes] | tuple[int, bytes, str]
"""Status, body, and a header."""


class KeepAlive:
    """Answers a request for a path with what ``answer`` makes of it. Knows what it was asked."""

    def __init__(self, answer: Callable[[str], Answer], tls: ssl.SSLContext | None = None) -> None:
        self.answer = answer
        self.tls = tls
        """What connections are shown from now on."""
        self.requests: list[str] = []
        """``GET /path`` of each request, also of those that got no answer."""
        self.heads: list[str] = []
        self.connections = 0
        self.ends_used: End | None = None
        """What happens to a connection that has served, when the next request comes."""
        self.ends_all: End | None = None
        """The same for every connection."""
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._accepting = threading.Thread(target=self._accept)

    def __enter__(self) -> Self:
        self._accepting.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._listener.close()
        self.close_idle()
        for thread in self._threads:
            thread.join()

    @property
    def address(self) -> str:
        """The URL of the server."""
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._listener.getsockname()[1])

    def close_idle(self) -> None:
        """Close all connections, now."""
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._open.add(connection)
            thread = threading.Thread(target=self._converse, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _converse(self, plain: socket.socket) -> None:
        with plain, contextlib.suppress(OSError):
            connection = self.tls.wrap_socket(plain, server_side=True) if self.tls else plain
            self._open = self._open - {plain} | {connection}
            with connection:
                try:
                    self._serve(connection)
                finally:
                    self._open.discard(connection)

    def _serve(self, connection: socket.socket) -> None:
        served = False
        reader = connection.makefile("rb")
        while head := _head(reader):
            method, target, _ = head.split(" ", 2)
            self.requests.append(f"{method} {target}")
            self.heads.append(head)
            end = self.ends_all or (self.ends_used if served else None)
            if end is not None:
                if end(connection):
                    reader.read()  # until the client has had enough
                return
            status, body, *headers = self.answer(target)
            start = [f"HTTP/1.1 {status} Reason", f"Content-Length: {len(body)}", *headers, "", ""]
            connection.sendall("\r\n".join(start).encode() + body)
            served = True


def _head(reader: BinaryIO) -> str:
    """Read a request and return its head; nothing at the end. The body is thrown away."""
    lines: list[str] = []
    while (line := reader.readline().decode("latin-1")) not in ("\r\n", ""):
        lines.append(line)
    length = next((int(line.split(":")[1]) for line in lines if line.lower().startswith("content-length:")), 0)
    reader.read(length)
    return "".join(lines)
