"""One component's conversation with its plug-in: it is initialised before it is asked, and again when it has to be.

Dapr initialises a plug-in once. One that is started again has lost what it was told, so that here each answer is known
to come from a process that has been initialised: its socket is the same before and after the call, and a plug-in makes
another one when it starts. It also keeps one set of properties for each component, which a component that has just been
edited, and may be refused, replaces: whoever of the two is asked last has to say its own again.
"""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final
from weakref import WeakValueDictionary

from secretfs.errors import DeadlineExceeded, MalformedAnswer, StoreError, StoreUnavailable
from secretfs.stores import _sockets as sockets
from secretfs.stores.pluggable import messages
from secretfs.stores.pluggable.client import Connection, ConnectionEnded, ConnectionLost, NotImplementedByPlugIn

SERVICE: Final = "dapr.proto.components.v1.SecretStore"
MULTI_VALUED: Final = "MULTIPLE_KEY_VALUES_PER_SECRET"
_REFLECTION: Final = tuple(
    f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo" for version in ("v1alpha", "v1")
)


class _Session:
    """A connection, and which process it leads to."""

    def __init__(self, connection: Connection, identity: sockets.Identity) -> None:
        self.connection = connection
        self.identity = identity


_newest: WeakValueDictionary[tuple[str, str], _Session] = WeakValueDictionary()
"""Who has initialised last, by socket and component."""


class PlugIn:
    """The process behind a socket, as one component uses it. Thread-safe. Errors start with the name of the plug-in.

    ``deadline`` is in seconds, for a call with everything that it takes.
    """

    def __init__(
        self, socket: str, component: str, properties: Mapping[str, str], deadline: float, *, multi_valued: bool | None
    ) -> None:
        """``multi_valued`` is what a user says; None leaves it to the plug-in."""
        self._path = socket
        self._name = socket.rpartition("/")[2]
        self._component = component
        self._init = messages.init_request(properties)
        self._deadline = deadline
        self._multi_valued = multi_valued
        self._asks_shape = multi_valued is None
        self._session: _Session | None = None
        self._connecting = threading.Lock()
        self._closed = threading.Event()

    @property
    def multi_valued(self) -> bool:
        """Whether its secrets have several values. Initialises it for the first time. Raises `StoreError`."""
        if self._multi_valued is None:
            with self._named():
                self._connect(time.monotonic() + self._deadline)
        return bool(self._multi_valued)

    def ask(self, method: str, request: bytes) -> bytes:
        """Call a method of the service, and return the answer. Raises `StoreError`."""
        end = time.monotonic() + self._deadline
        with self._named():
            for _ in range(2):
                session = self._connect(end)
                try:
                    answer = session.connection.call(f"/{SERVICE}/{method}", request, end - time.monotonic())
                except ConnectionEnded:
                    continue
                except ConnectionLost:
                    still_there = self._is_current(session)
                    self._drop(session)
                    if still_there:
                        raise
                else:
                    if self._is_current(session):
                        return answer
            raise StoreUnavailable("it was started again while it was asked")

    def close(self) -> None:
        """Disconnect. A call that is under way may go on to its deadline."""
        self._closed.set()
        session = self._session
        if session is not None:
            self._drop(session)

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except StoreError as error:
            raise type(error)(f"plug-in {self._name}: {error}") from None

    def _connect(self, end: float) -> _Session:
        """Return the session with the process that is there now, initialised. ``end`` is when to give up."""
        session = self._session
        if session is not None and self._is_current(session):
            return session
        if not self._connecting.acquire(timeout=max(0.0, end - time.monotonic())):
            raise DeadlineExceeded("it is not initialised in time")
        try:
            session = self._session
            if session is not None:
                if self._is_current(session):
                    return session
                self._drop(session)
            if self._closed.is_set():
                raise StoreUnavailable("it is not used any more")
            session = self._initialised(sockets.inspect(self._path), end)
            self._session = _newest[self._path, self._component] = session
            if self._closed.is_set():
                self._drop(session)
            return session
        finally:
            self._connecting.release()

    def _initialised(self, identity: sockets.Identity, end: float) -> _Session:
        connection = Connection(self._path, self._component)
        try:
            _require_secret_store(connection, end)
            try:
                connection.call(f"/{SERVICE}/Init", self._init, end - time.monotonic())
            except NotImplementedByPlugIn:
                raise MalformedAnswer("it offers no secret store") from None
            features = connection.call(f"/{SERVICE}/Features", messages.EMPTY, end - time.monotonic())
            self._take_shape(MULTI_VALUED in messages.features(features))
            return _Session(connection, identity)
        except BaseException:
            connection.end()
            raise

    def _take_shape(self, multi_valued: bool) -> None:  # noqa: FBT001 - an answer
        """Take note of what the plug-in says. Raises `MalformedAnswer` if it has said otherwise: paths depend on it."""
        if not self._asks_shape:
            return
        if self._multi_valued not in (None, multi_valued):
            raise MalformedAnswer(f"its {MULTI_VALUED} is not as it was: mount it again")
        self._multi_valued = multi_valued

    def _is_current(self, session: _Session) -> bool:
        """Tell whether the process that a session leads to is there, and has our properties. Raises `StoreError`."""
        return sockets.inspect(self._path) == session.identity and (
            _newest.get((self._path, self._component)) is session
        )

    def _drop(self, session: _Session) -> None:
        if self._session is session:
            self._session = None
        session.connection.end()


def _require_secret_store(connection: Connection, end: float) -> None:
    """Raise `MalformedAnswer` if the socket is that of something else: it is not to see the properties.

    Dapr asks with ``v1alpha``. A server without reflection, which no Dapr finds, is taken at the word of its socket.
    """
    for method in _REFLECTION:
        try:
            answer = connection.call(method, messages.LIST_SERVICES, end - time.monotonic())
        except NotImplementedByPlugIn:
            continue
        if SERVICE not in messages.services(answer):
            raise MalformedAnswer(f"it offers no secret store: its services do not have {SERVICE}")
        return
