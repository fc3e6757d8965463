"""Calls in threads, with one hand-over to a thread and one back: that is most of what a call to a fast store costs.

`trio.to_thread.run_sync` costs twice as much: it gives each thread a name for the time of a call, which is two system
calls, and waits for a limiter before it waits for the thread.
"""

import contextlib
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from functools import partial
from typing import NoReturn, TypeVar

import trio

from secretfs.cache.outcomes import Outcome, outcome_of
from secretfs.cache.turns import Turn
from secretfs.histogram import Histograms

T = TypeVar("T")


async def call_in_thread(call: Callable[[], T], turn: Turn) -> T:
    """Make a call in a thread when its turn comes. Returns or raises what it does.

    A cancelled task does not wait for the thread, whose turn ends when the call does. Nothing hears of its result then.
    The call sees the context variables of this task. `trio.from_thread` needs to be told the token there.
    """
    await trio.lowlevel.checkpoint_if_cancelled()
    task, token = trio.lowlevel.current_task(), trio.lowlevel.current_trio_token()
    work = partial(copy_context().run, call)
    result: Callable[[], T]
    abandoned = False

    def returned(unwrap: Callable[[], T]) -> None:
        nonlocal result
        turn.end()
        if not abandoned:
            result = unwrap
            trio.lowlevel.reschedule(task)

    def deliver(unwrap: Callable[[], T]) -> None:
        with contextlib.suppress(trio.RunFinishedError):
            token.run_sync_soon(returned, unwrap)

    def begin() -> None:
        turn.began = trio.current_time()
        try:
            trio.lowlevel.start_thread_soon(work, lambda outcome: deliver(outcome.unwrap))
        except BaseException as error:  # noqa: BLE001 - no thread to be had: that is for the task that waits for it
            deliver(partial(_raise, error))

    def abandon(_: object) -> trio.lowlevel.Abort:
        nonlocal abandoned
        abandoned = True
        if not turn.begun:
            turn.end()
        return trio.lowlevel.Abort.SUCCEEDED

    turn.take(begin)
    await trio.lowlevel.wait_task_rescheduled(abandon)
    return result()


async def counted_call(calls: Histograms, kind: str, turn: Turn, call: Awaitable[T]) -> T:
    """Make a call; count how it ended, and how long it took from when its turn began. One without a turn was none."""
    outcome = Outcome.FAILED
    try:
        answer = await call
        outcome = outcome_of(answer)
    except (Exception, SystemExit) as error:
        outcome = outcome_of(error)
        raise
    finally:
        if turn.begun:
            calls.observe((kind, outcome.value), trio.current_time() - turn.began)
    return answer


def _raise(error: BaseException) -> NoReturn:
    raise error
