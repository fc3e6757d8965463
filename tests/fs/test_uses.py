"""What counts as a use: an open of a file that is known, whoever tells of it."""

import os
from dataclasses import replace
from typing import cast

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from secretfs.cache.freshness import Freshness
from secretfs.cache.store_cache import CachedStore
from secretfs.fs.attributes import Attributes, PermissionPolicy
from secretfs.fs.inodes import ROOT_INODE
from secretfs.fs.journal import Journal
from secretfs.fs.names import CONTROL
from secretfs.fs.uses import CONFIRM_PART
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


async def test_what_is_not_known_or_no_secret_does_not_count(
    vfs: SecretVFS, store: MemoryStore, mock_clock: MockClock
) -> None:
    gone = await stat(vfs, "A")
    vfs.forget(gone.inode, 1)
    control = await vfs.lookup((await vfs.lookup(ROOT_INODE, CONTROL)).inode, b"status.json")
    for number in (gone.inode, control.inode, ROOT_INODE, 1 << 39):
        vfs.uses.note(number)
    assert await fetched_in_the_background(store, mock_clock) == set()


@pytest.fixture
def unasked(store: MemoryStore, nursery: trio.Nursery, mock_clock: MockClock) -> SecretVFS:
    """Return one whose kernel opens files by itself."""
    journal = Journal()
    journal.note_kernel_opens()
    return vfs_of(store, nursery, journal)


async def read(vfs: SecretVFS, name: str) -> Attributes:
    found = await stat(vfs, name)
    await vfs.read(found.inode, 0, 100)
    return found


def is_unconfirmed(vfs: SecretVFS, nursery: trio.Nursery) -> list[int]:
    """Return the files whose bytes the kernel is to drop, once it has been waited for."""
    found: list[int] = []

    async def wait() -> None:
        found.extend(version.number for version in await vfs.uses.unconfirmed())

    nursery.start_soon(wait)
    return found


def in_use_for(vfs: SecretVFS, name: str) -> float:
    """Return for how many seconds a secret counts as used at this moment, and so is kept for `idle` from then on."""
    (view,) = vfs.views.values()
    return cast("CachedStore", view._store)._secrets.used(name) - trio.current_time()


async def test_a_read_is_a_use(unasked: SecretVFS, store: MemoryStore, mock_clock: MockClock) -> None:
    """Where the kernel opens files by itself it is the first that we hear of."""
    await stat(unasked, "A")
    await read(unasked, "B")
    assert await fetched_in_the_background(store, mock_clock) == {"B"}


async def test_where_each_open_is_a_request_it_is_the_use(
    vfs: SecretVFS, store: MemoryStore, mock_clock: MockClock
) -> None:
    """The reads that follow, of which a large file has many, tell nothing new."""
    await read(vfs, "A")
    await vfs.open((await read(vfs, "B")).inode)
    assert await fetched_in_the_background(store, mock_clock) == {"B"}


async def test_a_look_at_an_empty_file_is_a_use(
    store: MemoryStore, nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    """Nothing else tells of it: the kernel knows that there is nothing to read."""
    store.secrets["A"] = replace(store.secrets["A"], values={"A": b""})
    journal = Journal()
    journal.note_kernel_opens()
    vfs = vfs_of(store, nursery, journal)
    await stat(vfs, "A")
    await stat(vfs, "B")
    assert await fetched_in_the_background(store, mock_clock) == {"A"}


async def test_what_the_kernel_may_open_without_a_request_is_in_use(
    unasked: SecretVFS, nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    """It leaves memory `idle` after the entry has expired, and not after the read that we heard of."""
    await read(unasked, "A")
    assert in_use_for(unasked, "A") == TTL
    mock_clock.jump(TTL)
    assert in_use_for(unasked, "A") == 0
    await stat(unasked, "A")
    assert in_use_for(unasked, "A") == TTL


async def test_the_bytes_of_what_is_looked_up_long_after_it_was_read_are_to_be_dropped(
    unasked: SecretVFS, nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    """So its users have the kernel ask for them, and what is only stat'ed is not in use."""
    found = is_unconfirmed(unasked, nursery)
    number = (await read(unasked, "A")).inode
    mock_clock.jump(CONFIRM_PART * 10 * TTL - 1)
    await stat(unasked, "A")
    await wait_all_tasks_blocked()
    assert found == []
    mock_clock.jump(TTL)
    await stat(unasked, "A")
    await wait_all_tasks_blocked()
    assert found == [number]

    again = is_unconfirmed(unasked, nursery)
    for minute in range(5):
        mock_clock.jump(TTL)
        assert in_use_for(unasked, "A") == -minute * TTL
        assert (await stat(unasked, "A")).inode == number
    await wait_all_tasks_blocked()
    assert again == []  # it has been asked for, and nobody has read the file since

    await read(unasked, "A")
    assert in_use_for(unasked, "A") == TTL
    mock_clock.jump(CONFIRM_PART * 10 * TTL)
    await stat(unasked, "A")
    await wait_all_tasks_blocked()
    assert again == [number]


async def test_where_each_open_is_a_request_no_bytes_are_dropped(
    vfs: SecretVFS, nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    found = is_unconfirmed(vfs, nursery)
    await vfs.open((await read(vfs, "A")).inode)
    mock_clock.jump(9 * TTL)
    await stat(vfs, "A")
    await wait_all_tasks_blocked()
    assert found == []


async def test_after_a_takeover_only_what_was_opened_may_be_in_the_page_cache(
    store: MemoryStore, nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    journal = Journal()
    journal.note_kernel_opens()
    before = vfs_of(store, nursery, journal)
    await stat(before, "A")
    number = (await read(before, "B")).inode
    after = vfs_of(store, nursery, Journal(os.dup(journal.file)))
    found = is_unconfirmed(after, nursery)
    for name in ("A", "B"):
        await stat(after, name)  # and fetched anew: memory was not handed on
    mock_clock.jump(CONFIRM_PART * 10 * TTL)
    for name in ("A", "B"):
        await stat(after, name)
    await wait_all_tasks_blocked()
    assert found == [number]


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
