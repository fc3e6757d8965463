"""The writable mount that takes requests: it is there for who is on the way, whatever others write meanwhile."""

from pathlib import Path
from typing import cast

import pytest
import trio
from trio.testing import MockClock

from secretfs.fuse import control_mount
from secretfs.fuse.control_mount import HOLD, LOOK_EVERY, ControlMount
from secretfs.linux.syscall_helper import SyscallHelper, start_program
from secretfs.linux.syscall_server import HELD

MINOR = 77


class RecordedHelper:
    """A helper process whose calls are only noted."""

    pid = 4711

    def __init__(self) -> None:
        self.calls: list[str] = []

    async def call(self, name: str, *_arguments: bytes) -> None:
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
    requests, helper = ControlMount(Path("/mnt"), MINOR, nursery, start_program), RecordedHelper()
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
    await trio.sleep(4 * LOOK_EVERY)
    assert helper.calls[2:] == ["release"]


async def test_it_is_let_go_with_the_mount(
    mounted: list[int], nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    requests, helper = make(nursery)
    await requests.path()
    mounted.clear()
    await trio.sleep(2 * LOOK_EVERY)
    assert helper.calls == ["hold_writable", "release"]
