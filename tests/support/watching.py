"""A program that watches directories: inotifywait."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.shell import wait_until


class Watch:
    """inotifywait on some directories, and what it has said so far."""

    def __init__(self, log: Path) -> None:
        self._log = log

    def events(self) -> list[str]:
        """Return ``DIRECTORY EVENT NAME`` for all entries that came, went or were replaced."""
        told = ("MOVED_TO", "CREATE", "DELETE")
        return [line for line in self._log.read_text().splitlines() if any(event in line for event in told)]

    def wait_for(self, *events: str) -> None:
        """Wait for these events."""
        wait_until(lambda: set(events) <= set(self.events()))


@contextmanager
def watching(log: Path, *directories: Path) -> Iterator[Watch]:
    """Watch directories, and write the events into a file."""
    with log.open("w") as told:
        command = ["inotifywait", "--monitor", "--format", "%f %e %w", *map(str, directories)]
        with subprocess.Popen(command, stdout=told, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            try:
                while "established" not in process.stderr.readline():
                    assert process.poll() is None
                yield Watch(log)
            finally:
                process.kill()
