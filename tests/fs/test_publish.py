"""Publishing without a kernel: what is granted to whom, and which system calls a change leads to.

`FakeKernel` plays the kernel's part: it keeps entries and counts references as the real one does, and asks for what it
does not know in the course of a system call. That the real one does the same is up to the tests in ``behaviour``.
"""

import errno
import logging
import math
import os
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from stat import S_ISDIR
from typing import cast

import pytest
import trio
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from secretfs.cache.change import Announce, Change, discard
from secretfs.cache.freshness import Freshness
from secretfs.cache.store_cache import CachedStore
from secretfs.errors import AccessDenied, NoSuchEntry, ReadOnly, SecretFSError, SecretNotFound, StoreUnavailable
from secretfs.fs.attributes import Attributes, PermissionPolicy
from secretfs.fs.caller import Caller
from secretfs.fs.change_queue import BACKLOG
from secretfs.fs.content import Content
from secretfs.fs.inode import Directory, Version
from secretfs.fs.inodes import ROOT_INODE, Tree
from secretfs.fs.journal import Journal
from secretfs.fs.keys import FolderKey, ValueKey
from secretfs.fs.names import CONTROL, DATA, encode, is_reserved, split
from secretfs.fs.pending_syscall import Call, PendingSyscall
from secretfs.fs.publish import Publisher
from secretfs.fs.vfs import SecretVFS
from secretfs.fs.view import StoreView
from secretfs.linux.syscall_helper import SyscallHelper
from secretfs.scopes import ALLOW_ALL, SecretScope
from tests.conftest import ExpectLog
from tests.support.at_once import AtOnce, tell
from tests.support.canary import secret as canary
from tests.support.memory_store import IssuingMemoryStore, WatchingMemoryStore
from tests.support.recording_vfs import RecordingKernel
from tests.support.work import counted

OLD, NEW = canary("old").encode(), canary("new").encode()


class Failed(Exception):
    """A system call that fails."""


class FakeHelper:
    """A `SyscallHelper` in this process."""

    pid = 4711

    def __init__(self) -> None:
        self.under_way: Callable[[], object] = lambda: None

    async def call(self, name: str, *paths: bytes, device: int | None = None) -> None:
        self.under_way()
        getattr(os, name)(*paths)


class FakeKernel(Publisher):
    """A `Publisher` whose system calls go to a kernel that is played here."""

    def __init__(
        self,
        vfs: SecretVFS,
        announced: trio.MemoryReceiveChannel[Change],
        woken: Sequence[bytes],
        *,
        forgetful: bool = False,
    ) -> None:
        self._vfs = vfs
        super().__init__(vfs, Path("/nowhere"), cast("SyscallHelper", FakeHelper()), announced, self._count)
        self.woken = woken
        self.deaf = False
        """Whether what is announced is not heard."""
        self.told = 0
        """How often it was said that something has changed."""
        self.calls: list[tuple[Call, str]] = []
        self.grants: list[PendingSyscall] = []
        self.failures: list[Call] = []
        """System calls that were made and came to nothing."""
        self.before_call: Callable[[], Awaitable[None]] | None = None
        """Something that happens between the decision to call and the call."""
        self.entries: dict[int, dict[bytes, int]] = {}
        """What it knows of each directory."""
        self.listed: set[int] = set()
        """The directories of which it knows everything."""
        self.references: Counter[int] = Counter()
        self.pinned: set[int] = set()
        """What somebody holds on to: a file that is open, somebody's working directory."""
        self.directories = {ROOT_INODE}
        self.dead: set[int] = set()
        self._forgetful = forgetful

    def enqueue(self, change: Change) -> None:
        if not self.deaf:
            super().enqueue(change)

    def _count(self) -> None:
        self.told += 1

    async def look_up(self, parent: int, segment: bytes) -> int:
        """Ask for a name, on behalf of a thread of ours."""
        attributes = self.lookup(parent, segment) or await self._vfs.lookup(parent, segment)
        return self.take(parent, segment, attributes)

    def take(self, parent: int, segment: bytes, attributes: Attributes) -> int:
        """Enter what was found. A directory has one place: found at another, it has moved."""
        inode = attributes.inode
        assert parent not in self.dead
        assert inode not in self.dead, "no inode that was deleted can come back to life"
        self.references[inode] += 1
        if S_ISDIR(attributes.mode):
            self.directories.add(inode)
            for entries in self.entries.values():
                for other in [other for other, number in entries.items() if number == inode]:
                    del entries[other]
        before = self.entries.setdefault(parent, {}).get(segment)
        self.entries[parent][segment] = inode
        if before not in (None, inode):
            self.drop(before)
        return inode

    def drop(self, inode: int | None) -> None:
        """Forget what has no entry any more, with all that is below, unless somebody holds on to it."""
        if inode is None or any(inode in entries.values() for entries in self.entries.values()):
            return
        for child in self.entries.pop(inode, {}).values():
            self.drop(child)
        self.listed.discard(inode)
        if inode not in self.pinned and (references := self.references.pop(inode, 0)):
            self._vfs.forget(inode, references)

    def forget_everything(self) -> None:
        """Have no memory left."""
        self.pinned.clear()
        self.entries.clear()
        for inode, references in self.references.items():
            self._vfs.forget(inode, references)
        self.references.clear()

    async def find(self, parent: int, segment: bytes) -> int | None:
        """Find an entry, known or asked for."""
        known = self.entries.get(parent, {}).get(segment)
        if known is not None and not self._forgetful:
            return known
        try:
            return await self.look_up(parent, segment)
        except (NoSuchEntry, SecretNotFound):
            if known is not None:
                del self.entries[parent][segment]
                self.drop(known)
            return None

    async def find_anew(self, parent: int, segment: bytes) -> int | None:
        """Ask for an entry, known or not, as Linux does for what is about to be replaced (LOOKUP_RENAME_TARGET)."""
        try:
            return await self.look_up(parent, segment)
        except NoSuchEntry:
            self.drop(self.entries[parent].pop(segment, None))
            return None

    async def walk(self, path: str) -> int:
        """Find a path, as all system calls do."""
        inode = ROOT_INODE
        for segment in filter(None, path.split("/")):
            if inode not in self.directories:
                raise Failed(path)
            found = await self.find(inode, segment.encode())
            if found is None:
                raise Failed(path)
            inode = found
        return inode

    async def ls(self, path: str = "") -> int:
        """List a directory, as a reader does; returns its inode."""
        inode = await self.walk(path)
        handle = await self._vfs.open_directory(inode)
        for _, segment, attributes in await self._vfs.read_directory(handle, 0):
            self.take(inode, segment, attributes)
        self._vfs.close_directory(handle)
        self.listed.add(inode)
        return inode

    async def tree(self, path: str = "") -> None:
        """List everything."""
        inode = await self.ls(path)
        for segment, child in list(self.entries.get(inode, {}).items()):
            if child in self.directories:
                await self.tree(f"{path}/{segment.decode()}")

    async def open(self, path: str) -> int:
        """Open a file."""
        inode = await self._vfs.open(await self.walk(path))
        self.pinned.add(inode)
        return inode

    async def cat(self, path: str) -> bytes:
        """Open, read and close."""
        handle = await self.open(path)
        content = await self._vfs.read(handle, 0, 1 << 20)
        await self.close(handle)
        return content

    async def close(self, inode: int) -> None:
        """Close it."""
        self.pinned.discard(inode)
        self.drop(inode)

    async def _call(self, grant: PendingSyscall, directory: bytes) -> None:
        if self.before_call is not None:
            await self.before_call()
        self.grant = grant
        self.grants.append(grant)
        self.calls.append((grant.call, (directory + b"/" + grant.segment).decode()))
        try:
            await self._play(grant, await self.walk(directory.decode()))
        except (Failed, SecretFSError):
            self.failures.append(grant.call)
        finally:
            self.grant = None

    async def _play(self, grant: PendingSyscall, parent: int) -> None:
        if parent not in self.directories:
            raise Failed("not a directory")
        entries = self.entries.setdefault(parent, {})
        segment = grant.segment
        if grant.call is Call.RENAME:
            pending = await self.look_up(parent, grant.pending)
            before = await self.find_anew(parent, segment)
            try:
                if before in self.directories:
                    raise Failed("is a directory")
                self.rename(parent, grant.pending, parent, segment)
                entries[segment] = pending
            finally:
                del entries[grant.pending]
                self.drop(before)
                self.drop(pending)
            return
        if grant.call is Call.EVICT:
            await self.find_anew(parent, segment)
            return
        if grant.call is Call.FIND:
            await self.look_up(parent, segment)
            return
        # An entry of this name is valid for 0 s, so the kernel does not take it for granted.
        found = await (self.find_anew if segment == DATA else self.find)(parent, segment)
        if grant.call is Call.MKDIR:
            if found is not None:
                raise Failed("exists")
            self.take(parent, segment, self.mkdir(parent, segment))
            return
        if found is None or (found in self.directories) is not (grant.call is Call.RMDIR):
            raise Failed("another kind of file")
        self.remove(grant.call, parent, segment)
        del entries[segment]
        if grant.call is Call.RMDIR:
            self.dead.add(found)
        self.drop(found)


