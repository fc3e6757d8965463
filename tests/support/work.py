"""Counts the work of tasks in calls of functions, which a loaded machine does not change."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import trio


class Work(trio.abc.Instrument):
    """The calls of Python and C functions in this thread, by step of a task: nothing else runs during one."""

    def __init__(self) -> None:
        self.total = 0
        self.largest_step = 0
        self._step = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """Begin a step."""
        self._step = 0

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """End a step."""
        self.largest_step = max(self.largest_step, self._step)

    def count(self, frame: FrameType, event: str, argument: object) -> None:
        """Count an event of the interpreter."""
        if event in ("call", "c_call"):
            self.total += 1
            self._step += 1


@contextmanager
def counted() -> Iterator[Work]:
    """Count the work until the end of the block. No garbage is collected meanwhile: when that falls due is chance."""
    work = Work()
    trio.lowlevel.add_instrument(work)
    before = sys.getprofile()
    gc.disable()
    sys.setprofile(work.count)
    try:
        yield work
    finally:
        sys.setprofile(before)
        gc.enable()
        trio.lowlevel.remove_instrument(work)
