"""What the reads of one user take while another user floods the mount.

    python -m benchmarks.flood

Two users have an app each on one mount. The second one holds many files open; its processes list a large directory,
and poll files, as fast as they can. The first one reads a file that is known (warm), and files that nobody has read
before (cold), before the flood and in it, in turns. Needs root: nobody else can mount for other users.
"""

import argparse
import json
import os
import resource
import select
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from benchmarks.fixtures import BenchmarkError, Fixtures
from tests.support.manifests import component

FIRST, SECOND = 5000, 5001
NAMES = 20_000
WARM = 300


def main() -> int:
    """Measure and print the medians and their ratio."""
    parser = argparse.ArgumentParser("python -m benchmarks.flood", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="measurements of each kind")
    parser.add_argument("--files", type=int, default=100_000, metavar="N", help="files that the second user holds")
    parser.add_argument("--processes", type=int, default=8, metavar="N", help="processes that flood, for each kind")
    parser.add_argument("--no-kernel-answers", action="store_true", help="have the daemon answer warm reads")
    arguments = parser.parse_args()
    try:
        with Fixtures() as fixtures:
            _measure(fixtures, arguments)
    except BenchmarkError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    return 0


def _measure(fixtures: Fixtures, arguments: argparse.Namespace) -> None:
    resources, apps = fixtures.directory("resources"), fixtures.directory("apps")
    secrets = fixtures.directory("secrets") / "secrets.json"
    secrets.write_text(json.dumps({f"secret-{number}": "x" for number in range(NAMES)}), "utf-8")
    component(resources, "file", "local.file", {"secretsFile": secrets}, annotations={"secretfs/ttl": "1h"})
    for user, app in ((FIRST, "first"), (SECOND, "second")):
        document = {"apiVersion": "secretfs/v1alpha1", "kind": "App", "metadata": {"name": app}}
        document |= {"spec": {"owner": str(user)}}
        (apps / f"{app}.yaml").write_text(json.dumps(document), "utf-8")
    options = ["--apps", str(apps), "--allow-other", *(["--no-kernel-answers"] if arguments.no_kernel_answers else [])]
    with fixtures.secretfs(resources, options=options) as mount:
        for directory in (mount.path.parent, fixtures.scratch):  # others have to get there
            directory.chmod(0o711)
        own, other = mount.path / "first/file", mount.path / "second/file"
        cold = iter(range(NAMES))
        before = mount.rss
        quiet, flooded = [_read(own, cold) for _ in range(arguments.rounds)], []
        with _holding(other, arguments.files):
            print(f"{arguments.files} open files take {(mount.rss - before) >> 20} MiB of the daemon")
            with _flooding(other, arguments.processes):
                flooded = [_read(own, cold) for _ in range(arguments.rounds)]
        for place, kind in enumerate(("warm", "cold")):
            one, many = (statistics.median(sample[place] for sample in samples) for samples in (quiet, flooded))
            print(f"{kind}  quiet {one * 1e6:8.1f} us  flood {many * 1e6:8.1f} us  ratio {many / one:.2f}")


def _read(directory: Path, cold: Iterator[int]) -> tuple[float, float]:
    """Read as the first user. Returns the median seconds of a warm read and of a cold one."""
    numbers = [next(cold) for _ in range(WARM)]

    def measure() -> tuple[float, float]:
        warm = directory / "secret-0"
        warm.read_bytes()
        return _time([warm] * WARM), _time([directory / f"secret-{number}" for number in numbers])

    return _as_user(FIRST, measure)


def _time(paths: Sequence[Path]) -> float:
    samples = []
    for path in paths:
        began = time.perf_counter()
        descriptor = os.open(path, os.O_RDONLY)
        os.read(descriptor, 4096)
        os.close(descriptor)
        samples.append(time.perf_counter() - began)
    return statistics.median(samples)


def _as_user(user: int, measure: Callable[[], tuple[float, float]]) -> tuple[float, float]:
    read, write = os.pipe()
    if os.fork() == 0:
        _become(user)
        with os.fdopen(write, "w") as answer:
            json.dump(measure(), answer)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as answer:
        warm, cold = json.load(answer)
    os.wait()
    return warm, cold


def _become(user: int) -> None:
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


@contextmanager
def _holding(directory: Path, files: int) -> Iterator[None]:
    """Let processes of the second user hold so many files open, as many each as it may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = hard - 100

    def hold(first: int, done: Callable[[], object]) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        for number in range(first, min(first + most, files)):
            os.open(directory / f"secret-{number % NAMES}", os.O_RDONLY)
        done()

    with ExitStack() as stack:
        for first in range(0, files, most):
            stack.enter_context(_process(partial(hold, first)))
        yield


@contextmanager
def _flooding(directory: Path, processes: int) -> Iterator[None]:
    """Let processes of the second user list and poll until the end of the block."""

    def list_all(begun: Callable[[], object]) -> None:
        os.listdir(directory)  # noqa: PTH208 - nothing else is wanted
        begun()
        while True:
            os.listdir(directory)  # noqa: PTH208

    def poll_one(begun: Callable[[], object]) -> None:
        poll = select.poll()
        poll.register(os.open(directory / "secret-1", os.O_RDONLY), select.POLLPRI)
        poll.poll(0)
        begun()
        while True:
            poll.poll(0)

    with ExitStack() as stack:
        for flood in (list_all, poll_one):
            for _ in range(processes):
                stack.enter_context(_process(flood))
        yield


@contextmanager
def _process(work: Callable[[Callable[[], object]], None]) -> Iterator[None]:
    """Let a process of the second user work, and go on when it has done; at the end of the block it ends."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            _become(SECOND)
            work(partial(os.write, write, b"."))
            signal.pause()
        finally:
            os._exit(1)
    try:
        os.close(write)
        if not os.read(read, 1):
            raise BenchmarkError("a process of the second user has failed")
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(read)


if __name__ == "__main__":
    sys.exit(main())
