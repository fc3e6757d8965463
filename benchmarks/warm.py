"""Reading what is known already: the daemon answers from memory and the kernel from its caches."""

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from benchmarks.fixtures import BenchmarkError, Fixtures, Mount, write_files
from benchmarks.names import STORE, file_names, value
from benchmarks.race import Contestants, Effort, race, step
from benchmarks.report import SECRETFS, Section, Unit
from tests.support.manifests import component

BARE, TMPFS = "bare pyfuse3", "tmpfs"

_READERS = 4
_COUNTED = 200  # operations whose requests are counted
_REPEATED = {TMPFS: 20}
"""Contestants that are so fast that more of the same must be timed at once."""


def measure(fixtures: Fixtures, effort: Effort) -> list[Section]:
    """Measure all three contestants on files of the same names and contents."""
    timing = Section("Warm", (BARE, TMPFS))
    counting = Section("Requests to the daemon, each", (BARE,))
    with contextlib.ExitStack() as stack:
        with step("mounting"):
            mounts = {
                SECRETFS: stack.enter_context(fixtures.secretfs(local_store(fixtures, effort.names))),
                BARE: stack.enter_context(fixtures.bare(effort.names)),
            }
            write_files(fixtures.tmpfs / STORE, dict(zip(file_names(effort.names), _values(effort.names), strict=True)))
        stores = {name: mount.path / STORE for name, mount in mounts.items()} | {TMPFS: fixtures.tmpfs / STORE}
        for store in stores.values():
            read_all(_paths(store, effort.names))
        with step("warm reads"):
            _time_files(timing, stores, effort)
        with step(f"ls of {effort.names} names"):
            _time_listings(timing, stores, effort)
        with step(f"{_READERS} readers at once"):
            samples = race_readers(fixtures, stores, effort)
            timing.add(f"open, read, close by {_READERS} processes at once", samples)
        with step("counting requests"):
            _count(counting, mounts)
    return [timing, counting]


def local_store(fixtures: Fixtures, names: int) -> Path:
    """Write manifests of a store with files of the same names and contents as all contestants have."""
    directory = fixtures.directory("components")
    secrets = directory / "secrets.json"
    pairs = zip(file_names(names), _values(names), strict=True)
    secrets.write_text("{" + ",".join(f'"{name}": "{content.decode()}"' for name, content in pairs) + "}", "utf-8")
    properties = {"secretsFile": secrets}
    component(directory / "resources", STORE, "local.file", properties, annotations={"secretfs/ttl": "1h"})
    return directory / "resources"


def _values(names: int) -> Iterator[bytes]:
    return map(value, range(names))


def _paths(store: Path, names: int) -> list[str]:
    return [str(store / name) for name in file_names(names)]


def _time_files(section: Section, stores: Mapping[str, Path], effort: Effort) -> None:
    paths = {name: _paths(store, effort.names) for name, store in stores.items()}
    for title, operation, times in (
        ("open, fstat, read, close", read, 100),
        ("stat", os.stat, 1000),
    ):
        repeats = {name: times * _REPEATED.get(name, 1) for name in stores}
        contestants = {name: partial(_repeat, operation, paths[name][0], repeats[name]) for name in stores}
        samples = race(contestants, rounds=effort.rounds)
        section.add(title, {name: [each / repeats[name] for each in samples[name]] for name in samples})
    contestants = {name: partial(read_all, paths[name]) for name in stores}
    rounds = max(3, effort.rounds // 2)
    section.add(
        f"open, read, close of {effort.names} files, each", race(contestants, rounds=rounds, operations=effort.names)
    )


def _time_listings(section: Section, stores: Mapping[str, Path], effort: Effort) -> None:
    for title, operation in (("os.listdir", os.listdir), ("os.scandir", _scan)):
        contestants: Contestants = {name: partial(operation, str(store)) for name, store in stores.items()}
        section.add(f"{title} of {effort.names} names", race(contestants, rounds=effort.rounds))


def _repeat(operation: Callable[[str], object], path: str, times: int) -> None:
    for _ in range(times):
        operation(path)


def read(path: str) -> None:
    """Read a file as a program does that wants to know its size."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fstat(descriptor)
    os.read(descriptor, 4096)
    os.close(descriptor)


def read_all(paths: list[str]) -> None:
    """Read files."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.read(descriptor, 4096)
        os.close(descriptor)


def _scan(path: str) -> None:
    with os.scandir(path) as entries:
        for entry in entries:
            entry.is_dir()  # known without asking anybody


def race_readers(fixtures: Fixtures, stores: Mapping[str, Path], effort: Effort) -> dict[str, list[float]]:
    """Let processes read a file each; returns seconds per read of all of them together."""
    rounds = max(1, effort.rounds // 4)
    samples: dict[str, list[float]] = {name: [] for name in stores}
    with contextlib.ExitStack() as stack:
        readers = [stack.enter_context(_reader(fixtures)) for _ in range(_READERS)]
        for _ in range(rounds):
            for name, store in stores.items():
                reads = _read_together(readers, _paths(store, _READERS), effort.seconds)
                samples[name].append(effort.seconds / reads)
    return samples


@contextlib.contextmanager
def _reader(fixtures: Fixtures) -> Iterator["subprocess.Popen[bytes]"]:
    with fixtures.start("benchmarks.reader") as process:
        try:
            yield process
        finally:
            process.kill()


def _read_together(readers: "list[subprocess.Popen[bytes]]", paths: list[str], seconds: float) -> int:
    for reader, path in zip(readers, paths, strict=True):
        assert reader.stdin
        reader.stdin.write(f"{seconds} {path}\n".encode())
        reader.stdin.flush()
    reads = 0
    for reader in readers:
        assert reader.stdout
        answer = reader.stdout.readline()
        if not answer:
            raise BenchmarkError("a reading process ended early")
        reads += int(answer)
    return reads


def _count(section: Section, mounts: Mapping[str, Mount]) -> None:
    """Count requests by the system calls that answer them, if that is right where the truth is known.

    The daemon writes once to /dev/fuse for each request that wants an answer. The bare file system counts its requests
    itself: unless both numbers agree there, nothing is reported.
    """
    for title, operation in (("open, fstat, read, close", read), ("stat", os.stat)):
        counts: dict[str, list[float]] = {}
        for name, mount in mounts.items():
            path = str(mount.path / STORE / next(file_names(1)))
            sent = _requests_sent(mount) if name == BARE else 0
            before = _settled_writes(mount)
            _repeat(operation, path, _COUNTED)
            after = _settled_writes(mount)
            if before is None or after is None:
                return
            if name == BARE and _requests_sent(mount) - sent != after - before:
                return
            counts[name] = [(after - before) / _COUNTED]
        section.add(title, counts, Unit.REQUESTS)


def _requests_sent(mount: Mount) -> int:
    return int(os.getxattr(mount.path, "user.requests"))


def _settled_writes(mount: Mount) -> int | None:
    """Wait for what the kernel sends on its own time, the RELEASE of a closed file."""
    writes = None
    while (now := mount.writes) != writes:
        writes = now
        time.sleep(0.02)
    return writes
