"""One of several processes that use a mount as programs do, and believe nothing: see `benchmarks.soak`.

    python -m benchmarks.soaker SEED MOUNTPOINT WORK

Works until standard input ends; then prints what it found as JSON.
"""

import contextlib
import errno
import json
import mmap
import os
import random
import select
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.support.values import unsealed

DEADLINE = 1.0
"""Seconds, of all stores of the soak."""
_SLACK = 10.0
"""Seconds that a machine with more to do than it can may add before a wait counts as one without end."""

FIRM, SHAKY, PASSING = "firm", "shaky", "passing"
"""What a name begins with: always there and always read; always there, but not in memory; comes and goes."""

_OUTAGE = {errno.EIO, errno.ETIMEDOUT, errno.EBADMSG}


class Soaker:
    """Reads, and takes notes."""

    def __init__(self, seed: int, root: Path) -> None:
        self.random = random.Random(seed)
        self.root = root
        self.newest: dict[str, int] = {}
        self.done: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.findings: list[str] = []
        self.slowest = 0.0
        self.woken = 0
        self.unchanged = 0

    def report(self) -> str:
        """Say all there is to say."""
        return json.dumps(
            {
                "done": self.done,
                "errors": self.errors,
                "findings": self.findings[:20],
                "slowest": self.slowest,
                "woken": self.woken,
                "unchanged": self.unchanged,
            }
        )

    def finds(self, what: str) -> None:
        """Take note of something that must not be."""
        self.findings.append(f"{time.strftime('%H:%M:%S')} {what}")

    def path(self) -> Path:
        """Choose a file."""
        name = self.random.choice(
            [f"{FIRM}-{self.random.randrange(20)}"] * 8
            + [f"{SHAKY}-{self.random.randrange(100)}", f"{PASSING}-{self.random.randrange(10)}"]
        )
        store = self.random.choice(("vault", "file", "edited"))
        return self.root / store / name / "key" if store == "vault" else self.root / store / name

    def tries(self, work: Callable[[Path], None], path: Path) -> None:
        """Do something with a file. An error must be one that this file may end with."""
        relative = str(path.relative_to(self.root))
        started = time.monotonic()
        try:
            work(path)
        except OSError as error:
            name = errno.errorcode[error.errno or 0]
            self.errors[f"{relative.partition('/')[0]} {name}"] += 1
            if error.errno not in self._may_end_with(relative):
                self.finds(f"{relative}: {name}")
        except (AssertionError, ValueError) as error:
            self.finds(f"{relative}: {error}")
        seconds = time.monotonic() - started
        if work in (self.read, self.stat, self.walk):  # the others wait on purpose
            self.slowest = max(self.slowest, seconds)
        if seconds > DEADLINE + _SLACK:
            self.finds(f"{relative}: took {seconds:.1f} s")

    def _may_end_with(self, path: str) -> set[int]:
        allowed: set[int] = set()
        if f"/{PASSING}" in path:
            allowed |= {errno.ENOENT}
        if path.startswith("vault") and f"/{FIRM}" not in path:
            allowed |= _OUTAGE  # nobody has read it for longer than idle; or all of them are asked for
        return allowed

    def check(self, path: Path, content: bytes) -> int:
        """Look at a value: it is whole, and not older than one that was seen before."""
        number = unsealed(content)
        key = str(path)
        if number < self.newest.get(key, 0):
            self.finds(f"{key}: version {number} after {self.newest[key]}")
        self.newest[key] = max(number, self.newest.get(key, 0))
        return number

    # --- what programs do ---

    def read(self, path: Path) -> None:
        """Open, fstat, read in pieces, close."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            size = os.fstat(descriptor).st_size
            content = b""
            while piece := os.read(descriptor, 65536):
                content += piece
            assert len(content) == size, f"{len(content)} bytes, and size {size}"
        finally:
            os.close(descriptor)
        self.check(path, content)

    def stat(self, path: Path) -> None:
        """Look at the size and the attributes."""
        assert path.stat().st_size > 0
        with contextlib.suppress(OSError):
            assert os.getxattr(path, "user.secretfs.stale") in (b"0", b"1")

    def walk(self, path: Path) -> None:
        """List the directory that a file is in."""
        names = os.listdir(path.parent)  # noqa: PTH208
        assert names, "an empty directory"
        if path.name != "key":
            assert {f"{FIRM}-{number}" for number in range(20)} <= set(names), "a listing that lacks something"

    def hold(self, path: Path) -> None:
        """Keep a file open and mapped for a while: it stays what it is."""
        with path.open("rb", buffering=0) as file:
            before = file.read()
            number = self.check(path, before)
            size = os.fstat(file.fileno()).st_size
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
                time.sleep(self.random.random() / 2)
                assert memory[:] == before, "mapped memory that changes"
            assert os.pread(file.fileno(), size + 1, 0) == before, "an open file that changes"
            assert os.fstat(file.fileno()).st_size == size == len(before)
            assert unsealed(before) == number

    def bulk(self, path: Path) -> None:
        """Read a whole store at once."""
        store = self.root / path.relative_to(self.root).parts[0]
        document = json.loads((store / ".bulk.json").read_bytes())
        firm = [values for name, values in document.items() if name.startswith(FIRM)]
        assert len(firm) == 20, "a bulk file that lacks something"
        for values in document.values():
            for value in values.values():
                unsealed(value.encode())

    def watch(self, path: Path) -> None:
        """Wait until an open file is superseded; then there is a newer one at its place, or none."""
        with path.open("rb", buffering=0) as file, select.epoll() as poller:
            number = self.check(path, file.read())
            poller.register(file.fileno(), select.EPOLLPRI | select.EPOLLET)
            if not poller.poll(3):
                return
            self.woken += 1
        with path.open("rb", buffering=0) as file:
            newer = self.check(path, file.read())
        self.unchanged += newer == number  # a reader was faster than the publication

    def work(self, kind: str) -> None:
        """Do one thing."""
        if kind == "watch":
            chosen = self.watch
        else:
            works = [self.read] * 30 + [self.stat] * 10 + [self.walk] * 2 + [self.hold]
            chosen = self.random.choice(works)
            if self.random.random() < 0.0005:
                chosen = self.bulk
        path = self.path()
        if chosen == self.bulk and path.relative_to(self.root).parts[0] == "vault":
            path = self.root / "vault/bulk"
        self.done[chosen.__name__] += 1
        self.tries(chosen, path)


def main() -> None:
    """Work until standard input ends."""
    seed, root, kind = sys.argv[1:]
    soaker = Soaker(int(seed), Path(root))
    over = threading.Event()

    def listen() -> None:
        sys.stdin.read()
        over.set()

    threading.Thread(target=listen, daemon=True).start()
    while not over.is_set():
        soaker.work(kind)
        time.sleep(0.001)
    print(soaker.report(), flush=True)


if __name__ == "__main__":
    main()
