"""Several tasks that share the same work, for a store that answers more than one call at once."""

from collections.abc import Awaitable, Callable

import trio

from secretfs.errors import StoreError


async def in_parallel(work: Callable[[], Awaitable[None]], tasks: int) -> None:
    """Run ``work`` in several tasks at once; the first error of a store ends all and is raised."""
    errors: list[StoreError] = []

    async def until_error() -> None:
        try:
            await work()
        except StoreError as error:
            errors.append(error)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for _ in range(tasks):
            nursery.start_soon(until_error)
    if errors:
        raise errors[0]
