"""The arena: what one process keeps in memory the next one finds, wherever the first is killed."""

import mmap
import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secretfs.cache import arena as module
from secretfs.cache.arena import SMALLEST, Arena, ArenaFull
from tests.conftest import ExpectLog
from tests.support.canary import secret
from tests.support.held_memory import HeldMemory, memory, texts

__all__ = ["memory"]

VALUE = secret("value").encode()


def content(memory: HeldMemory) -> bytes:
    """Return all bytes that are in memory."""
    found = b""
    for descriptor in memory.held.values():
        with mmap.mmap(descriptor, 0) as mapped:
            found += mapped[:]
    return found


def test_a_successor_finds_what_was_kept(memory: HeldMemory) -> None:
    first = memory.arena()
    slot = first.add(VALUE, (1.5, float("-inf")))
    first.mark(slot, 0, 2.5)
    first.add(b"")
    first.add(b"x" * 3 * SMALLEST)  # in a segment of its own
    second = memory.arena()
    assert texts(second) == [VALUE, b"", b"x" * 3 * SMALLEST]
    assert [record.marks for record in second.records()] == [(2.5, float("-inf")), (), ()]
    assert len(memory.held) == 2


def test_what_is_added_later_counts_as_later_also_after_a_restart(memory: HeldMemory) -> None:
    memory.arena().add(b"old")
    second = memory.arena()
    assert texts(second) == [b"old"]
    second.add(b"new")
    assert texts(memory.arena()) == [b"old", b"new"]


def test_what_is_dropped_is_overwritten(memory: HeldMemory) -> None:
    arena = memory.arena()
    slots = [arena.add(VALUE + str(number).encode()) for number in range(10)]
    assert content(memory).count(VALUE) == 10
    for slot in slots[1:]:
        arena.drop(slot)
    assert content(memory).count(VALUE) == 1
    assert texts(memory.arena()) == [VALUE + b"0"]


def test_memory_that_is_not_needed_is_given_back(memory: HeldMemory) -> None:
    arena = memory.arena()
    slots = [arena.add(bytes(10_000)) for _ in range(200)]
    assert arena.size >= 2_000_000
    for slot in slots:
        arena.drop(slot)
    assert arena.size == sum(os.fstat(descriptor).st_size for descriptor in memory.held.values()) == SMALLEST


def test_it_does_not_grow_while_as_much_is_dropped_as_is_added(memory: HeldMemory) -> None:
    arena, random_sizes = memory.arena(), random.Random(1)
    slots: list[tuple[int, int]] = []
    for _ in range(20_000):
        size = random_sizes.choice([10, 50, 100, 1000, 1017, 5000])
        slots.append((arena.add(bytes(size)), size))
        if len(slots) > 300:
            arena.drop(slots.pop(random_sizes.randrange(300))[0])
    assert arena.size < 4 * sum(size for _, size in slots) + SMALLEST


def test_where_there_is_no_more_memory_the_rest_is_kept(memory: HeldMemory) -> None:
    memory.limit = SMALLEST
    arena = memory.arena()
    slot = arena.add(VALUE)
    with pytest.raises(ArenaFull):
        arena.add(bytes(SMALLEST))
    assert texts(memory.arena()) == [VALUE]
    arena.drop(slot)
    assert content(memory).count(VALUE) == 0


def test_a_memory_of_another_format_is_ignored(
    memory: HeldMemory, monkeypatch: pytest.MonkeyPatch, expect_log: ExpectLog
) -> None:
    monkeypatch.setattr(module, "FORMAT", 99)
    memory.arena().add(VALUE)
    monkeypatch.undo()
    expect_log("of another version of secretfs")
    assert texts(memory.arena()) == []
    assert memory.held == {}


def test_a_memory_of_another_mount_is_not_believed(memory: HeldMemory, expect_log: ExpectLog) -> None:
    memory.arena().add(VALUE)
    (descriptor,) = memory.held.values()
    expect_log("1 values of the process before are damaged")
    assert texts(Arena(b"another key", memory, {1: os.dup(descriptor)})) == []
    assert content(memory).count(VALUE) == 0


