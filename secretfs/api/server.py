"""The server of the Secrets API: hypercorn for HTTP/1.1 and HTTP/2, connections by us.

Whatever a client or the server itself does wrong costs its connection and never the mount: hypercorn's own ``serve``
would end with it. There is a limit to the connections, so that the process keeps descriptors for everything else.
"""

import logging
import math
import socket
import struct
from functools import partial
from typing import Any, Final

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState

from secretfs.api.application import Application
from secretfs.errors import log_defect
from secretfs.observe.audit import NOBODY, Asker

CONNECTIONS: Final = 100
"""Connections at once. Each has 100 requests at most, so they all have no more than the kernel may have."""
IDLE: Final = 180.0
"""Seconds after which a connection without a request is closed, as Dapr does."""
LARGEST_INPUT: Final = 1024 * 1024
"""Bytes that a client may send for a request. h2 would keep 16 MiB of them before it looks at a frame."""
PAUSE: Final = 1.0
"""Seconds before the next attempt, when no connection can be accepted."""

_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred: process, user, group

log = logging.getLogger(__name__)
logging.getLogger("hpack").setLevel(logging.INFO)  # its debug messages show headers, and thus the token


class Connection:
    """A connection to a client: what hypercorn wants of a `trio.SocketStream`, with a limit to what is received."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._received = 0
        self.requests = 0
        """How many are not answered yet."""
        self.used = trio.current_time()
        """When a request was answered, or else when the client came."""
        self.socket = stream.socket
        self.client = _peer(stream.socket)
        self.send_all = stream.send_all
        self.send_eof = stream.send_eof
        self.aclose = stream.aclose

    async def receive_some(self, limit: int) -> bytes:
        """Receive something. Raises `trio.ClosedResourceError` if that is too much without another request."""
        data = await self._stream.receive_some(limit)
        self._received += len(data)
        if self._received > LARGEST_INPUT:
            self.close()
            raise trio.ClosedResourceError
        return data

    def begin(self) -> None:
        """Take note of a request."""
        self.requests += 1
        self._received = 0

    def end(self) -> None:
        """Take note that a request is over."""
        self.requests -= 1
        self.used = trio.current_time()

    def close(self) -> None:
        """Close it. Whatever waits for the client fails at once, also what cannot be cancelled."""
        self.socket.close()


class Server:
    """Serves an application to those who connect."""

    def __init__(self, application: Application) -> None:
        self._application = application
        self._connections: set[Connection] = set()
        self._config = _config()
        self._context = WorkerContext(None)

    async def run(self, listening: socket.socket) -> None:
        """Serve forever. The socket stays open: the next worker may go on with it."""
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening.dup()))
        async with listener, trio.open_nursery() as nursery:
            nursery.start_soon(self._close_idle)
            try:
                while True:
                    await self._accept(listener, nursery)
            finally:
                for connection in self._connections:
                    connection.close()

    async def _accept(self, listener: trio.SocketListener, nursery: trio.Nursery) -> None:
        try:
            stream = await listener.accept()
        except OSError as error:  # out of descriptors, or of memory
            log.warning("the Secrets API accepts no client now: %s", error.strerror)
            await trio.sleep(PAUSE)
            return
        if len(self._connections) >= CONNECTIONS and not self._close_longest_idle():
            stream.socket.close()
            return
        connection = Connection(stream)
        self._connections.add(connection)
        nursery.start_soon(self._serve, connection)

    async def _close_idle(self) -> None:
        """Close what nobody uses. hypercorn would forget a client of HTTP/2 that never asks for anything."""
        while True:
            await trio.sleep(IDLE / 4)
            for connection in self._connections:
                if not connection.requests and trio.current_time() > connection.used + IDLE:
                    connection.close()

    def _close_longest_idle(self) -> bool:
        """Make room for a client. Returns whether there was a connection without a request."""
        idle = min((one for one in self._connections if not one.requests), key=lambda one: one.used, default=None)
        if idle is None:
            return False
        self._connections.discard(idle)
        idle.close()
        return True

    async def _serve(self, connection: Connection) -> None:
        application = ASGIWrapper(partial(self._answer, connection))
        try:
            await TCPServer(
                application,
                self._config,
                self._context,
                ConnectionState({}),
                connection,  # type: ignore[arg-type]
            )
        except* OSError:
            pass  # the client is gone, before it has said anything
        except* Exception as group:  # noqa: BLE001 - this client did something that hypercorn does not expect
            log.info("a connection to the Secrets API ended: %s", ", ".join(sorted(_kinds(group))))
        finally:
            self._connections.discard(connection)
            connection.close()

    async def _answer(self, connection: Connection, scope: Any, receive: Any, send: Any) -> None:
        connection.begin()
        try:
            await self._application.serve(connection, scope, receive, send)
        except Exception:  # it cannot be answered, and hypercorn might wait for more of it
            connection.close()
            raise
        finally:
            connection.end()


def _peer(client: trio.socket.SocketType) -> Asker:
    """Return who has connected (SO_PEERCRED of unix(7)). The kernel does not say that of a port."""
    if client.family != socket.AF_UNIX:
        return NOBODY
    credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(credentials)
    return uid, gid, pid


async def serve_api(application: Application, listening: socket.socket) -> None:
    """Serve the Secrets API forever. A defect in it is logged, and is nothing to the mount."""
    while True:
        try:
            await Server(application).run(listening)
        except Exception as error:  # noqa: BLE001
            log_defect(log, error)
            await trio.sleep(PAUSE)


def _config() -> Config:
    config = Config()
    config.accesslog = config.errorlog = None  # they show what clients ask for
    config.include_server_header = False
    config.keep_alive_timeout = math.inf  # see `Server`
    config.keep_alive_max_requests = 2**63  # after so many it would close a connection in the middle of a request
    return config


def _kinds(group: BaseExceptionGroup[BaseException]) -> set[str]:
    """Return the types of the exceptions in a group. Their texts may quote what a client sent."""
    kinds = set[str]()
    for error in group.exceptions:
        kinds |= _kinds(error) if isinstance(error, BaseExceptionGroup) else {type(error).__name__}
    return kinds
