"""How long an answer of a store is good, and how long a request waits for one."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import NamedTuple

import trio

from secretfs.durations import show_duration
from secretfs.errors import DeadlineExceeded


@dataclass(frozen=True, slots=True)
class Freshness:
    """How long an answer of one store is good, and how long to wait for one. Seconds."""

    ttl: float = 60.0
    """Age up to which an answer is served without a question."""
    negative_ttl: float = 5.0
    """Age up to which a listing says that a name is not there, if that is less than ``ttl``."""
    max_stale: float = 3600.0
    """Age up to which it is served while the store fails."""
    deadline: float = 5.0
    """Longest wait for an answer."""
    bulk_deadline: float = 0.0
    """Longest wait for all the answers that a bulk file or a refresh takes, if that is longer than ``deadline``."""
    idle: float = 600.0
    """Time without a reader after which a value is dropped from memory."""


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
