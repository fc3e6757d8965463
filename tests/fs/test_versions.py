"""``..versions`` without a kernel: older versions of a secret, found by their names, on a virtual clock."""

from collections.abc import Callable
from typing import cast

import pytest
import trio
from trio.testing import MockClock

from secretfs.cache.freshness import Freshness
from secretfs.cache.store_cache import CachedStore
from secretfs.errors import AccessDenied, NoSuchAttribute, NoSuchEntry, SecretNotFound, StoreUnavailable
from secretfs.fs.attributes import PermissionPolicy
from secretfs.fs.keys import VersionKey, VersionsKey, VersionValueKey, key_from_text, key_to_text
from secretfs.fs.view import StoreView
from secretfs.scopes import ALLOW_ALL, SecretScope
from secretfs.store import Secret
from tests.conftest import ExpectLog
from tests.support.at_once import AtOnce
from tests.support.canary import secret as canary
from tests.support.memory_store import IssuingMemoryStore, MemoryStore, VersionedMemoryStore
from tests.support.recording_vfs import RecordingVFS

OLD, NEW = canary("old").encode(), canary("newer and longer").encode()
TTL, IDLE = 60.0, 600.0

Make = Callable[..., RecordingVFS]


@pytest.fixture
def vault() -> VersionedMemoryStore:
    store = VersionedMemoryStore({"db": {"user": b"joe", "password": OLD}})
    store.put("db", {"password": NEW})
    return store


@pytest.fixture
def make(nursery: trio.Nursery, mock_clock: MockClock) -> Make:
    def make_vfs(store: MemoryStore, scope: SecretScope = ALLOW_ALL) -> RecordingVFS:
        cached = AtOnce("vault", store, Freshness(ttl=TTL, max_stale=3600, idle=IDLE, deadline=5), nursery)
        nursery.start_soon(cached.keep_fresh)
        return RecordingVFS(lambda _: {"vault": StoreView(cached, scope)}, PermissionPolicy(), nursery)

    return make_vfs


@pytest.fixture
def vfs(make: Make, vault: VersionedMemoryStore) -> RecordingVFS:
    return make(vault)


async def walk(vfs: RecordingVFS, path: str) -> int:
    """Look a path up, and return its inode."""
    inode = 1
    for segment in path.split("/"):
        inode = (await vfs.lookup(inode, segment.encode())).inode
    return inode


async def cat(vfs: RecordingVFS, path: str) -> bytes:
    inode = await walk(vfs, path)
    attributes = await vfs.getattr(inode)
    handle = await vfs.open(inode)
    content = await vfs.read(handle, 0, 1 << 20)
    assert attributes.size == len(content)
    return content


async def listed(vfs: RecordingVFS, path: str) -> list[bytes]:
    handle = await vfs.open_directory(await walk(vfs, path))
    return [segment for _, segment, _ in await vfs.read_directory(handle, 0)]


def fetches(store: MemoryStore) -> dict[str, int]:
    return {call.removeprefix("fetch:"): count for call, count in store.calls.items() if call.startswith("fetch:")}


async def test_each_version_by_its_name(vfs: RecordingVFS) -> None:
    assert await cat(vfs, "vault/db/..versions/1/password") == OLD
    assert await cat(vfs, "vault/db/..versions/1/user") == b"joe"
    assert await cat(vfs, "vault/db/..versions/2/password") == NEW
    assert await cat(vfs, "vault/db/password") == NEW
    assert sorted(await listed(vfs, "vault/db/..versions/1")) == [b"password", b"user"]


async def test_nothing_lists_them_and_a_look_costs_nothing(vfs: RecordingVFS, vault: VersionedMemoryStore) -> None:
    assert await listed(vfs, "vault/db/..versions") == []
    assert fetches(vault) == {}
    assert await listed(vfs, "vault/db") == [b"password"]
    with pytest.raises(NoSuchEntry):
        await walk(vfs, "vault/db/..versions/.hidden")
    assert fetches(vault) == {"db": 1}


async def test_one_version_is_asked_for_once_in_a_ttl(
    vfs: RecordingVFS, vault: VersionedMemoryStore, mock_clock: MockClock
) -> None:
    for _ in range(3):
        await cat(vfs, "vault/db/..versions/1/password")
        await cat(vfs, "vault/db/..versions/1/user")
    assert fetches(vault) == {"db, version 1": 1}
    mock_clock.jump(TTL)
    await cat(vfs, "vault/db/..versions/1/password")
    assert fetches(vault) == {"db, version 1": 2}


