"""What a start costs, in time and memory, and the first read of a whole store, which needs a fresh start."""

import subprocess
from functools import partial
from pathlib import Path

from benchmarks.fixtures import BenchmarkError, Fixtures, Mount
from benchmarks.names import STORE
from benchmarks.race import Effort, step, timed
from benchmarks.report import SECRETFS, Section, Unit
from benchmarks.vault import HVAC, Vault
from benchmarks.vault import STORE as IN_PROCESS
from benchmarks.warm import BARE
from tests.support.manifests import component

PYTHON = "python -c pass"

_BULK_ROUNDS = 3
_VALUE_SIZE = 100


def measure(fixtures: Fixtures, effort: Effort, server: Vault) -> list[Section]:
    """Start everything a few times, in turns."""
    times: dict[str, list[float]] = {name: [] for name in (PYTHON, BARE, "local", "vault")}
    sizes: dict[str, list[float]] = {name: [] for name in (BARE, "local", "vault")}
    bulk: dict[str, list[float]] = {name: [] for name in (SECRETFS, IN_PROCESS, HVAC)}
    resources = {"local": _local_stores(fixtures), "vault": server.resources}
    for count in range(effort.starts):
        with step(f"start-up, {count + 1} of {effort.starts}"):
            times[PYTHON].append(timed(partial(fixtures.run, "-c", "pass")))
            seconds, size = _start_bare(fixtures)
            times[BARE].append(seconds)
            sizes[BARE].append(size)
            for name, path in resources.items():
                with fixtures.secretfs_in_background(path) as (seconds, mount):
                    times[name].append(seconds)
                    sizes[name].append(mount.rss)
                    if name == "vault" and count < _BULK_ROUNDS:
                        _read_everything(bulk, mount, server)
    whole = Section(f"Whole store of {effort.names} secrets, cold", (IN_PROCESS, HVAC))
    whole.add(".bulk.json, against a loop of reads", bulk)
    return [whole, _start_up(times), _memory(fixtures, effort, sizes)]


def _local_stores(fixtures: Fixtures) -> Path:
    directory = fixtures.directory("components")
    secrets = directory / "secrets.json"
    secrets.write_text('{"password": "hunter2"}', "utf-8")
    component(directory / "resources", STORE, "local.file", {"secretsFile": secrets})
    component(directory / "resources", "env", "local.env")
    return directory / "resources"


def _start_bare(fixtures: Fixtures) -> tuple[float, float]:
    """Return the seconds until the bare file system answers, and its size."""
    process: list[subprocess.Popen[bytes]] = []
    path = fixtures.directory("bare")

    def start() -> None:
        process.append(fixtures.start("benchmarks.bare", "1", str(path)))
        assert process[0].stdout
        if not process[0].stdout.readline():
            raise BenchmarkError("the bare file system does not start")

    seconds = timed(start)
    with fixtures.serving(path, process[0]) as mount:
        return seconds, mount.rss


def _read_everything(samples: dict[str, list[float]], mount: Mount, server: Vault) -> None:
    samples[SECRETFS].append(timed((mount.path / "vault" / ".bulk.json").read_bytes))
    samples[IN_PROCESS].append(timed(server.fetch_all))
    samples[HVAC].append(timed(server.read_all))


def _start_up(times: dict[str, list[float]]) -> Section:
    section = Section("Start-up, until the mount answers", (BARE, PYTHON))
    for title, name in (("secretfs mount, local stores", "local"), ("secretfs mount, Vault", "vault")):
        section.add(title, {SECRETFS: times[name], BARE: times[BARE], PYTHON: times[PYTHON]})
    return section


def _memory(fixtures: Fixtures, effort: Effort, sizes: dict[str, list[float]]) -> Section:
    section = Section("Memory of the daemon", (BARE,))
    for title, name in (("after start, local stores", "local"), ("after start, Vault", "vault")):
        section.add(title, {SECRETFS: sizes[name], BARE: sizes[BARE]}, Unit.BYTES)
    with step(f"memory of {effort.values} values"):
        listed, read = _per_value(fixtures, effort.values)
    section.add("per name listed", {SECRETFS: [listed]}, Unit.BYTES)
    section.add(f"per value of {_VALUE_SIZE} bytes read, beyond it", {SECRETFS: [read]}, Unit.BYTES)
    return section


def _per_value(fixtures: Fixtures, count: int) -> tuple[float, float]:
    """Return the bytes that a listed name takes, and those that its value takes on top when it is read.

    The store is the daemon's own environment: it is there before, and each read makes a copy for the cache.
    """
    resources = fixtures.directory("resources")
    component(resources, STORE, "local.env", {"prefix": "BENCH_"}, annotations={"secretfs/ttl": "1h"})
    variables = {f"BENCH_{index:06}": f"{index:0{_VALUE_SIZE}}" for index in range(count)}
    with fixtures.secretfs(resources, variables) as mount:
        started = mount.rss
        paths = list((mount.path / STORE).iterdir())
        listed = mount.rss
        for path in paths:
            path.read_bytes()
        read = mount.rss
    return (listed - started) / count, (read - listed) / count - _VALUE_SIZE
