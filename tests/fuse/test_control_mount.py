"""The writable mount that takes requests: it is there for who is on the way, whatever others write meanwhile."""

import threading
from functools import partial
from pathlib import Path
from typing import cast

import pytest
import trio
from trio.testing import MockClock

from secretfs.fuse import control_mount
from secretfs.fuse.control_mount import HOLD, LOOK_EVERY, ControlMount
from secretfs.linux.syscall_helper import SyscallHelper, start_program
from secretfs.linux.syscall_server import HELD
from tests.support.until import until
from tests.support.waiting import PATIENCE

MINOR = 77


class RecordedHelper:
    """A helper process whose calls are only noted."""

    pid = 4711

    def __init__(self) -> None:
        self.calls: list[str] = []

    async def call(self, name: str, *_arguments: bytes, device: int = MINOR) -> None:
        assert device == MINOR
        self.calls.append(name)


@pytest.fixture
def mounted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Minor numbers of what is mounted."""
    minors = [MINOR]
    monkeypatch.setattr(control_mount, "mounts", lambda: [_Mount(minor) for minor in minors])
    return minors


class _Mount:
    def __init__(self, minor: int) -> None:
        self.minor = minor


def make(nursery: trio.Nursery) -> tuple[ControlMount, RecordedHelper]:
    requests, helper = (
        ControlMount(Path("/mnt"), MINOR, nursery, partial(start_program, Path("/mnt"))),
        RecordedHelper(),
    )
    requests.close()  # the helper that it would have
    requests._helper = cast("SyscallHelper", helper)
    return requests, helper


async def test_it_is_held_for_who_has_read_a_link(
    mounted: list[int], nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    requests, helper = make(nursery)
    assert await requests.path() == b"/proc/4711/fd/%d" % HELD
    await trio.sleep(HOLD / 2)
    await requests.path()
    await trio.sleep(HOLD - 2 * LOOK_EVERY)
    assert helper.calls == ["hold_writable", "hold_writable"]
    await until(lambda: helper.calls[2:])
    assert helper.calls[2:] == ["release"]


async def test_it_is_let_go_with_the_mount(
    mounted: list[int], nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    requests, helper = make(nursery)
    await requests.path()
    mounted.clear()
    await until(lambda: helper.calls[1:])
    assert helper.calls == ["hold_writable", "release"]


async def test_a_table_of_mounts_that_is_locked_holds_up_nobody(
    monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery
) -> None:
    """The kernel locks it while containers start; whoever reads it waits, and this process serves all apps."""
    is_read, is_free, in_time = threading.Event(), threading.Event(), list[bool]()

    def read() -> list[_Mount]:
        is_read.set()
        in_time.append(is_free.wait(PATIENCE))
        return [_Mount(MINOR)]

    monkeypatch.setattr(control_mount, "mounts", read)
    requests, helper = make(nursery)
    await requests.path()
    await until(is_read.is_set)
    await requests.path()
    is_free.set()
    await until(lambda: in_time)
    assert in_time[0]
    assert helper.calls == ["hold_writable", "hold_writable"]
