"""What many secrets cost while nothing happens."""

import gc
import json
import os
import re
import resource
import time
import tracemalloc
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import trio

from secretfs.cache.freshness import Freshness
from secretfs.fs.attributes import PermissionPolicy
from secretfs.fs.vfs import SecretVFS
from secretfs.fs.view import StoreView
from secretfs.scopes import ALLOW_ALL
from secretfs.store import Names, Secret
from tests.support.at_once import AtOnce
from tests.support.canary import secret
from tests.support.manifests import component
from tests.support.mounted import Mounted, mounted
from tests.support.shell import errno_of, wait_until

pytestmark = pytest.mark.mount

COUNT = 10_000
SIZE = 200
LARGE = 40_000_000
OUT_OF_MEMORY = [
    "^ERROR a defect in secretfs or in a store$",
    "^Traceback",
    "^  ",
    "^Exception: MemoryError",
    "out of memory",
]
TICKS = os.sysconf("SC_CLK_TCK")


class Endless:
    """A store that makes each value when it is asked, and keeps none: what stays is ours."""

    multi_valued = True
    listed = Names(frozenset(f"service-{number:05}" for number in range(COUNT)))

    def check(self) -> None:
        pass

    def names(self, folder: str) -> Names:
        return self.listed

    def fetch(self, name: str) -> Secret:
        return Secret({"password": os.urandom(SIZE)}, "1", 1.0)

    def close(self) -> None:
        pass


async def measure(*, forget: bool) -> float:
    """Read all values as the kernel would; return the bytes that each has cost beyond its own.

    The kernel may forget what it knows of a file, and does when it needs the memory; the value stays known.
    """
    async with trio.open_nursery() as nursery:
        cached = AtOnce("vault", Endless(), Freshness(), nursery)
        vfs = SecretVFS({"vault": StoreView(cached, ALLOW_ALL)}, PermissionPolicy(), nursery)
        store = (await vfs.lookup(1, b"vault")).inode
        await vfs.lookup(store, b"service-00000")  # the listing is there, as it is before a value can be
        before = traced()
        for number in range(COUNT):
            directory = (await vfs.lookup(store, f"service-{number:05}".encode())).inode
            file = (await vfs.lookup(directory, b"password")).inode
            handle = await vfs.open(file)
            assert len(await vfs.read(handle, 0, SIZE)) == SIZE
            if forget:
                vfs.forget(file, 1)
                vfs.forget(directory, 1)
        each = (traced() - before) / COUNT - SIZE
        tracemalloc.stop()
        assert len(cached._secrets) == COUNT
        nursery.cancel_scope.cancel()
    return each


def test_a_cached_value_is_small() -> None:
    """cost-6: 10,000 cached values use less than 1 KB of memory each beyond their own bytes."""
    assert trio.run(partial(measure, forget=True)) < 1024


def test_what_the_kernel_knows_is_small() -> None:
    """With the inodes of the file and of its directory, which the kernel may know, it is twice that (cost-6)."""
    assert trio.run(partial(measure, forget=False)) < 2048


def traced() -> int:
    """Return the bytes that Python has allocated and not freed, from the first call on."""
    gc.collect()
    if not tracemalloc.is_tracing():
        tracemalloc.start(1)
    return tracemalloc.get_traced_memory()[0]


@pytest.fixture(scope="module")
def many(scratch: Path) -> Iterator[Mounted]:
    """Mount a store with many secrets, and one whose values are soon forgotten."""
    file = scratch / "secrets.json"
    file.write_text(json.dumps({f"service-{number:05}": secret(str(number)) for number in range(COUNT)}))
    component(scratch / "many", "patient", "local.file", {"secretsFile": file})
    hasty = {"secretfs/ttl": "1s", "secretfs/idle": "1s"}
    component(scratch / "many", "hasty", "local.file", {"secretsFile": file}, annotations=hasty)
    with mounted(scratch / "many") as mount:
        yield mount


def known(mount: Mounted, store: str) -> int:
    """Return how many values a store has in memory."""
    status = json.loads((mount.path / ".secretfs/status.json").read_bytes())
    return int(status["stores"][store]["cached_values"])


def inodes(mount: Mounted) -> int:
    """Return how many inodes the kernel knows."""
    return int(json.loads((mount.path / ".secretfs/status.json").read_bytes())["mount"]["inodes"])


def read_all(directory: Path, count: int) -> None:
    for number in range(count):
        assert (directory / f"service-{number:05}").read_text() == secret(str(number))


def cpu(pid: int) -> float:
    """Return the seconds of CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def test_nothing_happens(many: Mounted) -> None:
    """cost-7: While nobody reads and nothing changes, a mount with 10,000 cached values uses next to no CPU time."""
    read_all(many.path / "patient", COUNT)
    assert known(many, "patient") == COUNT
    begin, before = time.monotonic(), cpu(many.worker)
    time.sleep(2)  # what is measured
    share = (cpu(many.worker) - before) / (time.monotonic() - begin)
    assert share < 0.05
    assert known(many, "patient") == COUNT


def test_idle_values_are_dropped(many: Mounted) -> None:
    """cost-8: A value that nobody has read for `idle` (10 min by default) is dropped from memory."""
    before = inodes(many)
    read_all(many.path / "hasty", 100)
    held = many.path / "hasty/service-00000"
    with held.open("rb", buffering=0) as file:
        file.read()
        wait_until(lambda: known(many, "hasty") <= 1)  # what is open counts as used
        wait_until(lambda: inodes(many) <= before + 3)  # the kernel has forgotten the rest: no bytes stay for its sake
        assert os.pread(file.fileno(), 1000, 0) == secret("0").encode()  # an open file keeps its value

    def are_known_again() -> bool:
        read_all(many.path / "hasty", 100)
        return known(many, "hasty") >= 50

    wait_until(are_known_again)  # at once, unless the machine is too busy to read them within `idle`


def test_what_does_not_fit_into_memory_is_an_error_of_its_reader(tmp_path: Path) -> None:
    """Rendering a bulk file takes memory that the daemon does not get; the mount lives (error-11)."""
    (tmp_path / "secrets.json").write_text(json.dumps({"large": secret("large") * (LARGE // len(secret("large")))}))
    allowed, properties = {"secretfs/max-size": "64Mi"}, {"secretsFile": tmp_path / "secrets.json"}
    component(tmp_path / "manifests", "file", "local.file", properties, annotations=allowed)
    with mounted(tmp_path / "manifests", expect_log=OUT_OF_MEMORY) as mount:
        worker = mount.worker
        store = mount.path / "file"
        size = (store / "large").stat().st_size
        status = Path(f"/proc/{worker}/status").read_text()
        used = int(re.findall(r"VmSize:\s+(\d+) kB", status)[0]) << 10
        resource.prlimit(worker, resource.RLIMIT_AS, (used + LARGE // 4, resource.RLIM_INFINITY))
        for _ in range(3):
            assert errno_of((store / ".bulk.json").read_bytes) in ("EIO", "ENOMEM")
        resource.prlimit(worker, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert len((store / "large").read_bytes()) == size
        assert (store / ".bulk.json").stat().st_size > size
        assert mount.worker == worker
