"""Directories as the kernel reads them that opens them by itself: it has the inode number and a position, no handle."""

import os
from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock

from secretfs.cache.change import Change
from secretfs.cache.freshness import Freshness
from secretfs.errors import StoreUnavailable, Superseded
from secretfs.fs.attributes import Attributes, PermissionPolicy
from secretfs.fs.handles import SNAPSHOT_IDLE
from secretfs.fs.inode import DIRECTORY_TIMEOUT, Directory
from secretfs.fs.inodes import ROOT_INODE
from secretfs.fs.journal import Journal
from secretfs.fs.keys import RootKey
from secretfs.fs.vfs import SecretVFS
from secretfs.fs.view import StoreView
from secretfs.scopes import ALLOW_ALL, SecretScope
from tests.support.cached import Cached
from tests.support.memory_store import MemoryStore
from tests.support.recording_vfs import RecordingKernel

TTL = 20.0

Make = Callable[..., SecretVFS]


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore({name: {name: b"v"} for name in ("a", "b", "c", "team/d")}, multi_valued=False)


@pytest.fixture
def kernel() -> RecordingKernel:
    return RecordingKernel([])


@pytest.fixture
def make(nursery: trio.Nursery, mock_clock: MockClock, store: MemoryStore, kernel: RecordingKernel) -> Make:
    def make_vfs(journal: Journal | None = None) -> SecretVFS:
        return SecretVFS(views(nursery, store), PermissionPolicy(), nursery, "", journal, kernel=kernel)

    return make_vfs


def views(nursery: trio.Nursery, store: MemoryStore, scope: SecretScope = ALLOW_ALL) -> dict[str, StoreView]:
    return {"kv": StoreView(Cached("kv", store, Freshness(ttl=TTL, deadline=5), nursery), scope)}


class Reader:
    """Reads a directory as the kernel does, and keeps what it has read for as long as it may."""

    def __init__(self, vfs: SecretVFS, kernel: RecordingKernel, *path: bytes) -> None:
        self.vfs = vfs
        self.kernel = kernel
        self.path = path
        self.kept: list[bytes] | None = None
        self.modified = 0.0
        self.reads = 0
        self._number = 0
        self._known_until = 0.0

    async def number(self) -> int:
        """Look the directory up, once."""
        if not self._number:
            found = await self.vfs.getattr(ROOT_INODE)
            for segment in self.path:
                found = await self.vfs.lookup(found.inode, segment)
            self._number = found.inode
            self._keep(found)
        return self._number

    def _keep(self, attributes: Attributes) -> None:
        if attributes.modified != self.modified:
            self.kept = None
        self.modified = attributes.modified
        self._known_until = trio.current_time() + attributes.attr_timeout

    async def ls(self) -> list[bytes]:
        """List the directory, without a question if that may be."""
        number = await self.number()
        if number in self.kernel.forgotten or self._known_until <= trio.current_time():
            self.kernel.forgotten[:] = [one for one in self.kernel.forgotten if one != number]
            self._keep(await self.vfs.getattr(number))
        if self.kept is None:
            self.kept = await self.read()
        return self.kept

    async def read(self, position: int = 0, at_most: int = 2) -> list[bytes]:
        """Read from a position to the end, with a few entries an answer."""
        names: list[bytes] = []
        while True:
            self.reads += 1
            answer: list[tuple[int, bytes]] = []
            for following, segment, attributes in await self.vfs.read_directory(await self.number(), position):
                if len(answer) == at_most:
                    self.vfs.forget(attributes.inode, 1)
                    break
                answer.append((following, segment))
            if not answer:
                return names
            names += [segment for _, segment in answer]
            position = answer[-1][0]


@pytest.fixture
def reader(make: Make, kernel: RecordingKernel) -> Reader:
    return Reader(make(), kernel, b"kv")


async def test_a_listing_is_kept_for_as_long_as_it_holds(
    reader: Reader, store: MemoryStore, mock_clock: MockClock
) -> None:
    assert await reader.ls() == [b"a", b"b", b"c", b"team"]
    reads = reader.reads
    assert await reader.ls() == [b"a", b"b", b"c", b"team"]
    mock_clock.jump(TTL - 1)
    store.put("new", {"new": b"v"})
    assert b"new" not in await reader.ls()
    assert reader.reads == reads
    mock_clock.jump(1)
    assert b"new" in await reader.ls()


async def test_one_that_is_asked_for_is_not_waited_for_by_who_only_passes(
    reader: Reader, store: MemoryStore, mock_clock: MockClock
) -> None:
    """A path that leads through a directory needs its attributes, and no store for that."""
    await reader.ls()
    mock_clock.jump(TTL)
    store.fail_with = StoreUnavailable("down")
    before = store.calls.total()
    attributes = await reader.vfs.getattr(await reader.number())
    assert store.calls.total() == before
    assert attributes.modified != reader.modified
    assert attributes.attr_timeout == DIRECTORY_TIMEOUT  # nothing is kept that could expire


