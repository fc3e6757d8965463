"""Opens are learnt from the kernel, in each directory from when it is marked: on a real mount, with a real helper."""

import contextlib
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import cast

import pytest
import trio

from secretfs.fs.attributes import Attributes
from secretfs.fs.caller import Caller
from secretfs.fs.changes import Changes
from secretfs.fs.inode import Directory
from secretfs.fs.inodes import ROOT_INODE
from secretfs.fs.keys import DirectoryKey, FolderKey, RootKey
from secretfs.fuse.open_events import OpenEvents
from secretfs.fuse.opens import OpenWatcher
from secretfs.linux.fanotify import Open, mark_opens
from secretfs.linux.syscall_helper import SyscallHelper
from tests.conftest import ExpectLog
from tests.support.kernel_caches import Caches, drop
from tests.support.mounted import Mounted
from tests.support.open_fixtures import group, mount
from tests.support.until import until

__all__ = ["group", "mount"]

pytestmark = pytest.mark.mount


class Known:
    """What the kernel knows: in the place of `Changes`."""

    def __init__(self, mount: Path) -> None:
        self.mount = mount
        self.directories = {ROOT_INODE: Directory(ROOT_INODE, RootKey())}
        number = (mount / "env").stat().st_ino
        self.env = self.directories[number] = Directory(number, FolderKey("env"))
        self.where: dict[DirectoryKey, bytes] = {RootKey(): b"", FolderKey("env"): b"env"}
        self.in_use = [self.env]

    def directory(self, number: int) -> Directory | None:
        return self.directories.get(number)

    def directory_of(self, file: int) -> Directory | None:
        return None if file in self.directories else self.env

    def directories_in_use(self) -> list[Directory]:
        return self.in_use

    def path(self, key: DirectoryKey) -> bytes:
        return self.where[key]

    def way(self, key: DirectoryKey) -> dict[tuple[int, bytes], Directory]:
        return {} if key == RootKey() else {(ROOT_INODE, b"env"): self.env}

    def entry_of(self, directory: Directory) -> Attributes:
        return cast("Attributes", directory)

    def number(self, name: str) -> int:
        return (self.mount / "env" / name).stat().st_ino


@pytest.fixture
def helper(mount: Mounted) -> Iterator[SyscallHelper]:
    helper = SyscallHelper.fork(mount.path)
    yield helper
    helper.close()
    with contextlib.suppress(ChildProcessError):
        os.waitpid(helper.pid, 0)


@pytest.fixture
def known(mount: Mounted) -> Known:
    return Known(mount.path)


@pytest.fixture
def told() -> list[Open]:
    return []


@pytest.fixture
def opens(
    known: Known, group: int, helper: SyscallHelper, nursery: trio.Nursery, told: list[Open]
) -> Iterator[OpenWatcher]:
    events = OpenEvents(group, told.append)
    yield watcher(known, events, helper, nursery)
    events.close()


def watcher(known: Known, events: OpenEvents, helper: SyscallHelper, nursery: trio.Nursery) -> OpenWatcher:
    return OpenWatcher(cast("Changes", known), events, known.mount, helper, nursery)


async def read(path: Path) -> None:
    await trio.to_thread.run_sync(path.read_bytes)


def files(told: list[Open]) -> list[int]:
    return [opened.inode for opened in told]


async def test_each_open_of_a_watched_file_is_told_of(opens: OpenWatcher, known: Known, told: list[Open]) -> None:
    await opens.watch(known.number("A"))
    await read(known.mount / "env/A")
    await until(lambda: files(told) == [known.number("A")])
    await read(known.mount / "env/B")  # of the same directory
    await until(lambda: files(told) == [known.number("A"), known.number("B")])


async def test_they_are_told_of_while_it_runs(
    opens: OpenWatcher, known: Known, nursery: trio.Nursery, told: list[Open]
) -> None:
    assert not opens.reported
    nursery.start_soon(opens.run)
    await until(lambda: opens.reported)
    await read(known.mount / "env/A")  # whose directory a process before us has told the kernel of
    await until(lambda: files(told) == [known.number("A")])
    nursery.cancel_scope.cancel()


async def test_nobody_waits_for_the_marks_of_an_inherited_group(
    opens: OpenWatcher, known: Known, nursery: trio.Nursery, helper: SyscallHelper
) -> None:
    reported = []
    call = helper.call

    async def spy(name: str, *paths: bytes, device: int | None = None, descriptor: int | None = None) -> None:
        reported.append(opens.reported)
        await call(name, *paths, device=device, descriptor=descriptor)

    helper.call = spy  # type: ignore[method-assign]
    nursery.start_soon(partial(opens.run, inherited=True))
    await until(lambda: len(reported) == 2)
    assert reported == [False, True]  # of the root, which tells whether there are any; of the store
    nursery.cancel_scope.cancel()


