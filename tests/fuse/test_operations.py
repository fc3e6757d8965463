"""The adapter: every error becomes the errno of its class, a defect becomes EIO, and nothing else ever gets out."""

import errno
import inspect
import logging
import os
import select
import stat
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import NoReturn, cast

import pyfuse3
import pytest

import secretfs.errors
from secretfs.errors import NoSuchEntry, ReadOnly, SecretFSError
from secretfs.fs.attributes import Attributes
from secretfs.fs.caller import Caller
from secretfs.fs.inode import Version
from secretfs.fs.keys import ValueKey
from secretfs.fs.pending_syscall import Call, PendingSyscall
from secretfs.fs.publish import Publisher
from secretfs.fs.vfs import SecretVFS
from secretfs.fuse.connection import Connection
from secretfs.fuse.operations import SecretOperations
from secretfs.fuse.read_only import ReadOnlyOperations
from tests.conftest import ExpectLog
from tests.support.canary import leaked
from tests.support.canary import secret as canary


class Context:
    """Says who asks."""

    def __init__(self, pid: int) -> None:
        self.uid, self.gid, self.pid = 1000, 1000, pid


OUR_HAND, NOBODY, ANOTHER, OURSELVES = Context(4711), Context(0), Context(os.getppid()), Context(os.getpid())
BY_ANYBODY = pytest.mark.parametrize(
    "context", [OUR_HAND, NOBODY, ANOTHER, OURSELVES], ids=["our hand", "nobody", "another", "the daemon itself"]
)


def fields(*changed: str) -> SimpleNamespace:
    """Say what a `setattr` wants to change."""
    every = ("size", "mode", "uid", "gid", "atime", "mtime", "ctime")
    return SimpleNamespace(**{f"update_{field}": field in changed for field in every})


HANDLERS: dict[str, tuple[object, ...]] = {
    "lookup": (1, b"name", NOBODY),
    "getattr": (2, NOBODY),
    "opendir": (1, NOBODY),
    "readdir": (1, 0, None),
    "releasedir": (1,),
    "open": (2, os.O_RDONLY, NOBODY),
    "read": (2, 0, 10),
    "readlink": (2, NOBODY),
    "getxattr": (2, b"user.x", NOBODY),
    "listxattr": (2, None),
    "poll": (2, 2, None, None),
    "write": (2, 0, b"data"),
    "setattr": (2, SimpleNamespace(st_size=0), fields("size"), None, NOBODY),
}

NO_CONTEXT = cast("pyfuse3.RequestContext", SimpleNamespace(uid=0, gid=0, pid=0))


CHANGES: dict[str, tuple[object, ...]] = {
    "rename": (1, b"old", 1, b"new", 0),
    "mkdir": (1, b"name", 0o700),
    "unlink": (1, b"name"),
    "rmdir": (1, b"name"),
}

WRITES: dict[str, tuple[object, ...]] = {
    "mknod": (1, b"name", 0o600, 0, None),
    "create": (1, b"name", 0o600, os.O_WRONLY, None),
    "symlink": (1, b"name", b"target", None),
    "link": (2, 1, b"name", None),
    "setxattr": (2, b"user.x", b"value", None),
    "removexattr": (2, b"user.x", None),
}


class Recorder:
    """Stands in for a `Publisher`, with something under way; records what it is asked."""

    def __init__(self, *, busy: bool = True) -> None:
        self.grant = PendingSyscall(Call.MKDIR, 1, b"name", Version(7, ValueKey("env", "a", "a"))) if busy else None
        self.asked: list[tuple[object, ...]] = []
        self.answer: Attributes | None = Attributes(7, stat.S_IFDIR | 0o700, 1000, 2000, 0, 0.0, 1.0, 1.0)

    def is_asked_by(self, caller: Caller) -> bool:
        return self.grant is not None and caller.pid == OUR_HAND.pid

    def lookup(self, *args: object) -> Attributes | None:
        self.asked.append(("lookup", *args))
        return self.answer

    async def caught_up(self) -> None:
        self.asked.append(("caught_up",))

    def rename(self, *args: object) -> None:
        self.asked.append(("rename", *args))

    def mkdir(self, *args: object) -> Attributes | None:
        self.asked.append(("mkdir", *args))
        return self.answer

    def remove(self, *args: object) -> None:
        self.asked.append(("remove", *args))


class Kernel:
    """Stands in for a `Connection`."""

    def __init__(self, *, opens: bool = False) -> None:
        self.opens = opens

    def open_by_itself(self) -> bool:
        return self.opens

    def wake_up_call(self, notify: Callable[[], None]) -> bytes:
        notify()
        return b"waiter"