async def test_a_change_is_told_at_once(reader: Reader, store: MemoryStore, kernel: RecordingKernel) -> None:
    team = Reader(reader.vfs, kernel, b"kv", b"team")
    assert (await reader.ls())[-1:] == [b"team"]
    assert await team.ls() == [b"d"]
    store.put("team/e", {"team/e": b"v"})
    await reader.vfs.write(await refresh_file(reader.vfs), b"kv")
    reader.vfs.observe(Change("kv", names=frozenset({"team/e"})))
    assert await team.ls() == [b"d", b"e"]
    assert await reader.ls() == [b"a", b"b", b"c", b"team"]


async def refresh_file(vfs: SecretVFS) -> int:
    controls = await vfs.lookup(ROOT_INODE, b".secretfs")
    return (await vfs.lookup(controls.inode, b"refresh")).inode


async def test_a_change_that_nobody_has_told_yet(
    reader: Reader, kernel: RecordingKernel, mock_clock: MockClock, store: MemoryStore
) -> None:
    """Somebody has listed the directory anew: what another reader has kept must not be used any more."""
    await reader.ls()
    other = Reader(reader.vfs, kernel, b"kv")
    store.put("new", {"new": b"v"})
    mock_clock.jump(TTL)
    assert b"new" in await other.ls()
    assert b"new" in await reader.ls()


async def test_a_change_while_the_store_is_asked(
    reader: Reader, store: MemoryStore, nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    """The answer may be from before the change: it is used, and not kept."""
    await reader.number()
    mock_clock.jump(TTL)
    store.gate.clear()
    nursery.start_soon(reader.ls)
    await trio.to_thread.run_sync(store.entered.acquire)
    reader.vfs.observe(Change("kv", names=frozenset({"new"})))
    store.gate.set()
    while reader.kept is None:
        await trio.to_thread.run_sync(store.entered.acquire, False)  # noqa: FBT003 - the library's signature
    modified = reader.modified
    await reader.ls()
    assert reader.modified != modified


async def test_another_scope(reader: Reader, store: MemoryStore, nursery: trio.Nursery) -> None:
    assert b"a" in await reader.ls()
    reader.vfs.replace(views(nursery, store, SecretScope(denied_secrets=frozenset({"a"}))))
    assert await reader.ls() == [b"b", b"c", b"team"]


async def test_stores_that_come_and_go(
    make: Make, kernel: RecordingKernel, store: MemoryStore, nursery: trio.Nursery
) -> None:
    root = Reader(make(), kernel)
    assert await root.ls() == [b"kv"]
    root.vfs.replace({**views(nursery, store), "more": views(nursery, store)["kv"]})
    assert await root.ls() == [b"kv", b"more"]
    root.vfs.replace({})
    assert await root.ls() == []


async def test_readers_go_on_with_the_names_that_they_began_with(reader: Reader, store: MemoryStore) -> None:
    vfs, number = reader.vfs, await reader.number()
    first = [(at, name) for at, name, _ in await vfs.read_directory(number, 0)][:2]
    store.delete("a")
    store.put("aa", {"aa": b"v"})
    await vfs.write(await refresh_file(vfs), b"kv")
    second = [(at, name) for at, name, _ in await vfs.read_directory(number, 0)][:2]
    assert [name for _, name in first] == [b"a", b"b"]
    assert [name for _, name in second] == [b"aa", b"b"]
    assert await reader.read(first[-1][0]) == await reader.read(second[-1][0]) == [b"c", b"team"]


async def test_a_snapshot_that_nobody_reads_is_dropped(
    reader: Reader, store: MemoryStore, mock_clock: MockClock
) -> None:
    vfs, number = reader.vfs, await reader.number()
    position = next(at for at, _, _ in await vfs.read_directory(number, 0))
    mock_clock.jump(SNAPSHOT_IDLE - 1)
    vfs.evict_idle()
    store.delete("a")
    await vfs.write(await refresh_file(vfs), b"kv")
    assert await reader.read(position) == [b"b", b"c", b"team"]
    mock_clock.jump(SNAPSHOT_IDLE + 1)
    vfs.evict_idle()
    with pytest.raises(Superseded):
        await reader.read(position)


async def test_after_a_takeover(make: Make, kernel: RecordingKernel, store: MemoryStore) -> None:
    """What the kernel has kept does not count, and who is reading goes on, if the names are the same."""
    journal = Journal()
    before = make(journal)
    reader = Reader(before, kernel, b"kv")
    await reader.ls()
    position = next(at for at, _, _ in await before.read_directory(await reader.number(), 0))
    after = make(Journal(os.dup(journal.file)))
    assert (await after.getattr(await reader.number())).modified != reader.modified
    reader.vfs = after
    assert await reader.read(position) == [b"b", b"c", b"team"]
    third = make(Journal(os.dup(journal.file)))
    store.put("new", {"new": b"v"})
    reader.vfs = third
    with pytest.raises(Superseded):
        await reader.read(position)


def test_times_differ_and_hardly_change() -> None:
    directory = Directory(1, RootKey())
    born = 1.9e9
    seen = set()
    for second in range(1000):
        directory.listed, directory.listed_until = 7, float(second)
        directory.tell(second, born)
        seen.add(int(directory.modified * 1e9))
    assert len(seen) == 1000
    assert directory.modified - born < 0.01
    directory.change(born + 50, born)
    assert directory.modified == born + 50
    directory.change(born + 40, born)
    assert directory.modified > born + 50