@pytest.fixture(scope="module")
def unheard() -> Iterator[None]:
    """What is not believed is logged: here for some examples and not for others."""
    module.log.disabled = True
    yield
    module.log.disabled = False


@pytest.mark.usefixtures("unheard")
@settings(deadline=None, max_examples=300)
@given(st.data())
def test_random_bytes_are_never_believed(data: st.DataObject) -> None:
    memory = HeldMemory()
    written = [b"%d" % number * number for number in range(1, 40)]
    arena = memory.arena()
    for text in written:
        arena.add(text, (1.0,))
    (descriptor,) = memory.held.values()
    with mmap.mmap(descriptor, 0) as mapped:
        size = data.draw(st.sampled_from([8_000, len(mapped)]), "which part is hit")
        for _ in range(data.draw(st.integers(1, 5), "hits")):
            place = data.draw(st.integers(0, size - 64), "at")
            noise = data.draw(st.binary(min_size=1, max_size=64), "with")
            mapped[place : place + len(noise)] = noise
    assert set(texts(memory.arena())) <= set(written)
    for number in list(memory.held):
        memory.drop(number)


@pytest.mark.usefixtures("unheard")
@given(st.binary(min_size=1, max_size=500))
def test_nothing_but_random_bytes_is_nothing(noise: bytes) -> None:
    memory = HeldMemory()
    descriptor = memory.create(SMALLEST)
    with mmap.mmap(descriptor, 0) as mapped:
        mapped[:] = (noise * (SMALLEST // len(noise) + 1))[:SMALLEST]
    memory.held[1] = descriptor
    assert texts(memory.arena()) == []
    assert memory.held == {}


class Killed(BaseException):
    """What a process does not survive."""


@contextmanager
def killed_after(instructions: int) -> Iterator[None]:
    """Kill the arena at that instruction of the interpreter, within its own module."""
    left = instructions

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename != module.__file__:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            left -= 1
            if left < 0:
                raise Killed
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


OLD, NEW, OTHER = b"old" * 20, b"new" * 30, b"other"


def replace(arena: Arena, slot: int) -> None:
    arena.add(NEW, (1.0,))
    arena.drop(slot)


def reuse(arena: Arena, slot: int) -> None:
    """Drop two neighbours, which leaves room for one that is larger than each."""
    arena.drop(slot)
    arena.add(b"m" * 200_000)


def grow(arena: Arena, slot: int) -> None:
    arena.drop(arena.add(bytes(SMALLEST)))


@pytest.mark.parametrize(
    ("step", "valid"),
    [
        (replace, [[OLD, OTHER], [OLD, OTHER, NEW], [OTHER, NEW]]),
        (reuse, [[OLD, OTHER], [OTHER], [OTHER, b"m" * 200_000]]),
        (grow, [[OLD, OTHER], [OLD, OTHER, bytes(SMALLEST)]]),
    ],
)
def test_a_kill_at_any_instruction(step: Callable[[Arena, int], None], valid: list[list[bytes]]) -> None:
    """The next process finds the state before or after each step, and can go on from there."""
    seen: list[list[bytes]] = []
    for instructions in range(0, 100_000, 7):
        memory = HeldMemory()
        arena = memory.arena()
        slot = arena.add(OLD, (0.0,))
        arena.add(OTHER)
        ended = False
        with killed_after(instructions):
            try:
                step(arena, slot)
            except Killed:
                ended = True
        successor = memory.arena()
        found = texts(successor)
        assert found in valid
        if found not in seen:
            seen.append(found)
        successor.add(b"after" * 1000)
        assert texts(memory.arena()) == [*found, b"after" * 1000]
        assert content(memory).count(OLD) == found.count(OLD)
        for number in list(memory.held):
            memory.drop(number)
        if not ended:
            break
    assert seen == valid
