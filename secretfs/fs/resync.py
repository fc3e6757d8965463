"""What has changed while nobody served: found out after a takeover, and published like any other change.

The kernel's users may watch a file that nobody reads. The process before us would have told them, and what it knew of
the stores went with it. So what it had in use is asked for once, and compared with what the journal says of it. That is
no more than its background refresh would have asked.
"""

import logging
from collections.abc import Callable, Iterable

import trio

from secretfs.cache.store_cache import BACKGROUND, Change
from secretfs.errors import AccessDenied, SecretFSError
from secretfs.fs.keys import ValueKey
from secretfs.fs.vfs import SecretVFS

AGAIN = 5.0
"""Seconds before what a store could not answer is asked again."""

log = logging.getLogger(__name__)

Heard = Callable[[str, Change], None]


async def catch_up(vfs: SecretVFS, heard: Heard) -> None:
    """Find out what has changed in each store since it was last looked at, and have ``heard`` told of it."""
    async with trio.open_nursery() as nursery:
        for component in vfs.changes.components:
            files = [key for key in vfs.changes.inherited(component) if isinstance(key, ValueKey)]
            if files:
                nursery.start_soon(_names, vfs, component, heard)
                waiting = iter(files)
                for _ in range(min(BACKGROUND, len(files))):
                    nursery.start_soon(_values, vfs, waiting, heard)


async def _names(vfs: SecretVFS, component: str, heard: Heard) -> None:
    while True:
        try:
            gone = await vfs.changes.names_that_went(component)
        except SecretFSError:
            await trio.sleep(AGAIN)
            continue
        if gone:
            heard(component, Change(names=gone))
        return


async def _values(vfs: SecretVFS, keys: Iterable[ValueKey], heard: Heard) -> None:
    for key in keys:
        while True:
            try:
                same = await vfs.changes.is_what_it_was(key)
            except AccessDenied:  # until that ends there is nothing to see; the others must not wait for it
                same = True
            except SecretFSError:  # logged where it happened
                await trio.sleep(AGAIN)
                continue
            break
        if not same:
            heard(key.component, Change(values=frozenset({(key.name, key.key)})))
