"""The Secrets API as an ASGI application: who may ask, how much, and for how long.

hypercorn calls it once for each request, and puts what the client sends into a queue of ten messages. Nothing here may
leave that queue unread while the client goes on to send: hypercorn would wait for us, and we for hypercorn. So a task
of its own reads until hypercorn says that the request is over, whatever becomes of the answer.
"""

import contextlib
import hmac
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from typing import Any, Final, Protocol

import trio

from secretfs.api import grpc_api, http_api
from secretfs.api.secrets_api import SecretsApi
from secretfs.errors import log_defect
from secretfs.observe.audit import Asker

LARGEST_REQUEST: Final = 64 * 1024
"""Bytes of a body. A request names a store and a secret."""
PATIENCE: Final = 30.0
"""Seconds that a client has to send its request, and to take the answer. Then its connection is closed."""

_TOKEN_HEADER: Final = b"dapr-api-token"

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

log = logging.getLogger(__name__)


class Connection(Protocol):
    """The connection that a request came by."""

    @property
    def client(self) -> Asker:
        """Who is at its other end, as far as the kernel says."""

    def close(self) -> None:
        """Close it: what waits for the client goes on at once."""


class _Body:
    """The body of a request, as it comes in."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive = receive
        self._limit = limit
        self.data = bytearray()
        self.too_large = False
        self.complete = trio.Event()
        self.wanted = trio.CancelScope()
        """What is of no use any more when the client is gone."""

    async def read(self) -> None:
        """Read until the client is gone, or everything has been said."""
        while True:
            message = await self._receive()
            if message["type"] != "http.request":
                self.wanted.cancel()
                return
            if len(self.data) + len(message["body"]) > self._limit:
                self.too_large = True
            else:
                self.data += message["body"]
            if not message.get("more_body"):
                self.complete.set()


class Application:
    """Answers requests for secrets. Without a token, whoever can connect may ask."""

    def __init__(self, api: SecretsApi, token: str) -> None:
        self._api = api
        self._token = token.encode()

    async def serve(self, connection: Connection, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Whatever goes wrong is an answer to it, and nobody else's business."""
        if scope["type"] != "http":  # a WebSocket
            connection.close()
            return
        headers = dict(scope["headers"])
        may_ask = self._is_token(headers.get(_TOKEN_HEADER))
        body = _Body(receive, LARGEST_REQUEST if may_ask else 0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(body.read)
            with body.wanted:
                with _closing_after(PATIENCE, connection, nursery):
                    await body.complete.wait()
                api = self._api.asked_by(connection.client)
                response = await self._respond(api, scope, headers, body, may_ask=may_ask)
            if not body.wanted.cancelled_caught:
                with _closing_after(PATIENCE, connection, nursery):
                    for message in response:
                        await send(message)

    async def _respond(
        self, api: SecretsApi, scope: Scope, headers: Mapping[bytes, bytes], body: _Body, *, may_ask: bool
    ) -> list[dict[str, Any]]:
        """Return the messages that answer a request."""
        path = scope["raw_path"].decode("ascii")
        content_type = headers.get(b"content-type", b"").decode("ascii", "replace")
        if scope["http_version"] == "2" and content_type.startswith(grpc_api.CONTENT_TYPE):
            missing = _TOKEN_HEADER not in headers
            refused = None if may_ask else grpc_api.MISSING_TOKEN if missing else grpc_api.INVALID_TOKEN
            return _grpc_messages(refused or await _call(api, path, body))
        if not may_ask and http_api.clean(path) not in http_api.NEEDS_NO_TOKEN:
            return _http_messages(http_api.INVALID_TOKEN)
        query = scope["query_string"].decode("ascii", "replace")
        request = http_api.Request(scope["method"], path, query, bytes(body.data))
        return _http_messages(await _get(api, request, body))

    def _is_token(self, given: bytes | None) -> bool:
        return not self._token or hmac.compare_digest(given or b"", self._token)


async def _get(api: SecretsApi, request: http_api.Request, body: _Body) -> http_api.Response:
    if body.too_large:
        return http_api.TOO_LARGE
    try:
        return await http_api.answer(api, request)
    except Exception as error:  # noqa: BLE001 - one request fails, and no other
        log_defect(log, error)
        return http_api.DEFECT


async def _call(api: SecretsApi, path: str, body: _Body) -> grpc_api.Answer:
    if body.too_large:
        return grpc_api.TOO_LARGE
    try:
        return await grpc_api.answer(api, path, bytes(body.data))
    except Exception as error:  # noqa: BLE001 - likewise
        log_defect(log, error)
        return grpc_api.DEFECT


@contextlib.contextmanager
def _closing_after(seconds: float, connection: Connection, nursery: trio.Nursery) -> Iterator[None]:
    """Close a connection unless the client does its part in time. hypercorn cannot be cancelled while it sends."""
    watch = trio.CancelScope()

    async def close_later() -> None:
        with watch:
            await trio.sleep(seconds)
            connection.close()

    nursery.start_soon(close_later)
    try:
        yield
    finally:
        watch.cancel()


def _http_messages(response: http_api.Response) -> list[dict[str, Any]]:
    headers = [] if response.status == 204 else [(b"content-length", b"%d" % len(response.body))]
    if response.content_type:
        headers.append((b"content-type", response.content_type.encode()))
    return [
        {"type": "http.response.start", "status": response.status, "headers": headers},
        {"type": "http.response.body", "body": response.body},
    ]


def _grpc_messages(answer: grpc_api.Answer) -> list[dict[str, Any]]:
    headers = [(b"content-type", grpc_api.CONTENT_TYPE.encode()), (b"grpc-accept-encoding", b"identity")]
    return [
        {"type": "http.response.start", "status": 200, "headers": headers, "trailers": True},
        {"type": "http.response.body", "body": answer.frame},
        {"type": "http.response.trailers", "headers": answer.trailers},
    ]
