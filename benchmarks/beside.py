"""Next to other ways to a secret: a C client, other languages, other servers, a shell; and what changes cost.

The C client has no interpreter in it, so it shows what the file systems and servers cost, and not the client.
"""

import contextlib
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from benchmarks.fixtures import BenchmarkError, Fixtures, Mount, write_files
from benchmarks.names import STORE, file_names, value
from benchmarks.race import Contestants, Effort, race, step
from benchmarks.report import SECRETFS, Section
from benchmarks.servers import bao, nginx, openbao_proxy
from benchmarks.vault import Vault
from benchmarks.warm import BARE, TMPFS, local_store
from tests.support.manifests import component
from tests.support.mounted import stands_by
from tests.support.shell import wait_until

LIBFUSE, NGINX, PROXY, BAO = "bare libfuse", "nginx", "OpenBao proxy", "bao kv get"
TTL, START = "the ttl", "python -c pass"

_PROCESSES = (1, 4, 16)
_LISTERS = (1, 4)
_TTL = 1.0  # seconds
_PATIENCE = 30.0  # seconds for what must happen

_NODE = """
const fs = require("fs"), [path, seconds] = process.argv.slice(1);
fs.readFileSync(path);
const end = performance.now() + 1000 * seconds;
let done = 0;
for (; performance.now() < end; done++) fs.readFileSync(path);
console.log(Number(seconds) / done);
"""


def measure(fixtures: Fixtures, effort: Effort, server: Vault) -> list[Section]:
    """Measure all of it, in turns."""
    sections = [
        Section("C client, each process", (BARE, LIBFUSE, TMPFS, NGINX, PROXY)),
        Section("Programs", (BARE, TMPFS)),
    ]
    with contextlib.ExitStack() as stack:
        with step("mounting, and starting nginx and OpenBao's proxy"):
            client = _compile(fixtures, "client")
            bare = fixtures.directory("bare-libfuse")
            command = [str(_compile(fixtures, "bare", *_libfuse())), str(effort.names), str(bare)]
            stack.enter_context(fixtures.serving(bare, subprocess.Popen(command, process_group=0)))
            resources = local_store(fixtures, effort.names)
            stores = {
                SECRETFS: stack.enter_context(fixtures.secretfs(resources)).path / STORE,
                BARE: stack.enter_context(fixtures.bare(effort.names)).path / STORE,
                TMPFS: fixtures.tmpfs / "beside",
            }
            contents = map(value, range(effort.names))
            write_files(stores[TMPFS], dict(zip(file_names(effort.names), contents, strict=True)))
            web = stack.enter_context(nginx(fixtures))
            proxy = stack.enter_context(openbao_proxy(fixtures, server.address))
        with step("reads and listings by a C client"):
            several = stores | {LIBFUSE: bare / STORE}
            _race_clients(sections[0], client, several, effort, web=web, proxy=proxy, server=server)
        with step("reads by other programs"):
            _race_programs(sections[1], client, stores, effort)
    return [*sections, *_changes(fixtures, effort, server), _growth(fixtures, effort)]


def _compile(fixtures: Fixtures, name: str, *flags: str) -> Path:
    program, source = fixtures.directory(name) / name, Path(__file__).with_name(f"{name}.c")
    done = subprocess.run(["gcc", "-O2", "-o", program, source, *flags], check=False)
    if done.returncode != 0:
        raise BenchmarkError(f"{source.name} cannot be compiled")
    return program


