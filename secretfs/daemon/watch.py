"""Run a program when files change: ``secretfs watch``."""

import logging
import os
import select
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import Final

from secretfs.daemon.on_change import Hook, HookRunner, OnChange
from secretfs.daemon.path_watch import PathWatch
from secretfs.linux.process import forbid_dumps, hide_memory

GRACE: Final = 5.0
"""Seconds from SIGTERM to SIGKILL for the program, when the watch is asked to end."""

log = logging.getLogger(__name__)


class _AskedToEnd(Exception):
    """A signal asks for the end."""


def watch(paths: Iterable[Path], on_change: OnChange, ready: Callable[[], None]) -> None:
    """Run the hook of ``on_change`` whenever files at or below ``paths`` change, until SIGTERM or SIGINT.

    ``ready`` is called when the files have been read: changes from then on count.
    """
    assert isinstance(on_change.step, Hook)  # noqa: S101 - the command line lets no other through
    forbid_dumps()
    hide_memory()  # values go through it
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    hook = HookRunner(on_change.step, os.environb, (), None)
    try:
        _follow(PathWatch(paths), on_change, hook, ready)
    except _AskedToEnd:
        _end_hook(hook)


def _end(number: int, frame: FrameType | None) -> None:
    for signalled in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signalled, signal.SIG_IGN)  # once is enough
    raise _AskedToEnd


def _follow(files: PathWatch, on_change: OnChange, hook: HookRunner, ready: Callable[[], None]) -> None:
    files.look()
    ready()
    due: float | None = None
    last: float | None = None
    while True:
        if due is not None and due <= time.monotonic():
            due, last = None, time.monotonic()
            hook.start()
        _wait(files, hook, files.next_look if due is None else min(files.next_look, due - time.monotonic()))
        if files.look() and due is None:
            due = on_change.due(time.monotonic(), last)


def _wait(files: PathWatch, hook: HookRunner, seconds: float) -> None:
    """Wait until files may have changed or some time is over. Reaps the hook meanwhile."""
    end = time.monotonic() + seconds
    while True:
        poll = select.poll()
        files.register(poll)
        process = os.pidfd_open(hook.pid) if hook.pid else None
        if process is not None:
            poll.register(process, select.POLLIN)
        try:
            ready = {descriptor for descriptor, _ in poll.poll(max(0.0, end - time.monotonic()) * 1000)}
        finally:
            if process is not None:
                os.close(process)
        if process in ready:
            hook.ended(os.waitpid(hook.pid, 0)[1])
        if ready != {process}:
            return


def _end_hook(hook: HookRunner) -> None:
    """Let no hook outlive the watch."""
    if not hook.pid:
        return
    process = os.pidfd_open(hook.pid)
    os.kill(hook.pid, signal.SIGTERM)
    if not select.select([process], [], [], GRACE)[0]:
        log.warning("--on-change: the program does not end, and is killed")
        os.kill(hook.pid, signal.SIGKILL)
    os.close(process)
    os.waitpid(hook.pid, 0)
