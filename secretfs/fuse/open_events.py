"""The opens that the kernel reports (`secretfs.linux.fanotify`), by inode number and by process, for the audit log."""

import os
import select
import threading
from collections.abc import Callable
from typing import Final

from secretfs.linux.fanotify import Open, opens

_READS: Final = 16
"""Read(2)s that are more than all that the kernel keeps. As fast as we read, more may be opened."""


class OpenEvents:
    """Opens of a group, which a thread reads at once and tells of: some moments later the process may be gone.

    ``report`` is called in that thread, for what has happened until now in the caller's.
    """

    def __init__(self, group: int, report: Callable[[Open], None]) -> None:
        self.group = group
        self._report = report
        self._drain()
        self._stop, self._end = os.pipe()
        self._thread = threading.Thread(target=self._run, name="opens", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Read no more. Closing it twice is no error."""
        if self._thread.is_alive():
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
            for each in found:
                self._report(each)
