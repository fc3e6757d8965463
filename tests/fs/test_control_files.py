"""The control directory without a kernel: what status.json says, and what a write to refresh does."""

import json
import os
import stat
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from secretfs.cache.change import Announce, Change
from secretfs.cache.freshness import Freshness
from secretfs.cache.health import FAILURES
from secretfs.errors import (
    AccessDenied,
    DeadlineExceeded,
    NoSuchEntry,
    ReadOnly,
    SecretNotFound,
    StoreUnavailable,
    TooLarge,
)
from secretfs.fs.attributes import Attributes, PermissionPolicy
from secretfs.fs.control_files import LARGEST_REQUEST, parse_request
from secretfs.fs.inodes import ROOT_INODE
from secretfs.fs.vfs import SecretVFS
from secretfs.fs.view import StoreView
from secretfs.scopes import ALLOW_ALL, Access, SecretScope
from tests.conftest import ExpectLog
from tests.support.cached import Cached
from tests.support.canary import leaked
from tests.support.canary import secret as canary
from tests.support.memory_store import MemoryStore
from tests.support.recording_vfs import RecordingVFS
from tests.support.until import until

Make = Callable[..., RecordingVFS]

OWNER, GROUP = 4711, 4712
OLD, NEW = canary("old").encode(), canary("new").encode()


@pytest.fixture
def vault() -> MemoryStore:
    return MemoryStore({"db": {"user": OLD, "password": OLD}, "team/api": {"key": OLD}}, folders=True)


@pytest.fixture
def make(nursery: trio.Nursery, mock_clock: MockClock) -> Make:
    def make_vfs(scope: SecretScope = ALLOW_ALL, **stores: MemoryStore) -> RecordingVFS:
        def views(announce: Announce) -> Mapping[str, StoreView]:
            freshness = Freshness(ttl=3600, deadline=5)
            caches = {
                name: Cached(name, store, freshness, nursery, "memory", announce=announce)
                for name, store in stores.items()
            }
            for cached in caches.values():
                nursery.start_soon(cached.keep_fresh)
            return {name: StoreView(cached, scope) for name, cached in caches.items()}

        return RecordingVFS(views, PermissionPolicy(0o444, OWNER, GROUP), nursery, "shop")

    return make_vfs


@pytest.fixture
def vfs(make: Make, vault: MemoryStore) -> RecordingVFS:
    return make(vault=vault)


async def walk(vfs: SecretVFS, path: str) -> Attributes:
    inode = ROOT_INODE
    attributes = await vfs.getattr(inode)
    for segment in path.split("/"):
        attributes = await vfs.lookup(inode, segment.encode())
        inode = attributes.inode
    return attributes


async def cat(vfs: RecordingVFS, path: str) -> bytes:
    handle = await vfs.open((await walk(vfs, path)).inode)
    content = await vfs.read(handle, 0, 1 << 20)
    assert (await vfs.getattr(handle)).size == len(content)
    return content


async def refresh(vfs: RecordingVFS, text: bytes) -> None:
    handle = await vfs.open((await walk(vfs, ".secretfs/refresh")).inode)
    await vfs.write(handle, text)


async def status(vfs: RecordingVFS) -> dict[str, Any]:
    text = (await cat(vfs, ".secretfs/status.json")).decode()
    assert not leaked(text)
    told: dict[str, Any] = json.loads(text)
    return told


async def of_vault(vfs: RecordingVFS) -> dict[str, Any]:
    store: dict[str, Any] = (await status(vfs))["stores"]["vault"]
    return store


class TestThePlace:
    async def test_is_reachable_at_the_root_and_never_listed(self, vfs: RecordingVFS) -> None:
        handle = await vfs.open_directory(ROOT_INODE)
        assert [segment for _, segment, _ in await vfs.read_directory(handle, 0)] == [b"vault"]
        handle = await vfs.open_directory((await walk(vfs, ".secretfs")).inode)
        assert [segment for _, segment, _ in await vfs.read_directory(handle, 0)] == [
            b"refresh",
            b"reload",
            b"status.json",
        ]

    @pytest.mark.parametrize("path", [".secretfs-x", ".secretfs/x", "vault/.secretfs", "vault/db/.secretfs"])
    async def test_is_nowhere_else(self, vfs: RecordingVFS, path: str) -> None:
        with pytest.raises(NoSuchEntry):
            await walk(vfs, path)

    async def test_has_modes_and_an_owner_of_its_own(self, vfs: RecordingVFS) -> None:
        for path, mode in ((".secretfs", 0o500), (".secretfs/status.json", 0o400), (".secretfs/refresh", 0o200)):
            attributes = await walk(vfs, path)
            assert (stat.S_IMODE(attributes.mode), attributes.uid, attributes.gid) == (mode, os.getuid(), os.getgid())
            assert await vfs.getattr(attributes.inode) == attributes._replace(entry_timeout=0.0)
        directory = await walk(vfs, "vault")
        assert (directory.uid, directory.gid) == (OWNER, GROUP)

    async def test_costs_the_store_nothing(self, vfs: RecordingVFS, vault: MemoryStore) -> None:
        await status(vfs)
        assert not vault.calls


