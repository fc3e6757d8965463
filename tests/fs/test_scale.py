"""Many names: the work of a walk is linear in their number, and no request does much of it in one go."""

import gc
import stat
from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock

from secretfs.cache.freshness import Freshness
from secretfs.fs.attributes import PermissionPolicy
from secretfs.fs.inodes import ROOT_INODE
from secretfs.fs.vfs import SecretVFS
from secretfs.fs.view import StoreView
from secretfs.scopes import ALLOW_ALL, SecretScope
from secretfs.store import Names
from tests.support.cached import Cached
from tests.support.memory_store import MemoryStore
from tests.support.work import Work, counted

STEP = 25_000
"""Calls of functions in one step of a task: less than 10 ms, also on a slow machine."""
LOOKUP = 160
"""Calls of functions for a name that is listed."""
ENTRY = 44
"""Calls of functions for an entry of a listing whose value is known."""
REPLY = 100
"""Entries in one answer to READDIR."""


class Directory(MemoryStore):
    """A store with many names, which it lists at no cost of its own."""

    def __init__(self, folders: int, secrets: int, *, multi_valued: bool, listed: bool) -> None:
        super().__init__(multi_valued=multi_valued)
        inside = {
            f"folder-{folder}": frozenset(f"folder-{folder}/secret-{number}" for number in range(secrets))
            for folder in range(folders)
        }
        self._listings = {"": Names(frozenset().union(*inside.values()))}
        if listed:
            self._listings = {folder: Names(names) for folder, names in inside.items()}
            self._listings[""] = Names(folders=frozenset(inside))

    def names(self, folder: str) -> Names:
        self._called(f"names:{folder}")
        listing = self._listings.get(folder, Names())
        return Names(frozenset(set(listing.secrets)), frozenset(set(listing.folders)))  # never the same objects again


Make = Callable[..., SecretVFS]


@pytest.fixture
def make(nursery: trio.Nursery, mock_clock: MockClock) -> Make:
    def make_vfs(store: MemoryStore, scope: SecretScope = ALLOW_ALL) -> SecretVFS:
        view = StoreView(Cached("vault", store, Freshness(ttl=3600), nursery), scope)
        return SecretVFS({"vault": view}, PermissionPolicy(), nursery)

    return make_vfs


async def ls(vfs: SecretVFS, inode: int) -> dict[bytes, int]:
    """List a directory as the kernel does, in many answers. Returns the directories in it, by segment."""
    handle = await vfs.open_directory(inode)
    found: dict[bytes, int] = {}
    place, more = 0, True
    while more:
        await trio.lowlevel.checkpoint()
        more = False
        for number, (offset, segment, attributes) in enumerate(await vfs.read_directory(handle, place)):
            if number == REPLY:
                vfs.forget(attributes.inode, 1)
                more = True
                break
            found[segment] = attributes.inode if stat.S_ISDIR(attributes.mode) else 0
            place = offset
    vfs.close_directory(handle)
    return found


async def walk(vfs: SecretVFS) -> tuple[int, Work]:
    """Walk the store as ``find`` does. Returns how many entries its folders have, and the work."""
    with counted() as work:
        store = (await ls(vfs, ROOT_INODE))[b"vault"]
        found = 0
        for segment in await ls(vfs, store):
            await trio.lowlevel.checkpoint()
            found += len(await ls(vfs, (await vfs.lookup(store, segment)).inode))
    return found, work


LISTED = pytest.mark.parametrize("listed", [False, True], ids=["flat listing", "folder by folder"])


@LISTED
async def test_a_walk_is_linear_in_the_number_of_names(make: Make, *, listed: bool) -> None:
    work = []
    for folders in (50, 200):
        found, counted_work = await walk(make(Directory(folders, 20, multi_valued=False, listed=listed)))
        assert found == folders * 20
        work.append(counted_work.total)
    assert work[1] < 5 * work[0]


@LISTED
async def test_also_behind_a_scope_that_hides_something_in_each_folder(make: Make, *, listed: bool) -> None:
    work = []
    for folders in (50, 200):
        scope = SecretScope(denied_secrets=frozenset(f"folder-{folder}/secret-7" for folder in range(folders)))
        found, counted_work = await walk(make(Directory(folders, 20, multi_valued=False, listed=listed), scope))
        assert found == folders * 19
        work.append(counted_work.total)
    assert work[1] < 5 * work[0]


@LISTED
async def test_no_step_of_the_first_ls_of_30_000_names_takes_long(make: Make, *, listed: bool) -> None:
    vfs = make(Directory(1, 30_000, multi_valued=listed, listed=listed))
    found, work = await walk(vfs)
    assert found == 30_000
    assert work.largest_step < STEP


async def test_nor_of_a_directory_with_30_000_folders(make: Make) -> None:
    vfs = make(Directory(30_000, 1, multi_valued=False, listed=True))
    with counted() as work:
        store = (await ls(vfs, ROOT_INODE))[b"vault"]
        assert len(await ls(vfs, store)) == 30_000
    assert work.largest_step < STEP