StoreSet = Mapping[str, WatchingMemoryStore]


def make_vfs(
    stores: StoreSet,
    nursery: trio.Nursery,
    scope: SecretScope = ALLOW_ALL,
    announce: Announce = discard,
    woken: list[bytes] | None = None,
) -> SecretVFS:
    caches = {name: AtOnce(name, store, Freshness(), nursery, announce=announce) for name, store in stores.items()}
    views = {name: StoreView(cached, scope) for name, cached in caches.items()}
    return SecretVFS(views, PermissionPolicy(), nursery, kernel=RecordingKernel([] if woken is None else woken))


@asynccontextmanager
async def fake_kernel(
    stores: StoreSet, *, forgetful: bool = False, scope: SecretScope = ALLOW_ALL
) -> AsyncIterator[FakeKernel]:
    """Publish to a `FakeKernel` what changes."""
    async with trio.open_nursery() as nursery:
        announce, announced = trio.open_memory_channel[Change](math.inf)
        woken: list[bytes] = []
        vfs = make_vfs(stores, nursery, scope, announce.send_nowait, woken)
        kernel = FakeKernel(vfs, announced, woken, forgetful=forgetful)
        nursery.start_soon(kernel.run)
        yield kernel
        await wait_all_tasks_blocked()
        kernel.forget_everything()
        assert len(kernel._vfs._tree) == 1, "something stays in the tree"
        assert kernel.grant is None
        nursery.cancel_scope.cancel()


@pytest.fixture
def vault() -> WatchingMemoryStore:
    return WatchingMemoryStore(
        {
            "db": {"user": b"joe", "password": OLD},
            "team/api": {"key": OLD, "a/b%": OLD},
            "team/deep/er": {"key": OLD},
        },
        folders=True,
    )


@pytest.fixture
def env() -> WatchingMemoryStore:
    names = ("TOKEN", "OTHER", "team/prod/TOKEN", "100%/a//b", ".bulk.json")
    return WatchingMemoryStore({name: {name: OLD} for name in names}, multi_valued=False)


@pytest.fixture
async def kernel(
    vault: WatchingMemoryStore, env: WatchingMemoryStore, mock_clock: MockClock
) -> AsyncIterator[FakeKernel]:
    async with fake_kernel({"vault": vault, "env": env}) as kernel:
        yield kernel


async def put(store: WatchingMemoryStore, name: str, **values: bytes) -> None:
    """Write a secret, single-valued without ``values``, and have that published."""
    store.put(name, values or {name: NEW})
    await tell(store, name)


async def delete(store: WatchingMemoryStore, name: str) -> None:
    """Delete a secret, and have that published."""
    store.delete(name)
    await tell(store, name)


