"""The file system of secrets without a kernel: inodes, versions, sizes and errors, on a virtual clock."""

import json
import os
import stat
from collections.abc import Callable, Mapping

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from secretfs.cache.change import Announce, Change
from secretfs.cache.freshness import Freshness
from secretfs.cache.store_cache import CachedStore
from secretfs.errors import (
    AccessDenied,
    AmbiguousNames,
    DeadlineExceeded,
    NoSuchAttribute,
    NoSuchEntry,
    StoreUnavailable,
    Superseded,
)
from secretfs.fs.attributes import FOREVER, Attributes, PermissionPolicy
from secretfs.fs.caller import Caller
from secretfs.fs.handles import MAX_WAITERS
from secretfs.fs.inode import Version
from secretfs.fs.inodes import ROOT_INODE
from secretfs.fs.journal import Journal
from secretfs.fs.keys import Bulk, BulkKey, FolderKey, RootKey, SecretKey, ValueKey
from secretfs.fs.vfs import SecretVFS
from secretfs.fs.view import StoreView
from secretfs.scopes import ALLOW_ALL, SecretScope
from tests.conftest import ExpectLog
from tests.support.at_once import AtOnce, tell
from tests.support.cached import Cached
from tests.support.canary import secret as canary
from tests.support.memory_store import MemoryStore, WatchingMemoryStore
from tests.support.recording_vfs import RecordingVFS

Make = Callable[..., RecordingVFS]

OLD = canary("old").encode()
NEW = canary("newer and longer").encode()


@pytest.fixture
def vault() -> MemoryStore:
    return MemoryStore({"db": {"user": b"joe", "password": OLD}, "team/api": {"key": b"k"}}, folders=True)


@pytest.fixture
def env() -> MemoryStore:
    return MemoryStore.single(TOKEN=OLD, EMPTY=b"")


@pytest.fixture
def make(nursery: trio.Nursery, mock_clock: MockClock) -> Make:
    def make_vfs(
        permissions: PermissionPolicy | None = None, scope: SecretScope = ALLOW_ALL, **stores: MemoryStore
    ) -> RecordingVFS:
        views = {
            name: StoreView(Cached(name, store, Freshness(ttl=60, deadline=5), nursery), scope)
            for name, store in stores.items()
        }
        return RecordingVFS(lambda _: views, permissions or PermissionPolicy(), nursery)

    return make_vfs


@pytest.fixture
def vfs(make: Make, vault: MemoryStore, env: MemoryStore) -> RecordingVFS:
    return make(vault=vault, env=env)


async def walk(vfs: RecordingVFS, path: str) -> Attributes:
    """Look a path up as the kernel does; returns the last attributes."""
    inode = ROOT_INODE
    attributes = await vfs.getattr(inode)
    for segment in path.split("/"):
        attributes = await vfs.lookup(inode, segment.encode())
        inode = attributes.inode
    return attributes


async def cat(vfs: RecordingVFS, path: str) -> bytes:
    """Open and read."""
    attributes = await walk(vfs, path)
    handle = await vfs.open(attributes.inode)
    content = await vfs.read(handle, 0, 1 << 20)
    assert (await vfs.getattr(attributes.inode)).size == len(content)
    return content


async def ls(vfs: RecordingVFS, path: str = "") -> dict[str, Attributes]:
    inode = (await walk(vfs, path)).inode if path else ROOT_INODE
    handle = await vfs.open_directory(inode)
    entries = list(await vfs.read_directory(handle, 0))
    vfs.close_directory(handle)
    return {segment.decode(): attributes for _, segment, attributes in entries}


async def test_the_tree(vfs: RecordingVFS) -> None:
    assert list(await ls(vfs)) == ["env", "vault"]
    assert list(await ls(vfs, "env")) == ["EMPTY", "TOKEN"]
    assert list(await ls(vfs, "vault")) == ["db", "team"]
    assert list(await ls(vfs, "vault/db")) == ["password", "user"]
    assert list(await ls(vfs, "vault/team/api")) == ["key"]


async def test_values(vfs: RecordingVFS) -> None:
    assert await cat(vfs, "vault/db/password") == OLD
    assert await cat(vfs, "env/TOKEN") == OLD
    assert await cat(vfs, "env/EMPTY") == b""


async def test_what_is_not_there(vfs: RecordingVFS) -> None:
    for path in (
        "nope",
        "vault/nope",
        "vault/db/nope",
        "vault/team/nope",
        "env/nope",
        ".bulk.json",
        "vault/team/.bulk.json",
    ):
        with pytest.raises(NoSuchEntry):
            await walk(vfs, path)


async def test_types_modes_and_sizes(vfs: RecordingVFS) -> None:
    directory, file = await walk(vfs, "vault/db"), await walk(vfs, "vault/db/password")
    assert directory.mode == stat.S_IFDIR | 0o700
    assert file.mode == stat.S_IFREG | 0o400
    assert file.size == len(OLD)


