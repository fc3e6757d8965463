"""Waiting for threads in a test with a virtual clock: no virtual time passes."""

import time
from collections.abc import Callable

import trio

_PATIENCE = 10.0


async def until(condition: Callable[[], object]) -> None:
    """Wait until something has happened that a thread or another task does."""
    end = time.monotonic() + _PATIENCE
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        await trio.to_thread.run_sync(time.sleep, 0.001)
