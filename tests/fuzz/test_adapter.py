"""Random sequences of FUSE requests to the adapter, as any kernel may send them, against a model of the secrets.

A request gets an answer or an errno that a promise names, and never ends the session. What is read is what the model
has; what changes something is refused.
"""

import errno
import logging
import math
import os
import stat
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyfuse3
import pytest
import trio
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from secretfs.cache.change import Change
from secretfs.cache.freshness import Freshness
from secretfs.fs.attributes import PermissionPolicy
from secretfs.fs.names import encode
from secretfs.fs.publish import Publisher
from secretfs.fs.vfs import SecretVFS
from secretfs.fs.view import StoreView
from secretfs.fuse.connection import Connection
from secretfs.fuse.fair_share import FairShare
from secretfs.fuse.operations import SecretOperations
from secretfs.linux.syscall_helper import SyscallHelper
from secretfs.scopes import SecretScope
from tests.fuzz.test_fuzz import MORE
from tests.support.at_once import AtOnce
from tests.support.memory_store import MemoryStore

FRESHNESS = Freshness(ttl=1.0, negative_ttl=0.1, max_stale=10.0, deadline=5.0, idle=30.0)
LATER = 2.0
"""Seconds after which a change is known."""
ROOT = 1
NAMES = ["a", "b", "team/c", "odd\0\n%", "..", "x" * 300]
SEGMENTS = [*map(encode, ("a", "b", "team", "c", "odd\0\n%", "..", "x" * 300, "key")), b"store", b"none", b".bulk.json"]
SEGMENTS += [
    b"..data",
    b"..versions",
    b".secretfs",
    b"status.json",
    b".bulk.env",
    b"\xff\xfe",
    b"%",
    b"%00",
    b"x" * 255,
]
REFUSED = {errno.EROFS, errno.EACCES}
POSSIBLE = {errno.ENOENT, errno.ESTALE, errno.ENODATA, errno.EROFS, errno.EILSEQ, errno.ENOTUNIQ, errno.EINVAL}
"""What a promise names for a store that answers."""
CONTEXT = cast("pyfuse3.RequestContext", SimpleNamespace(uid=1000, gid=1000, pid=os.getppid()))