@pytest.mark.parametrize(("file", "directory"), [(0o400, 0o700), (0o440, 0o750), (0o444, 0o755), (0o040, 0o250)])
def test_whoever_may_read_files_may_enter_directories_and_their_owner_may_write(file: int, directory: int) -> None:
    assert PermissionPolicy(file).of(RootKey()).mode == directory


async def test_look_up_and_listing_read_no_values(vfs: RecordingVFS, env: MemoryStore, mock_clock: MockClock) -> None:
    attributes = await walk(vfs, "env/TOKEN")
    assert (attributes.size, attributes.attr_timeout) == (0, 0)  # the kernel has to ask for the size
    assert attributes.entry_timeout == 60
    await ls(vfs, "env")
    assert not [call for call in env.calls if call.startswith("fetch")]


async def test_getattr_tells_the_true_size(vfs: RecordingVFS, mock_clock: MockClock) -> None:
    attributes = await vfs.getattr((await walk(vfs, "env/TOKEN")).inode)
    assert (attributes.size, attributes.attr_timeout) == (len(OLD), FOREVER)
    assert (await ls(vfs, "env"))["TOKEN"].size == len(OLD)  # known now, so a listing tells it as well


async def test_a_thousand_secrets_are_listed_with_one_call(make: Make) -> None:
    store = MemoryStore({f"secret-{n:04}": {"k": b"v"} for n in range(1000)}, folders=True)
    vfs = make(vault=store)
    assert len(await ls(vfs, "vault")) == 1000
    assert store.calls == {"names:": 1}


async def test_a_rotation_is_a_new_inode_and_the_old_one_is_what_it_was(
    vfs: RecordingVFS, env: MemoryStore, mock_clock: MockClock
) -> None:
    await cat(vfs, "env/TOKEN")
    before = await walk(vfs, "env/TOKEN")
    assert (before.attr_timeout, before.entry_timeout) == (FOREVER, 60)
    env.put("TOKEN", {"TOKEN": NEW})
    mock_clock.jump(60)
    after = await walk(vfs, "env/TOKEN")
    assert after.inode != before.inode
    assert (after.size, after.attr_timeout, after.entry_timeout) == (len(NEW), FOREVER, 60)
    assert await cat(vfs, "env/TOKEN") == NEW
    assert (await vfs.getattr(before.inode)).size == len(OLD)
    assert await vfs.read(await vfs.open(before.inode), 0, 999) == OLD


async def test_an_entry_is_good_for_what_is_left_of_ttl(
    vfs: RecordingVFS, env: MemoryStore, mock_clock: MockClock
) -> None:
    await ls(vfs, "env")
    mock_clock.jump(10)
    unknown = await walk(vfs, "env/TOKEN")
    assert (unknown.attr_timeout, unknown.entry_timeout) == (0, 50)
    await vfs.getattr(unknown.inode)
    mock_clock.jump(40)
    assert (await walk(vfs, "env/TOKEN")).entry_timeout == 10
    mock_clock.jump(10)  # the listing expires, and is asked for again
    assert (await walk(vfs, "env/TOKEN")).entry_timeout == 10
    mock_clock.jump(10)
    assert (await ls(vfs, "env"))["TOKEN"].entry_timeout == 0  # the value has expired, and a listing reads none
    assert (await walk(vfs, "env/TOKEN")).entry_timeout == 50


class TestSlowStore:
    """A look-up of a name that the kernel has waits for the store; a first one does not."""

    async def test_a_first_look_up_does_not_wait(
        self, vfs: RecordingVFS, env: MemoryStore, mock_clock: MockClock
    ) -> None:
        await ls(vfs, "env")
        for inode in [attributes.inode for attributes in (await ls(vfs, "env")).values()]:
            vfs.forget(inode, 2)
        env.gate.clear()
        with trio.fail_after(0):
            assert (await walk(vfs, "env/TOKEN")).attr_timeout == 0

    async def test_a_name_that_was_only_listed_does_not_either(
        self, vfs: RecordingVFS, env: MemoryStore, mock_clock: MockClock
    ) -> None:
        await ls(vfs, "env")
        env.gate.clear()
        with trio.fail_after(0):
            assert (await walk(vfs, "env/TOKEN")).attr_timeout == 0

    async def test_revalidation_waits_and_the_kernel_repeats_it_without_another_wait(
        self, vfs: RecordingVFS, env: MemoryStore, mock_clock: MockClock, expect_log: ExpectLog
    ) -> None:
        expect_log("env: no answer within 5s")
        directory = (await walk(vfs, "env")).inode
        await cat(vfs, "env/TOKEN")
        mock_clock.jump(Freshness().max_stale)
        await ls(vfs, "env")
        mock_clock.autojump_threshold = 0
        env.gate.clear()
        begin = trio.current_time()
        for asks in (caller(7), caller(7)):
            with pytest.raises(DeadlineExceeded):
                await vfs.lookup(directory, b"TOKEN", asks)
        assert trio.current_time() == begin + 5
        env.gate.set()


