"""Changes that everybody can see: published by system calls on our own mount.

Nothing that FUSE lets a daemon tell the kernel makes an inotify event (measured: invalidate_inode, invalidate_entry and
notify_store give none). A system call on the mount does, so `SyscallHelper` makes one. A new version gets a pending
name that nobody can guess, and rename(2) moves it over the old name: the kernel moves its own entry atomically,
watchers of the directory get MOVED_TO, ``tail -F`` follows, and an open file keeps the old version. What is new
upstream is renamed into place, or made if it is a directory; what is gone is unlinked.

The kernel comes back to us for each of these calls. `Publisher` grants exactly the one that is under way, and the
adapter asks it only on behalf of that process: for everybody else the file system is read-only.
"""

import logging
import math
import os
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import trio

from secretfs.cache.change import Change, discard
from secretfs.errors import NoSuchEntry, ReadOnly, SecretFSError
from secretfs.fs.attributes import Attributes
from secretfs.fs.caller import Caller
from secretfs.fs.change_log import ChangeLog
from secretfs.fs.change_queue import ChangeQueue
from secretfs.fs.content import Content
from secretfs.fs.inode import Directory, Version
from secretfs.fs.inodes import ROOT_INODE
from secretfs.fs.keys import (
    AppKey,
    DirectoryKey,
    FileKey,
    FolderKey,
    LeafKey,
    PinnedSecretKey,
    RootKey,
    SecretKey,
    ValueKey,
    parent_of,
)
from secretfs.fs.listing import Slices, in_order
from secretfs.fs.names import DATA, encode, split
from secretfs.fs.pending_syscall import FINDS_IT, OVERTAKEN, SHOWS_NOTHING, Call, PendingSyscall, pending_name
from secretfs.fs.vfs import SecretVFS
from secretfs.linux.syscall_helper import SyscallHelper

IDLE_PARTS = 8
"""How often in the time after which a file leaves memory it is looked at whether it is used."""

LOOK_AT_STORES = 60.0
"""Seconds between two looks at which stores there are, while there are none."""

log = logging.getLogger(__name__)