async def test_in_use_it_is_not_asked_for_in_the_background(
    vfs: RecordingVFS, vault: VersionedMemoryStore, mock_clock: MockClock
) -> None:
    await cat(vfs, "vault/db/..versions/1/password")
    mock_clock.autojump_threshold = 0
    await trio.sleep(3 * TTL)
    assert fetches(vault) == {"db, version 1": 1}


async def test_a_version_keeps_its_inode_and_its_kernel_attributes(
    vfs: RecordingVFS, vault: VersionedMemoryStore, mock_clock: MockClock
) -> None:
    path = "vault/db/..versions/1/password"
    await cat(vfs, path)
    first = await walk(vfs, path)
    attributes = await vfs.lookup(await walk(vfs, "vault/db/..versions/1"), b"password")
    assert 0 < attributes.entry_timeout <= TTL
    vault.put("db", {"password": canary("third").encode()})
    mock_clock.jump(TTL)
    assert await cat(vfs, path) == OLD
    assert await walk(vfs, path) == first
    assert not vfs.poll(first, None)


async def test_what_is_destroyed_is_gone_after_ttl(
    vfs: RecordingVFS, vault: VersionedMemoryStore, mock_clock: MockClock
) -> None:
    inode = await walk(vfs, "vault/db/..versions/1/password")
    handle = await vfs.open(inode)
    del vault.versions["db", "1"]
    assert await cat(vfs, "vault/db/..versions/1/password") == OLD
    mock_clock.jump(TTL)
    with pytest.raises(SecretNotFound):
        await walk(vfs, "vault/db/..versions/1")
    with pytest.raises(SecretNotFound):
        await walk(vfs, "vault/db/..versions/3")
    assert await vfs.read(handle, 0, 100) == OLD  # as an open file does
    assert await cat(vfs, "vault/db/password") == NEW


async def test_errors_are_those_of_the_store(
    vfs: RecordingVFS, vault: VersionedMemoryStore, expect_log: ExpectLog
) -> None:
    expect_log("vault: no")
    expect_log("vault: down")
    vault.refused["fetch:db, version 1"] = AccessDenied("no")
    with pytest.raises(AccessDenied):
        await walk(vfs, "vault/db/..versions/1")
    vault.refused["fetch:db, version 1"] = StoreUnavailable("down")
    vault.refused["fetch:db, version 2"] = StoreUnavailable("down")
    with pytest.raises(StoreUnavailable):
        await walk(vfs, "vault/db/..versions/2")


async def test_a_known_version_outlasts_an_outage(
    vfs: RecordingVFS, vault: VersionedMemoryStore, mock_clock: MockClock, expect_log: ExpectLog
) -> None:
    expect_log("vault: down")
    await cat(vfs, "vault/db/..versions/1/password")
    vault.fail_with = StoreUnavailable("down")
    mock_clock.jump(TTL)
    assert await cat(vfs, "vault/db/..versions/1/password") == OLD


async def test_what_the_scope_hides_has_no_versions(make: Make, vault: VersionedMemoryStore) -> None:
    vfs = make(vault, SecretScope(denied_secrets=frozenset({"db"})))
    with pytest.raises(NoSuchEntry):
        await walk(vfs, "vault/db/..versions/1")
    view = vfs._contents.view("vault")
    assert not view.versions.exist_of("db")
    with pytest.raises(NoSuchEntry):
        await view.versions.get("db", "1")
    with pytest.raises(NoSuchEntry):
        view.versions.peek("db", "1")
    assert fetches(vault) == {}


@pytest.mark.parametrize("kind", [MemoryStore, IssuingMemoryStore])
async def test_other_stores_have_none(make: Make, kind: type[MemoryStore]) -> None:
    store = kind({"db": {"password": OLD}})
    vfs = make(store)
    with pytest.raises(NoSuchEntry):
        await walk(vfs, "vault/db/..versions")
    assert fetches(store) == {}


async def test_a_single_valued_store_has_none(make: Make) -> None:
    vfs = make(VersionedMemoryStore({"TOKEN": {"TOKEN": OLD}}, multi_valued=False))
    with pytest.raises(NotADirectoryError):
        await walk(vfs, "vault/TOKEN/..versions")


