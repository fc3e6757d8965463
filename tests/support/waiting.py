"""Wait for what must happen, and read all the time until it has."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from secretfs.dapr.memo import RACY
from secretfs.store import SecretStore

PATIENCE = 180.0
"""Seconds that a test waits for what must happen. Only a test that fails waits so long, so a busy machine has time."""


def wait_until(condition: Callable[[], object], within: float = PATIENCE, *, every: float = 0.005) -> None:
    """Wait for something that happens by itself; look ``every`` so many seconds."""
    end = time.monotonic() + within
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(every)


def wait_until_settled(path: Path) -> None:
    """Wait until a file was written so long ago that its times alone say whether it has changed since."""
    status = path.stat()
    wait_until(lambda: max(status.st_mtime, status.st_ctime) <= time.time() - RACY)


def wait_for_text(read: Callable[[], str], text: str, times: int = 1) -> None:
    """Wait until what ``read`` returns, such as a log that another process writes, has a text so many times."""
    end = time.monotonic() + PATIENCE
    while (said := read()).count(text) < times:
        assert time.monotonic() < end, f"expected {text!r} {times} times in:\n{said}"
        time.sleep(0.005)


def wchan(thread: threading.Thread) -> str:
    """Return where in the kernel a thread waits (proc_pid_wchan(5))."""
    return Path(f"/proc/self/task/{thread.native_id}/wchan").read_text(encoding="ascii")


class Reader:
    """Reads without a pause in three threads until it is stopped, and keeps what went wrong."""

    def __init__(self, store: SecretStore, name: str, good: Callable[[Any], bool]) -> None:
        self.reads = 0
        self._store = store
        self._name = name
        self._good = good
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(3)
        self._done = [self._pool.submit(self._read) for _ in range(3)]

    def stop(self) -> None:
        """Stop, and raise what went wrong in any thread."""
        self._stop.set()
        self._pool.shutdown()
        for done in self._done:
            done.result()

    def _read(self) -> None:
        while not self._stop.wait(0.002):
            assert self._good(self._store.fetch(self._name).values)
            self.reads += 1


@contextmanager
def reading_all_the_time(store: SecretStore, name: str, good: Callable[[Any], bool]) -> Iterator[Reader]:
    reader = Reader(store, name, good)
    try:
        yield reader
    finally:
        reader.stop()
