"""A way to an HTTP server that fails in the ways that networks, load balancers and certificates fail.

It counts the requests that come by, and can be told at any moment to do something else with those that come next.
"""

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Self

from tests.support.servers.keep_alive import drip, reset
from tests.support.waiting import PATIENCE

_END_OF_HEAD = b"\r\n\r\n"

Fault = Callable[[socket.socket], bool]
"""What to do with a connection when a request has come, instead of passing it on. Returns whether to go on with it."""


class Faulty:
    """Passes requests on to ``port`` of this machine. ``tls`` is what it shows its clients; the server has none."""

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        self._target = ("127.0.0.1", port)
        self._tls = tls
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._threads: set[threading.Thread] = set()
        self._listener: socket.socket | None = None
        self._fault: Fault | None = None
        self._fillers: list[socket.socket] = []
        self._requests: list[tuple[float, str]] = []
        self.port = 0

    def __enter__(self) -> Self:
        self._listen(128)
        return self

    def __exit__(self, *_: object) -> None:
        self.shut()
        while True:
            with self._lock:
                threads = list(self._threads)
            if not threads:
                return
            for thread in threads:
                thread.join(PATIENCE)
                assert not thread.is_alive()
                with self._lock:
                    self._threads.discard(thread)

    @property
    def address(self) -> str:
        """The value for vaultAddr."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    def requests(self) -> list[tuple[float, str]]:
        """List the requests since `forget`: when on `time.monotonic`, and ``GET /v1/secret/data/db``."""
        with self._lock:
            return list(self._requests)

    def forget(self) -> None:
        """Let `requests` start from here."""
        with self._lock:
            self._requests.clear()

    # --- faults, each until the next one or `mend` ---

    def mend(self) -> None:
        """Pass requests on again."""
        if self._listener is None or self._fillers:
            self.shut()
            self._listen(128)
        self._fault = None
        self.drop()

    def shut(self) -> None:
        """Close the port: connections are refused."""
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        for filler in self._fillers:
            filler.close()
        self._fillers.clear()
        self.drop()

    def reset(self) -> None:
        """Reset each connection when a request has come."""
        self._fault = reset

    def black_hole(self) -> None:
        """Drop the packets that ask for a connection, as a firewall does."""
        self.shut()
        self._listen(0, accept=False)
        for _ in range(2):  # a backlog that is full makes the kernel drop the rest
            filler = socket.socket()
            filler.setblocking(False)  # noqa: FBT003
            filler.connect_ex(("127.0.0.1", self.port))
            self._fillers.append(filler)

    def swallow(self) -> None:
        """Take connections and requests, and answer nothing."""
        self._fault = _silence

    def answer(self, status: int, body: bytes = b'{"errors":[]}', *headers: str) -> None:
        """Give this answer to everything."""
        head = [f"HTTP/1.1 {status} Reason", f"Content-Length: {len(body)}", *headers, "", ""]
        whole = "\r\n".join(head).encode() + body

        def say(near: socket.socket) -> bool:
            near.sendall(whole)
            return True

        self._fault = say

    def drip(self) -> None:
        """Give an answer that never comes to an end, a byte at a time: no wait for a byte is long."""
        self._fault = drip

    def present(self, tls: ssl.SSLContext) -> None:
        """Present another certificate on new connections."""
        self._tls = tls
        self.drop()

    def drop(self) -> None:
        """End all connections."""
        with self._lock:
            for each in self._sockets:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    # --- how ---

    def _listen(self, backlog: int, *, accept: bool = True) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=backlog)
        self.port = self._listener.getsockname()[1]
        if accept:
            self._start(self._accept, self._listener)

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        def run() -> None:
            try:
                with contextlib.suppress(OSError):
                    work(*arguments)
            finally:
                with self._lock:
                    self._threads.discard(threading.current_thread())

        thread = threading.Thread(target=run, daemon=True)
        with self._lock:
            self._threads.add(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            near, _ = listener.accept()
            self._start(self._serve, near)

    def _serve(self, near: socket.socket) -> None:
        far = socket.socket()
        with self._lock:
            self._sockets |= {near, far}
        try:
            if self._tls is not None:
                plain, near = near, self._tls.wrap_socket(near, server_side=True)
                with self._lock:
                    self._sockets = self._sockets - {plain} | {near}
            buffer = b""
            while data := near.recv(1 << 16):
                *heads, buffer = (buffer + data).split(_END_OF_HEAD)  # a request for a secret has no body
                for head in heads:
                    self._note(head)
                    fault = self._fault
                    if not (fault(near) if fault else self._forward(near, far, head)):
                        return
        finally:
            with self._lock:
                self._sockets -= {near, far}
            with contextlib.suppress(OSError):
                far.shutdown(socket.SHUT_RDWR)  # wakes its reader
            near.close()
            far.close()

    def _note(self, head: bytes) -> None:
        method, target, _ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)
        with self._lock:
            self._requests.append((time.monotonic(), f"{method} {target}"))

    def _forward(self, near: socket.socket, far: socket.socket, head: bytes) -> bool:
        if not _is_connected(far):
            far.connect(self._target)
            self._start(_pump, far, near)
        far.sendall(head + _END_OF_HEAD)
        return True


def _is_connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def _pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(1 << 16):
            sink.sendall(data)
    finally:
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)


def _silence(_: socket.socket) -> bool:
    return True
