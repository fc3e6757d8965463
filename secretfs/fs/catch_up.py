"""After a takeover: the changes that the process before us had found and not yet published.

A program may watch a file that nobody reads. What the kernel knows of each file in use is compared with what the cache
knows. A store is asked only for what is due, or was not kept for us: of one whose component was edited, nothing was.
"""

from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from heapq import heappop, heappush
from typing import Final

import trio

from secretfs.cache.change import Announce, Change
from secretfs.cache.store_cache import BACKGROUND
from secretfs.errors import SecretFSError
from secretfs.fs.changes import Changes
from secretfs.fs.keys import ValueKey

RETRY_AFTER, RETRY_AFTER_AT_MOST = 5.0, 60.0
"""Seconds until a question of `catch_up` that a store could not answer is asked again; the time doubles."""
PAUSE: Final = 0.5
"""Seconds for which nothing else is asked after a failure: failures open the circuit, and a probe closes it again."""


@dataclass(slots=True)
class _Question:
    """What `catch_up` has to find out, and when to ask it."""

    ask: Callable[[], Awaitable[Change]]
    due: float = 0.0
    """On trio's clock."""
    pause: float = RETRY_AFTER
    """Seconds until it is asked again, should it fail."""

    def __lt__(self, other: "_Question") -> bool:
        return self.due < other.due


async def catch_up(changes: Changes, announce: Announce) -> None:
    """Find what has changed in each store since the process before us looked, and announce it."""
    async with trio.open_nursery() as nursery:
        for questions in (await _questions(changes)).values():
            for _ in range(min(BACKGROUND, len(questions))):
                nursery.start_soon(_ask, questions, announce)


async def _questions(changes: Changes) -> Mapping[str, list[_Question]]:
    """Return what is to be found out, by the store that is asked: a thousand apps that see one ask in turn."""
    found: defaultdict[str, list[_Question]] = defaultdict(list)
    for component, store in changes.stores().items():
        await trio.lowlevel.checkpoint()
        files = [key for key in changes.inherited(component) if isinstance(key, ValueKey)]
        if files:
            folders = changes.known_names(component).items()
            found[store] += [_Question(partial(changes.change_of_names, folder, names)) for folder, names in folders]
            found[store] += [_Question(partial(changes.change_of_value, key)) for key in files]
    return found


async def _ask(questions: list[_Question], announce: Announce) -> None:
    """Ask what is due first, until all is answered. A question that fails is put off, so no other waits for it."""
    while questions:
        question = heappop(questions)
        await trio.sleep_until(question.due)
        try:
            change = await question.ask()
        except SecretFSError:  # logged where it happened
            question.due = trio.current_time() + question.pause
            question.pause = min(2 * question.pause, RETRY_AFTER_AT_MOST)
            heappush(questions, question)
            await trio.sleep(PAUSE)
            continue
        if change:
            announce(change)