class TestKills:
    """Nothing that a program does by path is ESTALE, whenever the daemon is killed and whatever is rotated."""

    @pytest.fixture
    def again(self, env: MemoryStore, nursery: trio.Nursery) -> Callable[[SecretVFS, bytes], SecretVFS]:
        def again(before: SecretVFS, value: bytes) -> SecretVFS:
            env.put("TOKEN", {"TOKEN": value})
            views = {"env": StoreView(AtOnce("env", env, Freshness(), nursery), ALLOW_ALL)}
            return SecretVFS(views, PermissionPolicy(), nursery, journal=Journal(os.dup(before._journal.file)))

        return again

    async def test_between_each_step_of_an_open_and_its_repetition(
        self, make: Make, env: MemoryStore, again: Callable[[SecretVFS, bytes], SecretVFS]
    ) -> None:
        first: SecretVFS = make(env=env)
        directory = (await first.lookup(ROOT_INODE, b"env")).inode
        found = (await first.lookup(directory, b"TOKEN")).inode
        await first.getattr(found)
        second = again(first, b"second")
        assert await second.open(found) == found  # nobody has opened it before: it becomes what the store has now
        assert await second.read(found, 0, 999) == b"second"
        assert (await second.getattr(found)).size == len(b"second")
        third = again(second, b"third")
        with pytest.raises(Superseded):  # somebody has; the kernel looks the path up again
            await third.open(found)
        repeated = (await third.lookup(directory, b"TOKEN")).inode
        fourth = again(third, b"fourth")
        assert await fourth.open(repeated) == repeated
        assert await fourth.read(repeated, 0, 999) == b"fourth"

    async def test_what_somebody_may_have_seen_is_looked_up_again(
        self, make: Make, env: MemoryStore, again: Callable[[SecretVFS, bytes], SecretVFS]
    ) -> None:
        before: SecretVFS = make(env=env)
        directory = (await before.lookup(ROOT_INODE, b"env")).inode
        inode = (await before.lookup(directory, b"TOKEN")).inode
        await before.open(inode)
        after = again(before, NEW)
        with pytest.raises(Superseded):  # the kernel repeats the call
            await after.open(inode)
        found = (await after.lookup(directory, b"TOKEN")).inode
        assert found != inode
        assert await after.read(await after.open(found), 0, 999) == NEW
        with pytest.raises(Superseded):  # its bytes are lost
            await after.read(inode, 0, 999)

    async def test_what_is_the_same_goes_on(
        self, make: Make, env: MemoryStore, again: Callable[[SecretVFS, bytes], SecretVFS]
    ) -> None:
        before: SecretVFS = make(env=env)
        inode = (await before.lookup((await before.lookup(ROOT_INODE, b"env")).inode, b"TOKEN")).inode
        await before.open(inode)
        after = again(before, OLD)
        assert await after.read(await after.open(inode), 0, 999) == OLD


async def test_the_same_value_written_again_stays_the_same_inode(
    vfs: RecordingVFS, env: MemoryStore, mock_clock: MockClock
) -> None:
    await cat(vfs, "env/TOKEN")
    before = await walk(vfs, "env/TOKEN")
    env.put("TOKEN", {"TOKEN": OLD}, modified=99.0)
    mock_clock.jump(60)
    after = await vfs.getattr(before.inode)
    assert (after.inode, after.modified) == (before.inode, before.modified)


async def test_rotating_one_key_leaves_the_other_alone(
    vfs: RecordingVFS, vault: MemoryStore, mock_clock: MockClock
) -> None:
    await cat(vfs, "vault/db/user")
    await cat(vfs, "vault/db/password")
    user = await walk(vfs, "vault/db/user")
    vault.put("db", {"user": b"joe", "password": NEW})
    mock_clock.jump(60)
    assert await cat(vfs, "vault/db/password") == NEW
    assert (await walk(vfs, "vault/db/user")).inode == user.inode


async def test_an_open_file_keeps_its_version(vfs: RecordingVFS, env: MemoryStore, mock_clock: MockClock) -> None:
    inode = (await walk(vfs, "env/TOKEN")).inode
    handle = await vfs.open(inode)
    env.put("TOKEN", {"TOKEN": NEW})
    mock_clock.jump(60)
    assert await cat(vfs, "env/TOKEN") == NEW
    assert await vfs.read(handle, 0, 999) == OLD
    assert await vfs.read(handle, 8, 4) == OLD[8:12]
    assert (await vfs.getattr(inode)).size == len(OLD)  # fstat
    env.delete("TOKEN")
    mock_clock.jump(60)
    assert (await vfs.getattr(inode)).size == len(OLD)
    assert await vfs.read(handle, 0, 999) == OLD
    vfs.forget(inode, 1)