class TestInAReadOnlyMount:
    @pytest.fixture
    def vfs(self, nursery: trio.Nursery, vault: MemoryStore) -> SecretVFS:
        views = {"vault": StoreView(Cached("vault", vault, Freshness(), nursery), ALLOW_ALL)}
        return SecretVFS(views, PermissionPolicy(), nursery, read_only=True)

    async def test_links_have_the_names_of_what_takes_requests(self, vfs: SecretVFS) -> None:
        handle = await vfs.open_directory((await walk(vfs, ".secretfs")).inode)
        listed = {segment: attributes for _, segment, attributes in await vfs.read_directory(handle, 0)}
        assert list(listed) == [b"refresh", b"reload", b"status.json"]
        assert [stat.filemode(attributes.mode)[0] for attributes in listed.values()] == ["l", "l", "-"]
        for name in (b"refresh", b"reload"):
            link = await walk(vfs, f".secretfs/{name.decode()}")
            assert (link.inode, stat.S_IMODE(link.mode)) == (listed[name].inode, 0o200)
            assert await vfs.getattr(link.inode) == link
            assert vfs.link_target(link.inode) == b"." + name
            assert not vfs.takes_requests(link.inode)

    async def test_the_requests_are_taken_where_they_lead_to(self, vfs: SecretVFS, vault: MemoryStore) -> None:
        first, second = await walk(vfs, ".secretfs/.refresh"), await walk(vfs, ".secretfs/.refresh")
        assert stat.S_ISREG(first.mode)
        assert first.inode != second.inode  # the kernel sends one write at a time for an inode
        await vfs.write(await vfs.open(first.inode), b"vault")
        assert vault.calls["names:"] == 1
        with pytest.raises(NoSuchEntry):
            vfs.link_target(first.inode)

    async def test_in_any_other_mount_there_are_no_others(self, make: Make, vault: MemoryStore) -> None:
        with pytest.raises(NoSuchEntry):
            await walk(make(vault=vault), ".secretfs/.refresh")


