"""The queue of changes: what waits for what, and what a failure leaves undone."""

import math
from collections.abc import Callable

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from secretfs.cache.change import Change
from secretfs.errors import StoreUnavailable
from secretfs.fs.change_queue import ChangeQueue
from tests.conftest import ExpectLog

BULK = "bulk files"


class Published:
    """What has been published, and what goes wrong with it."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.done: list[str] = []
        self.failures: dict[str, Exception] = {}
        self.before: dict[str, trio.Event] = {}
        self.announce, announced = trio.open_memory_channel[Change](math.inf)
        self.queue = ChangeQueue(announced, self._publish, self._settle)
        nursery.start_soon(self.queue.run)
        nursery.start_soon(self._receive, announced)

    async def _receive(self, announced: trio.MemoryReceiveChannel[Change]) -> None:
        async for change in announced:
            self.queue.enqueue(change)

    async def _publish(self, change: Change) -> None:
        (name,) = change.names or {"whole"}
        await self._take(name)

    async def _settle(self, component: str) -> None:
        await self._take(f"{component}: {BULK}")

    async def _take(self, what: str) -> None:
        if what in self.before:
            await self.before[what].wait()
        if what in self.failures:
            raise self.failures[what]
        self.done.append(what)

    async def come(self, *changes: Change) -> None:
        for change in changes:
            self.queue.enqueue(change)
        await wait_all_tasks_blocked()


def change(name: str, component: str = "env") -> Change:
    return Change(component, names=frozenset({name}))


async def test_bulk_files_are_published_once_for_changes_that_come_together(nursery: trio.Nursery) -> None:
    published = Published(nursery)
    await published.come(change("a"), change("b"), change("c"))
    assert published.done == ["a", "b", "c", f"env: {BULK}"]
    await published.come(change("d"))
    assert published.done[4:] == ["d", f"env: {BULK}"]


@pytest.mark.parametrize("last", [Change("env", whole=True), change("fails")], ids=["the store itself", "a failure"])
@pytest.mark.parametrize("failure", [lambda: StoreUnavailable("down"), ValueError], ids=["store", "defect"])
async def test_bulk_files_that_are_due_are_published_whatever_the_last_change_is(
    nursery: trio.Nursery, expect_log: ExpectLog, last: Change, failure: Callable[[], Exception]
) -> None:
    published = Published(nursery)
    published.failures["fails"] = error = failure()
    if isinstance(error, ValueError) and last.names:
        expect_log("a defect in secretfs or in a store")
    await published.come(change("a"), last)
    assert published.done == ["a", *(["whole"] if last.whole else []), f"env: {BULK}"]


async def test_a_store_that_only_came_or_went_has_no_bulk_file_to_publish(nursery: trio.Nursery) -> None:
    published = Published(nursery)
    await published.come(Change("env", whole=True))
    assert published.done == ["whole"]


async def test_changes_go_on_after_bulk_files_that_fail(nursery: trio.Nursery) -> None:
    published = Published(nursery)
    published.failures[f"env: {BULK}"] = StoreUnavailable("down")
    await published.come(change("a"))
    del published.failures[f"env: {BULK}"]
    await published.come(change("b"))
    assert published.done == ["a", "b", f"env: {BULK}"]


async def test_a_store_that_hangs_holds_up_no_other_and_nobody_who_waits_for_longer_than_patience(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    published = Published(nursery)
    published.before["a"] = trio.Event()
    await published.come(change("a"), change("b"), change("c", "vault"))
    assert published.done == ["c", f"vault: {BULK}"]
    began = trio.current_time()
    await published.queue.caught_up()
    assert trio.current_time() - began == 5.0
    published.before["a"].set()
    await published.queue.caught_up()
    assert published.done[2:4] == ["a", "b"]


async def test_what_was_announced_just_now_is_waited_for(nursery: trio.Nursery) -> None:
    """Also what is in no queue at this moment: it is on its way from the channel to one."""
    for number in range(50):  # which task runs first is chance
        published, caught_up = Published(nursery), trio.Event()

        async def wait(published: Published = published, caught_up: trio.Event = caught_up) -> None:
            await published.queue.caught_up()
            caught_up.set()

        await wait_all_tasks_blocked()
        published.before["vault"] = trio.Event()
        for component in "env", "kv", "vault":
            published.announce.send_nowait(change(component, component))
        for _ in range(number % 5):
            await trio.lowlevel.checkpoint()
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        assert not caught_up.is_set()
        published.before["vault"].set()
        await caught_up.wait()
        assert {"env", "kv", "vault"} <= set(published.done)
