"""The opens that the kernel reports (`secretfs.linux.fanotify`): by inode number, and for the audit log by process."""

import os
import select
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import trio

from secretfs.linux.fanotify import Open, opens

_READS: Final = 16
"""Read(2)s that are more than all that the kernel keeps. As fast as we read, more may be opened."""


class OpenEvents:
    """Opens of a group, which are read when somebody asks for them. Equal ones in between are one."""

    each_counts = False
    """Whether somebody has to hear of each open, and not only when a file was in use."""

    def __init__(self, group: int) -> None:
        self.group = group

    async def wait(self) -> None:
        """Wait until there are some."""
        await trio.lowlevel.wait_readable(self.group)

    def read(self) -> set[int] | None:
        """Return the inodes that were opened since the last call: not all at once, None when no more."""
        found = opens(self.group)
        return None if found is None else {inode for inode, _ in found}

    def close(self) -> None:
        """Read no more."""


class ReportedOpenEvents(OpenEvents):
    """Opens of a group that a thread reads at once, and tells of: some moments later the process may be gone.

    ``report`` is called in that thread, for what has happened until now in the caller's.
    """

    each_counts = True

    def __init__(self, group: int, report: Callable[[Open], None]) -> None:
        super().__init__(group)
        self._report = report
        self._lock = threading.Lock()
        self._inodes: set[int] = set()
        self._there_are_some = trio.Event()
        self._token = trio.lowlevel.current_trio_token()
        self._drain()
        self._stop, self._end = os.pipe()
        self._thread = threading.Thread(target=self._run, name="opens", daemon=True)
        self._thread.start()

    async def wait(self) -> None:
        """Wait until there are some."""
        await self._there_are_some.wait()

    def read(self) -> set[int] | None:
        """Return the inodes that were opened since the last call; None if none was."""
        with self._lock:
            found, self._inodes = self._inodes, set()
            self._there_are_some = trio.Event()
        return found or None

    def close(self) -> None:
        """Read no more."""
        os.close(self._end)
        self._thread.join()
        os.close(self._stop)

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self.group, select.POLLIN)
        poll.register(self._stop, 0)  # its other end is closed
        while self._stop not in dict(poll.poll()):
            self._drain()

    def _drain(self) -> None:
        for _ in range(_READS):
            found = opens(self.group)
            if not found:
                return
            with self._lock:
                self._inodes.update(inode for inode, _ in found)
                there_are_some = self._there_are_some
            for each in found:
                self._report(each)
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(there_are_some.set, idempotent=True)