class TestStatus:
    async def test_of_the_mount(self, vfs: RecordingVFS) -> None:
        await cat(vfs, "vault/db/user")
        mount = (await status(vfs))["mount"]
        assert (mount["app_id"], mount["inodes"]) == ("shop", 4)

    async def test_of_a_store(self, vfs: RecordingVFS) -> None:
        await cat(vfs, "vault/db/user")
        store = await of_vault(vfs)
        assert store.pop("last_success") is not None
        assert store == {
            "type": "memory",
            "state": "ok",
            "last_error": None,
            "names": 1,
            "cached_values": 2,
            "stale_values": 0,
            "breaker": {"open": False, "next_try": None},
            "readers": {"hits": 0, "waits": 1, "waiting": 0},
            "rotations": {"values": 0, "last": None},
            "calls": {
                "check": {"made": 0, "failed": 0},
                "compare": {"made": 0, "failed": 0},
                "names": {"made": 1, "failed": 0},
                "fetch": {"made": 1, "failed": 0},
            },
        }

    async def test_stays_the_same_file_while_nothing_happens(self, vfs: RecordingVFS) -> None:
        await cat(vfs, "vault/db/user")
        first = await walk(vfs, ".secretfs/status.json")
        await cat(vfs, ".secretfs/status.json")
        assert await walk(vfs, ".secretfs/status.json") == first

    async def test_that_is_open_keeps_its_version(self, vfs: RecordingVFS) -> None:
        handle = await vfs.open((await walk(vfs, ".secretfs/status.json")).inode)
        before = await vfs.read(handle, 0, 1 << 20)
        await cat(vfs, "vault/db/user")
        assert await cat(vfs, ".secretfs/status.json") != before
        assert await vfs.read(handle, 0, 1 << 20) == before
        assert (await vfs.getattr(handle)).size == len(before)

    async def test_leaves_nothing_behind(self, vfs: RecordingVFS) -> None:
        before = len(vfs._tree)
        directory = (await walk(vfs, ".secretfs")).inode
        for name in ("status.json", "refresh"):
            seen = []
            for _ in range(5):
                attributes = await vfs.lookup(directory, name.encode())
                seen.append(attributes.inode)
                await vfs.open(attributes.inode)
            for inode in seen:
                vfs.forget(inode, 1)
        vfs.forget(directory, 1)
        assert len(vfs._tree) == before

    async def test_of_an_outage_and_of_the_recovery(
        self, vfs: RecordingVFS, vault: MemoryStore, expect_log: ExpectLog, mock_clock: MockClock
    ) -> None:
        expect_log("vault: connection refused")
        await cat(vfs, "vault/db/user")
        vault.fail_with = StoreUnavailable("connection refused")
        with pytest.raises(StoreUnavailable):
            await refresh(vfs, b"vault/db")
        store = await of_vault(vfs)
        assert (store["state"], store["stale_values"], store["breaker"]["open"]) == ("in doubt", 2, False)
        assert store["last_error"]["class"] == "StoreUnavailable"
        for _ in range(FAILURES - 1):
            with pytest.raises(StoreUnavailable):
                await refresh(vfs, b"vault/db")
        await until(lambda: vault.calls["check"] == 1 and not vault.running)
        await wait_all_tasks_blocked(0.01)
        store = await of_vault(vfs)
        assert (store["state"], store["breaker"]["open"]) == ("down", True)
        assert store["last_error"]["message"] == "connection refused"  # of the probe, which asks for no secret
        assert store["breaker"]["next_try"] is not None
        vault.fail_with = None
        await refresh(vfs, b"vault/db")
        store = await of_vault(vfs)
        assert (store["state"], store["stale_values"], store["breaker"]["next_try"]) == ("ok", 0, None)
        assert store["calls"]["fetch"] == {"made": 2 + FAILURES, "failed": FAILURES}
        assert store["last_error"] is not None

    async def test_of_a_refusal(self, vfs: RecordingVFS, vault: MemoryStore, expect_log: ExpectLog) -> None:
        expect_log("not for you")

        class OwnRefusal(AccessDenied):
            """What a store may raise, and nobody who reads a status knows."""

        vault.refused["fetch:db"] = OwnRefusal("secret db: not for you")
        with pytest.raises(AccessDenied):
            await refresh(vfs, b"vault/db")
        store = await of_vault(vfs)
        assert (store["state"], store["last_error"]["class"]) == ("refused", "AccessDenied")
        assert store["last_error"]["message"] == AccessDenied.meaning

    async def test_counts_nothing_that_the_scope_hides(self, make: Make, vault: MemoryStore) -> None:
        vault.folders = False
        vfs = make(SecretScope("vault", Access.DENY, frozenset({"db"})), vault=vault)
        await cat(vfs, "vault/db/user")
        assert (await of_vault(vfs))["names"] == 1


