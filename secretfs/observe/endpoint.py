"""An HTTP endpoint with one page, ``/metrics``, for Prometheus.

Whoever connects gets a few seconds and one answer. More than a few at once wait for their turn.
"""

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

import h11
import trio

from secretfs.errors import log_defect
from secretfs.observe.families import content_type
from secretfs.observe.measures import Format

PATH: Final = b"/metrics"
AT_ONCE: Final = 8
"""Connections that are answered at the same time."""
PATIENCE: Final = 10.0
"""Seconds for a connection, from its first to its last byte."""
LARGEST_REQUEST: Final = 16384
"""Bytes."""

Page = Callable[[Format], Awaitable[bytes]]

log = logging.getLogger(__name__)


async def serve_pages(listener: trio.SocketListener, page: Page) -> None:
    """Answer requests. Runs forever."""
    places = trio.Semaphore(AT_ONCE)

    async def answer(stream: trio.SocketStream) -> None:
        try:
            with trio.move_on_after(PATIENCE), suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await _answer(stream, page)
        except Exception as error:  # noqa: BLE001 - a defect here must not cost everybody the mount
            log_defect(log, error)
        finally:
            with trio.move_on_after(PATIENCE, shield=True):
                await stream.aclose()
            places.release()

    await trio.serve_listeners(answer, [_FewAtOnce(listener, places)])


class _FewAtOnce(trio.abc.Listener[trio.SocketStream]):
    """Accepts a connection when there is a place for it. Those that wait take no descriptor: others need them."""

    def __init__(self, listener: trio.SocketListener, places: trio.Semaphore) -> None:
        self._listener = listener
        self._places = places

    async def accept(self) -> trio.SocketStream:
        await self._places.acquire()
        try:
            return await self._listener.accept()
        except BaseException:
            self._places.release()
            raise

    async def aclose(self) -> None:
        await self._listener.aclose()


async def _answer(stream: trio.SocketStream, page: Page) -> None:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=LARGEST_REQUEST)
    try:
        request = await _request(stream, connection)
        if request is None:
            return
        status, media_type, body = await _response(request, page)
    except h11.RemoteProtocolError as error:
        request, status, media_type, body = None, error.error_status_hint, "text/plain", b"not a request\n"
    head = request is not None and request.method == b"HEAD"
    headers = [("Content-Type", media_type), ("Content-Length", str(len(body))), ("Connection", "close")]
    for event in (
        h11.Response(status_code=status, headers=headers),
        *(() if head else (h11.Data(data=body),)),
        h11.EndOfMessage(),
    ):
        await stream.send_all(connection.send(event) or b"")


async def _request(stream: trio.SocketStream, connection: h11.Connection) -> h11.Request | None:
    """Return the head of a request; None if the connection ends before there is one."""
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await stream.receive_some(LARGEST_REQUEST))
        elif isinstance(event, h11.Request):
            return event
        else:
            return None


async def _response(request: h11.Request, page: Page) -> tuple[int, str, bytes]:
    if request.method not in (b"GET", b"HEAD"):
        return 405, "text/plain", b"GET /metrics\n"
    if request.target.partition(b"?")[0] != PATH:
        return 404, "text/plain", b"what is here is /metrics\n"
    accepted = b",".join(value for name, value in request.headers if name == b"accept")
    form: Format = "openmetrics" if b"application/openmetrics-text" in accepted else "classic"
    return 200, content_type(form), await page(form)