class TestGrants:
    """A call of ours may do what it was made for, and nothing else."""

    PENDING = CONTROL + b"-pending"

    @pytest.fixture
    async def granted(self, kernel: FakeKernel) -> AsyncIterator[Callable[[Call], PendingSyscall]]:
        parent = await kernel.ls("env")
        await kernel.walk("vault")

        def grant(call: Call) -> PendingSyscall:
            inode: Directory | Version
            if call in (Call.MKDIR, Call.RMDIR):
                inode = kernel._vfs._tree.directory(FolderKey("env", ("team",)))
            else:
                inode = kernel._vfs._tree.successor(ValueKey("env", "TOKEN", "TOKEN"))
            kernel._vfs.changes.entry_of(inode)
            kernel.references[inode.number] += 1
            kernel.grant = PendingSyscall(call, parent, b"name", inode, self.PENDING if call is Call.RENAME else b"")
            return kernel.grant

        yield grant
        kernel.grant = None

    def ask(self, kernel: FakeKernel, call: Call, parent: int, segment: bytes, pending: bytes) -> None:
        match call:
            case Call.RENAME:
                kernel.rename(parent, pending, parent, segment)
            case Call.MKDIR:
                kernel.references[kernel.mkdir(parent, segment).inode] += 1
            case _:
                kernel.remove(call, parent, segment)

    @pytest.mark.parametrize("call", Call)
    async def test_nothing_without_a_call(self, kernel: FakeKernel, call: Call) -> None:
        kernel.grant = None
        with pytest.raises(ReadOnly):
            self.ask(kernel, call, ROOT_INODE, b"name", self.PENDING)
        assert kernel.lookup(ROOT_INODE, b"name") is None
        assert kernel.lookup(ROOT_INODE, b"") is None

    @pytest.mark.parametrize("made", Call)
    @pytest.mark.parametrize("asked", Call)
    async def test_the_call_itself_and_no_other(
        self, kernel: FakeKernel, granted: Callable[[Call], PendingSyscall], made: Call, asked: Call
    ) -> None:
        grant = granted(made)
        if asked is made:
            self.ask(kernel, asked, grant.parent, grant.segment, grant.pending)
            return
        with pytest.raises(ReadOnly):
            self.ask(kernel, asked, grant.parent, grant.segment, grant.pending)

    @pytest.mark.parametrize("call", Call)
    @pytest.mark.parametrize(
        ("elsewhere", "segment", "pending"),
        [
            (1, b"name", PENDING),
            (0, b"other", PENDING),
            (0, b"", PENDING),
            (0, PENDING, PENDING),
            (0, b"name", b"name"),
            (0, b"name", b""),
            (0, b"name", CONTROL),
        ],
    )
    async def test_exactly_there(
        self,
        kernel: FakeKernel,
        granted: Callable[[Call], PendingSyscall],
        *,
        call: Call,
        elsewhere: int,
        segment: bytes,
        pending: bytes,
    ) -> None:
        grant = granted(call)
        place = (grant.parent + elsewhere, segment)
        if call is not Call.RENAME and place == (grant.parent, b"name"):
            return  # only a rename has a pending name
        with pytest.raises(ReadOnly):
            self.ask(kernel, call, *place, pending)

    @pytest.mark.parametrize("old_parent", [False, True])
    async def test_no_rename_between_directories(
        self, kernel: FakeKernel, granted: Callable[[Call], PendingSyscall], *, old_parent: bool
    ) -> None:
        grant = granted(Call.RENAME)
        parents = (ROOT_INODE, grant.parent) if old_parent else (grant.parent, ROOT_INODE)
        with pytest.raises(ReadOnly):
            kernel.rename(parents[0], grant.pending, parents[1], grant.segment)

    @pytest.mark.parametrize("call", Call)
    async def test_what_is_looked_up(
        self, kernel: FakeKernel, granted: Callable[[Call], PendingSyscall], call: Call
    ) -> None:
        """The pending name; what is removed, whatever became of it upstream; and what is made is not there yet."""
        grant = granted(call)
        answers: dict[bytes, object] = {}
        for segment in (b"name", self.PENDING, b"other"):
            try:
                answer = kernel.lookup(grant.parent, segment)
            except NoSuchEntry:
                answers[segment] = "not there"
                continue
            if answer is not None:
                answers[segment] = answer.inode
                kernel.references[answer.inode] += 1
        number = grant.inode.number
        assert (
            answers
            == {
                Call.RENAME: {self.PENDING: number},
                Call.MKDIR: {b"name": "not there"},
                Call.UNLINK: {b"name": number},
                Call.RMDIR: {b"name": number},
                Call.EVICT: {b"name": "not there"},
                Call.FIND: {b"name": number},
            }[call]
        )
        assert kernel.lookup(grant.parent + 1, b"name") is None
        assert kernel.lookup(grant.parent + 1, self.PENDING) is None

    async def test_what_is_found_counts_as_a_reference_and_may_be_kept(
        self, kernel: FakeKernel, granted: Callable[[Call], PendingSyscall]
    ) -> None:
        grant = granted(Call.RENAME)
        before = grant.inode.lookups
        answer = kernel.lookup(grant.parent, self.PENDING)
        assert answer is not None
        kernel.references[answer.inode] += 1
        assert grant.inode.lookups == before + 1
        # Its content is not known, so it cannot be told for how long it is right.
        assert (answer.size, answer.attr_timeout, answer.entry_timeout) == (0, 0, 0)


