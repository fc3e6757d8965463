"""What places are called in the audit log."""

import pytest
import trio
from trio.testing import MockClock

from secretfs.cache.change import Change
from secretfs.cache.freshness import Freshness
from secretfs.fs.attributes import PermissionPolicy
from secretfs.fs.descriptions import CONTROL_FILES
from secretfs.fs.inodes import ROOT_INODE
from secretfs.fs.keys import Control
from secretfs.fs.names import CONTROL
from secretfs.fs.vfs import SecretVFS
from secretfs.fs.view import StoreView
from secretfs.scopes import ALLOW_ALL
from tests.support.at_once import AtOnce
from tests.support.canary import secret
from tests.support.memory_store import MemoryStore

VAULT = {"app": "web", "component": "vault"}


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore({"team/db": {"password": secret("1").encode()}})


@pytest.fixture
def vfs(store: MemoryStore, nursery: trio.Nursery, mock_clock: MockClock) -> SecretVFS:
    return vfs_of(store, nursery)


def vfs_of(store: MemoryStore, nursery: trio.Nursery, *apps: str) -> SecretVFS:
    cached = AtOnce("vault", store, Freshness(ttl=60), nursery)
    views = {
        f"{app}/vault" if app else "vault": StoreView(cached, ALLOW_ALL, f"{app}/vault" if app else "")
        for app in apps or ("",)
    }
    return SecretVFS(views, PermissionPolicy(), nursery, "" if apps else "web", apps=apps or None)


async def at(vfs: SecretVFS, *path: bytes) -> int:
    """Look a path up, down to its attributes. Returns the inode number."""
    number = ROOT_INODE
    for segment in path:
        number = (await vfs.lookup(number, segment)).inode
        await vfs.getattr(number)
    return number


async def test_a_value_has_the_name_and_the_version_of_its_secret(vfs: SecretVFS) -> None:
    number = await at(vfs, b"vault", b"team", b"db", b"password")
    fields = {**VAULT, "secret": "team/db", "key": "password", "version": "1", "inode": number}
    assert vfs.descriptions.opened(number) == ("open", fields)


async def test_each_version_keeps_its_name(vfs: SecretVFS, store: MemoryStore, mock_clock: MockClock) -> None:
    path = (b"vault", b"team", b"db", b"password")
    first = await at(vfs, *path)
    store.put("team/db", {"password": secret("2").encode()})
    mock_clock.jump(61)
    second = await at(vfs, *path)
    versions = []
    for number in (first, second):
        described = vfs.descriptions.opened(number)
        assert described is not None
        versions.append(described[1]["version"])
    assert (first != second, versions) == (True, ["1", "2"])


async def test_an_equal_value_of_another_version_has_the_newest_name(
    vfs: SecretVFS, store: MemoryStore, mock_clock: MockClock
) -> None:
    path = (b"vault", b"team", b"db", b"password")
    first = await at(vfs, *path)
    store.put("team/db", {"password": secret("1").encode()})
    mock_clock.jump(61)
    assert await at(vfs, *path) == first
    described = vfs.descriptions.opened(first)
    assert described is not None
    assert described[1]["version"] == "2"


async def test_what_is_pinned_is_of_its_secret(vfs: SecretVFS) -> None:
    number = await at(vfs, b"vault", b"team", b"db", b"..data", b"password")
    described = vfs.descriptions.opened(number)
    assert described is not None
    assert described[1] == {**VAULT, "secret": "team/db", "key": "password", "version": "1", "inode": number}


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ([b"vault", b".bulk.json"], {**VAULT, "file": ".bulk.json", "version": ""}),
        (
            [b"vault", b"team", b"db", b".bulk.env"],
            {**VAULT, "secret": "team/db", "file": ".bulk.env", "version": "1"},
        ),
    ],
)
async def test_bulk_files_are_an_event_of_their_own(vfs: SecretVFS, path: list[bytes], fields: dict[str, str]) -> None:
    number = await at(vfs, *path)
    assert vfs.descriptions.opened(number) == ("bulk", {**fields, "inode": number})


async def test_control_files_have_their_path(vfs: SecretVFS) -> None:
    status, refresh = await at(vfs, CONTROL, b"status.json"), await at(vfs, CONTROL, b"refresh")
    assert vfs.descriptions.opened(status) == ("control", {"file": ".secretfs/status.json"})
    assert vfs.descriptions.requested(refresh, b"vault/team\n\n") == {
        "file": ".secretfs/refresh",
        "paths": ["vault/team", "*"],
    }


async def test_a_name_that_is_not_there_is_below_its_store(vfs: SecretVFS) -> None:
    asked_for = vfs.descriptions.asked_for
    assert asked_for(ROOT_INODE, b"other") == {"app": "web", "path": "other"}
    assert asked_for(await at(vfs, b"vault"), b"100%25") == {**VAULT, "path": "100%"}
    assert asked_for(await at(vfs, b"vault", b"team"), b"x") == {**VAULT, "path": "team/x"}
    assert asked_for(await at(vfs, b"vault", b"team", b"db"), b"x") == {**VAULT, "path": "team/db/x"}
    assert asked_for(await at(vfs, b"vault", b"team", b"db", b"..data"), b"x") == {**VAULT, "path": "team/db/..data/x"}
    assert asked_for(await at(vfs, CONTROL), b"x") == {"path": ".secretfs/x"}
    value = await at(vfs, b"vault", b"team", b"db", b"password")
    assert asked_for(value) == {**VAULT, "secret": "team/db", "key": "password"}
    assert asked_for(await at(vfs, b"vault", b"team")) == {**VAULT, "path": "team"}


async def test_what_is_not_known_any_more_has_no_name(vfs: SecretVFS) -> None:
    assert vfs.descriptions.opened(4711) is None
    assert vfs.descriptions.opened(ROOT_INODE) is None
    assert vfs.descriptions.asked_for(4711, b"x") == {}


async def test_an_app_of_many_is_named(store: MemoryStore, nursery: trio.Nursery, mock_clock: MockClock) -> None:
    vfs = vfs_of(store, nursery, "web", "mail")
    number = await at(vfs, b"mail", b"vault", b"team", b"db", b"password")
    described = vfs.descriptions.opened(number)
    assert described is not None
    assert described[1].items() >= {"app": "mail", "component": "vault", "secret": "team/db"}.items()
    assert vfs.descriptions.asked_for(await at(vfs, b"mail"), b"x") == {"app": "mail", "path": "x"}


async def test_a_rotation_has_the_keys_that_are_different(vfs: SecretVFS) -> None:
    await at(vfs, b"vault", b"team", b"db", b"password")
    change = Change("vault", values=frozenset({("team/db", "b"), ("team/db", "a"), ("gone", "x")}))
    assert list(vfs.descriptions.rotated(change)) == [
        {**VAULT, "secret": "gone", "keys": ["x"]},
        {**VAULT, "secret": "team/db", "keys": ["a", "b"], "version": "1"},
    ]
    assert list(vfs.descriptions.rotated(Change("vault", whole=True))) == []


def test_every_control_file_has_a_path() -> None:
    assert CONTROL_FILES.keys() == set(Control)