async def test_a_key_of_that_name_is_encoded(make: Make) -> None:
    vfs = make(VersionedMemoryStore({"db": {"..versions": OLD}}))
    assert await listed(vfs, "vault/db") == [b"%2E.versions"]
    assert await cat(vfs, "vault/db/%2E.versions") == OLD
    assert await cat(vfs, "vault/db/..versions/1/%2E.versions") == OLD


async def test_the_version_is_an_extended_attribute(vfs: RecordingVFS, vault: VersionedMemoryStore) -> None:
    for path in ("vault/db/..versions/1", "vault/db/..versions/1/password"):
        inode = await walk(vfs, path)
        assert vfs.listxattr(inode) == ("user.secretfs.version",)
        assert await vfs.getxattr(inode, "user.secretfs.version") == b"1"
        with pytest.raises(NoSuchAttribute):
            await vfs.getxattr(inode, "user.secretfs.stale")
    assert vfs.listxattr(await walk(vfs, "vault/db/..versions")) == ()


async def test_metadata_is_listed_where_it_is_known_and_fetched_for_nobody(make: Make) -> None:
    store = MemoryStore({"db": {"password": OLD}})
    written = {"owner": "payments", "empty": "", "ü": "ü", "": "no name", "long" * 64: "too long", "nul\0": "no name"}
    store.secrets["db"] = Secret({"password": OLD}, "1", metadata=written)
    vfs = make(store)
    directory = await walk(vfs, "vault/db")
    known = {"user.secretfs.version", "user.secretfs.fetched", "user.secretfs.stale"}
    assert set(vfs.listxattr(directory)) == known
    assert fetches(store) == {}
    assert await vfs.getxattr(directory, "user.secretfs.metadata.owner") == b"payments"
    assert fetches(store) == {"db": 1}
    more = {f"user.secretfs.metadata.{name}" for name in ("owner", "empty", "ü")}
    for inode in (directory, await walk(vfs, "vault/db/password")):
        assert set(vfs.listxattr(inode)) == known | more
    assert await vfs.getxattr(directory, "user.secretfs.metadata.empty") == b""
    with pytest.raises(NoSuchAttribute):
        await vfs.getxattr(directory, "user.secretfs.metadata.other")


async def test_idle_versions_leave_memory(
    vfs: RecordingVFS, vault: VersionedMemoryStore, mock_clock: MockClock
) -> None:
    await cat(vfs, "vault/db/..versions/1/password")
    view = vfs._contents.view("vault")
    mock_clock.autojump_threshold = 0
    await trio.sleep(IDLE / 2 + 1)
    (file,) = vfs.changes.idle("vault")
    assert isinstance(file.key, VersionValueKey)
    segment, directory = vfs.changes.place(file.key)
    assert (segment, vfs.changes.path(directory)) == (b"password", b"vault/db/..versions/1")
    assert [name for _, name in vfs.changes.way(directory)] == [b"vault", b"db", b"..versions", b"1"]
    await trio.sleep(IDLE)
    assert isinstance(view._store, CachedStore)
    assert len(view._store.versions.answers) == 0


async def test_a_refresh_asks_for_versions_again(vfs: RecordingVFS, vault: VersionedMemoryStore) -> None:
    view = vfs._contents.view("vault")
    path = (b"db", b"..versions")
    await cat(vfs, "vault/db/..versions/1/password")
    for refreshed in (path, (*path, b"1"), (*path, b"1", b"password"), (b"db",), ()):
        before = fetches(vault)["db, version 1"]
        await view.refresh(cast("tuple[bytes, ...]", refreshed))
        await cat(vfs, "vault/db/..versions/1/password")
        assert fetches(vault)["db, version 1"] == before + 1
    for missing in ((*path, b"1", b"nope"), (*path, b"7"), (*path, b"1", b"password", b"x")):
        with pytest.raises((NoSuchEntry, SecretNotFound)):
            await view.refresh(missing)


@pytest.mark.parametrize(
    "key",
    [VersionsKey("vault", "a/b"), VersionKey("app/vault", "db", "3"), VersionValueKey("vault", "db", "3", "päss")],
)
def test_the_journal_has_their_places(key: VersionsKey | VersionKey | VersionValueKey) -> None:
    assert key_from_text(key_to_text(key)) == key