def serving(vfs: object, publisher: object = None, *, kernel_opens: bool = False) -> SecretOperations:
    """Put the adapter before what stands in for a `SecretVFS` and a `Publisher`."""
    return SecretOperations(
        cast("SecretVFS", vfs),
        cast("Publisher", publisher or Recorder(busy=False)),
        cast("Connection", Kernel(opens=kernel_opens)),
    )


class FailingVFS:
    """Fails in whatever is called."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __getattr__(self, name: str) -> Callable[..., object]:
        if name in (
            "close_directory",
            "link_target",
            "listxattr",
            "poll",
            "takes_requests",
        ):
            return self._fail
        return self._fail_later

    def _fail(self, *args: object) -> NoReturn:
        raise self.error

    async def _fail_later(self, *args: object) -> NoReturn:
        raise self.error


def every_error() -> Iterator[type[SecretFSError]]:
    waiting = [SecretFSError]
    while waiting:
        cls = waiting.pop()
        waiting += cls.__subclasses__()
        yield cls


def test_this_list_of_handlers_is_complete() -> None:
    own = {name for name, _ in inspect.getmembers(SecretOperations, inspect.iscoroutinefunction)}
    inherited = {name for name, _ in inspect.getmembers(pyfuse3.Operations, inspect.iscoroutinefunction)}
    assert {n for n in own if getattr(SecretOperations, n) is not getattr(pyfuse3.Operations, n, None)} == {
        *HANDLERS,
        *CHANGES,
        *WRITES,
        "flush",
        "forget",
        "release",
        "statfs",
    }
    assert own == inherited


@pytest.mark.parametrize("handler", HANDLERS)
async def test_a_defect_in_any_handler_is_eio_for_that_caller(
    handler: str, expect_log: ExpectLog, caplog: pytest.LogCaptureFixture
) -> None:
    expect_log("a defect in secretfs or in a store")
    operations = serving(FailingVFS(ValueError(canary())))
    with pytest.raises(pyfuse3.FUSEError) as raised:
        await getattr(operations, handler)(*HANDLERS[handler])
    assert raised.value.errno == errno.EIO
    assert raised.value.__cause__ is None
    assert not leaked(caplog.text)


async def test_a_defect_in_forget_is_logged_and_costs_that_inode_alone(expect_log: ExpectLog) -> None:
    class Vfs:
        def forget(self, inode: int, lookups: int) -> None:
            if inode == 2:
                raise KeyError(inode)
            forgotten.append((inode, lookups))

    expect_log("a defect in secretfs or in a store")
    forgotten: list[tuple[int, int]] = []
    await serving(Vfs()).forget([(pyfuse3.InodeT(2), 1), (pyfuse3.InodeT(3), 4)])
    assert forgotten == [(3, 4)]


@pytest.mark.parametrize("error", [MemoryError(), ValueError()], ids=["asked too much", "a defect"])
@pytest.mark.parametrize("handler", HANDLERS)
async def test_without_memory_a_request_fails_although_nothing_can_be_logged(
    handler: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def handle(record: logging.LogRecord) -> NoReturn:
        raise MemoryError

    monkeypatch.setattr(logging.getLogger("secretfs.fuse.operations"), "handle", handle)
    with pytest.raises(pyfuse3.FUSEError) as raised:
        await getattr(serving(FailingVFS(error)), handler)(*HANDLERS[handler])
    assert raised.value.errno == (errno.ENOMEM if isinstance(error, MemoryError) else errno.EIO)


@pytest.mark.parametrize("handler", HANDLERS)
async def test_our_errors_keep_their_errno(handler: str) -> None:
    operations = serving(FailingVFS(NoSuchEntry("x")))
    with pytest.raises(pyfuse3.FUSEError) as raised:
        await getattr(operations, handler)(*HANDLERS[handler])
    assert raised.value.errno == errno.ENOENT


def test_every_error_class_has_an_errno_the_kernel_knows() -> None:
    for cls in every_error():
        assert errno.errorcode[cls.errno]


def test_the_table_in_the_docstring_is_the_code() -> None:
    told = {}
    for line in secretfs.errors.__doc__.splitlines():
        words = line.replace("│", " ").replace("├──", " ").replace("└──", " ").split()
        codes = [word for word in words if word.isupper() and word.startswith("E")]
        if codes and words[0] in vars(secretfs.errors):
            told[words[0]] = codes[0]
    for name, code in told.items():
        cls = vars(secretfs.errors)[name]
        if name != "AccessDenied":  # its errno stands on the first of its two lines
            assert errno.errorcode[cls.errno] == code, name
    assert {"SecretNotFound", "DeadlineExceeded", "MalformedAnswer", "Superseded"} <= told.keys()


async def test_attributes_are_carried_over() -> None:
    class Vfs:
        async def getattr(self, inode: int, caller: Caller) -> Attributes:
            return Attributes(7, stat.S_IFREG | 0o440, 1000, 2000, 1000, 12.5, 3.0, 4.0)

    entry = await serving(Vfs()).getattr(7, NO_CONTEXT)
    assert (entry.st_ino, entry.st_mode, entry.st_size) == (7, stat.S_IFREG | 0o440, 1000)
    assert (entry.st_uid, entry.st_gid, entry.st_nlink, entry.st_blocks) == (1000, 2000, 1, 2)
    assert entry.st_mtime_ns == 12_500_000_000
    assert (entry.attr_timeout, entry.entry_timeout) == (3.0, 4.0)


async def test_an_open_file_may_stay_in_the_page_cache() -> None:
    class Vfs:
        async def open(self, inode: int, caller: Caller) -> int:
            return inode

    opened = await serving(Vfs()).open(7, os.O_RDONLY, NO_CONTEXT)
    assert (opened.fh, opened.keep_cache, opened.direct_io) == (7, True, False)


async def test_the_kernel_is_told_once_to_open_by_itself_and_not_for_writing() -> None:
    operations = serving(Requested(), kernel_opens=True)
    for opening in (
        operations.open(pyfuse3.InodeT(7), os.O_RDONLY, NO_CONTEXT),
        operations.opendir(pyfuse3.InodeT(1), NO_CONTEXT),
    ):
        with pytest.raises(pyfuse3.FUSEError) as raised:
            await opening
        assert raised.value.errno == errno.ENOSYS
    assert (await operations.open(pyfuse3.InodeT(9), os.O_WRONLY, NO_CONTEXT)).fh == 9
    with pytest.raises(pyfuse3.FUSEError) as raised:
        await operations.open(pyfuse3.InodeT(7), os.O_WRONLY, NO_CONTEXT)
    assert raised.value.errno == errno.EROFS


async def test_what_cannot_be_opened_is_refused_before_the_kernel_opens_by_itself() -> None:
    operations = serving(FailingVFS(NoSuchEntry("x")), kernel_opens=True)
    with pytest.raises(pyfuse3.FUSEError) as raised:
        await operations.open(pyfuse3.InodeT(7), os.O_RDONLY, NO_CONTEXT)
    assert raised.value.errno == errno.ENOENT


async def test_flush_is_switched_off() -> None:
    with pytest.raises(pyfuse3.FUSEError) as raised:
        await serving(None).flush(1)
    assert raised.value.errno == errno.ENOSYS


async def test_statfs_answers() -> None:
    answer = await serving(None).statfs(NO_CONTEXT)
    assert answer.f_namemax == 255


@pytest.mark.parametrize("request_name", WRITES)
async def test_every_write_is_refused_as_read_only(request_name: str) -> None:
    operations = serving(None)
    assert request_name in vars(ReadOnlyOperations)
    with pytest.raises(pyfuse3.FUSEError) as raised:
        await getattr(operations, request_name)(*WRITES[request_name])
    assert raised.value.errno == errno.EROFS


class Requested:
    """Stands in for a `SecretVFS` in which inode 9 takes requests."""

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def takes_requests(self, inode: int) -> bool:
        return inode == 9

    async def open(self, inode: int, caller: Caller) -> int:
        return inode

    async def write(self, handle: int, text: bytes) -> None:
        if not self.takes_requests(handle):
            raise ReadOnly("write")
        self.written.append(text)

    async def getattr(self, inode: int, caller: Caller) -> Attributes:
        return Attributes(inode, stat.S_IFREG | 0o600, 1000, 2000, 0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("inode", "flags", "allowed"),
    [
        (2, os.O_RDONLY, True),
        (2, os.O_WRONLY, False),
        (2, os.O_RDWR, False),
        (2, os.O_WRONLY | os.O_TRUNC, False),
        (2, os.O_RDONLY | os.O_TRUNC, False),
        (9, os.O_WRONLY, True),
        (9, os.O_RDWR, False),
    ],
)
async def test_so_is_opening_a_file_to_write_unless_it_takes_requests(inode: int, flags: int, *, allowed: bool) -> None:
    opening = serving(Requested()).open(pyfuse3.InodeT(inode), flags, NO_CONTEXT)
    if allowed:
        assert (await opening).direct_io is (flags != os.O_RDONLY)
        return
    with pytest.raises(pyfuse3.FUSEError) as raised:
        await opening
    assert raised.value.errno == errno.EROFS


async def test_only_what_takes_requests_is_written_to() -> None:
    vfs, publisher = Requested(), Recorder()
    assert await serving(vfs, publisher).write(pyfuse3.FileHandleT(9), 0, b"all") == 3
    assert publisher.asked == [("caught_up",)]  # the answer comes when the results show
    with pytest.raises(pyfuse3.FUSEError) as raised:
        await serving(vfs).write(pyfuse3.FileHandleT(2), 0, b"all")
    assert raised.value.errno == errno.EROFS
    assert vfs.written == [b"all"]


@pytest.mark.parametrize(
    ("inode", "size", "changed", "allowed"),
    [
        (9, 0, ("size",), True),
        (9, 1, ("size",), False),
        (9, 0, ("size", "mode"), False),
        (9, 0, ("uid",), False),
        (9, 0, (), False),
        (2, 0, ("size",), False),
        (2, 0, ("mtime",), False),
    ],
)
async def test_attributes_are_read_only_but_for_the_truncation_before_a_request(
    inode: int, size: int, changed: tuple[str, ...], *, allowed: bool
) -> None:
    asked = getattr(serving(Requested()), "setattr")(  # noqa: B009 - what it is given only looks like the real thing
        inode, SimpleNamespace(st_size=size), fields(*changed), None, NO_CONTEXT
    )
    if allowed:
        assert (await asked).st_ino == inode
        return
    with pytest.raises(pyfuse3.FUSEError) as raised:
        await asked
    assert raised.value.errno == errno.EROFS


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "publishing"])
@BY_ANYBODY
@pytest.mark.parametrize("change", CHANGES)
async def test_changes_are_for_our_own_hand_while_it_publishes(change: str, context: Context, *, busy: bool) -> None:
    publisher = Recorder(busy=busy)
    request = getattr(serving(None, publisher), change)(*CHANGES[change], context)
    if context is OUR_HAND and busy:
        await request
        args = CHANGES[change]
        assert publisher.asked == [
            {
                "rename": ("rename", *args[:4]),
                "mkdir": ("mkdir", *args[:2]),
                "unlink": ("remove", Call.UNLINK, *args),
                "rmdir": ("remove", Call.RMDIR, *args),
            }[change]
        ]
        return
    with pytest.raises(pyfuse3.FUSEError) as raised:
        await request
    assert raised.value.errno == errno.EROFS
    assert publisher.asked == []


async def test_a_change_that_is_not_granted_is_refused_as_read_only() -> None:
    class Refusing(Recorder):
        def mkdir(self, *args: object) -> NoReturn:
            raise ReadOnly("mkdir")

    with pytest.raises(pyfuse3.FUSEError) as raised:
        await serving(None, Refusing()).mkdir(
            pyfuse3.InodeT(1), pyfuse3.FileNameT(b"x"), pyfuse3.ModeT(0), cast("pyfuse3.RequestContext", OUR_HAND)
        )
    assert raised.value.errno == errno.EROFS


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "publishing"])
@BY_ANYBODY
@pytest.mark.parametrize("granted", [False, True])
async def test_only_our_own_hand_looks_up_what_is_being_published(
    context: Context, *, busy: bool, granted: bool
) -> None:
    class Vfs:
        def takes_requests(self, inode: int) -> bool:
            return False

        async def lookup(self, parent: int, segment: bytes, caller: Caller) -> Attributes:
            return Attributes(8, stat.S_IFREG | 0o400, 1000, 2000, 0, 0.0, 0.0, 1.0)

    publisher = Recorder(busy=busy)
    if not granted:
        publisher.answer = None
    operations = serving(Vfs(), publisher)
    entry = await operations.lookup(
        pyfuse3.InodeT(1), pyfuse3.FileNameT(b"name"), cast("pyfuse3.RequestContext", context)
    )
    ours = context is OUR_HAND and busy
    assert publisher.asked == ([("lookup", 1, b"name")] if ours else [])
    assert entry.st_ino == (7 if ours and granted else 8)


@pytest.mark.parametrize("superseded", [False, True])
@pytest.mark.parametrize("waiting", [False, True])
async def test_poll_says_readable_and_exceptional_once_superseded(*, superseded: bool, waiting: bool) -> None:
    class Handle:
        def notify(self) -> None: ...  # what a `Connection` calls to learn the message

    handle = Handle() if waiting else None
    told: list[object] = []

    class Vfs:
        def poll(self, number: int, notify: object) -> bool:
            told.append(notify)
            return superseded

    inode, fh = pyfuse3.InodeT(7), pyfuse3.FileHandleT(7)
    events = await serving(Vfs()).poll(inode, fh, cast("pyfuse3.PollHandle | None", handle), NO_CONTEXT)
    assert events & (select.POLLIN | select.POLLRDNORM) == select.POLLIN | select.POLLRDNORM
    assert bool(events & select.POLLPRI) == bool(events & select.POLLERR) == superseded
    assert told == [b"waiter" if handle else None]