async def test_nor_of_a_secret_with_30_000_keys(make: Make) -> None:
    vfs = make(MemoryStore({"s": {f"key-{number}": b"v" for number in range(30_000)}}))
    store = (await ls(vfs, ROOT_INODE))[b"vault"]
    secret = (await ls(vfs, store))[b"s"]
    with counted() as work:
        assert len(await ls(vfs, secret)) == 30_000
        for number in range(100):
            await vfs.lookup(secret, b"key-%d" % number)
    assert work.largest_step < STEP


async def test_eight_who_list_at_once_cost_as_much_as_one(make: Make) -> None:
    vfs = make(Directory(1, 20_000, multi_valued=False, listed=False))
    directory = (await vfs.lookup((await ls(vfs, ROOT_INODE))[b"vault"], b"folder-0")).inode
    alone = make(Directory(1, 20_000, multi_valued=False, listed=False))
    with counted() as one:
        inode = (await alone.lookup((await ls(alone, ROOT_INODE))[b"vault"], b"folder-0")).inode
        alone.close_directory(await alone.open_directory(inode))
    with counted() as eight:
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(vfs.open_directory, directory)
    assert eight.total < one.total


async def test_what_is_listed_again_and_has_not_changed_is_not_arranged_again(make: Make) -> None:
    vfs = make(Directory(10, 2_000, multi_valued=False, listed=False))
    store = (await ls(vfs, ROOT_INODE))[b"vault"]
    vfs.close_directory(await vfs.open_directory(store))
    handle = await vfs.open((await vfs.lookup((await vfs.lookup(ROOT_INODE, b".secretfs")).inode, b"refresh")).inode)
    await vfs.write(handle, b"vault")
    with counted() as work:
        vfs.close_directory(await vfs.open_directory(store))
    assert work.total < 1_000


async def test_many_names_that_are_known_cost_nothing_as_time_goes_by_nor_to_count_them(make: Make) -> None:
    vfs = make(Directory(1, 10_000, multi_valued=False, listed=False))
    found, _ = await walk(vfs)
    assert found == 10_000
    with counted() as work:
        vfs.evict_idle()
        assert vfs._contents.views["vault"].statistics().names == 10_000
    assert work.total < 1_000


async def test_names_that_are_arranged_are_nothing_to_the_garbage_collector(make: Make) -> None:
    vfs = make(Directory(10, 1_000, multi_valued=False, listed=False))
    view = vfs._contents.views["vault"]
    gc.collect()
    before = len(gc.get_objects())
    for folder in range(10):
        assert len((await view.entries((f"folder-{folder}",)))[0]) == 1_000
    gc.collect()
    assert len(gc.get_objects()) - before < 1_000


async def test_a_cold_read_makes_one_task_and_little_else(make: Make) -> None:
    """What is known, the listing, is found without a task, a scope or a look at the kind of the store."""
    names = [f"secret-{number}" for number in range(3)]
    store = MemoryStore.single(**dict.fromkeys(names, b"v"))
    vfs = make(store)
    directory = (await vfs.lookup(ROOT_INODE, b"vault")).inode
    await read(vfs, directory, names[0])  # lists
    await read(vfs, directory, names[1])
    tasks = Tasks()
    trio.lowlevel.add_instrument(tasks)
    try:
        with counted() as looking:
            found = await vfs.lookup(directory, names[2].encode())
        assert tasks.spawned == 0
        await vfs.getattr(found.inode)
        await vfs.open(found.inode)
        await vfs.read(found.inode, 0, 4096)
    finally:
        trio.lowlevel.remove_instrument(tasks)
    assert tasks.spawned == 1
    assert store.calls[f"fetch:{names[2]}"] == 1
    assert looking.total < LOOKUP


async def test_a_look_up_of_a_key_that_is_known_costs_little(make: Make) -> None:
    store = MemoryStore({"db": {"user": b"u", "password": b"p"}})
    vfs = make(store)
    directory = (await vfs.lookup(ROOT_INODE, b"vault")).inode
    await read(vfs, (await vfs.lookup(directory, b"db")).inode, "user")
    with counted() as looking:
        secret = await vfs.lookup(directory, b"db")
        await vfs.lookup(secret.inode, b"password")
    assert looking.total < 2 * LOOKUP


class Tasks(trio.abc.Instrument):
    """Counts the tasks that begin."""

    def __init__(self) -> None:
        self.spawned = 0

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        self.spawned += 1


async def read(vfs: SecretVFS, directory: int, name: str) -> bytes:
    """Read a file as the kernel does."""
    found = await vfs.lookup(directory, name.encode())
    await vfs.getattr(found.inode)
    await vfs.open(found.inode)
    return await vfs.read(found.inode, 0, 4096)


async def test_a_listing_of_what_is_known_does_little_for_each_entry(make: Make) -> None:
    store = MemoryStore.single(**{f"secret-{number}": b"v" for number in range(REPLY)})
    vfs = make(store)
    directory = (await vfs.lookup(ROOT_INODE, b"vault")).inode
    for name in store.secrets:
        await read(vfs, directory, name)
    with counted() as listing:
        await ls(vfs, directory)
    assert listing.total / REPLY < ENTRY
