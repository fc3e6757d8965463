"""What counts as a use: an open of a file that is known, whoever tells of it."""

import os

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from secretfs.cache.freshness import Freshness
from secretfs.fs.attributes import Attributes, PermissionPolicy
from secretfs.fs.inodes import ROOT_INODE
from secretfs.fs.journal import Journal
from secretfs.fs.names import CONTROL
from secretfs.fs.vfs import SecretVFS
from secretfs.fs.view import StoreView
from secretfs.scopes import ALLOW_ALL
from tests.support.at_once import AtOnce
from tests.support.canary import secret
from tests.support.memory_store import MemoryStore

TTL = 60.0


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore.single(A=secret("a").encode(), B=secret("b").encode())


@pytest.fixture
def vfs(store: MemoryStore, nursery: trio.Nursery, mock_clock: MockClock) -> SecretVFS:
    return vfs_of(store, nursery)


def vfs_of(store: MemoryStore, nursery: trio.Nursery, journal: Journal | None = None) -> SecretVFS:
    cached = AtOnce("env", store, Freshness(ttl=TTL, idle=10 * TTL), nursery)
    nursery.start_soon(cached.keep_fresh)
    return SecretVFS({"env": StoreView(cached, ALLOW_ALL)}, PermissionPolicy(), nursery, journal=journal)


async def stat(vfs: SecretVFS, name: str) -> Attributes:
    directory = await vfs.lookup(ROOT_INODE, b"env")
    return await vfs.getattr((await vfs.lookup(directory.inode, name.encode())).inode)


async def fetched_in_the_background(store: MemoryStore, clock: MockClock) -> set[str]:
    """Return what is fetched again before it expires."""
    store.calls.clear()
    for _ in range(59):
        clock.jump(1)
        await wait_all_tasks_blocked()
    return {call.removeprefix("fetch:") for call in store.calls if call.startswith("fetch:")}


async def test_what_is_noted_is_kept_fresh(vfs: SecretVFS, store: MemoryStore, mock_clock: MockClock) -> None:
    await stat(vfs, "A")
    used = await stat(vfs, "B")
    vfs.uses.note(used.inode)
    assert await fetched_in_the_background(store, mock_clock) == {"B"}


async def test_any_may_have_been_opened(vfs: SecretVFS, store: MemoryStore, mock_clock: MockClock) -> None:
    await stat(vfs, "A")
    await stat(vfs, "B")
    vfs.uses.note_all()
    assert await fetched_in_the_background(store, mock_clock) == {"A", "B"}


async def test_what_is_not_known_or_no_secret_does_not_count(
    vfs: SecretVFS, store: MemoryStore, mock_clock: MockClock
) -> None:
    gone = await stat(vfs, "A")
    vfs.forget(gone.inode, 1)
    control = await vfs.lookup((await vfs.lookup(ROOT_INODE, CONTROL)).inode, b"status.json")
    for number in (gone.inode, control.inode, ROOT_INODE, 1 << 39):
        vfs.uses.note(number)
    assert await fetched_in_the_background(store, mock_clock) == set()


async def test_after_a_takeover_an_open_counts_from_when_it_is_heard_of(
    store: MemoryStore, nursery: trio.Nursery
) -> None:
    """One that happened while no process served: else what was used then would not be looked at for changes."""
    journal = Journal()
    known = await stat(vfs_of(store, nursery, journal), "A")
    unheard = vfs_of(store, nursery, Journal(os.dup(journal.file)))
    assert unheard.changes.inherited("env") == []
    after = vfs_of(store, nursery, Journal(os.dup(journal.file)))
    after.uses.note(known.inode)
    assert len(after.changes.inherited("env")) == 1
