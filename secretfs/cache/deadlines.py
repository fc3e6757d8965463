"""Wait for a store no longer than the request of a user may."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
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


_request: ContextVar[_Request] = ContextVar("_request")


@contextlib.contextmanager
def shared_deadline(*, bulk: bool = False) -> Iterator[None]:
    """Let the waits for one store within share a deadline, which begins now; with ``bulk``, its bulk deadline.

    Within another one, that one goes on to count.
    """
    request = _request.get(_Request(trio.current_time(), bulk=bulk))
    token = _request.set(request)
    try:
        yield
    finally:
        _request.reset(token)


@contextlib.contextmanager
def request_limit(freshness: Freshness) -> Iterator[None]:
    """Wait for a store no longer than the request of this task may. Raises `DeadlineExceeded`."""
    request = _request.get(_Request(trio.current_time(), bulk=False))
    deadline = freshness.deadline
    if request.bulk:
        deadline = max(deadline, freshness.bulk_deadline)
    with time_limit(deadline, request.since):
        yield


@contextlib.contextmanager
def time_limit(deadline: float, since: float) -> Iterator[None]:
    """Wait no longer than ``deadline`` seconds after ``since``, on trio's clock. Raises `DeadlineExceeded`."""
    try:
        with trio.fail_at(since + deadline):
            yield
    except trio.TooSlowError:
        raise DeadlineExceeded(f"no answer within {show_duration(deadline)}") from None