async def test_fstat_works_while_the_store_is_down(
    vfs: RecordingVFS, env: MemoryStore, mock_clock: MockClock, expect_log: ExpectLog
) -> None:
    expect_log("env: down")
    inode = (await walk(vfs, "env/TOKEN")).inode
    handle = await vfs.open(inode)
    env.fail_with = StoreUnavailable("down")
    mock_clock.jump(Freshness().max_stale)
    assert (await vfs.getattr(inode)).size == len(OLD)
    assert await vfs.read(handle, 0, 999) == OLD
    with pytest.raises(StoreUnavailable):
        await walk(vfs, "env/TOKEN")


async def test_a_key_that_a_secret_loses_is_gone(vfs: RecordingVFS, vault: MemoryStore, mock_clock: MockClock) -> None:
    await cat(vfs, "vault/db/user")
    inode = (await walk(vfs, "vault/db/user")).inode
    vault.put("db", {"password": OLD})
    mock_clock.jump(60)
    with pytest.raises(NoSuchEntry):
        await walk(vfs, "vault/db/user")
    assert (await vfs.getattr(inode)).size == len(b"joe")


async def test_a_key_that_is_lost_while_a_directory_is_read_is_passed_over(
    vfs: RecordingVFS, vault: MemoryStore, mock_clock: MockClock
) -> None:
    handle = await vfs.open_directory((await walk(vfs, "vault/db")).inode)
    vault.put("db", {"password": OLD})
    mock_clock.jump(60)
    await cat(vfs, "vault/db/password")
    assert [segment for _, segment, _ in await vfs.read_directory(handle, 0)] == [b"password"]


async def test_a_listing_is_a_snapshot_that_can_be_continued(
    vfs: RecordingVFS, env: MemoryStore, mock_clock: MockClock
) -> None:
    inode = (await walk(vfs, "env")).inode
    handle = await vfs.open_directory(inode)
    first, *_ = await vfs.read_directory(handle, 0)
    env.put("AAA", {"AAA": b""})
    mock_clock.jump(60)
    rest = [segment for _, segment, _ in await vfs.read_directory(handle, first[0])]
    assert [first[1], *rest] == [b"EMPTY", b"TOKEN"]


async def test_times(make: Make, mock_clock: MockClock) -> None:
    store = MemoryStore({})
    store.put("told", {"k": b"v"}, modified=1234.5)
    store.put("untold", {"k": b"v"})
    vfs = make(vault=store)
    await cat(vfs, "vault/told/k")
    await cat(vfs, "vault/untold/k")
    assert (await walk(vfs, "vault/told/k")).modified == 1234.5
    first_seen = (await walk(vfs, "vault/untold/k")).modified
    assert first_seen > 1e9
    mock_clock.jump(60)
    await cat(vfs, "vault/untold/k")
    assert (await walk(vfs, "vault/untold/k")).modified == first_seen


async def test_extended_attributes(vfs: RecordingVFS, env: MemoryStore) -> None:
    for path in ("vault/db", "vault/db/password"):
        inode = (await walk(vfs, path)).inode
        assert set(vfs.listxattr(inode)) == {
            "user.secretfs.version",
            "user.secretfs.fetched",
            "user.secretfs.stale",
        }
        assert await vfs.getxattr(inode, "user.secretfs.version") == b"1"
        assert await vfs.getxattr(inode, "user.secretfs.stale") == b"0"
        assert (await vfs.getxattr(inode, "user.secretfs.fetched")).startswith(b"20")
    for path, name in (("vault", "user.secretfs.version"), ("vault/db", "security.selinux")):
        with pytest.raises(NoSuchAttribute):
            await vfs.getxattr((await walk(vfs, path)).inode, name)
    assert vfs.listxattr((await walk(vfs, "vault")).inode) == ()


async def test_attributes_nobody_knows_cost_no_call(vfs: RecordingVFS, env: MemoryStore) -> None:
    inode = (await walk(vfs, "env/TOKEN")).inode
    with pytest.raises(NoSuchAttribute):
        await vfs.getxattr(inode, "system.posix_acl_access")
    assert "fetch:TOKEN" not in env.calls


async def test_bulk_files_are_reachable_by_name_and_not_listed(vfs: RecordingVFS) -> None:
    assert json.loads(await cat(vfs, "vault/.bulk.json")) == {
        "db": {"password": OLD.decode(), "user": "joe"},
        "team/api": {"key": "k"},
    }
    assert await cat(vfs, "env/.bulk.env") == b"EMPTY=''\nTOKEN='" + OLD + b"'\n"
    assert not [name for name in await ls(vfs, "vault") if name.startswith(".bulk")]


