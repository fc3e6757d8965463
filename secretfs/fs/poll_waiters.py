"""Who polls a file, to be woken when it is superseded."""

from collections.abc import Callable

from secretfs.fs.journal import Journal

POLLS = 1000
"""Waiters that are remembered for each time that a file is open. A poll that has timed out is remembered too."""


class PollWaiters:
    """Waiters by inode number. They are in the journal as well: a process that takes over has them poll again."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._wake_up: Callable[[bytes], None] = lambda _: None
        self._waiters: dict[int, dict[bytes, int]] = {}

    def __len__(self) -> int:
        return len(self._waiters)

    def on_wake(self, wake_up: Callable[[bytes], None]) -> None:
        """Call ``wake_up`` with each waiter when it is time, and at once with those of the process before us."""
        self._wake_up = wake_up
        for waiter in self._journal.take_waiters():
            wake_up(waiter)

    def add(self, number: int, waiter: bytes, opens: int) -> None:
        """Remember who polls a file that is open so many times."""
        waiters = self._waiters.setdefault(number, {})
        if waiter in waiters:
            return
        if len(waiters) >= POLLS * opens:
            self.wake(number)  # whoever still waits polls again
            waiters = self._waiters.setdefault(number, {})
        waiters[waiter] = self._journal.add_waiter(waiter)

    def wake(self, number: int) -> None:
        """Wake all who poll a file."""
        for waiter, slot in self._waiters.pop(number, {}).items():
            self._journal.drop(slot)
            self._wake_up(waiter)

    def forget(self, number: int) -> None:
        """Forget who polls a file: it is closed."""
        for slot in self._waiters.pop(number, {}).values():
            self._journal.drop(slot)
