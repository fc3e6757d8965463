"""A server that says whatever a test wants, byte by byte: for answers that no real Vault gives."""

import json
import socket
import ssl
import threading
from typing import Self

_ENGINE = json.dumps({"data": {"path": "secret/", "type": "kv", "options": {"version": "2"}}}).encode()


class FakeVault:
    """Gives one answer to everything but the question for the engine's version, and knows what it was asked."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.answer = b""
        """All bytes to send before closing the connection."""
        self.heads: list[str] = []
        """The requests so far."""
        self.tells_version = True
        self._tls = tls
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    @property
    def address(self) -> str:
        """The value for vaultAddr."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self._socket.getsockname()[1]}"

    def respond(self, status: int, body: bytes, *headers: str) -> None:
        """Set an answer that is HTTP."""
        self.answer = _http(status, body, *headers)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                self._converse(connection)

    def _converse(self, connection: socket.socket) -> None:
        try:
            if self._tls:
                connection = self._tls.wrap_socket(connection, server_side=True)
            with connection:
                head = connection.recv(65536).decode("latin-1")
                self.heads.append(head)
                engine = self.tells_version and "/sys/internal/ui/mounts/" in head
                connection.sendall(_http(200, _ENGINE) if engine else self.answer)
        except OSError:
            pass  # the client does not trust us, or has read enough


def _http(status: int, body: bytes, *headers: str) -> bytes:
    head = [f"HTTP/1.1 {status} Reason", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join([*head, "", ""]).encode() + body