async def test_bulk_is_one_version_and_scope_filtered(make: Make, vault: MemoryStore, mock_clock: MockClock) -> None:
    vfs = make(vault=vault, scope=SecretScope(denied_secrets=frozenset({"db"})))
    inode = (await walk(vfs, "vault/.bulk.json")).inode
    handle = await vfs.open(inode)
    vault.put("team/api", {"key": b"other"})
    mock_clock.jump(60)
    assert json.loads(await cat(vfs, "vault/.bulk.json")) == {"team/api": {"key": "other"}}
    assert json.loads(await vfs.read(handle, 0, 999)) == {"team/api": {"key": "k"}}


async def test_many_readers_of_the_bulk_file_share_one_snapshot(vfs: RecordingVFS, vault: MemoryStore) -> None:
    async with trio.open_nursery() as readers:
        for _ in range(20):
            readers.start_soon(cat, vfs, "vault/.bulk.json")
    assert {call: n for call, n in vault.calls.items() if n > 1} == {}


async def test_an_ambiguous_shell_name_fails_the_env_file_only(make: Make, expect_log: ExpectLog) -> None:
    expect_log("env: a-b and a.b are both a_b in .bulk.env")
    vfs = make(env=MemoryStore.single(**{"a-b": b"1", "a.b": b"2"}))
    with pytest.raises(AmbiguousNames):
        await cat(vfs, "env/.bulk.env")
    assert json.loads(await cat(vfs, "env/.bulk.json")) == {"a-b": {"a-b": "1"}, "a.b": {"a.b": "2"}}


async def test_listings_that_have_expired_leave_nothing_behind(
    vfs: RecordingVFS, vault: MemoryStore, mock_clock: MockClock
) -> None:
    for path in ("vault", "vault/team"):
        await ls(vfs, path)
    vfs.evict_idle()
    assert len(vfs._contents.views["vault"]._arranged) == 2
    mock_clock.jump(60)
    vfs.evict_idle()
    assert not vfs._contents.views["vault"]._arranged
    assert list(await ls(vfs, "vault")) == ["db", "team"]


async def test_a_reload_makes_nobody_wait_for_a_store_that_hangs_once_more(
    make: Make, env: MemoryStore, nursery: trio.Nursery, mock_clock: MockClock, expect_log: ExpectLog
) -> None:
    expect_log("env: no answer within 5s")
    vfs = make(env=env)
    env.gate.clear()
    begin, waited = trio.current_time(), []

    async def look() -> None:
        with pytest.raises(DeadlineExceeded):
            await ls(vfs, "env")
        waited.append(trio.current_time() - begin)

    nursery.start_soon(look)
    await trio.to_thread.run_sync(env.entered.acquire)
    vfs.replace({name: StoreView(view._store, SecretScope()) for name, view in vfs._contents.views.items()})
    mock_clock.jump(5)
    await wait_all_tasks_blocked(0.01)
    env.gate.set()
    assert waited == [5]


async def test_who_is_sent_on_to_another_store_waits_for_both_no_longer_than_for_one(
    make: Make, env: MemoryStore, nursery: trio.Nursery, mock_clock: MockClock, expect_log: ExpectLog
) -> None:
    expect_log("env: no answer within 5s")
    vfs, other = make(env=env), MemoryStore.single(TOKEN=b"other")
    begin, waited = trio.current_time(), []

    async def look() -> None:
        with pytest.raises(DeadlineExceeded):
            await ls(vfs, "env")
        waited.append(trio.current_time() - begin)

    env.gate.clear()
    other.gate.clear()
    nursery.start_soon(look)
    await trio.to_thread.run_sync(env.entered.acquire)
    vfs.replace({"env": StoreView(Cached("env", other, Freshness(), nursery), SecretScope())})
    mock_clock.jump(3)
    env.gate.set()
    await trio.to_thread.run_sync(other.entered.acquire)
    mock_clock.jump(2)
    await wait_all_tasks_blocked(0.01)
    assert waited == [5]
    mock_clock.jump(3)
    await wait_all_tasks_blocked(0.01)
    other.gate.set()


async def test_a_hung_store_keeps_nobody_from_looking_names_up(
    vfs: RecordingVFS, env: MemoryStore, mock_clock: MockClock, expect_log: ExpectLog
) -> None:
    expect_log("env: no answer within 5s")
    await ls(vfs, "env")
    env.gate.clear()

    async def stat_hangs() -> None:
        with pytest.raises(DeadlineExceeded):
            await vfs.getattr((await walk(vfs, "env/TOKEN")).inode)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stat_hangs)
        await trio.to_thread.run_sync(env.entered.acquire)
        begin = trio.current_time()
        await walk(vfs, "env/EMPTY")
        assert await cat(vfs, "vault/db/user") == b"joe"
        assert trio.current_time() == begin
        await wait_all_tasks_blocked()
        mock_clock.jump(5)
    env.gate.set()