class TestRefresh:
    @pytest.mark.parametrize("path", ["vault", "vault/db", "/vault/db/", "vault/db/password", "*", "", "/"])
    async def test_shows_a_rotation_and_tells_of_it(self, vfs: RecordingVFS, vault: MemoryStore, path: str) -> None:
        await cat(vfs, "vault/db/password")
        vault.put("db", {"user": OLD, "password": NEW})
        assert await cat(vfs, "vault/db/password") == OLD
        await refresh(vfs, path.encode() + b"\n")
        assert await cat(vfs, "vault/db/password") == NEW
        await wait_all_tasks_blocked()
        assert vfs.announced == [Change("vault", values=frozenset({("db", "password")}))]
        assert vault.calls["fetch:db"] == 2

    async def test_of_a_folder_is_of_what_is_known_in_it(self, vfs: RecordingVFS, vault: MemoryStore) -> None:
        await cat(vfs, "vault/team/api/key")
        await cat(vfs, "vault/db/user")
        vault.put("team/more", {"key": NEW})
        vault.put("team/api", {"key": NEW})
        await refresh(vfs, b"vault/team")
        assert await cat(vfs, "vault/team/api/key") == NEW
        assert await cat(vfs, "vault/team/more/key") == NEW
        assert vault.calls["fetch:db"] == 1

    async def test_finds_what_is_new(self, vfs: RecordingVFS, vault: MemoryStore) -> None:
        await walk(vfs, "vault/db")
        vault.put("added", {"key": NEW})
        with pytest.raises(NoSuchEntry):
            await walk(vfs, "vault/added")
        await refresh(vfs, b"vault/added")
        assert await cat(vfs, "vault/added/key") == NEW

    async def test_of_what_is_gone_is_enoent_and_it_is_gone(self, vfs: RecordingVFS, vault: MemoryStore) -> None:
        await cat(vfs, "vault/db/user")
        vault.delete("db")
        with pytest.raises(SecretNotFound):
            await refresh(vfs, b"vault/db")
        with pytest.raises(NoSuchEntry):
            await walk(vfs, "vault/db")

    @pytest.mark.parametrize(
        "path", ["nope", "vault/nope", "vault/db/nope", "vault/db/user/x", "vault/..", ".secretfs", "\x00", "vault/%zz"]
    )
    async def test_of_what_is_not_there(self, vfs: RecordingVFS, path: str) -> None:
        with pytest.raises((NoSuchEntry, SecretNotFound)):
            await refresh(vfs, path.encode())

    async def test_of_what_is_hidden_asks_nobody(self, make: Make, vault: MemoryStore) -> None:
        vfs = make(SecretScope("vault", denied_secrets=frozenset({"db"})), vault=vault)
        with pytest.raises(NoSuchEntry):
            await refresh(vfs, b"vault/db")
        assert not vault.calls["fetch:db"]

    async def test_of_a_store_nobody_has_looked_at_asks_it_all_the_same(
        self, vfs: RecordingVFS, vault: MemoryStore, expect_log: ExpectLog
    ) -> None:
        await refresh(vfs, b"vault")
        assert vault.calls == {"names:": 1}
        expect_log("vault: down")
        vault.fail_with = StoreUnavailable("down")
        with pytest.raises(StoreUnavailable):
            await refresh(vfs, b"vault")

    async def test_does_every_line_and_raises_the_first_error(self, make: Make, vault: MemoryStore) -> None:
        env = MemoryStore.single(TOKEN=OLD)
        vfs = make(vault=vault, env=env)
        assert await cat(vfs, "env/TOKEN") == OLD
        env.put("TOKEN", {"TOKEN": NEW})
        with pytest.raises(NoSuchEntry):
            await refresh(vfs, b"vault/nope\nenv/TOKEN/x\nenv/TOKEN\nenv/TOKEN\n")
        assert await cat(vfs, "env/TOKEN") == NEW
        assert env.calls["fetch:TOKEN"] == 2

    async def test_waits_for_a_store_that_hangs_no_longer_than_its_deadline(
        self, make: Make, vault: MemoryStore, expect_log: ExpectLog, mock_clock: MockClock
    ) -> None:
        expect_log("vault: no answer within 5s")
        env = MemoryStore.single(TOKEN=OLD)
        vfs = make(vault=vault, env=env)
        for path in ("env/TOKEN", "vault/db/user", "vault/team/api/key"):
            await cat(vfs, path)
        env.put("TOKEN", {"TOKEN": NEW})
        vault.gate.clear()
        mock_clock.autojump_threshold = 0.01
        begin = trio.current_time()
        with pytest.raises(DeadlineExceeded):
            await refresh(vfs, b"\n")
        assert trio.current_time() - begin == pytest.approx(5)
        assert await cat(vfs, "env/TOKEN") == NEW
        assert await cat(vfs, "vault/db/user") == OLD
        vault.gate.set()

    async def test_takes_so_much_and_no_more(self, vfs: RecordingVFS) -> None:
        await refresh(vfs, b"vault\n" * (LARGEST_REQUEST // 6))
        with pytest.raises(TooLarge):
            await refresh(vfs, b"vault\n" * (LARGEST_REQUEST // 6 + 1))

    async def test_is_another_inode_for_everybody(self, vfs: RecordingVFS) -> None:
        first, second = await walk(vfs, ".secretfs/refresh"), await walk(vfs, ".secretfs/refresh")
        assert first.inode != second.inode
        for attributes in (first, second):
            await vfs.open(attributes.inode)

    async def test_is_the_only_file_that_takes_a_write(self, vfs: RecordingVFS) -> None:
        handle = await vfs.open((await walk(vfs, "vault/db/user")).inode)
        with pytest.raises(ReadOnly):
            await vfs.write(handle, b"vault")
        assert not vfs.takes_requests((await walk(vfs, ".secretfs/status.json")).inode)


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        (b"vault\n", [(b"vault",)]),
        (b"vault/db", [(b"vault", b"db")]),
        (b"\n", [()]),
        (b"*", [()]),
        (b" * \n/a//b/\na/b\n", [(), (b"a", b"b")]),
    ],
)
def test_a_request_is_lines_of_paths(text: bytes, paths: list[tuple[bytes, ...]]) -> None:
    assert parse_request(text) == paths
