"""The connection to the kernel, without one: what it says of how a mount was made, and of what can be done with it."""

import os
import struct
from collections.abc import Iterator

import pytest

from secretfs.errors import JournalUnreadable, MountError
from secretfs.fs.journal import FORMAT, Journal
from secretfs.fuse import inode_for_handle
from secretfs.fuse.connection import Connection
from secretfs.fuse.handshake import accept
from tests.fuse.test_handshake import offer

HOOK = inode_for_handle.Hook("for the test", lambda: 7)
UNUSED = inode_for_handle.Hook("for the test", lambda: 0)


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> list[inode_for_handle.Hook]:
    """Stand in for what is installed in this process."""
    found: list[inode_for_handle.Hook] = []
    monkeypatch.setattr(inode_for_handle, "_hooks", found)
    return found


@pytest.fixture
def kernel() -> Iterator[int]:
    """Give the end of a pipe, from which FUSE_INIT can be read."""
    reading, writing = os.pipe()
    os.write(writing, offer())
    yield reading
    os.close(reading)
    os.close(writing)


def made(*, kernel_answers: bool, hooks: list[inode_for_handle.Hook], kernel: int) -> Connection:
    connection = Connection(kernel, Journal(), kernel_answers=kernel_answers)
    connection.why_asked = str
    return connection


@pytest.mark.parametrize("kernel_answers", [True, False])
@pytest.mark.parametrize("hook", [HOOK, UNUSED, None])
def test_the_kernel_opens_by_itself_if_that_was_asked_for_and_can_be_done(
    hooks: list[inode_for_handle.Hook], kernel: int, hook: inode_for_handle.Hook | None, *, kernel_answers: bool
) -> None:
    hooks[:] = [hook] if hook else []
    connection = made(kernel_answers=kernel_answers, hooks=hooks, kernel=kernel)
    assert not connection.journal.kernel_opens
    assert connection.open_by_itself() is connection.warm_reads.by_kernel is (kernel_answers and hook is HOOK)
    assert connection.journal.kernel_opens is (kernel_answers and hook is HOOK)


def test_not_before_the_kernel_reports_what_is_opened(hooks: list[inode_for_handle.Hook], kernel: int) -> None:
    hooks[:] = [HOOK]
    connection = made(kernel_answers=True, hooks=hooks, kernel=kernel)
    connection.why_asked = lambda: "not reported"
    assert not connection.open_by_itself()
    assert connection.warm_reads.reason == "not reported"
    connection.why_asked = str
    assert connection.open_by_itself()
    connection.why_asked = lambda: "not reported"  # what the kernel has been told cannot be taken back
    assert connection.open_by_itself()


def test_who_takes_over_must_be_able_to(hooks: list[inode_for_handle.Hook], kernel: int) -> None:
    hooks[:] = [HOOK]
    first = made(kernel_answers=True, hooks=hooks, kernel=kernel)
    assert first.open_by_itself()
    assert not Connection(kernel, Journal(os.dup(first.journal.file))).obstacle
    hooks.clear()
    assert "opens its files by itself" in Connection(kernel, Journal(os.dup(first.journal.file))).obstacle
    hooks[:] = [UNUSED]
    successor = Connection(kernel, Journal(os.dup(first.journal.file)))
    assert not successor.obstacle
    with pytest.raises(MountError, match="opens files by itself"):
        successor.attach()


def test_a_mount_stays_as_it_was_made(hooks: list[inode_for_handle.Hook], kernel: int) -> None:
    first = made(kernel_answers=True, hooks=hooks, kernel=kernel)
    hooks[:] = [HOOK]
    successor = Connection(kernel, Journal(os.dup(first.journal.file)), kernel_answers=True)
    successor.why_asked = str
    assert not successor.open_by_itself()
    assert successor.journal.init == accept(offer())


def test_versions_before_do_not_take_such_a_mount_over() -> None:
    """They compare one word with the only format that they know."""
    journal = Journal()
    journal.note_kernel_opens()
    words = struct.unpack("=QQ", os.pread(journal.file, 16, 0))
    assert words[1] not in (FORMAT, 0)
    assert Journal(os.dup(journal.file)).kernel_opens
    os.pwrite(journal.file, struct.pack("=Q", words[1] + 1), 8)
    with pytest.raises(JournalUnreadable):
        Journal(os.dup(journal.file))
