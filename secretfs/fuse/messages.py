"""Counts the kernel's messages: how many of each kind, how long each took, and which errno was the answer.

It costs half a microsecond, of the hundred or so that a message takes.
"""

import functools
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine
from time import perf_counter
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from secretfs.histogram import Histogram

P = ParamSpec("P")
R = TypeVar("R")


class MessageStats:
    """What the kernel has asked of one mount since this process began to serve it."""

    def __init__(self) -> None:
        self.durations = defaultdict[str, Histogram](Histogram)
        """By kind."""
        self.errors = Counter[int]()
        """By errno."""


class Counted(Protocol):
    """What has handlers that are counted."""

    @property
    def messages(self) -> MessageStats:
        """Where they are counted."""


C = TypeVar("C", bound=Counted)
Handler = Callable[Concatenate[C, P], Coroutine[Any, Any, R]]


def counted(handler: Handler[C, P, R]) -> Handler[C, P, R]:
    """Count the messages that a handler answers. Its errors have an errno."""
    kind = handler.__name__

    @functools.wraps(handler)
    async def timed(self: C, /, *args: P.args, **kwargs: P.kwargs) -> R:
        since = perf_counter()
        try:
            return await handler(self, *args, **kwargs)
        except Exception as error:
            self.messages.errors[getattr(error, "errno", 0)] += 1
            raise
        finally:
            self.messages.durations[kind].observe(perf_counter() - since)

    return timed