class Kernel:
    """Knows what a kernel knows: inodes with references, and what they are. Sends requests."""

    def __init__(self, operations: SecretOperations, store: MemoryStore) -> None:
        self.operations = operations
        self.store = store
        self.references = Counter({ROOT: 1})
        self.entries: dict[int, pyfuse3.EntryAttributes] = {}
        self.contents: dict[int, bytes] = {}
        self.places: list[int] = [0]
        """Positions in directories that an answer named."""

    def pick(self, number: int, *, directory: bool) -> int | None:
        """Choose an inode of a kind: a kernel asks only what fits."""
        kind = [inode for inode in self.references if self._is_directory(inode) == directory]
        return kind[number % len(kind)] if kind else None

    def _is_directory(self, inode: int) -> bool:
        return inode == ROOT or stat.S_ISDIR(self.entries[inode].st_mode)

    async def ask(self, request: Awaitable[Any], possible: set[int] = POSSIBLE) -> Any:
        """Send a request. Returns the answer; None for an error, which must be one that is possible."""
        try:
            return await request
        except pyfuse3.FUSEError as error:
            assert error.errno in possible, errno.errorcode[error.errno]  # noqa: PT017 - all others are errors, too
            return None

    def take(self, entry: pyfuse3.EntryAttributes) -> None:
        """Take a reference to what an answer names. What is known of an inode never changes."""
        before = self.entries.get(entry.st_ino)
        assert before is None or before.st_mode == entry.st_mode
        self.references[entry.st_ino] += 1
        self.entries[entry.st_ino] = entry

    async def lookup(self, where: int, segment: bytes) -> None:
        entry = await self.ask(self.operations.lookup(self._number(where), pyfuse3.FileNameT(segment), CONTEXT))
        if entry is not None:
            self.take(entry)

    def _number(self, where: int) -> pyfuse3.InodeT:
        found = self.pick(where, directory=True)
        assert found is not None  # there is always the root
        return pyfuse3.InodeT(found)

    async def listing(self, where: int, place: int, room: int) -> None:
        number = self._number(where)
        handle = await self.ask(self.operations.opendir(number, CONTEXT))
        if handle is None:
            return
        seen: list[bytes] = []

        def reply(_: object, segment: bytes, entry: pyfuse3.EntryAttributes, position: int) -> bool:
            if len(seen) >= room:
                return False
            seen.append(segment)
            self.take(entry)
            self.places.append(position)
            return True

        pyfuse3.readdir_reply = cast("Any", reply)
        start = self.places[place % len(self.places)]
        await self.ask(self.operations.readdir(handle, start, cast("pyfuse3.ReaddirToken", None)))
        await self.ask(self.operations.releasedir(handle))
        assert len(seen) == len({*seen})
        assert not any(b"/" in segment or segment in (b"", b".", b"..") for segment in seen)

    async def read(self, which: int, offset: int, size: int) -> None:
        number = self.pick(which, directory=False)
        if number is None:
            return
        inode = pyfuse3.InodeT(number)
        opened = await self.ask(self.operations.open(inode, pyfuse3.FlagT(os.O_RDONLY), CONTEXT))
        attributes = await self.ask(self.operations.getattr(inode, CONTEXT))
        if opened is None or attributes is None:
            return
        data = await self.ask(self.operations.read(opened.fh, 0, 1 << 20))
        if data is not None:
            assert len(data) == attributes.st_size
            assert self.contents.setdefault(number, data) == data
            assert await self.ask(self.operations.read(opened.fh, offset, size)) == data[offset : offset + size]
        await self.ask(self.operations.release(opened.fh))

    async def about(self, which: int, name: bytes, *, directory: bool) -> None:
        number = self.pick(which, directory=directory)
        if number is None:
            return
        inode = pyfuse3.InodeT(number)
        await self.ask(self.operations.getattr(inode, CONTEXT))
        await self.ask(self.operations.listxattr(inode, CONTEXT))
        await self.ask(self.operations.getxattr(inode, pyfuse3.XAttrNameT(name), CONTEXT))
        await self.ask(self.operations.statfs(CONTEXT))
        if not directory:
            await self.ask(self.operations.poll(inode, pyfuse3.FileHandleT(number), None, CONTEXT))

    async def change(self, where: int, segment: bytes) -> None:
        """Try to change something: all of it is refused."""
        number, name, ops = self._number(where), pyfuse3.FileNameT(segment), self.operations
        requests: list[Awaitable[Any]] = [
            ops.mkdir(number, name, pyfuse3.ModeT(0o700), CONTEXT),
            ops.unlink(number, name, CONTEXT),
            ops.rmdir(number, name, CONTEXT),
            ops.rename(number, name, pyfuse3.InodeT(ROOT), name, pyfuse3.FlagT(0), CONTEXT),
            ops.mknod(number, name, pyfuse3.ModeT(0o600), 0, CONTEXT),
            ops.symlink(number, name, name, CONTEXT),
            ops.create(number, name, pyfuse3.ModeT(0o600), pyfuse3.FlagT(os.O_WRONLY), CONTEXT),
        ]
        for request in requests:
            assert await self.ask(request, REFUSED) is None

    async def forget(self, which: int, many: int) -> None:
        """Give references back, as many as there are at most."""
        known = [inode for inode in self.references if inode != ROOT]
        if known:
            number = known[which % len(known)]
            count = 1 + many % self.references[number]
            self.references[number] -= count
            if not self.references[number]:
                del self.references[number], self.entries[number]
                self.contents.pop(number, None)
            await self.operations.forget([(pyfuse3.InodeT(number), count)])

    async def check(self) -> None:
        """All that is in the store is what a program reads by its path."""
        for name, secret in self.store.secrets.items():
            segments = [b"store", *(encode(part) for part in name.split("/")), b"key"]
            number = ROOT
            for segment in segments:
                entry = await self.operations.lookup(pyfuse3.InodeT(number), pyfuse3.FileNameT(segment), CONTEXT)
                self.take(entry)
                number = entry.st_ino
            inode = pyfuse3.InodeT(number)
            size = (await self.operations.getattr(inode, CONTEXT)).st_size
            opened = await self.operations.open(inode, pyfuse3.FlagT(os.O_RDONLY), CONTEXT)
            data = await self.operations.read(opened.fh, 0, 1 << 20)
            assert data == secret.values["key"]
            assert size == len(data)


