"""A client of one service of AWS: made at the first call, and again with new credentials when those are refused.

Making a client takes 0.2 s of CPU and may ask for credentials, so it is done once, and not in ``open_store``. Safe to
use from several threads; only one makes a client.
"""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from secretfs.errors import ConfigurationError, DeadlineExceeded, StoreError, StoreUnavailable
from secretfs.stores._http.failures import NotKnown
from secretfs.stores.aws.account import Session
from secretfs.stores.aws.failures import SDK_ERRORS, meaning
from secretfs.stores.aws.transport import Transport

PAUSE: Final = 1.0
"""Seconds for which a client is not made again, whatever the reason: another thread has just made it, or failed to."""

Answer = Mapping[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class _Made:
    """A client, or why there is none."""

    client: Any = None
    error: StoreError | None = None
    at: float = field(default_factory=time.monotonic)

    @property
    def is_new(self) -> bool:
        return time.monotonic() < self.at + PAUSE


class Client:
    """Calls one service."""

    def __init__(self, service: str, make_session: Callable[[], Session], transport: Transport) -> None:
        self.transport = transport
        self._service = service
        self._make_session = make_session
        self._lock = threading.Lock()
        self._made: _Made | None = None
        self.where = service
        """The service and its region, for messages."""

    def call(self, operation: str, **parameters: Any) -> Answer:
        """Call an operation. Raises `StoreError`."""
        made = self._ready()
        try:
            return self._ask(made, operation, parameters)
        except NotKnown:
            if made.is_new:  # its credentials were read just now
                raise
        return self._ask(self._ready(refused=made), operation, parameters)

    def page(self, operation: str, mark: str, size: int, **parameters: Any) -> Answer:
        """Call an operation that answers in pages, for one of them. Raises `StoreError`."""
        more = {"NextToken": mark} if mark else {}
        return self.call(operation, MaxResults=size, **parameters, **more)

    def _ask(self, made: _Made, operation: str, parameters: Mapping[str, Any]) -> Answer:
        if made.error is not None:
            raise type(made.error)(str(made.error))
        try:
            answer: Answer = getattr(made.client, operation)(**parameters)
        except SDK_ERRORS as error:
            failure = meaning(self.where, error)
        else:
            return answer
        raise failure  # here, where no error is being handled whose text may quote an answer

    def _ready(self, refused: _Made | None = None) -> _Made:
        """Return the client, made if there is none, or if it is the one that was refused."""
        if not self._lock.acquire(timeout=self.transport.time.remaining(self.where)):
            raise DeadlineExceeded(f"{self.where}: the login takes too long")
        try:
            made = self._made
            if made is None or made is refused or (made.error is not None and not made.is_new):
                made = self._made = self._make()
            return made
        finally:
            self._lock.release()

    def _make(self) -> _Made:
        try:
            session = self._make_session()
            self.where = f"{self._service}.{session.region}"
            return _Made(session.client(self._service))
        except ConfigurationError as error:  # a file that could be used when the store was opened
            return _Made(error=StoreUnavailable(str(error)))
        except SDK_ERRORS as error:
            return _Made(error=meaning(self.where, error))
