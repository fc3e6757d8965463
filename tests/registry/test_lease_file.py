"""The memory file in which what stores were lent outlives a process."""

import base64
import os
from pathlib import Path

from secretfs.registry.lease_file import LeaseFile
from tests.conftest import ExpectLog
from tests.support.canary import secret

STATE = secret("lease").encode()


def reopened(file: LeaseFile) -> LeaseFile:
    """Open the file as the next process does, with a descriptor of its own."""
    return LeaseFile(os.dup(file.file))


def test_a_successor_finds_what_was_saved_last() -> None:
    file = LeaseFile()
    vault, other = file.slot("vault"), file.slot("other")
    assert vault.state == b""
    for size in (1, 10_000, 100, 300_000, 0, 5_000):
        vault.save(b"old" * size)
    vault.save(STATE)
    other.save(b"\x00\xff")
    successor = reopened(file)
    assert (successor.slot("vault").state, successor.slot("other").state) == (STATE, b"\x00\xff")
    assert successor.slot("third").state == b""
    assert reopened(successor).slot("vault").state == STATE


def test_helper_processes_which_are_forked_before_a_store_is_opened_never_see_it() -> None:
    def mapped() -> int:
        return Path("/proc/self/maps").read_text("ascii").count("memfd:secretfs-leases")

    file = LeaseFile()
    file.slot("vault").save(STATE)
    before = mapped()
    successor = reopened(file)
    assert mapped() == before
    encoded = base64.b64encode(STATE).decode()
    assert encoded in str(vars(file))
    assert encoded not in str(vars(successor))
    assert successor.slot("vault").state == STATE
    assert mapped() == before + 1


def test_a_store_that_was_replaced_is_not_heard_any_more() -> None:
    file = LeaseFile()
    old = file.slot("vault")
    old.save(STATE)
    new = file.slot("vault")
    assert new.state == b""  # for another declaration
    new.save(b"new")
    old.save(b"old")
    assert reopened(file).slot("vault").state == b"new"


def test_what_does_not_count_any_more_is_wiped() -> None:
    file = LeaseFile()
    slot = file.slot("vault")
    slot.save(STATE)
    slot.save(b"")
    slot.save(b"")
    content = os.pread(file.file, os.fstat(file.file).st_size, 0)
    assert b"bGVhc2" not in content
    assert content.count(b"{") == 1


def test_a_kill_between_two_steps_leaves_what_was_there() -> None:
    """The new content is written, the word that makes it count is not, and the old content is not wiped yet."""
    file = LeaseFile()
    slot = file.slot("vault")
    slot.save(STATE)
    before = os.pread(file.file, 8192, 0)
    slot.save(b"new")
    os.pwrite(file.file, before[:8], 0)
    os.pwrite(file.file, before[4096 : 4096 + len(before[4096:].rstrip(bytes(1)))], 4096)
    assert reopened(file).slot("vault").state == STATE


def test_a_file_that_cannot_be_read_is_begun_anew(expect_log: ExpectLog) -> None:
    file = LeaseFile()
    file.slot("vault").save(STATE)
    os.pwrite(file.file, b"\xff" * 64, 4096)
    expect_log("leases of the process before are lost, and end by themselves: ")
    successor = reopened(file)
    slot = successor.slot("vault")
    assert slot.state == b""
    slot.save(STATE)
    assert reopened(successor).slot("vault").state == STATE
