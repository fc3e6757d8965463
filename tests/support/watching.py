"""A program that watches directories and files: inotifywait."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.shell import wait_until


class Watch:
    """inotifywait on some paths, and what it has said so far."""

    def __init__(self, log: Path) -> None:
        self._log = log

    def events(self) -> list[str]:
        """Return ``NAME EVENT DIRECTORY`` for all entries that came, went or were replaced.

        Of a file that is watched itself: `` EVENT PATH``.
        """
        told = ("MOVED_TO", "CREATE", "DELETE", "ATTRIB")
        return [line for line in self._log.read_text().splitlines() if any(event in line for event in told)]

    def has(self, count: int) -> bool:
        """Whether there have been so many events."""
        return len(self.events()) == count

    def wait_for(self, *events: str) -> None:
        """Wait for these events."""
        wait_until(lambda: set(events) <= set(self.events()))


@contextmanager
def watching(log: Path, *paths: Path) -> Iterator[Watch]:
    """Watch directories or files, and write the events into a file."""
    with log.open("w") as told:
        command = ["inotifywait", "--monitor", "--format", "%f %e %w", *map(str, paths)]
        with subprocess.Popen(command, stdout=told, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            try:
                while "established" not in process.stderr.readline():
                    assert process.poll() is None
                yield Watch(log)
            finally:
                process.kill()
