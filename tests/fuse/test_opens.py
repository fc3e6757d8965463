"""Opens are learnt from the kernel, in each directory from when it is marked: on a real mount, with a real helper."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import trio

from secretfs.fs.attributes import Attributes
from secretfs.fs.caller import Caller
from secretfs.fs.inode import Directory
from secretfs.fs.inodes import ROOT_INODE
from secretfs.fs.keys import DirectoryKey, FolderKey, RootKey
from secretfs.fs.vfs import SecretVFS
from secretfs.fuse.open_events import OpenEvents, ReportedOpenEvents
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
    """What the kernel knows, and what is noted: in the place of `Changes` and `Uses`."""

    def __init__(self, mount: Path) -> None:
        self.mount = mount
        self.directories = {ROOT_INODE: Directory(ROOT_INODE, RootKey())}
        number = (mount / "env").stat().st_ino
        self.env = self.directories[number] = Directory(number, FolderKey("env"))
        self.where: dict[DirectoryKey, bytes] = {RootKey(): b"", FolderKey("env"): b"env"}
        self.in_use = [self.env]
        self.opened: list[int] = []
        self.all = 0

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

    def note(self, number: int) -> None:
        self.opened.append(number)

    def note_all(self) -> None:
        self.all += 1

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
def opens(known: Known, group: int, helper: SyscallHelper, nursery: trio.Nursery) -> OpenWatcher:
    vfs = cast("SecretVFS", SimpleNamespace(uses=known, changes=known))
    return OpenWatcher(vfs, OpenEvents(group), known.mount, helper, nursery)


async def read(path: Path) -> None:
    await trio.to_thread.run_sync(path.read_bytes)


async def test_each_open_of_a_watched_file_is_noted(opens: OpenWatcher, known: Known) -> None:
    await opens.watch(known.number("A"), 0)
    await read(known.mount / "env/A")
    await opens.look()
    assert known.opened == [known.number("A")]
    await read(known.mount / "env/B")  # of the same directory
    await opens.look()
    assert known.opened == [known.number("A"), known.number("B")]


async def test_a_file_that_has_content_is_marked_after_it_was_read(
    opens: OpenWatcher, known: Known, helper: SyscallHelper, nursery: trio.Nursery
) -> None:
    """A read tells of the first open, so nobody waits for the mark; what is opened later is in the page cache."""
    call, made = helper.call, []

    async def spy(name: str, *paths: bytes, device: int | None = None, descriptor: int | None = None) -> None:
        await call(name, *paths, device=device, descriptor=descriptor)
        made.append(paths)

    known.in_use = []
    helper.call = spy  # type: ignore[method-assign]
    nursery.start_soon(opens.run)
    await until(lambda: opens.reported)
    made.clear()
    opens.begin_to_watch(known.env.number)
    await opens.watch(known.number("A"), 1)
    assert not opens._pending
    assert made == []

    opens.asked(known.number("A"))
    assert known.opened == [known.number("A")]
    await until(lambda: made)
    await read(known.mount / "env/B")
    await until(lambda: known.opened == [known.number("A"), known.number("B")])
    opens.asked(known.number("A"))  # by now the kernel tells
    assert known.opened == [known.number("A"), known.number("B")]


async def test_what_each_counts_of_is_marked_before_it_is_known(
    known: Known, group: int, helper: SyscallHelper, nursery: trio.Nursery
) -> None:
    vfs = cast("SecretVFS", SimpleNamespace(uses=known, changes=known))
    events = ReportedOpenEvents(group, lambda _: None)
    opens = OpenWatcher(vfs, events, known.mount, helper, nursery)
    await opens.watch(known.number("A"), 1)
    await read(known.mount / "env/A")
    await events.wait()
    await opens.look()
    assert known.opened == [known.number("A")]
    events.close()


async def test_they_are_noted_while_it_runs(opens: OpenWatcher, known: Known, nursery: trio.Nursery) -> None:
    assert not opens.reported
    nursery.start_soon(opens.run)
    await until(lambda: opens.reported)
    await read(known.mount / "env/A")  # whose directory a process before us has told the kernel of
    await until(lambda: known.opened == [known.number("A")])


async def test_what_was_opened_while_no_process_served_is_noted_first(
    opens: OpenWatcher, known: Known, group: int, helper: SyscallHelper, nursery: trio.Nursery
) -> None:
    await opens.watch(known.number("A"), 0)
    await read(known.mount / "env/A")
    vfs = cast("SecretVFS", SimpleNamespace(uses=known, changes=known))
    next_one = OpenWatcher(vfs, OpenEvents(group), known.mount, helper, nursery)
    await next_one.look()
    assert known.opened == [known.number("A")]


async def test_a_directory_that_the_kernel_forgets_is_marked_again(opens: OpenWatcher, known: Known) -> None:
    await opens.watch(known.number("A"), 0)
    del known.directories[known.env.number]
    opens.forget(known.env.number)
    known.directories[known.env.number] = known.env
    await trio.to_thread.run_sync(drop, Caches.NAMES)
    await opens.watch(known.number("A"), 0)
    await read(known.mount / "env/A")
    await opens.look()
    assert known.opened == [known.number("A")]


async def test_one_that_it_has_looked_up_again_meanwhile_is_marked_at_once(opens: OpenWatcher, known: Known) -> None:
    await opens.watch(known.number("A"), 0)
    opens.forget(known.env.number)
    opens.begin_to_watch(known.env.number)  # joins the mark that has begun
    await opens.watch(known.number("A"), 0)
    await read(known.mount / "env/A")
    await opens.look()
    assert known.opened == [known.number("A")]


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
    await opens.watch(known.number("A"), 0)
    assert len(made) == 2
    await opens.watch(known.number("A"), 0)
    assert len(made) == 2


async def test_a_mark_that_fails_is_tried_again(opens: OpenWatcher, known: Known) -> None:
    known.where[FolderKey("env")] = b"gone"
    await opens.watch(known.number("A"), 0)
    known.where[FolderKey("env")] = b"env"
    await opens.watch(known.number("A"), 0)
    await read(known.mount / "env/A")
    await opens.look()
    assert known.opened == [known.number("A")]


async def test_a_kernel_that_reports_nothing(
    known: Known, helper: SyscallHelper, nursery: trio.Nursery, expect_log: ExpectLog
) -> None:
    expect_log("the kernel does not report what is opened")
    no_group, other_end = os.pipe()
    vfs = cast("SecretVFS", SimpleNamespace(uses=known, changes=known))
    opens = OpenWatcher(vfs, OpenEvents(no_group), known.mount, helper, nursery)
    os.close(other_end)
    await opens.run()
    os.close(no_group)
    assert not opens.reported


async def test_an_overflow_means_that_any_may_have_been_opened(
    opens: OpenWatcher, known: Known, group: int, tmp_path: Path
) -> None:
    (tmp_path / "many").mkdir()
    mark_opens(group, os.fsencode(tmp_path / "many"))
    for name in range(int(Path("/proc/sys/fs/fanotify/max_queued_events").read_text("ascii")) + 1):  # noqa: ASYNC240
        (tmp_path / "many" / str(name)).touch()
    for _ in range(4):
        await opens.look()
    assert known.all == 1


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
    await opens.watch(known.number("A"), 0)
    assert seen == [known.env, None, None]
    assert opens.lookup(ROOT_INODE, b"env", ours) is None  # only while it makes a mark


@pytest.mark.root("only a group of root is told which process it was")
async def test_a_thread_tells_of_opens_at_once(known: Known, group: int, helper: SyscallHelper) -> None:
    mark_opens(group, os.fsencode(known.mount / "env"))
    await read(known.mount / "env/A")  # as while no process served
    told: list[Open] = []
    events = ReportedOpenEvents(group, told.append)
    assert told == [Open(known.number("A"), os.getpid())]
    await read(known.mount / "env/B")
    await until(lambda: len(told) == 2)
    assert told[1] == Open(known.number("B"), os.getpid())
    await events.wait()
    assert events.read() == {known.number("A"), known.number("B")}
    assert events.read() is None
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
    events = ReportedOpenEvents(nothing, told.append)
    await events.wait()
    assert events.read() == {1}
    events.close()
    os.close(nothing)
    os.close(end)


async def test_an_open_after_the_last_look_is_waited_for_no_more(known: Known, group: int) -> None:
    mark_opens(group, os.fsencode(known.mount / "env"))
    events = ReportedOpenEvents(group, lambda _: None)
    for name in "AB":
        await read(known.mount / "env" / name)
        await events.wait()
        assert events.read() == {known.number(name)}
    events.close()