async def test_what_the_kernel_forgets_is_gone(vfs: RecordingVFS) -> None:
    counts: dict[int, int] = {}
    for _ in range(3):
        for attributes in [await walk(vfs, "env/TOKEN"), *(await ls(vfs, "vault/db")).values()]:
            counts[attributes.inode] = counts.get(attributes.inode, 0) + 1
    # walk() and ls() look parents up on the way
    for inode in list(vfs._tree.inodes):
        if inode.number != ROOT_INODE:
            vfs.forget(inode.number, inode.lookups)
    assert len(vfs._tree) == 1


@pytest.mark.parametrize(
    ("key", "segment", "directory"),
    [
        (ValueKey("vault", "db", "a/b%"), b"a%2Fb%25", b"vault/db"),
        (ValueKey("vault", "team/100%", "k"), b"k", b"vault/team/100%25"),
        (ValueKey("env", "TOKEN", "TOKEN"), b"TOKEN", b"env"),
        (ValueKey("env", "100%/a//b", "100%/a//b"), b"%2Fb", b"env/100%25/a"),
        (ValueKey("env", ".bulk.json", ".bulk.json"), b"%2Ebulk.json", b"env"),
    ],
)
async def test_the_path_of_a_value(vfs: RecordingVFS, key: ValueKey, segment: bytes, directory: bytes) -> None:
    own, parent = vfs.changes.place(key)
    assert (own, vfs.changes.path(parent)) == (segment, directory)


async def test_what_is_in_a_folder(vfs: RecordingVFS, vault: MemoryStore, expect_log: ExpectLog) -> None:
    assert await vfs.changes.folder(FolderKey("vault", ("team",))) == {b"api": SecretKey("vault", "team/api")}
    assert await vfs.changes.folder(FolderKey("vault", ("nope",))) == {}
    expect_log("no list")
    vault.refused["names:"] = AccessDenied("no list")
    store = vfs._contents.views["vault"]._store
    assert isinstance(store, CachedStore)
    store._names.expire("")
    assert await vfs.changes.folder(FolderKey("vault")) is None


async def test_whether_there_is_a_value(vfs: RecordingVFS, env: MemoryStore, expect_log: ExpectLog) -> None:
    assert await vfs.changes.content(ValueKey("vault", "db", "user"))
    assert await vfs.changes.content(ValueKey("vault", "db", "nope")) is None
    assert await vfs.changes.content(ValueKey("vault", "nope", "user")) is None
    expect_log("env: down")
    env.fail_with = StoreUnavailable("down")
    with pytest.raises(StoreUnavailable):
        await vfs.changes.content(ValueKey("env", "TOKEN", "TOKEN"))


async def test_what_the_kernel_may_know_at_a_place(vfs: RecordingVFS) -> None:
    assert vfs.changes.known(FolderKey("vault")) is None
    await cat(vfs, "vault/db/user")
    await cat(vfs, "env/TOKEN")
    for folder, key in (
        (FolderKey("vault"), FolderKey("vault")),
        (FolderKey("vault", ("db",)), SecretKey("vault", "db")),
        (FolderKey("env", ("TOKEN",)), ValueKey("env", "TOKEN", "TOKEN")),
    ):
        assert [inode.key for inode in vfs.changes.known_at(folder)] == [key]
    assert vfs.changes.known_at(FolderKey("vault", ("team",))) == []