segments = st.one_of(
    st.sampled_from(SEGMENTS), st.binary(min_size=1, max_size=255).filter(lambda s: not {0, 47} & {*s})
)
numbers = st.integers(0, 1 << 16)
requests = st.one_of(
    st.tuples(st.just("lookup"), numbers, segments),
    st.tuples(st.just("lookup"), numbers, st.sampled_from(SEGMENTS)),
    st.tuples(st.just("list"), numbers, numbers, st.integers(0, 20)),
    st.tuples(st.just("read"), numbers, st.integers(0, 1 << 40), st.integers(0, 1 << 17)),
    st.tuples(st.just("read"), numbers, st.integers(0, 40), st.integers(0, 40)),
    st.tuples(st.just("about"), numbers, st.sampled_from([b"user.secretfs.version", b"user.\xff", b""]), st.booleans()),
    st.tuples(st.just("change"), numbers, segments),
    st.tuples(st.just("forget"), numbers, numbers),
    st.tuples(st.just("put"), st.sampled_from(NAMES), st.binary(max_size=50)),
    st.tuples(st.just("delete"), st.sampled_from(NAMES)),
    st.tuples(st.just("pass"), st.sampled_from((0.0, 0.5, LATER, 60.0))),
)


async def send(kernel: Kernel, vfs: SecretVFS, request: tuple[Any, ...]) -> None:
    match request:
        case ("lookup", where, segment):
            await kernel.lookup(where, segment)
        case ("list", where, place, room):
            await kernel.listing(where, place, room)
        case ("read", which, offset, size):
            await kernel.read(which, offset, size)
        case ("about", which, name, directory):
            await kernel.about(which, name, directory=directory)
        case ("change", where, segment):
            await kernel.change(where, segment)
        case ("forget", which, many):
            await kernel.forget(which, many)
        case ("put", name, value):
            kernel.store.put(name, {"key": value})
        case ("delete", name):
            kernel.store.secrets.pop(name, None)
        case ("pass", seconds):
            await trio.sleep(seconds)
            vfs.evict_idle()


async def play(script: list[tuple[Any, ...]], *, shared: bool) -> None:
    """Send requests, and look at what a program sees in the end."""
    store = MemoryStore({"a": {"key": b"1"}, "team/c": {"key": b"2"}, "odd\0\n%": {"key": b"3"}})
    async with trio.open_nursery() as nursery:
        changes, announced = trio.open_memory_channel[Change](math.inf)
        cached = AtOnce("store", store, FRESHNESS, nursery, announce=changes.send_nowait)
        nursery.start_soon(cached.keep_fresh)
        vfs = SecretVFS({"store": StoreView(cached, SecretScope())}, PermissionPolicy(), nursery)
        publisher = Publisher(vfs, Path("/mnt"), cast("SyscallHelper", Nobody()), announced)
        share = FairShare(vfs.request, lambda: False) if shared else None
        operations = SecretOperations(vfs, publisher, cast("Connection", Asking()), share=share)
        kernel = Kernel(operations, store)
        for request in script:
            await send(kernel, vfs, request)
        await trio.sleep(LATER)
        await kernel.check()
        for number, count in list(kernel.references.items()):
            if number != ROOT:
                await operations.forget([(pyfuse3.InodeT(number), count)])
        assert len(vfs._tree) == 1
        nursery.cancel_scope.cancel()


class Asking:
    """A connection whose kernel asks at each open."""

    def open_by_itself(self) -> bool:
        return False


class Nobody:
    """A helper process that makes no system call, as if the kernel had none of the names."""

    def __getattr__(self, name: str) -> Callable[..., Awaitable[object]]:
        async def call(*_: object) -> object:
            raise FileNotFoundError

        return call


@pytest.fixture
def only_defects() -> None:
    """Log nothing but defects, which fail the test."""
    logging.getLogger("secretfs").setLevel(logging.ERROR)


@pytest.mark.usefixtures("only_defects")
@settings(
    max_examples=MORE or 60,
    deadline=None,
    derandomize=not MORE,
    database=None,
    phases=[Phase.generate, *([Phase.shrink] if MORE else [])],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)
@given(script=st.lists(requests, min_size=5, max_size=60), shared=st.booleans())
def test_any_sequence_of_requests(script: list[tuple[Any, ...]], *, shared: bool) -> None:
    reply = pyfuse3.readdir_reply
    try:
        trio.run(lambda: play(script, shared=shared), clock=MockClock(autojump_threshold=0))
    finally:
        pyfuse3.readdir_reply = reply