class TestWhatIsCalled:
    async def test_a_value_that_changed_is_renamed_into_place(
        self, kernel: FakeKernel, vault: WatchingMemoryStore, env: WatchingMemoryStore
    ) -> None:
        await kernel.tree()
        await kernel.cat("env/TOKEN")  # what nobody has read cannot be told from what it was before
        before = await kernel.walk("vault/db/password"), await kernel.walk("env/TOKEN")
        untouched = await kernel.walk("vault/db/user")
        await put(vault, "db", user=b"joe", password=NEW)
        await put(env, "TOKEN")
        assert kernel.calls == [
            (Call.RENAME, "vault/db/password"),
            (Call.MKDIR, "vault/db/..data"),
            (Call.RENAME, "env/TOKEN"),
        ]
        assert kernel.failures == []
        assert before[0] != await kernel.walk("vault/db/password")
        assert before[1] != await kernel.walk("env/TOKEN")
        assert await kernel.walk("vault/db/user") == untouched
        names = [grant.pending for grant in kernel.grants if grant.call is Call.RENAME]
        assert len(set(names)) == 2
        assert all(map(is_reserved, names))  # so nothing else can have that name

    async def test_who_wants_to_know_is_told_once_it_shows(self, kernel: FakeKernel, env: WatchingMemoryStore) -> None:
        await kernel.cat("env/TOKEN")
        await put(env, "OTHER")
        assert kernel.told == 0  # nobody has read it
        seen: list[bytes] = []

        async def cat() -> None:
            seen.append(await kernel.cat("env/TOKEN"))

        kernel._published = lambda: nursery.start_soon(cat)
        async with trio.open_nursery() as nursery:
            await put(env, "TOKEN")
        assert seen == [NEW]

    async def test_who_wants_to_know_is_told_although_the_kernel_has_forgotten(
        self, kernel: FakeKernel, env: WatchingMemoryStore
    ) -> None:
        await kernel.cat("env/TOKEN")
        kernel.forget_everything()
        await put(env, "TOKEN")
        assert (kernel.told, kernel.calls) == (1, [])

    async def test_an_open_file_keeps_the_old_value_and_who_polls_it_is_woken(
        self, kernel: FakeKernel, env: WatchingMemoryStore
    ) -> None:
        await kernel.ls("env")
        handle = await kernel.open("env/TOKEN")
        assert not kernel._vfs.poll(handle, b"waiter")
        await put(env, "TOKEN")
        assert kernel.woken == [b"waiter"]
        assert kernel._vfs.poll(handle, b"waiter")
        assert await kernel._vfs.read(handle, 0, 999) == OLD
        await kernel.close(handle)
        with pytest.raises(KeyError):
            kernel._vfs._tree.inode(handle)

    @pytest.mark.parametrize("found_first", [False, True])
    async def test_it_is_told_also_if_a_reader_found_it_first(
        self, kernel: FakeKernel, env: WatchingMemoryStore, *, found_first: bool
    ) -> None:
        async def find() -> None:
            for _ in range(2):
                await kernel.look_up(await kernel.walk("env"), b"TOKEN")

        await kernel.ls("env")
        await kernel.cat("env/TOKEN")
        if found_first:
            kernel.before_call = find
        await put(env, "TOKEN")
        assert kernel.calls == [(Call.RENAME, "env/TOKEN")]
        assert await kernel.walk("env/TOKEN") == kernel.grants[0].inode.number

    async def test_versions_that_readers_found_are_replaced_one_after_the_other(
        self, kernel: FakeKernel, env: WatchingMemoryStore
    ) -> None:
        """Whoever watches one of them, or has it open, hears of it; and a process that takes over goes on with that."""
        await kernel.ls("env")
        parent = await kernel.walk("env")
        found = [await kernel.open("env/TOKEN")]
        kernel.deaf = True
        for value in (NEW, b"third"):
            await put(env, "TOKEN", TOKEN=value)
            found.append(await kernel.look_up(parent, b"TOKEN"))
            kernel.pinned.add(found[-1])

        def inherited() -> list[int]:
            tree = Tree(Journal(os.dup(kernel._vfs._journal.file)))
            return [version.number for version in tree.superseded(ValueKey("env", "TOKEN", "TOKEN"))]

        assert [(await kernel._vfs.getattr(inode)).links for inode in found] == [1, 1, 1]
        assert inherited() == found[:2]
        kernel.deaf = False
        kernel.enqueue(Change("env", values=frozenset({("TOKEN", "TOKEN")})))
        await wait_all_tasks_blocked()
        assert [(grant.inode.number, grant.replaced and grant.replaced.number) for grant in kernel.grants] == [
            (found[1], found[0]),
            (found[2], found[1]),
        ]
        assert [(await kernel._vfs.getattr(inode)).links for inode in found] == [0, 0, 1]
        assert inherited() == []

    @pytest.mark.parametrize("path", ["env/team/prod/TOKEN", "vault/team/api/key", "vault/db/.bulk.json"])
    async def test_what_nobody_uses_leaves_memory_although_its_store_is_down(
        self, vault: WatchingMemoryStore, env: WatchingMemoryStore, mock_clock: MockClock, *, path: str
    ) -> None:
        """The kernel is asked to forget it by a call that looks up every directory on the way; no store is asked."""
        async with fake_kernel({"vault": vault, "env": env}, forgetful=True) as kernel:
            await kernel.cat(path)
            component = path.partition("/")[0]
            assert len(kernel._vfs._tree.holding(component)) == 1
            calls = dict(vault.calls), dict(env.calls)
            mock_clock.jump(Freshness().idle)
            await kernel._evict_idle_of(component)
            assert kernel.calls == [(Call.EVICT, path)]
            assert kernel._vfs._tree.holding(component) == []
            assert (dict(vault.calls), dict(env.calls)) == calls

    async def test_what_is_open_stays_and_counts_as_used(
        self, kernel: FakeKernel, env: WatchingMemoryStore, mock_clock: MockClock
    ) -> None:
        handle = await kernel.open("env/TOKEN")
        for _ in range(3):
            mock_clock.jump(Freshness().idle / 2)
            for _ in range(2):
                await kernel._evict_idle_of("env")
        assert await kernel._vfs.read(handle, 0, 999) == OLD
        assert kernel._vfs._contents.views["env"].idle_for("TOKEN") == 0
        await kernel.close(handle)

    async def test_keys_that_come_and_go(self, kernel: FakeKernel, vault: WatchingMemoryStore) -> None:
        inode = await kernel.ls("vault/db")
        await put(vault, "db", user=b"joe", added=NEW)
        assert sorted(kernel.calls[:2], key=str) == [
            (Call.RENAME, "vault/db/added"),
            (Call.UNLINK, "vault/db/password"),
        ]
        assert kernel.calls[2:] == [(Call.MKDIR, "vault/db/..data")]
        assert kernel.entries[inode].keys() == {b"user", b"added", DATA}

    async def test_a_secret_in_a_known_folder(
        self, kernel: FakeKernel, vault: WatchingMemoryStore, env: WatchingMemoryStore
    ) -> None:
        await kernel.tree()
        await put(vault, "team/added", key=NEW)
        await put(env, "ADDED")
        await put(env, "team/prod/ADDED")
        assert kernel.calls == [
            (Call.MKDIR, "vault/team/added"),
            (Call.RENAME, "env/ADDED"),
            (Call.RENAME, "env/team/prod/ADDED"),
        ]
        assert kernel.failures == []

    async def test_a_folder_is_made_where_the_kernel_knows_what_is_above(
        self, kernel: FakeKernel, vault: WatchingMemoryStore, env: WatchingMemoryStore
    ) -> None:
        for path in ("vault/team", "env/team"):
            await kernel.ls(path)
        await put(vault, "team/new/er/secret", key=NEW)
        assert kernel.calls == [(Call.MKDIR, "vault/team/new")]
        kernel.calls.clear()
        await put(env, "team/new/er")
        assert kernel.calls == [(Call.MKDIR, "env/team/new"), (Call.RENAME, "env/team/new/er")]
        assert kernel.failures == []

    async def test_a_secret_that_was_deleted(
        self, kernel: FakeKernel, vault: WatchingMemoryStore, env: WatchingMemoryStore
    ) -> None:
        await kernel.tree()
        await delete(env, "TOKEN")
        assert kernel.calls[0] == (Call.UNLINK, "env/TOKEN")
        kernel.calls.clear()
        await delete(vault, "db")
        assert (Call.RMDIR, "vault/db") in kernel.calls
        kernel.calls.clear()
        await delete(env, "team/prod/TOKEN")
        assert (Call.RMDIR, "env/team") in kernel.calls
        assert kernel.entries[await kernel.walk("env")].keys() == {b"OTHER", b"100%25", b"%2Ebulk.json"}
        assert kernel.entries[await kernel.walk("vault")].keys() == {b"team"}

    @pytest.mark.parametrize("path", ["env/TOKEN", "env/team/prod/TOKEN", "vault/db/password"])
    async def test_who_polls_what_was_deleted_is_woken_even_if_the_directory_went_with_it(
        self, kernel: FakeKernel, vault: WatchingMemoryStore, env: WatchingMemoryStore, path: str
    ) -> None:
        store, name = (vault, "db") if path.startswith("vault") else (env, path.removeprefix("env/"))
        await kernel.tree()
        handle = await kernel.open(path)
        assert not kernel._vfs.poll(handle, b"waiter")
        await delete(store, name)
        assert kernel.woken == [b"waiter"]
        assert kernel._vfs.poll(handle, b"waiter")
        assert await kernel._vfs.read(handle, 0, 999) == OLD
        await kernel.close(handle)

    @pytest.mark.parametrize("directory_first", [False, True])
    async def test_and_whichever_is_told_first(
        self, kernel: FakeKernel, vault: WatchingMemoryStore, *, directory_first: bool
    ) -> None:
        await kernel.tree()
        handle = await kernel.open("vault/db/password")
        assert not kernel._vfs.poll(handle, b"waiter")
        kernel.deaf = True
        await delete(vault, "db")
        kernel.deaf = False
        changes = [
            Change("vault", values=frozenset({("db", "password")})),
            Change("vault", names=frozenset({"db"})),
        ]
        for change in reversed(changes) if directory_first else changes:
            kernel.enqueue(change)
            await wait_all_tasks_blocked()
        assert kernel.calls[-1] == (Call.RMDIR, "vault/db")
        assert kernel.woken == [b"waiter"]
        assert kernel._vfs.poll(handle, b"waiter")
        await kernel.close(handle)

    async def test_a_folder_whose_entry_has_expired_is_told_after_the_values_that_went_with_it(
        self, vault: WatchingMemoryStore, env: WatchingMemoryStore
    ) -> None:
        """On the way to a value that is gone the kernel asks for the folder: if it found none, nobody would be told."""
        async with fake_kernel({"vault": vault, "env": env}, forgetful=True) as kernel:
            await kernel.tree()
            kernel.deaf = True
            await delete(env, "team/prod/TOKEN")
            kernel.deaf = False
            name = "team/prod/TOKEN"
            for change in (
                Change("env", values=frozenset({(name, name)})),
                Change("env", names=frozenset({name})),
            ):
                kernel.enqueue(change)
                await wait_all_tasks_blocked()
            assert kernel.failures == []
            assert kernel.calls == [(Call.UNLINK, "env/team/prod/TOKEN"), (Call.RMDIR, "env/team")]

    @pytest.mark.parametrize("path", ["env/TOKEN", "env/team", "vault/db", "vault/team"])
    async def test_what_comes_back_is_told_as_new_even_if_somebody_holds_on_to_what_was_there(
        self, kernel: FakeKernel, vault: WatchingMemoryStore, env: WatchingMemoryStore, path: str
    ) -> None:
        store = vault if path.startswith("vault") else env
        name = path.partition("/")[2]
        await kernel.tree()
        await kernel.cat("env/TOKEN")
        before = await kernel.walk(path)
        kernel.pinned.add(before)
        gone = {other: secret for other, secret in store.secrets.items() if (other + "/").startswith(name + "/")}
        for other in gone:
            store.delete(other)
        await tell(store, *gone)
        kernel.calls.clear()
        store.secrets.update(gone)
        await tell(store, *gone)
        made = Call.RENAME if path == "env/TOKEN" else Call.MKDIR
        assert (made, path) in kernel.calls
        assert await kernel.walk(path) != before
        kernel._vfs.forget(before, kernel.references.pop(before))

    @pytest.mark.parametrize("gradually", [False, True])
    async def test_a_secret_that_becomes_a_folder_and_back(
        self, kernel: FakeKernel, env: WatchingMemoryStore, expect_log: ExpectLog, *, gradually: bool
    ) -> None:
        if gradually:
            expect_log("the folder TOKEN hides the secret of that name")
        await kernel.tree()
        env.put("TOKEN/inside", {"TOKEN/inside": NEW})
        if not gradually:
            env.delete("TOKEN")
        await tell(env, "TOKEN", "TOKEN/inside")
        made = [
            (Call.UNLINK, "env/TOKEN"),
            (Call.MKDIR, "env/TOKEN"),
            (Call.RENAME, "env/TOKEN/inside"),
        ]
        assert kernel.calls == made
        kernel.calls.clear()
        env.delete("TOKEN/inside")
        env.put("TOKEN", {"TOKEN": NEW})
        await tell(env, "TOKEN", "TOKEN/inside")
        assert kernel.calls[:2] == [(Call.RMDIR, "env/TOKEN"), (Call.RENAME, "env/TOKEN")]
        assert await kernel.walk("env/TOKEN") not in kernel.directories

    @pytest.mark.parametrize("key", ["db", "password"])
    async def test_a_directory_of_keys_that_becomes_a_folder_and_back(
        self, kernel: FakeKernel, vault: WatchingMemoryStore, key: str
    ) -> None:
        vault.put("db", {key: OLD})  # a key may have the name of its secret, and is no secret for that
        await kernel.tree()
        handle = await kernel.open(f"vault/db/{key}")
        vault.delete("db")
        vault.put("db/inside", {"key": NEW})
        await tell(vault, "db", "db/inside")
        changes = [call for call in kernel.calls if call[1] == "vault/db"]
        assert changes == [(Call.RMDIR, "vault/db"), (Call.MKDIR, "vault/db")]
        await delete(vault, "db/inside")
        await put(vault, "db", **{key: NEW})
        assert [call for call in kernel.calls if call[1] == "vault/db"][2:] == changes
        await kernel.close(handle)

    async def test_names_that_a_path_carries_encoded(
        self, kernel: FakeKernel, vault: WatchingMemoryStore, env: WatchingMemoryStore
    ) -> None:
        await kernel.tree()
        for path in ("100%25/a/%2Fb", "%2Ebulk.json"):
            await kernel.cat(f"env/{path}")
        for name in ("100%/a//b", ".bulk.json", "100%/..", ".secretfs"):
            await put(env, name)
        await put(vault, "team/api", **{"key": OLD, "a/b%": NEW, ".": NEW})
        assert sorted(kernel.calls, key=str) == [
            (Call.MKDIR, "vault/team/api/..data"),
            (Call.RENAME, "env/%2Ebulk.json"),
            (Call.RENAME, "env/%2Esecretfs"),
            (Call.RENAME, "env/100%25/%2E%2E"),
            (Call.RENAME, "env/100%25/a/%2Fb"),
            (Call.RENAME, "vault/team/api/%2E"),
            (Call.RENAME, "vault/team/api/a%2Fb%25"),
        ]
        assert kernel.failures == []

    async def test_nothing_where_the_kernel_knows_nothing(
        self, kernel: FakeKernel, vault: WatchingMemoryStore, env: WatchingMemoryStore
    ) -> None:
        views = kernel._vfs._contents.views
        for name, store in (("vault", vault), ("env", env)):  # known to the cache, but not to the kernel
            await views[name].entries(())
            for secret in store.secrets:
                await views[name].secret(secret)
        await kernel.walk("vault")
        await put(vault, "db", password=NEW)
        await put(vault, "team/added", key=NEW)
        await put(env, "TOKEN")
        await put(env, "ADDED")
        await delete(env, "OTHER")
        assert kernel.calls == []

    async def test_nothing_that_the_scope_hides(self, vault: WatchingMemoryStore, mock_clock: MockClock) -> None:
        scope = SecretScope(denied_secrets=frozenset({"db", "hidden", "new/hidden"}))
        async with fake_kernel({"vault": vault}, scope=scope) as kernel:
            await kernel.tree()
            await put(vault, "db", password=NEW)
            await put(vault, "hidden", key=NEW)
            await put(vault, "new/hidden", key=NEW)
            assert kernel.calls == []
            await put(vault, "new/seen", key=NEW)
            assert kernel.calls == [(Call.MKDIR, "vault/new"), (Call.MKDIR, "vault/new/seen")]

    async def test_a_secret_behind_a_folder_of_its_name_disturbs_nobody(
        self, kernel: FakeKernel, env: WatchingMemoryStore, expect_log: ExpectLog
    ) -> None:
        expect_log("the folder team hides the secret of that name")
        await kernel.tree()
        await put(env, "team")
        assert kernel.calls == []
        await kernel._vfs._contents.views["env"].secret("team")  # as the bulk file does
        env.put("team", {"team": OLD})
        await tell(env, "team")
        assert kernel.calls == kernel.calls[:1]
        assert await kernel.walk("env/team") in kernel.directories

    async def test_a_folder_below_one_that_may_not_be_listed(
        self, kernel: FakeKernel, vault: WatchingMemoryStore, expect_log: ExpectLog
    ) -> None:
        expect_log("no list")
        vault.refused["names:"] = AccessDenied("no list")
        await kernel.ls("vault/team")
        await put(vault, "team/added", key=NEW)
        assert kernel.calls == [(Call.MKDIR, "vault/team/added")]

    @pytest.mark.parametrize("failure", [StoreUnavailable("down"), AccessDenied("revoked")], ids=type)
    async def test_nothing_while_the_store_fails_and_then_again(
        self,
        kernel: FakeKernel,
        env: WatchingMemoryStore,
        mock_clock: MockClock,
        expect_log: ExpectLog,
        failure: StoreUnavailable | AccessDenied,
    ) -> None:
        expect_log(f"env: {failure}")
        await kernel.tree()
        await kernel._vfs._contents.views["env"].secret("TOKEN")
        mock_clock.jump(3600)
        env.fail_with = failure
        kernel.enqueue(Change("env", frozenset({"ADDED"}), frozenset({("TOKEN", "TOKEN")})))
        kernel.enqueue(Change("env", values=frozenset({("TOKEN", "TOKEN")})))
        await wait_all_tasks_blocked()
        assert kernel.calls == []
        env.fail_with = None
        mock_clock.jump(3600)
        kernel.enqueue(Change("env", values=frozenset({("TOKEN", "TOKEN")})))
        await wait_all_tasks_blocked()
        assert set(kernel.calls) == {(Call.RENAME, "env/TOKEN")}

    async def test_the_bulk_file_of_each_secret_is_published_although_later_changes_wait(
        self, kernel: FakeKernel, vault: WatchingMemoryStore
    ) -> None:
        for path in ("vault/db/.bulk.json", "vault/team/api/.bulk.json", "vault/.bulk.json"):
            await kernel.cat(path)
        kernel.deaf = True
        await put(vault, "db", user=b"joe", password=NEW)
        await put(vault, "team/api", **{"key": NEW, "a/b%": OLD})
        kernel.deaf = False
        for name, key in (("db", "password"), ("team/api", "key")):
            kernel.enqueue(Change("vault", values=frozenset({(name, key)})))
        await kernel.caught_up()  # that of the store is rendered in a thread
        renamed = [path for call, path in kernel.calls if call is Call.RENAME and path.endswith(".bulk.json")]
        assert renamed == ["vault/db/.bulk.json", "vault/team/api/.bulk.json", "vault/.bulk.json"]
        assert NEW.decode() in (await kernel.cat("vault/db/.bulk.json")).decode()

    async def test_no_file_of_a_secret_that_issues_is_published_by_reading_it(self, mock_clock: MockClock) -> None:
        """A credential that nobody asks for is not issued because an old one ends."""
        store = IssuingMemoryStore({"role": {"username": OLD, "password": OLD}})
        async with fake_kernel({"database": store}) as kernel:
            for name in ("username", ".bulk.json", ".bulk.env"):
                await kernel.cat(f"database/role/{name}")
            assert store.issued == 1
            mock_clock.jump(Freshness().ttl + Freshness().idle)
            await put(store, "role", username=NEW, password=NEW)
            assert store.issued == 1
            assert NEW.decode() in (await kernel.cat("database/role/.bulk.json")).decode()
            assert store.issued == 2

    async def test_a_store_that_hangs_holds_up_no_other(
        self, kernel: FakeKernel, vault: WatchingMemoryStore, env: WatchingMemoryStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for path in ("env/TOKEN", "vault/db/password"):
            await kernel.cat(path)
        answers = trio.Event()
        content = kernel._vfs.changes.content

        async def hang(key: ValueKey) -> Content | None:
            if key.component == "vault":
                await answers.wait()
            return await content(key)

        monkeypatch.setattr(kernel._vfs.changes, "content", hang)
        await put(vault, "db", user=b"joe", password=NEW)
        await put(env, "TOKEN")
        assert kernel.calls == [(Call.RENAME, "env/TOKEN")]
        answers.set()
        await wait_all_tasks_blocked()
        assert kernel.calls == [
            (Call.RENAME, "env/TOKEN"),
            (Call.RENAME, "vault/db/password"),
            (Call.MKDIR, "vault/db/..data"),
        ]
        assert not kernel.queue._waiting

    async def test_a_defect_costs_nobody_the_mount(
        self, kernel: FakeKernel, env: WatchingMemoryStore, monkeypatch: pytest.MonkeyPatch, expect_log: ExpectLog
    ) -> None:
        expect_log("a defect in secretfs or in a store")
        await kernel.ls("env")
        with monkeypatch.context() as patch:
            patch.setattr(kernel._vfs.changes, "place", lambda _: 1 / 0)
            await tell(env, "TOKEN")
            await kernel.cat("env/TOKEN")
            await put(env, "TOKEN")
        await put(env, "OTHER", OTHER=OLD)
        env.put("TOKEN", {"TOKEN": OLD})
        await tell(env, "TOKEN")
        assert kernel.calls == [(Call.RENAME, "env/TOKEN")]

    async def test_a_rename_that_fails_leaves_everything_as_it_was(
        self, kernel: FakeKernel, env: WatchingMemoryStore
    ) -> None:
        await kernel.ls("env")
        await kernel.cat("env/TOKEN")
        before = await kernel.walk("env/TOKEN")
        env.put("TOKEN", {"TOKEN": NEW})
        kernel._forgetful = True
        kernel.before_call = _raise_from_now_on(kernel)
        await tell(env, "TOKEN")
        assert kernel.failures == [Call.RENAME]
        version = kernel._vfs.changes.known(ValueKey("env", "TOKEN", "TOKEN"))
        assert version is not None
        assert version.number == before
        assert [grant.inode for grant in kernel.grants if grant.inode.lookups] == []

    async def test_changes_that_nobody_takes_are_dropped_with_a_warning(
        self, kernel: FakeKernel, env: WatchingMemoryStore, expect_log: ExpectLog
    ) -> None:
        expect_log(f"env: over {BACKLOG} changes at once: some show late")
        await kernel.ls("env")
        for _ in range(BACKLOG + 2):  # the first is taken at once
            kernel.enqueue(Change("env", names=frozenset({"not there"})))
        await wait_all_tasks_blocked()
        await put(env, "ADDED")
        assert kernel.calls == [(Call.RENAME, "env/ADDED")]


def _raise_from_now_on(kernel: FakeKernel) -> Callable[[], Awaitable[None]]:
    async def before_call() -> None:
        async def fail(path: str) -> int:
            raise Failed(path)

        kernel.walk = fail  # type: ignore[method-assign]

    return before_call


class TestSystemCalls:
    """What is really called, on a directory that anybody may write to."""

    @pytest.fixture
    def helper(self) -> FakeHelper:
        return FakeHelper()

    @pytest.fixture
    async def publisher(
        self, tmp_path: Path, env: WatchingMemoryStore, nursery: trio.Nursery, helper: FakeHelper
    ) -> Publisher:
        (tmp_path / "env" / "full").mkdir(parents=True)
        (tmp_path / "env" / "full" / "pending").write_text("new")
        (tmp_path / "env" / "full" / "name").write_text("old")
        _, announced = trio.open_memory_channel[Change](0)
        return Publisher(make_vfs({"env": env}, nursery), tmp_path, cast("SyscallHelper", helper), announced)

    INODE = Version(7, ValueKey("env", "a", "a"))

    async def test_each(self, publisher: Publisher, tmp_path: Path) -> None:
        folder = tmp_path / "env" / "full"
        await publisher._call(PendingSyscall(Call.RENAME, 2, b"name", self.INODE, b"pending"), b"env/full")
        assert os.listdir(folder) == ["name"]  # noqa: PTH208 - names are enough
        assert (folder / "name").read_text() == "new"
        await publisher._call(PendingSyscall(Call.UNLINK, 2, b"name", self.INODE), b"env/full")
        assert not (folder / "name").exists()
        await publisher._call(PendingSyscall(Call.MKDIR, 2, b"made", self.INODE), b"env/full")
        assert (folder / "made").is_dir()
        await publisher._call(PendingSyscall(Call.RMDIR, 2, b"made", self.INODE), b"env/full")
        assert not (folder / "made").exists()
        assert publisher.grant is None

    @pytest.mark.parametrize("call", Call)
    async def test_one_that_fails_is_no_trouble(
        self, publisher: Publisher, call: Call, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.DEBUG, "secretfs.fs.publish"):
            await publisher._call(PendingSyscall(call, 2, b"name", self.INODE, b"pending"), b"env/gone")
        assert publisher.grant is None
        assert f"not announced: {call.value}: No such file or directory" in caplog.text

    async def test_one_that_fails_for_another_reason_than_a_reader_is_a_warning(
        self, publisher: Publisher, helper: FakeHelper, expect_log: ExpectLog
    ) -> None:
        expect_log("a change is not announced: rename: Permission denied")

        def refuse() -> None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

        helper.under_way = refuse
        await publisher._call(PendingSyscall(Call.RENAME, 2, b"name", self.INODE, b"pending"), b"env/full")
        assert publisher.grant is None

    async def test_it_is_granted_while_it_is_under_way_and_to_nobody_but_our_helper(
        self, publisher: Publisher, helper: FakeHelper
    ) -> None:
        seen: list[object] = []
        asking = (helper.pid, os.getpid(), threading.get_native_id(), 0)

        def ask() -> None:
            seen.append(publisher.grant)
            seen.extend(publisher.is_asked_by(Caller(0, 0, pid)) for pid in asking)

        helper.under_way = ask
        grant = PendingSyscall(Call.MKDIR, 2, b"made", self.INODE)
        await publisher._call(grant, b"env")
        assert seen == [grant, True, False, False, False]
        assert not any(publisher.is_asked_by(Caller(0, 0, pid)) for pid in asking)


NAMES = ("db", "db/x", "db/x/y", "team/a", "team/deep/b", "100%/a//b", ".bulk.json", "hidden", "new/hidden")
SCOPE = SecretScope(denied_secrets=frozenset({"hidden", "new/hidden"}))
KEYS = ("k", "db", "a/b%")

Step = tuple[str, str, str]
STEPS = st.one_of(
    st.tuples(st.just("put"), st.sampled_from(NAMES), st.sampled_from(KEYS)),
    st.tuples(st.just("drop"), st.sampled_from(NAMES), st.sampled_from(KEYS)),
    st.tuples(st.just("delete"), st.sampled_from(NAMES), st.just("")),
    st.tuples(st.sampled_from(["list", "pin"]), st.sampled_from([*NAMES, "", "team", "100%"]), st.just("")),
    st.tuples(st.sampled_from(["tell", "list all", "open", "close"]), st.just(""), st.just("")),
)


@pytest.fixture
def shadows(expect_log: ExpectLog) -> None:
    expect_log("the folder .* hides the secret of that name")


@pytest.mark.usefixtures("shadows")
@pytest.mark.parametrize("multi_valued", [False, True], ids=["files", "directories"])
@pytest.mark.parametrize("folders", [False, True], ids=["flat listing", "folder by folder"])
@given(steps=st.lists(STEPS, max_size=25), forgetful=st.booleans())
@example(steps=[("put", "db", "k"), ("put", "db/x", "k"), ("list all", "", "")], forgetful=False)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_happens_the_kernel_shows_what_there_is(
    *, folders: bool, multi_valued: bool, steps: Sequence[Step], forgetful: bool
) -> None:
    """After any changes, told at any time, nothing is shown that is not there, and no listing lacks anything."""
    store = WatchingMemoryStore(multi_valued=multi_valued, folders=folders)

    async def main() -> None:
        async with fake_kernel({"s": store}, forgetful=forgetful, scope=SCOPE) as kernel:
            await History(kernel, store).run(steps)

    trio.run(main, clock=MockClock())


class History:
    """Things that happen to a store, and to a kernel that shows it."""

    def __init__(self, kernel: FakeKernel, store: WatchingMemoryStore) -> None:
        self.kernel = kernel
        self.store = store
        self.changed: set[str] = set()
        self.opened: list[int] = []

    async def run(self, steps: Sequence[Step]) -> None:
        for number, (step, name, key) in enumerate(steps):
            match step:
                case "put" | "drop" | "delete":
                    self.change(step, name, key, str(number).encode())
                case "tell":
                    await self.tell()
                case _:
                    await self.tell()  # what is not told cannot be shown
                    await self.read(step, name)
        await self.tell()
        while self.opened:
            await self.read("close", "")

    def change(self, step: str, name: str, key: str, value: bytes) -> None:
        known = self.store.secrets.get(name)
        values = dict(known.values) if known else {}
        if not self.store.multi_valued:
            key = name
        if step == "put":
            values[key] = value
        elif step == "drop":
            values.pop(key, None)
        if step == "delete" or not (values or self.store.multi_valued):
            self.store.secrets.pop(name, None)
        else:
            self.store.put(name, values)
        self.changed.add(name)

    async def tell(self) -> None:
        self.store._changed(frozenset(self.changed))
        self.changed.clear()
        await wait_all_tasks_blocked()
        await self.check()

    async def read(self, step: str, name: str) -> None:
        path = "s/" + "/".join(encode(segment).decode() for segment in split(name) if segment)
        try:
            match step:
                case "list":
                    if await self.kernel.walk(path) in self.kernel.directories:
                        await self.kernel.ls(path)
                case "list all":
                    await self.kernel.tree()
                case "pin":
                    self.kernel.pinned.add(await self.kernel.walk(path))
                case "open":
                    await self.kernel.tree()
                    for entries in list(self.kernel.entries.values()):
                        files = [inode for inode in entries.values() if inode not in self.kernel.directories]
                        self.opened += [await self.kernel._vfs.open(inode) for inode in files]
                    self.kernel.pinned.update(self.opened)
                case _:
                    self.opened.clear()
        except Failed:
            return

    async def check(self) -> None:
        """Compare what the kernel shows with a file system that has seen nothing change."""
        async with trio.open_nursery() as nursery:
            await self.compare(make_vfs({"s": self.store}, nursery, SCOPE), ROOT_INODE, ROOT_INODE)
            nursery.cancel_scope.cancel()
        shown = self.kernel._vfs._contents.views["s"]._store
        assert isinstance(shown, CachedStore)
        self.store._changed = shown._changed_upstream  # the other one is gone

    async def compare(self, vfs: SecretVFS, fresh: int, shown: int) -> None:
        handle = await vfs.open_directory(fresh)
        there = {segment: attributes for _, segment, attributes in await vfs.read_directory(handle, 0)}
        entries = {at: inode for at, inode in self.kernel.entries.get(shown, {}).items() if at != DATA}
        assert entries.keys() <= there.keys()
        assert shown not in self.kernel.listed or entries.keys() == there.keys()
        for segment, inode in entries.items():
            is_directory = S_ISDIR(there[segment].mode)
            assert is_directory == (inode in self.kernel.directories)
            assert self.kernel._vfs._tree.inode(inode).key == vfs._tree.inode(there[segment].inode).key
            if is_directory:
                await self.compare(vfs, there[segment].inode, inode)


async def test_many_names_that_come_at_once_hold_up_nobody(kernel: FakeKernel) -> None:
    names = frozenset(f"folder-{number // 100}/secret-{number}" for number in range(20_000))
    with counted() as work:
        kernel.enqueue(Change("vault", names=names))
        await wait_all_tasks_blocked()
    assert work.largest_step < 25_000