class Publisher:
    """Makes the kernel's tree follow the stores: one system call at a time, and each store's changes in their order.

    Calls ``published`` after each that shows.
    """

    def __init__(  # noqa: PLR0913 - the composition of a mount
        self,
        vfs: SecretVFS,
        mountpoint: Path,
        helper: SyscallHelper,
        announced: trio.MemoryReceiveChannel[Change],
        published: Callable[[], None] = lambda: None,
        seen: Callable[[Change], None] = discard,
        expire: Callable[[Iterable[tuple[int, bytes]]], Awaitable[None]] | None = None,
        *,
        device: int | None = None,
    ) -> None:
        """Of a read-only mount ``device`` is the minor number: calls are made through another mount of it.

        ``seen`` is called with each change that this app may see, before it is published. ``expire`` has the kernel
        look entries up before a program uses them again: inode of the directory, and name.
        """
        self._expire = expire
        self._announced = announced
        self._observe = vfs.observe
        self._changes = vfs.changes
        self._helper = helper
        self._published = published
        self._seen = seen
        self._mountpoint = os.fsencode(mountpoint)
        self._device = device
        self.queue = ChangeQueue(announced, self._publish, self._publish_bulk_files)
        self._one_at_a_time = trio.Lock()
        self._change_log = ChangeLog()
        self.grant: PendingSyscall | None = None
        """What is under way."""

    async def run(self) -> None:
        """Publish what changes. Runs forever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._receive)
            nursery.start_soon(self._change_log.run)
            nursery.start_soon(self.queue.run)

    async def _receive(self) -> None:
        async for change in self._announced:
            if visible := self._observe(change):
                self._seen(visible)
                self.enqueue(visible)

    def enqueue(self, change: Change) -> None:
        """Take a change to be published."""
        self.queue.enqueue(change)

    async def caught_up(self) -> None:
        """Wait until all that has been announced by now is published, for a limited time."""
        await self.queue.caught_up()

    async def evict_idle(self) -> None:
        """Have the kernel forget files that nobody uses, so that their values leave memory in time. Runs forever.

        What somebody has open, mapped or watched, it keeps: that counts as used.
        """
        looked: dict[str, float] = {}
        while True:
            idles = self._changes.idles()
            await trio.sleep(min(idles.values(), default=LOOK_AT_STORES) / IDLE_PARTS)
            for component, idle in idles.items():
                if trio.current_time() >= looked.get(component, -math.inf) + idle / IDLE_PARTS:
                    looked[component] = trio.current_time()
                    await self._evict_idle_of(component)

    async def _evict_idle_of(self, component: str) -> None:
        for inode in self._changes.idle(component):
            if isinstance(inode, Directory):
                await self._evict_pinned(inode)
                continue
            with suppress(NoSuchEntry):  # its store is gone, and it with that
                await self._evict(inode, *self._changes.place(inode.key))

    async def _evict_pinned(self, directory: Directory) -> None:
        """Have the kernel forget what nobody uses of a single version of a secret.

        A version that is not current has no path: whatever is left in it keeps it in memory, and is out of reach. So it
        gets a name for a moment. What somebody holds goes back to its path, or getcwd(2) would fail there.
        """
        if not isinstance(directory.key, PinnedSecretKey):
            return
        secret, name = directory.key.secret, pending_name()
        async with self._one_at_a_time:
            above = self._changes.known(secret)
            parent, path = (ROOT_INODE, b"") if above is None else (above.number, self._changes.path(secret))
            for call in (Call.FIND, Call.EVICT):
                await self._call(PendingSyscall(call, parent, name, directory), path)
            if above is not None and self._changes.is_current(directory):
                await self._call(PendingSyscall(Call.FIND, parent, DATA, directory), path)

    async def _evict(self, inode: Version, segment: bytes, parent: DirectoryKey) -> None:
        async with self._one_at_a_time:
            directory = self._changes.known(parent)
            if directory is None:  # then there is no entry of it either, and the kernel is about to forget it
                inode.evicting = False
                return
            grant = PendingSyscall(Call.EVICT, directory.number, segment, inode)
            await self._call(grant, self._changes.path(parent))

    def is_asked_by(self, caller: Caller) -> bool:
        """Whether a request of the kernel is on behalf of the call under way."""
        return self.grant is not None and caller.pid == self._helper.pid

    def lookup(self, parent: int, segment: bytes) -> Attributes | None:
        """Answer a look-up that only the call under way can answer so; None for any other."""
        grant = self.grant
        if grant is None:
            return None
        # No store is asked: it may be down; and a folder that is not found is forgotten before its watchers are told.
        way = self._changes.way_to(grant.parent)
        if (parent, segment) in way:
            return self._changes.entry_of(way[parent, segment])
        if grant.parent != parent:
            return None
        if segment == grant.pending or (segment == grant.segment and grant.call in FINDS_IT):
            return self._changes.entry_of(grant.inode)
        if segment == grant.segment and grant.call in (Call.MKDIR, Call.EVICT):
            raise NoSuchEntry("not made yet, or not wanted any more")
        if segment == grant.segment and grant.replaced is not None:
            return self._changes.entry_of(grant.replaced)
        if segment == grant.segment and self._changes.reads_have_effects(grant.inode.key):
            raise NoSuchEntry("the store is not asked on our own behalf")
        return None

    def rename(self, parent: int, segment: bytes, new_parent: int, new_segment: bytes) -> None:
        """Let a new version take its place. Raises `ReadOnly` for any other rename."""
        grant = self._granted(Call.RENAME, new_parent, new_segment)
        if not isinstance(grant.inode, Version) or (parent, segment) != (grant.parent, grant.pending):
            raise ReadOnly(Call.RENAME.value)
        self._changes.promote(grant.inode, grant.replaced)

    def mkdir(self, parent: int, segment: bytes) -> Attributes:
        """Let a directory appear. Raises `ReadOnly` for any other."""
        return self._changes.entry_of(self._granted(Call.MKDIR, parent, segment).inode)

    def remove(self, call: Call, parent: int, segment: bytes) -> None:
        """Let an entry go. Raises `ReadOnly` for any other."""
        self._changes.gone(self._granted(call, parent, segment).inode)

    def _granted(self, call: Call, parent: int, segment: bytes) -> PendingSyscall:
        grant = self.grant
        if grant is None or (grant.call, grant.parent, grant.segment) != (call, parent, segment):
            raise ReadOnly(call.value)
        return grant

    async def _publish(self, change: Change) -> None:
        component = change.component
        if change.whole:
            await self._publish_whole(component)
            return
        slices = Slices()
        for name in await in_order(change.names):
            await self._publish_name(component, name)
            await slices.step()
        for name, values in groupby(sorted(change.values), key=itemgetter(0)):
            for _, key in values:
                await self._publish_value(ValueKey(component, name, key))
            secret = SecretKey(component, name)
            for bulk in self._changes.bulk_files(secret):
                await self._publish_value(bulk)
            await self._publish_version(secret)
        if change.values:
            self._change_log.add(component, len(change.values))
            self._published()  # a command that has read them may be told, even if the kernel has forgotten the files

    async def _publish_bulk_files(self, component: str) -> None:
        """Publish the bulk files of a store, which are made of all its secrets."""
        for bulk in self._changes.bulk_files(FolderKey(component)):
            await self._publish_value(bulk)

    async def _publish_whole(self, component: str) -> None:
        """Publish that a store came or went, or first that its app did: an app without a store is ``APP/``."""
        parent, own = parent_of(component), component.rpartition("/")[2]
        if isinstance(parent, AppKey):
            for version in self._changes.take_revoked(parent.app):
                await self._drop_content(version)
            await self._publish_entry(RootKey(), encode(parent.app), parent)
        if own:
            await self._publish_entry(parent, encode(own), FolderKey(component))

    async def _publish_value(self, key: FileKey) -> None:
        """Publish that a value is new, different or gone, or a bulk file that holds it."""
        segment, parent = self._changes.place(key)
        if self._changes.known(parent) is None and self._changes.known(key) is None:
            return  # the kernel does not know the directory, so it has no watcher
        try:
            content = await self._changes.content(key)
        except SecretFSError:  # the store refuses: those who use the path from now on are to find out
            directory = self._changes.known(parent)
            if directory is not None and self._expire is not None:
                await self._expire([(directory.number, segment)])
            raise
        async with self._one_at_a_time:
            directory = self._changes.known(parent)
            if directory is not None:
                await self._replace(directory.number, self._changes.path(parent), segment, key, content)
            version = self._changes.known(key)
            if content is None and version is not None:
                self._changes.gone(version)  # for those who poll it, if it went with its directory

    async def _replace(
        self, parent: int, directory: bytes, segment: bytes, key: FileKey, content: Content | None
    ) -> None:
        """Have the kernel see the versions of a value one after the other, up to this content or to none."""
        overtaken = self._changes.overtaken(key)
        for version, before in overtaken:
            await self._rename(parent, directory, segment, version, before)
        last = self._changes.known(key)
        if content is None and last is not None:
            await self._call(PendingSyscall(Call.UNLINK, parent, segment, last), directory)
        elif content is not None and not (overtaken and self._changes.has_content(key, content)):
            await self._put_in_place(parent, directory, segment, key)

    async def _publish_version(self, secret: SecretKey) -> None:
        """Publish that a multi-valued secret has another version, when all its values show it: another ``..data``."""
        if not self._changes.has_versions(secret):
            return
        pin = await self._changes.pin(secret)
        async with self._one_at_a_time:
            directory = self._changes.known(secret)
            if directory is not None and pin is not None:
                await self._put_in_place(directory.number, self._changes.path(secret), DATA, pin)
            self._changes.outdate(secret, pin)

    async def _drop_content(self, version: Version) -> None:
        """Have the kernel drop the bytes of a file that nobody may read any more, from mappings too.

        It does when it finds that the file is empty. Then it forgets the name that this takes.
        """
        name = pending_name()
        async with self._one_at_a_time:
            for call in (Call.FIND, Call.EVICT):
                await self._call(PendingSyscall(call, ROOT_INODE, name, version), b"")

    async def _publish_name(self, component: str, name: str) -> None:
        """Publish that a secret or folder is new or gone, in each directory on the way to it that the kernel knows."""
        path = split(name)
        for depth, own in enumerate(path):
            parent = FolderKey(component, path[:depth])
            await self._publish_entry(parent, encode(own), FolderKey(component, path[: depth + 1]))

    async def _publish_entry(
        self, parent: RootKey | AppKey | FolderKey, segment: bytes, place: AppKey | FolderKey
    ) -> None:
        """Publish what has become of an entry. ``place`` is where it is, should it be a folder."""
        if self._changes.known(parent) is None:
            return  # the kernel does not know the directory, so it has no watcher
        entries = await self._changes.folder(parent)
        if entries is None:
            return  # it may not be listed; what is below it may
        async with self._one_at_a_time:
            directory = self._changes.known(parent)
            if directory is None:
                return
            entry, known, path = entries.get(segment), self._changes.known_at(place), self._changes.path(parent)
            past = [inode for inode in known if inode.key != entry or (isinstance(inode, Directory) and inode.outdated)]
            for inode in past:
                call = Call.UNLINK if isinstance(inode, Version) else Call.RMDIR
                await self._call(PendingSyscall(call, directory.number, segment, inode), path)
            if entry is not None and (past or not known):
                await self._put_in_place(directory.number, path, segment, entry)

    async def _put_in_place(self, parent: int, directory: bytes, segment: bytes, key: DirectoryKey | LeafKey) -> None:
        before = self._changes.known(key)
        inode = self._changes.successor(key)
        if isinstance(inode, Version):
            there = before if isinstance(before, Version) and before.lookups else None
            await self._rename(parent, directory, segment, inode, there)
        else:
            await self._call(PendingSyscall(Call.MKDIR, parent, segment, inode), directory)
        self._changes.discard(inode)

    async def _rename(
        self, parent: int, directory: bytes, segment: bytes, version: Version, before: Version | None
    ) -> None:
        await self._call(PendingSyscall(Call.RENAME, parent, segment, version, pending_name(), before), directory)

    async def _call(self, grant: PendingSyscall, directory: bytes) -> None:
        """Make the system call. One that fails is logged, and the next change is published all the same."""
        base = os.path.join(self._mountpoint, directory)  # noqa: PTH118 - bytes
        device = None if grant.call is Call.EVICT else self._device
        names = (grant.pending, grant.segment) if grant.call is Call.RENAME else (grant.segment,)
        self.grant = grant
        try:
            paths = (os.path.join(base, name) for name in names)  # noqa: PTH118 - bytes
            await self._helper.call(grant.call.value, *paths, device=device)
        except OSError as error:
            level = logging.DEBUG if error.errno in OVERTAKEN else logging.WARNING
            log.log(level, "a change is not announced: %s: %s", grant.call.value, error.strerror)
        else:
            if grant.call not in SHOWS_NOTHING:
                self._published()
        finally:
            self.grant = None