async def test_what_was_opened_while_no_process_served_is_told_of_first(
    known: Known, group: int, helper: SyscallHelper, nursery: trio.Nursery, told: list[Open]
) -> None:
    mark_opens(group, os.fsencode(known.mount / "env"))
    await read(known.mount / "env/A")
    events = OpenEvents(group, told.append)
    assert files(told) == [known.number("A")]
    events.close()


async def test_a_directory_that_the_kernel_forgets_is_marked_again(
    opens: OpenWatcher, known: Known, told: list[Open]
) -> None:
    await opens.watch(known.number("A"))
    del known.directories[known.env.number]
    opens.forget(known.env.number)
    known.directories[known.env.number] = known.env
    await trio.to_thread.run_sync(drop, Caches.NAMES)
    await opens.watch(known.number("A"))
    await read(known.mount / "env/A")
    await until(lambda: files(told) == [known.number("A")])


async def test_one_that_it_has_looked_up_again_meanwhile_is_marked_at_once(
    opens: OpenWatcher, known: Known, told: list[Open]
) -> None:
    await opens.watch(known.number("A"))
    opens.forget(known.env.number)
    opens.begin_to_watch(known.env.number)  # joins the mark that has begun
    await opens.watch(known.number("A"))
    await read(known.mount / "env/A")
    await until(lambda: files(told) == [known.number("A")])


async def test_one_that_it_forgets_while_it_is_being_marked(
    opens: OpenWatcher, known: Known, helper: SyscallHelper
) -> None:
    call, made = helper.call, []

    async def slow(name: str, *paths: bytes, device: int | None = None, descriptor: int | None = None) -> None:
        await call(name, *paths, device=device, descriptor=descriptor)
        made.append(paths)
        if len(made) == 1:
            opens.forget(known.env.number)

    helper.call = slow  # type: ignore[method-assign]
    await opens.watch(known.number("A"))
    assert len(made) == 2
    await opens.watch(known.number("A"))
    assert len(made) == 2


async def test_a_mark_that_fails_is_tried_again(opens: OpenWatcher, known: Known, told: list[Open]) -> None:
    known.where[FolderKey("env")] = b"gone"
    await opens.watch(known.number("A"))
    known.where[FolderKey("env")] = b"env"
    await opens.watch(known.number("A"))
    await read(known.mount / "env/A")
    await until(lambda: files(told) == [known.number("A")])


async def test_a_kernel_that_reports_nothing(
    known: Known, helper: SyscallHelper, nursery: trio.Nursery, expect_log: ExpectLog
) -> None:
    expect_log("the kernel does not report what is opened")
    no_group, other_end = os.pipe2(os.O_NONBLOCK)
    opens = watcher(known, OpenEvents(no_group, lambda _: None), helper, nursery)
    os.close(other_end)
    await opens.run()
    os.close(no_group)
    assert not opens.reported


async def test_its_own_look_ups_wait_for_no_store(opens: OpenWatcher, known: Known, helper: SyscallHelper) -> None:
    seen: list[object] = []
    ours, other = Caller(0, 0, helper.pid), Caller(0, 0, os.getpid())
    call = helper.call

    async def spy(name: str, *paths: bytes, device: int | None = None, descriptor: int | None = None) -> None:
        seen.append(opens.lookup(ROOT_INODE, b"env", ours))
        seen.append(opens.lookup(ROOT_INODE, b"env", other))
        seen.append(opens.lookup(ROOT_INODE, b"other", ours))
        await call(name, *paths, device=device, descriptor=descriptor)

    helper.call = spy  # type: ignore[method-assign]
    await opens.watch(known.number("A"))
    assert seen == [known.env, None, None]
    assert opens.lookup(ROOT_INODE, b"env", ours) is None  # only while it makes a mark


@pytest.mark.root("only a group of root is told which process it was")
async def test_a_thread_tells_of_opens_at_once(known: Known, group: int, told: list[Open]) -> None:
    mark_opens(group, os.fsencode(known.mount / "env"))
    events = OpenEvents(group, told.append)
    for name in "AB":
        await read(known.mount / "env" / name)
        await until(lambda: told and told[-1] == Open(known.number(name), os.getpid()))  # noqa: B023 - called in this turn
    events.close()


async def test_opens_that_never_end_are_told_of_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Open] = []
    untold = 0

    def more(_: int) -> list[Open]:
        nonlocal untold
        untold = untold + 1 - len(told)
        told.clear()
        assert untold < 10, "what has been read is kept in memory"
        return [Open(1, 1)]

    monkeypatch.setattr("secretfs.fuse.open_events.opens", more)
    nothing, end = os.pipe()
    events = OpenEvents(nothing, told.append)
    await until(lambda: told == [Open(1, 1)])
    events.close()
    os.close(nothing)
    os.close(end)
