"""Threads that use a mount while something happens to it."""

import threading
import time
from collections.abc import Callable


class Readers:
    """Run actions in threads without a pause; note what failed, and the longest that one action took, in seconds."""

    def __init__(self, *actions: Callable[[], object]) -> None:
        self.done = 0
        self.failures: list[str] = []
        self.longest = 0.0
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._act, args=(action,)) for action in actions]

    def __enter__(self) -> "Readers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _act(self, action: Callable[[], object]) -> None:
        while not self._over.is_set():
            began = time.monotonic()
            try:
                action()
            except (OSError, AssertionError) as error:
                self.failures.append(f"{type(error).__name__} {getattr(error, 'errno', '')} {error!s:.60}")
            self.longest = max(self.longest, time.monotonic() - began)
            self.done += 1