class TestChangesThatAStoreTells:
    @pytest.fixture
    def vault(self) -> WatchingMemoryStore:
        return WatchingMemoryStore(
            {"db": {"user": b"joe", "password": OLD}, "team/api": {"key": OLD, "a/b%": OLD}}, folders=True
        )

    @pytest.fixture
    def env(self) -> WatchingMemoryStore:
        names = ("TOKEN", "OTHER", "team/prod/TOKEN", "100%/a//b", ".bulk.json")
        return WatchingMemoryStore({name: {name: OLD} for name in names}, multi_valued=False)

    @pytest.fixture
    def make(self, nursery: trio.Nursery, mock_clock: MockClock) -> Make:
        def make_vfs(scope: SecretScope = ALLOW_ALL, **stores: MemoryStore) -> RecordingVFS:
            def views(announce: Announce) -> Mapping[str, StoreView]:
                freshness = Freshness(ttl=60, deadline=5)
                caches = {
                    name: AtOnce(name, store, freshness, nursery, announce=announce) for name, store in stores.items()
                }
                return {name: StoreView(cached, scope) for name, cached in caches.items()}

            return RecordingVFS(views, PermissionPolicy(), nursery)

        return make_vfs

    @pytest.fixture
    def told(self, vfs: RecordingVFS) -> list[Change]:
        return vfs.announced

    async def test_with_the_component(
        self, vfs: RecordingVFS, vault: WatchingMemoryStore, env: WatchingMemoryStore, told: list[Change]
    ) -> None:
        await cat(vfs, "vault/db/password")
        await cat(vfs, "env/TOKEN")
        vault.put("db", {"user": b"joe", "password": NEW})
        await tell(vault, "db")
        env.put("TOKEN", {"TOKEN": NEW})
        env.put("ADDED", {"ADDED": NEW})
        await tell(env, "TOKEN", "ADDED")
        assert told[0] == Change("vault", values=frozenset({("db", "password")}))
        assert sorted(told[1:], key=repr) == [
            Change("env", values=frozenset({("TOKEN", "TOKEN")})),
            Change("env", names=frozenset({"ADDED"})),
        ]

    async def test_nothing_that_the_scope_hides(self, make: Make, vault: WatchingMemoryStore) -> None:
        vfs = make(vault=vault, scope=SecretScope(denied_secrets=frozenset({"db"})))
        told = vfs.announced
        await cat(vfs, "vault/.bulk.json")
        await cat(vfs, "vault/team/api/key")
        with pytest.raises(NoSuchEntry):
            await walk(vfs, "vault/db/password")
        vault.put("db", {"password": NEW})
        await tell(vault, "db")
        assert told == []
        vault.put("team/api", {"key": NEW, "a/b%": OLD})
        await tell(vault, "db", "team/api")
        assert told == [Change("vault", values=frozenset({("team/api", "key")}))]

    @pytest.mark.parametrize(
        ("path", "name", "key"),
        [("vault/db/password", "db", "password"), ("env/team/prod/TOKEN", "team/prod/TOKEN", "team/prod/TOKEN")],
    )
    async def test_the_new_content_shows_at_once_as_another_inode_and_an_open_file_keeps_the_old(
        self,
        vfs: RecordingVFS,
        vault: WatchingMemoryStore,
        env: WatchingMemoryStore,
        told: list[Change],
        mock_clock: MockClock,
        *,
        path: str,
        name: str,
        key: str,
    ) -> None:
        store = vault if path.startswith("vault") else env
        before = (await stat_of(vfs, path)).inode
        handle = await vfs.open(before)
        store.put(name, {key: NEW})
        assert (await stat_of(vfs, path)).inode == before  # nobody has told it yet
        await tell(store, name)
        after = await stat_of(vfs, path)
        assert after.inode != before
        assert (after.size, after.attr_timeout, after.entry_timeout) == (len(NEW), FOREVER, 60)
        assert (await walk(vfs, path)).inode == after.inode
        assert await cat(vfs, path) == NEW
        assert (await vfs.getattr(before)).size == len(OLD)  # fstat
        assert await vfs.read(handle, 0, 999) == OLD
        assert (name, key) in {value for change in told for value in change.values}
        told.clear()
        await tell(store, name)
        assert told == []

    async def test_the_bulk_file_shows_it_at_once_and_an_open_one_keeps_the_old(
        self, vfs: RecordingVFS, vault: WatchingMemoryStore, told: list[Change], mock_clock: MockClock
    ) -> None:
        before = (await stat_of(vfs, "vault/.bulk.json")).inode
        handle = await vfs.open(before)
        content = await vfs.read(handle, 0, 999)
        vault.put("db", {"password": NEW})
        vault.put("added", {"k": b"v"})
        await tell(vault, "db", "added")
        assert json.loads(await cat(vfs, "vault/.bulk.json")) == {
            **json.loads(content),
            "db": {"password": NEW.decode()},
            "added": {"k": "v"},
        }
        assert (await walk(vfs, "vault/.bulk.json")).inode != before
        assert await vfs.read(handle, 0, 999) == content
        assert told

    async def test_what_is_added_is_there_and_what_is_deleted_is_gone_at_once(
        self, vfs: RecordingVFS, env: WatchingMemoryStore, told: list[Change], mock_clock: MockClock
    ) -> None:
        await ls(vfs, "env")
        inode = (await stat_of(vfs, "env/TOKEN")).inode
        with pytest.raises(NoSuchEntry):
            await walk(vfs, "env/ADDED")
        env.put("ADDED", {"ADDED": NEW})
        env.delete("TOKEN")
        await tell(env, "ADDED", "TOKEN")
        assert await cat(vfs, "env/ADDED") == NEW
        assert {"ADDED", "TOKEN"} & (await ls(vfs, "env")).keys() == {"ADDED"}
        with pytest.raises(NoSuchEntry):
            await walk(vfs, "env/TOKEN")
        assert (await vfs.getattr(inode)).size == len(OLD)  # fstat

    async def test_the_same_content_is_the_same_inode(
        self, vfs: RecordingVFS, env: WatchingMemoryStore, told: list[Change], mock_clock: MockClock
    ) -> None:
        before = await stat_of(vfs, "env/TOKEN")
        env.put("TOKEN", {"TOKEN": OLD})
        await tell(env, "TOKEN")
        after = await stat_of(vfs, "env/TOKEN")
        assert (after.inode, after.size, after.modified) == (before.inode, before.size, before.modified)
        assert env.calls["fetch:TOKEN"] == 2

    async def test_it_is_told_when_the_bulk_file_is_out_of_date(
        self, vfs: RecordingVFS, env: WatchingMemoryStore, mock_clock: MockClock
    ) -> None:
        before = await stat_of(vfs, "env/.bulk.json")
        assert vfs._contents._bulks.peek(BulkKey("env", Bulk.JSON))
        env.put("TOKEN", {"TOKEN": NEW})
        await tell(env, "TOKEN")
        assert vfs.announced
        assert not vfs._contents._bulks.peek(BulkKey("env", Bulk.JSON))
        assert (await walk(vfs, "env/.bulk.json")).inode != before.inode


