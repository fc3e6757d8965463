"""Turns: who has many requests delays another one by one step, whatever the order in which they came."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio
import trio.testing

from secretfs.fs.keys import ValueKey
from secretfs.fs.requests import RequestPlaces, Requests
from secretfs.fuse.fair_share import READ_FIRST, REMEMBERED, FairShare

KEY = ValueKey("vault", "db", "password")
STEPS = 50


class Unread:
    """Requests that the kernel still has."""

    def __init__(self) -> None:
        self.left = 0
        self.asked = 0

    def __call__(self) -> bool:
        self.asked += 1
        self.left -= 1
        return self.left >= 0


def place(_: int, uid: int | None) -> Requests:
    return RequestPlaces().of(KEY, uid)


@pytest.fixture
def unread() -> Unread:
    return Unread()


@pytest.fixture
def share(unread: Unread) -> FairShare:
    return FairShare(place, unread)


class Work:
    """What was worked on, in order."""

    def __init__(self, share: FairShare) -> None:
        self.share = share
        self.done: list[str] = []

    async def short(self, asker: str) -> None:
        await self.share.turn(asker)
        self.done.append(asker)

    async def long(self, asker: str) -> None:
        await self.share.turn(asker)
        for _ in range(STEPS):
            self.done.append(asker)
            await self.share.go_on()


@contextmanager
def full(unread: Unread) -> Iterator[None]:
    """Have the kernel full of requests while others arrive."""
    unread.left = 1 << 30
    yield
    unread.left = 0


async def finish(nursery: trio.Nursery) -> None:
    while len(nursery.child_tasks) > 1:
        await trio.testing.wait_all_tasks_blocked()
    nursery.cancel_scope.cancel()


async def test_alone_nobody_waits(share: FairShare) -> None:
    with trio.testing.assert_no_checkpoints():
        await share.turn("user 1")
        await share.go_on()


async def test_one_request_among_a_thousand_comes_second(share: FairShare, unread: Unread) -> None:
    work = Work(share)
    async with trio.open_nursery() as nursery:
        with full(unread):
            for _ in range(1000):
                nursery.start_soon(work.short, "user 2")
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(work.short, "user 1")
            await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(share.run)
        await finish(nursery)
    assert len(work.done) == 1001
    assert work.done.index("user 1") <= 1


async def test_long_answers_are_cut_up(share: FairShare, unread: Unread) -> None:
    work = Work(share)
    async with trio.open_nursery() as nursery:
        with full(unread):
            for asker in ("user 1", "user 2", "user 3"):
                nursery.start_soon(work.long, asker)
            await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(share.run)
        await finish(nursery)
    for start in range(0, 3 * STEPS, 3):
        assert sorted(work.done[start : start + 3]) == ["user 1", "user 2", "user 3"]


async def test_what_the_kernel_has_is_read_before_the_next_turn(share: FairShare, unread: Unread) -> None:
    work = Work(share)
    async with trio.open_nursery() as nursery:
        unread.left = 1 + READ_FIRST // 2
        nursery.start_soon(work.short, "user 1")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(share.run)
        await finish(nursery)
    assert unread.asked == 1 + READ_FIRST // 2 + 1


async def test_who_sends_without_end_stops_nobody(share: FairShare, unread: Unread) -> None:
    work = Work(share)
    async with trio.open_nursery() as nursery:
        with full(unread):
            nursery.start_soon(share.run)
            nursery.start_soon(work.short, "user 1")
            nursery.start_soon(work.short, "user 2")
            await finish(nursery)
    assert sorted(work.done) == ["user 1", "user 2"]
    assert unread.asked == 1 + 2 * READ_FIRST


async def test_who_gives_up_has_no_turn(share: FairShare, unread: Unread) -> None:
    work = Work(share)
    async with trio.open_nursery() as nursery:
        with full(unread):
            with trio.CancelScope() as patience:
                patience.cancel()
                await share.turn("user 1")
            nursery.start_soon(work.short, "user 2")
            await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(share.run)
        await finish(nursery)
    assert work.done == ["user 2"]


async def test_no_list_of_askers_grows_for_ever(share: FairShare, unread: Unread) -> None:
    work = Work(share)
    async with trio.open_nursery() as nursery:
        with full(unread):
            for number in range(REMEMBERED + 10):
                nursery.start_soon(work.short, f"user {number}")
            await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(share.run)
        await finish(nursery)
    assert len(work.done) == REMEMBERED + 10
    assert len(share._served) <= REMEMBERED
