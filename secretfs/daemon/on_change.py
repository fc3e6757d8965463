"""What happens to the command of ``secretfs run`` when a secret changes, and when."""

import logging
import os
import random
import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

SETTLE: Final = 0.5
"""Seconds from a change until its step: values that change together are noticed one by one."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Hook:
    """A program that is run after a change, with its arguments."""

    arguments: tuple[str, ...]


Step = Literal["ignore", "restart"] | int | Hook
"""What is done after a change; a number is the signal that the command gets."""


@dataclass(frozen=True, slots=True)
class OnChange:
    """A step, and when it is taken after a change. Times are in seconds."""

    step: Step = "ignore"
    delay: float = SETTLE
    """From the first change to the step. Changes before the step count as one."""
    interval: float = 0.0
    """From one step to the next, at least."""
    splay: float = 0.0
    """A random time of at most this is added, so that many that see the same change do not act at once."""

    def due(self, now: float, last: float | None) -> float:
        """Return when the step for a change is due that was noticed ``now``; the last one was taken at ``last``."""
        earliest = now + self.delay
        if last is not None:
            earliest = max(earliest, last + self.interval)
        return earliest + random.uniform(0.0, self.splay)  # noqa: S311 - nothing depends on its being secret


class HookRunner:
    """Runs a hook, one process at a time."""

    def __init__(self, hook: Hook, environment: Mapping[bytes, bytes], mask: Iterable[int], output: int | None) -> None:
        """Its standard output and error go to ``output``, if there is one."""
        self.pid = 0
        """The process that runs, or 0."""
        self._hook = hook
        self._environment = environment
        self._mask = mask
        self._output = output
        self._again = False
        """Another step came due while it ran."""

    def start(self) -> None:
        """Run it; if it runs, once more when it has ended. One that cannot be run is a warning."""
        if self.pid:
            self._again = True
            return
        actions: list[tuple[Any, ...]] = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
        if self._output is not None:
            actions += [(os.POSIX_SPAWN_DUP2, self._output, number) for number in (1, 2)]
        try:
            self.pid = os.posix_spawnp(
                self._hook.arguments[0],
                list(self._hook.arguments),
                self._environment,
                file_actions=actions,
                setsigmask=self._mask,
                setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],  # Python ignores these two
            )
        except OSError as error:
            log.warning("--on-change: cannot run %s: %s", self._hook.arguments[0], error.strerror)

    def ended(self, status: int) -> None:
        """Take note of its end, by its status (wait(2)). A failure is a warning."""
        self.pid = 0
        code = os.waitstatus_to_exitcode(status)
        if code:
            how = f"was killed by signal {-code}" if code < 0 else f"failed with exit code {code}"
            log.warning("--on-change: %s %s", self._hook.arguments[0], how)
        if self._again:
            self._again = False
            self.start()
