"""Wait for a store no longer than the request of a user may."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from types import TracebackType
from typing import NamedTuple

import trio

from secretfs.cache.freshness import Freshness
from secretfs.durations import show_duration
from secretfs.errors import DeadlineExceeded


class _Request(NamedTuple):
    """The request of a user that the waits of this task are parts of."""

    since: float
    bulk: bool
    """Whether it concerns a whole store."""


_request: ContextVar[_Request | None] = ContextVar("_request", default=None)


@contextlib.contextmanager
def shared_deadline(*, bulk: bool = False) -> Iterator[None]:
    """Let the waits for one store within share a deadline, which begins now; with ``bulk``, its bulk deadline.

    Within another one, that one goes on to count.
    """
    request = _request.get()
    token = _request.set(_Request(trio.current_time(), bulk=bulk) if request is None else request)
    try:
        yield
    finally:
        _request.reset(token)


@contextlib.contextmanager
def own_deadlines() -> Iterator[None]:
    """Let each wait for a store within have a deadline of its own, whatever the request of this task is."""
    token = _request.set(None)
    try:
        yield
    finally:
        _request.reset(token)


class TimeLimit:
    """Wait no longer than ``deadline`` seconds after ``since``, on trio's clock. Raises `DeadlineExceeded`.

    A class: a cold read enters two of these, and generators would make them cost twice as much.
    """

    __slots__ = ("_deadline", "_scope")

    def __init__(self, deadline: float, since: float) -> None:
        self._deadline = deadline
        self._scope = trio.CancelScope(deadline=since + deadline)

    def __enter__(self) -> None:
        """Begin."""
        self._scope.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        """End, in time or not."""
        suppressed = self._scope.__exit__(kind, error, traceback)
        if self._scope.cancelled_caught:
            raise DeadlineExceeded(f"no answer within {show_duration(self._deadline)}") from None
        return suppressed


def request_limit(freshness: Freshness) -> TimeLimit:
    """Wait for a store no longer than the request of this task may."""
    request = _request.get()
    if request is None:
        return TimeLimit(freshness.deadline, trio.current_time())
    deadline = freshness.deadline
    if request.bulk:
        deadline = max(deadline, freshness.bulk_deadline)
    return TimeLimit(deadline, request.since)
