"""The protocol adapter: FUSE's requests to `SecretVFS` and its answers to FUSE. Decides nothing.

One wrapper turns errors into errnos. It must let nothing but FUSEError through: any other exception in a handler ends
``pyfuse3.main()`` and with it every reader's mount (pyfuse3 issues 45, 82 and 93; measured).
"""

import errno
import functools
import logging
import os
import select
import stat
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, Concatenate, Final, ParamSpec, TypeVar, cast

import pyfuse3
from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FileNameT,
    FlagT,
    InodeT,
    ModeT,
    PollHandle,
    ReaddirToken,
    RequestContext,
    SetattrFields,
)

from secretfs.errors import ReadOnly, SecretFSError, log_defect
from secretfs.fs.attributes import Attributes
from secretfs.fs.caller import Caller
from secretfs.fs.names import NAME_MAX
from secretfs.fs.pending_syscall import Call
from secretfs.fs.publish import Publisher
from secretfs.fs.requests import user
from secretfs.fs.vfs import SecretVFS
from secretfs.fuse.connection import Connection
from secretfs.fuse.control_mount import ControlMount
from secretfs.fuse.fair_share import FairShare
from secretfs.fuse.messages import MessageStats, counted
from secretfs.fuse.opens import Opens
from secretfs.fuse.read_only import ReadOnlyOperations
from secretfs.fuse.witness import Witness

BLOCK_SIZE = 4096
ENTRIES_AT_ONCE: Final = 16
"""Entries of a directory that are worked on between two turns of others: some 0.3 ms."""

P = ParamSpec("P")
R = TypeVar("R")
Handler = Callable[Concatenate["SecretOperations", P], Coroutine[Any, Any, R]]

log = logging.getLogger(__name__)

_OUT_OF_MEMORY = pyfuse3.FUSEError(errno.ENOMEM)  # made while there is memory


