"""``secretfs`` itself, with a count of its tasks in a file: nothing outside of a process can see those of trio.

python -m benchmarks.instrumented FILE mount ...
"""

import mmap
import struct
import sys
from pathlib import Path
from typing import Any

import trio

from secretfs.cli.main import main


class _Census(trio.abc.Instrument):
    """Counts the tasks that live."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(8))
        with path.open("r+b") as file:
            self._shared = mmap.mmap(file.fileno(), 8)
        self._living = 0

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        self._count(1)

    def task_exited(self, task: trio.lowlevel.Task) -> None:
        self._count(-1)

    def _count(self, change: int) -> None:
        self._living += change
        self._shared[:] = struct.pack("q", self._living)


def tasks(path: Path) -> int:
    """Read the count."""
    return int(struct.unpack("q", path.read_bytes())[0])


def _probe(path: Path) -> None:
    run = trio.run

    def instrumented(*arguments: Any, **options: Any) -> Any:
        return run(*arguments, instruments=[_Census(path)], **options)

    trio.run = instrumented  # type: ignore[assignment]


if __name__ == "__main__":
    _probe(Path(sys.argv.pop(1)))
    main()