def _libfuse() -> list[str]:
    """Return the flags that a program needs which is compiled with libfuse."""
    done = subprocess.run(["pkg-config", "--cflags", "--libs", "fuse3"], check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise BenchmarkError(f"libfuse cannot be compiled with: {done.stderr.strip()}")
    return done.stdout.split()


def _race_clients(
    section: Section,
    client: Path,
    stores: Mapping[str, Path],
    effort: Effort,
    *,
    web: int | None,
    proxy: int,
    server: Vault,
) -> None:
    names = list(file_names(max(_PROCESSES)))
    rounds = max(1, effort.rounds // 5)
    for processes in _PROCESSES:
        commands = {name: ["file", *(str(store / each) for each in names)] for name, store in stores.items()}
        if web is not None:
            commands[NGINX] = ["http", str(web), "/secret"]
        secret = f"/v1/secret/data/dapr/{server.names[0]}"
        commands[PROXY] = ["http", str(proxy), secret, f"X-Vault-Token: {server.token}"]
        clients = {name: [str(client), str(effort.seconds), str(processes), *rest] for name, rest in commands.items()}
        section.add(f"open, fstat, read, close, {_by(processes)}", _told(clients, rounds))
    for processes in _LISTERS:
        clients = {
            name: [str(client), str(effort.seconds), str(processes), "list", str(store)]
            for name, store in stores.items()
        }
        section.add(f"readdir of {effort.names} names, {_by(processes)}", _told(clients, rounds))


def _by(processes: int) -> str:
    return "1 process" if processes == 1 else f"{processes} processes"


def _told(commands: Mapping[str, Sequence[str]], rounds: int) -> dict[str, list[float]]:
    """Run programs in turns that print the seconds which an operation took them."""
    samples: dict[str, list[float]] = {name: [] for name in commands}
    turns = list(commands.items())
    for count in range(rounds):
        first = count % len(turns)
        for name, command in turns[first:] + turns[:first]:
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            if done.returncode != 0:
                raise BenchmarkError(f"{name}: {done.stderr.strip()}")
            samples[name].append(float(done.stdout))
    return samples


def _race_programs(section: Section, client: Path, stores: Mapping[str, Path], effort: Effort) -> None:
    paths = {name: str(store / next(file_names(1))) for name, store in stores.items()}
    rounds = max(1, effort.rounds // 5)
    seconds = str(effort.seconds)
    section.add("like Go: epoll, read to the end", _told(_each(paths, [str(client), seconds, "1", "epoll"]), rounds))
    times = 200
    contestants: Contestants = {name: partial(_read_often, path, times) for name, path in paths.items()}
    section.add("Python: open().read()", race(contestants, rounds=rounds, operations=times))
    node = shutil.which("node")
    if node:
        commands = {name: [node, "-e", _NODE, path, seconds] for name, path in paths.items()}
        section.add("Node: readFileSync", _told(commands, rounds))
    shell: Contestants = {name: partial(_run, ["cat", path]) for name, path in paths.items()}
    section.add("cat, started for each", race(shell, rounds=rounds))


def _each(paths: Mapping[str, str], command: list[str]) -> dict[str, list[str]]:
    return {name: [*command, path] for name, path in paths.items()}


def _read_often(path: str, times: int) -> None:
    for _ in range(times):
        with open(path, "rb") as file:  # noqa: PTH123 - as programs do
            file.read()


def _run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(command, check=False, stdout=subprocess.DEVNULL, env=environment)
    if done.returncode != 0:
        raise BenchmarkError(f"{command[0]} ended with status {done.returncode}")


def _changes(fixtures: Fixtures, effort: Effort, server: Vault) -> Iterator[Section]:
    """Measure a secret for a shell, a kill, and a rotation, from Vault."""
    resources = fixtures.directory("resources")
    properties = {"vaultAddr": server.address, "vaultToken": server.token}
    component(resources, STORE, "hashicorp.vault", properties, annotations={"secretfs/ttl": f"{_TTL:g}s"})
    shell, kill = Section("A secret of Vault for a shell", (BAO,)), Section("A kill of the worker", (START,))
    rotation = Section("A rotation", (TTL,))
    with fixtures.secretfs(resources) as mount:
        path = mount.path / STORE / server.names[0] / "password"
        with step("cat and bao kv get"):
            environment = {"VAULT_ADDR": server.address, "VAULT_TOKEN": server.token, "HOME": str(fixtures.scratch)}
            get = [str(bao()), "kv", "get", "-field=password", f"secret/dapr/{server.names[0]}"]
            contestants: Contestants = {
                SECRETFS: partial(_run, ["cat", str(path)]),
                BAO: partial(_run, get, os.environ | environment),
            }
            shell.add("cat, a cached secret", race(contestants, rounds=max(1, effort.rounds // 5)))
        with step("kills"):
            samples: dict[str, list[float]] = {SECRETFS: [], START: []}
            for name in server.names[1 : 1 + max(1, effort.starts)]:
                samples[SECRETFS].append(_pause(mount, mount.path / STORE / name / "password"))
                samples[START] += race({START: partial(fixtures.run, "-c", "pass")}, rounds=1)[START]
            kill.add("until a cold read is answered", samples)
        with step("rotations"):
            waits = [_rotate(server, server.names[0], path) for _ in range(max(1, effort.starts // 2))]
            rotation.add("from the write in the server to the event", {SECRETFS: waits, TTL: [_TTL] * len(waits)})
    yield from (shell, kill, rotation)


def _pause(mount: Mount, path: Path) -> float:
    """Kill the worker when a process stands by. Return the seconds until a secret that nobody has read yet is read."""
    wait_until(partial(stands_by, mount.path))
    os.kill(mount.of_worker().pid, signal.SIGKILL)
    started = time.perf_counter()
    path.read_bytes()
    return time.perf_counter() - started


def _rotate(server: Vault, name: str, path: Path) -> float:
    """Write another value, and return the seconds until a program that polls the open file hears of it."""
    with path.open("rb") as file:
        file.read()
        waiting = select.poll()
        waiting.register(file, select.POLLPRI)
        server.rotate(name)
        started = time.perf_counter()
        if not waiting.poll(1000 * _PATIENCE):
            raise BenchmarkError("a rotation is not heard of")
        return time.perf_counter() - started


def _growth(fixtures: Fixtures, effort: Effort) -> Section:
    """List stores of all sizes: what matters is that an entry costs the same in each."""
    section = Section("Growth, for each entry", (TMPFS,))
    for count in (10, 100, 1000, 10_000, 100_000):
        if count > 10 * effort.values:
            break
        with step(f"a store of {count} names"), fixtures.secretfs(local_store(fixtures, count)) as mount:
            there = fixtures.tmpfs / f"growth-{count}"
            write_files(there, dict.fromkeys(file_names(count), b""))
            contestants: Contestants = {
                SECRETFS: partial(os.listdir, mount.path / STORE),
                TMPFS: partial(os.listdir, there),
            }
            section.add(f"os.listdir of {count} names", race(contestants, rounds=3, operations=count))
            shutil.rmtree(there)
    return section