def _answers(handler: Handler[P, R]) -> Handler[P, R]:
    """Give a handler's errors to the caller they belong to, as an errno: our own have theirs, a defect is EIO.

    Where memory is short the answer comes first: it takes the least memory. The log may miss a line.
    """

    @functools.wraps(handler)
    async def guarded(self: "SecretOperations", /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            try:
                return await handler(self, *args, **kwargs)
            except SecretFSError as error:
                await _tell_refusal(self, handler.__name__, args, error)
                raise
        except SecretFSError as error:
            raise pyfuse3.FUSEError(error.errno) from None
        except pyfuse3.FUSEError:
            raise
        except MemoryError:
            with suppress(MemoryError):
                log.error("out of memory: a request ends with ENOMEM")  # noqa: TRY400 - a traceback takes memory
            raise _OUT_OF_MEMORY.with_traceback(None) from None
        except Exception as error:  # noqa: BLE001 - see the module's docstring
            with suppress(MemoryError):
                log_defect(log, error)
            raise pyfuse3.FUSEError(errno.EIO) from None

    return counted(guarded)


async def _tell_refusal(
    operations: "SecretOperations", request: str, args: Sequence[Any], error: SecretFSError
) -> None:
    """Tell that a request of a process ends with an error. One about an open file does not say who makes it."""
    context = args[-1]
    if hasattr(context, "pid") and not operations.is_ours(context):
        name = args[1] if request == "lookup" else None
        await operations.witness.refused(request, args[0], name, _caller(context), error)


def _takes_a_place(handler: Handler[P, R]) -> Handler[P, R]:
    """Give a request a place among those of its app or user, and its turn.

    What we ask ourselves needs neither: it must not be refused. READ and READDIR do not say who asks.
    """
    kind = handler.__name__

    @functools.wraps(handler)
    async def placed(self: "SecretOperations", /, *args: P.args, **kwargs: P.kwargs) -> R:
        if self._share is None:
            return await handler(self, *args, **kwargs)
        number, context = args[0], args[-1]
        uid: int | None = getattr(context, "uid", None)
        if uid is not None and self.is_ours(cast("RequestContext", context)):
            return await handler(self, *args, **kwargs)
        with self._share.place(number if isinstance(number, int) else pyfuse3.ROOT_INODE, uid) as asker:
            await self._share.turn(asker or (kind if uid is None else user(uid)))
            return await handler(self, *args, **kwargs)

    return placed


class SecretOperations(ReadOnlyOperations):
    """What pyfuse3 calls. ``connection`` is where libfuse has been told to find the kernel.

    With ``opens``, the kernel learns of no content of a file before it reports who opens that. With ``requests``, the
    mount is read-only. Where apps or users ``share`` it, each request takes its place there, which may be refused, and
    waits for its turn. ``witness`` is told who opens what, and who is refused what.
    """

    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(
        self,
        vfs: SecretVFS,
        publisher: Publisher,
        connection: Connection,
        opens: Opens | None = None,
        requests: ControlMount | None = None,
        share: FairShare | None = None,
        witness: Witness | None = None,
    ) -> None:
        super().__init__()
        self.messages = MessageStats()
        self._opens = opens or Opens()
        self.witness = witness or Witness()
        self._requests = requests
        self._share = share
        self._connection = connection
        self._vfs = vfs
        self._publisher = publisher

    def init(self) -> None:
        """Begin: libfuse has read the first message, and answers it next."""
        self._connection.attach()

    @_answers
    @_takes_a_place
    async def lookup(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> EntryAttributes:
        """Find a name in a directory."""
        ours = self._publisher.lookup(parent_inode, name) if self.is_ours(ctx) else None
        ours = ours or self._opens.lookup(parent_inode, name, _caller(ctx))
        if not ours:
            self._opens.begin_to_watch(parent_inode)
        found = ours or await self._vfs.lookup(parent_inode, name, _caller(ctx))
        if found.attr_timeout:  # else nothing is known of it, and `getattr` comes next
            await self._opens.watch(found.inode)
        if self._vfs.takes_requests(found.inode):
            self.witness.found(found.inode, _caller(ctx))
        return self._reply(found)

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        """Take back references of the kernel.

        FORGET has no reply, so pyfuse3 lets even a FUSEError through, and that ends the mount: nothing is raised here.
        """
        for inode, lookups in inode_list:
            try:
                self._vfs.forget(inode, lookups)
                self._opens.forget(inode)
                self.witness.forget(inode)
            except Exception as error:  # noqa: BLE001 - a defect costs one inode, which stays in memory
                with suppress(MemoryError):
                    log_defect(log, error)

    @_answers
    @_takes_a_place
    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        """Return true attributes."""
        attributes = await self._vfs.getattr(inode, _caller(ctx))
        await self._opens.watch(inode)
        return self._reply(attributes)

    @_answers
    @_takes_a_place
    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        """Snapshot a directory, or let the kernel open directories by itself from now on."""
        self._let_kernel_open()
        return await self._vfs.open_directory(inode, _caller(ctx))

    @_answers
    @_takes_a_place
    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        """List a snapshot. libfuse always answers READDIRPLUS, so each entry is a reference that the kernel takes."""
        known: int | None = None
        for number, (offset, segment, attributes) in enumerate(await self._vfs.read_directory(fh, start_id), 1):
            if not pyfuse3.readdir_reply(token, segment, self._reply(attributes), offset):
                self._vfs.forget(attributes.inode, 1)
                break
            if attributes.attr_timeout and stat.S_ISREG(attributes.mode):
                known = attributes.inode
            if self._share is not None and number % ENTRIES_AT_ONCE == 0:
                await self._share.go_on()
        if known is not None:  # what is done for one file of a directory is done for all
            await self._opens.watch(known)

    @_answers
    async def releasedir(self, fh: FileHandleT) -> None:
        """Drop a snapshot."""
        self._vfs.close_directory(fh)

    @_answers
    @_takes_a_place
    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        """Open one immutable version: what the page cache holds of it is right for ever.

        Or let the kernel open files by itself from now on. It knows no ``direct_io`` then: it keeps what is written to
        a control file in its page cache, and still sends one request for each write(2), with an errno of its own.
        """
        if flags & os.O_ACCMODE == os.O_WRONLY and self._vfs.takes_requests(inode):
            handle = await self._vfs.open(inode, _caller(ctx))
            await self.witness.opened(inode, _caller(ctx))
            return FileInfo(fh=handle, direct_io=True)  # each write(2) gets an errno of its own
        if flags & (os.O_ACCMODE | os.O_TRUNC):
            raise ReadOnly("open")
        handle = await self._vfs.open(inode, _caller(ctx))
        self._let_kernel_open()
        await self.witness.opened(inode, _caller(ctx))
        return FileInfo(fh=handle, keep_cache=True)

    @_answers
    @_takes_a_place
    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        """Read from the version that was opened."""
        return await self._vfs.read(fh, off, size)

    @_answers
    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        """Take a request, and answer when its results show. Nothing else may be written to."""
        try:
            await self.witness.written(fh, buf)
            await self._vfs.write(fh, buf)
        finally:
            await self._publisher.caught_up()
        return len(buf)

    @_answers
    @_takes_a_place
    async def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        """Lead to the control file that a link stands for, where it can be written to."""
        name = self._vfs.link_target(inode)
        if self._requests is None:  # the link is from before somebody made the mount writable, and we took it over
            raise ReadOnly("a request")
        return FileNameT(await self._requests.path() + b"/" + name)

    @_answers
    async def setattr(
        self, inode: InodeT, attr: EntryAttributes, fields: SetattrFields, fh: FileHandleT | None, ctx: RequestContext
    ) -> EntryAttributes:
        """Refuse chmod, chown, truncate and utime, but for the truncation of what `open` truncates before a request."""
        others = (fields.update_mode, fields.update_uid, fields.update_gid, fields.update_atime, fields.update_mtime)
        if not fields.update_size or attr.st_size or any(others) or not self._vfs.takes_requests(inode):
            raise ReadOnly("setattr")
        return self._reply(await self._vfs.getattr(inode, _caller(ctx)))

    @_answers
    async def flush(self, fh: FileHandleT) -> None:
        """Nothing to flush: ENOSYS, once, makes the kernel stop asking, and every later close a round trip cheaper."""
        raise pyfuse3.FUSEError(errno.ENOSYS)

    @_answers
    async def release(self, fh: FileHandleT) -> None:
        """Close a file: a version is there for as long as the kernel knows it, whoever has it open."""

    @_answers
    @_takes_a_place
    async def poll(self, inode: InodeT, fh: FileHandleT, poll_handle: PollHandle | None, ctx: RequestContext) -> int:
        """Say that it is readable, and exceptional (as /proc/mounts is) once the version is superseded."""
        waiter = self._connection.wake_up_call(poll_handle.notify) if poll_handle else None
        superseded = self._vfs.poll(inode, waiter)
        return select.POLLIN | select.POLLRDNORM | (select.POLLPRI | select.POLLERR if superseded else 0)

    @_answers
    async def rename(
        self,
        parent_inode_old: InodeT,
        name_old: FileNameT,
        parent_inode_new: InodeT,
        name_new: FileNameT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> None:
        """Publish a new version, if it is us who ask; this and the next three are read-only for everybody else."""
        self._require_ours(ctx)
        self._publisher.rename(parent_inode_old, name_old, parent_inode_new, name_new)

    @_answers
    async def mkdir(self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext) -> EntryAttributes:
        """Publish a new directory."""
        self._require_ours(ctx)
        return self._reply(self._publisher.mkdir(parent_inode, name))

    @_answers
    async def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        """Publish that a file is gone."""
        self._require_ours(ctx)
        self._publisher.remove(Call.UNLINK, parent_inode, name)

    @_answers
    async def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        """Publish that a directory is gone."""
        self._require_ours(ctx)
        self._publisher.remove(Call.RMDIR, parent_inode, name)

    @_answers
    @_takes_a_place
    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        """Say that the file system is empty: without an answer podman refuses to bind it into a container."""
        answer = pyfuse3.StatvfsData()
        answer.f_bsize = answer.f_frsize = BLOCK_SIZE
        answer.f_namemax = NAME_MAX
        return answer

    @_answers
    @_takes_a_place
    async def getxattr(self, inode: InodeT, name: bytes, ctx: RequestContext) -> bytes:
        """Return an extended attribute."""
        return await self._vfs.getxattr(inode, name.decode(errors="replace"), _caller(ctx))

    @_answers
    @_takes_a_place
    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[bytes]:
        """Return the names of the extended attributes."""
        return [name.encode() for name in self._vfs.listxattr(inode)]

    def why_asked(self) -> str:
        """Return why the kernel has to ask at each open; nothing if it can open files by itself."""
        if self.witness.strict:
            return "--audit=strict has each open wait for its record"
        if self._requests is None:
            return "the mount is not read-only, and nobody but us refuses to open a file to write"
        if self.witness.hears_reports and not self._opens.reported:
            return "the kernel does not report what is opened, and --audit=observe has to hear of it"
        return ""

    def _let_kernel_open(self) -> None:
        """Answer OPEN or OPENDIR so that the kernel sends no more of them, where it is to open by itself."""
        if self._connection.open_by_itself():
            raise pyfuse3.FUSEError(errno.ENOSYS)

    def is_ours(self, ctx: RequestContext) -> bool:
        """Whether we ask ourselves, while we publish something."""
        return self._publisher.is_asked_by(_caller(ctx))

    def _require_ours(self, ctx: RequestContext) -> None:
        if not self.is_ours(ctx):
            raise ReadOnly("a change")

    def _reply(self, attributes: Attributes) -> EntryAttributes:
        entry = EntryAttributes()
        entry.st_ino = attributes.inode
        entry.st_mode = attributes.mode
        entry.st_nlink = attributes.links
        entry.st_uid = attributes.uid
        entry.st_gid = attributes.gid
        entry.st_size = attributes.size
        entry.st_blksize = BLOCK_SIZE
        entry.st_blocks = -(-attributes.size // 512)
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = int(attributes.modified * 1e9)
        entry.attr_timeout = attributes.attr_timeout
        entry.entry_timeout = attributes.entry_timeout
        return entry


def _caller(ctx: RequestContext) -> Caller:
    return Caller(ctx.uid, ctx.gid, ctx.pid)
