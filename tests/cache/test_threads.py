"""Calls in threads: what a task gets back, what happens to one that gives up, and what a call costs."""

import contextlib
import threading
from contextvars import ContextVar

import pytest
import trio
import trio.lowlevel
from trio.testing import wait_all_tasks_blocked

from secretfs.cache.threads import call_in_thread
from secretfs.cache.turns import TurnQueue

_told: ContextVar[str] = ContextVar("_told", default="nothing")


@pytest.fixture
def queue() -> TurnQueue:
    return TurnQueue(1)


async def until_free(queue: TurnQueue) -> None:
    while queue.running:
        await trio.lowlevel.checkpoint()


async def test_a_call_answers_or_raises(queue: TurnQueue) -> None:
    assert await call_in_thread(threading.get_ident, queue.turn()) != threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        await call_in_thread(lambda: 1 // 0, queue.turn())
    assert queue.running == 0


async def test_a_call_sees_the_context_of_its_task(queue: TurnQueue) -> None:
    _told.set("a secret")
    assert await call_in_thread(_told.get, queue.turn()) == "a secret"


async def test_a_call_may_ask_this_loop_for_something(queue: TurnQueue) -> None:
    token = trio.lowlevel.current_trio_token()

    async def answer() -> int:
        await trio.lowlevel.checkpoint()
        return threading.get_ident()

    call = lambda: trio.from_thread.run(answer, trio_token=token)  # noqa: E731
    assert await call_in_thread(call, queue.turn()) == threading.get_ident()


async def test_who_gives_up_does_not_wait_and_the_call_keeps_its_place(queue: TurnQueue) -> None:
    gate = threading.Event()
    with trio.CancelScope() as scope:
        scope.cancel()
        await call_in_thread(gate.wait, queue.turn())
    assert queue.running == 0  # it was cancelled before it began
    async with trio.open_nursery() as nursery:
        nursery.start_soon(call_in_thread, gate.wait, queue.turn())
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert queue.running == 1
    gate.set()
    await until_free(queue)


async def test_who_gives_up_before_its_turn_makes_no_call(queue: TurnQueue) -> None:
    gate, called = threading.Event(), threading.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(call_in_thread, gate.wait, queue.turn())
        await wait_all_tasks_blocked()
        async with trio.open_nursery() as impatient:
            impatient.start_soon(call_in_thread, called.set, queue.turn())
            await wait_all_tasks_blocked()
            impatient.cancel_scope.cancel()
        gate.set()
    await until_free(queue)
    assert queue.work == {}
    assert not called.is_set()


async def test_a_thread_that_cannot_be_had_is_an_error_of_its_call(
    queue: TurnQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(trio.lowlevel, "start_thread_soon", refuse)
        with pytest.raises(RuntimeError, match="new thread"):
            await call_in_thread(int, queue.turn())
    assert queue.running == 0
    assert await call_in_thread(int, queue.turn()) == 0


class Steps(trio.abc.Instrument):
    """Counts how often a task goes on."""

    def __init__(self) -> None:
        self.count = 0
        self._task = trio.lowlevel.current_task()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += task is self._task


async def test_a_call_is_one_wait(queue: TurnQueue) -> None:
    """A hand-over to a thread and one back are most of the cost of a call: there is one of each, and nothing else."""
    steps = Steps()
    trio.lowlevel.add_instrument(steps)
    with contextlib.ExitStack() as stack:
        stack.callback(trio.lowlevel.remove_instrument, steps)
        await call_in_thread(int, queue.turn())
    assert steps.count == 1