class Polled:
    """A file of ``env`` that somebody has open."""

    def __init__(self, vfs: RecordingVFS, handle: int) -> None:
        self.vfs = vfs
        self.handle = handle

    @property
    def notified(self) -> list[str]:
        return [waiter.decode() for waiter in self.vfs.woken]

    def poll(self, who: str) -> bool:
        """Poll on behalf of somebody."""
        return self.vfs.poll(self.handle, who.encode())


class TestPoll:
    @pytest.fixture
    async def polled(self, vfs: RecordingVFS) -> Polled:
        return Polled(vfs, await vfs.open((await walk(vfs, "env/TOKEN")).inode))

    async def test_whoever_waits_is_woken_once_when_the_file_is_superseded(
        self, vfs: RecordingVFS, env: MemoryStore, polled: Polled, mock_clock: MockClock
    ) -> None:
        for who in ("a", "b", "b"):
            assert polled.poll(who) is False
        await cat(vfs, "env/EMPTY")
        await cat(vfs, "env/TOKEN")
        mock_clock.jump(60)
        await cat(vfs, "env/TOKEN")  # it is the same
        assert polled.notified == []
        env.put("TOKEN", {"TOKEN": NEW})
        mock_clock.jump(60)
        await cat(vfs, "env/TOKEN")
        assert polled.notified == ["a", "b"]
        assert polled.poll("c") is True
        env.put("TOKEN", {"TOKEN": OLD})
        mock_clock.jump(60)
        await cat(vfs, "env/TOKEN")
        assert polled.notified == ["a", "b"]
        assert polled.poll("c") is True

    async def test_a_published_version_supersedes(self, vfs: RecordingVFS, polled: Polled) -> None:
        polled.poll("a")
        key = ValueKey("env", "TOKEN", "TOKEN")
        version = vfs.changes.successor(key)
        assert isinstance(version, Version)
        assert polled.notified == []
        assert polled.poll("b") is False
        vfs.changes.promote(version, None)
        assert polled.notified == ["a", "b"]
        assert polled.poll("c") is True
        assert vfs.changes.known(key) is version

    async def test_so_does_a_deletion_and_what_comes_then_is_another_file(
        self, vfs: RecordingVFS, polled: Polled, mock_clock: MockClock
    ) -> None:
        polled.poll("a")
        vfs.changes.gone(vfs._tree.inode(polled.handle))
        assert polled.notified == ["a"]
        assert polled.poll("b") is True  # or poll(2) would go back to sleep
        assert await vfs.read(polled.handle, 0, 999) == OLD
        assert (await vfs.getattr(polled.handle)).size == len(OLD)
        assert (await walk(vfs, "env/TOKEN")).inode != polled.handle

    async def test_nobody_is_remembered_when_the_kernel_has_forgotten(
        self, vfs: RecordingVFS, env: MemoryStore, polled: Polled, mock_clock: MockClock
    ) -> None:
        polled.poll("a")
        assert vfs._polls
        vfs.forget(polled.handle, 1)
        assert not vfs._polls
        env.put("TOKEN", {"TOKEN": NEW})
        mock_clock.jump(60)
        await cat(vfs, "env/TOKEN")
        assert polled.notified == []

    async def test_who_asks_without_waiting_is_not_remembered(self, vfs: RecordingVFS, polled: Polled) -> None:
        assert vfs.poll(polled.handle, None) is False
        assert not vfs._polls

    async def test_of_polls_that_time_out_a_bounded_number_is_remembered(
        self, vfs: RecordingVFS, polled: Polled
    ) -> None:
        for number in range(MAX_WAITERS + 1):
            polled.poll(str(number))
        assert polled.notified == [str(number) for number in range(MAX_WAITERS)]  # who still waits, polls again
        assert len(vfs._polls) == 1


def caller(pid: int) -> Caller:
    """Return a process."""
    return Caller(1000, 1000, pid)


async def stat_of(vfs: RecordingVFS, path: str) -> Attributes:
    """Return attributes that may be believed for a while, as the kernel gets them for stat(2)."""
    attributes = await walk(vfs, path)
    return attributes if attributes.attr_timeout else await vfs.getattr(attributes.inode)
