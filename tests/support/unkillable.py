"""A service under everything at once: readers, rotations, a container, a directory and a mapping in use, and kills."""

import contextlib
import json
import random
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.manifests import component
from tests.support.shell import wait_until
from tests.support.systemd import System
from tests.support.values import sealed
from tests.support.waiting import PATIENCE

UNIT = "secretfs@srv-secrets.service"
POINT = Path("/srv/secrets")
SECRETS = 400
ROTATED = 200
_ROTATED_EVERY = 0.1  # seconds
_BUNDLE = Path("/run/box")
_READER = Path("/run/reader.py")

# What each participant does, until its standard input ends, and often enough; then it says how that went. A value
# carries its checksum.
_PROGRAM = """
import errno, hashlib, json, mmap, os, random, sys, threading, time
kind, root, place = sys.argv[1], sys.argv[2], sys.argv[3:]
over = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
newest = {}
done, failures, longest, names = 0, [], 0.0, [f"secret-{n}" for n in range(int(place[0]))]

def check(content, name):
    number, digest, body = content.split(b" ", 2)
    assert b"secret-" + number == name.encode(), f"{name} holds {number}"
    assert hashlib.sha256(body).hexdigest() == digest.decode(), f"{name} is torn"

def read(path, name):
    with open(path, "rb") as file:
        check(file.read(), name)

def read_some():
    name = names[random.randrange(3)] if random.random() < 0.5 else random.choice(names)  # warm, and rather cold
    read(f"{root}/{name}", name)
    assert os.stat(f"{root}/{name}").st_size > 60

def look_around():
    name = random.choice(names)
    read(name, name)  # a relative path
    if random.random() < 0.1:
        assert sorted(os.listdir(".")) == sorted(names)

def read_mapped():
    check(mapping[:], names[-1])

def read_rotated():
    number = random.randrange(int(place[0]))
    while True:
        try:
            with open(f"{root}/{number}") as file:
                version, which = map(int, file.read().split())
            break
        except OSError as error:
            if error.errno != errno.ESTALE:  # of a version that is gone with the daemon that had it
                raise
    assert which == number and version >= newest.get(number, 0), f"{number} holds {version} of {which}"
    newest[number] = version
    # The kernel locks the directory while it asks for a name, and the publisher waits for that lock.
    try:
        os.stat(f"{root}/{random.random()}")
    except FileNotFoundError:
        return
    raise AssertionError("there is no such name")

action = {"reader": read_some, "inside": look_around, "mapped": read_mapped, "follower": read_rotated}[kind]
if kind == "inside":
    os.chdir(root)
if kind == "mapped":
    file = open(f"{root}/{names[-1]}", "rb")
    mapping = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
while not over.is_set() or done <= 20:
    begun = time.monotonic()
    try:
        action()
    except (OSError, AssertionError) as error:
        failures.append(repr(error))
    longest = max(longest, time.monotonic() - begun)
    done += 1
    time.sleep(0.002)
print(json.dumps({"done": done, "failures": failures[:5], "failed": len(failures), "longest": longest}))
"""


@dataclass(frozen=True)
class Report:
    """What one participant has done and met."""

    who: str
    done: int
    failures: Sequence[str]
    failed: int
    longest: float


def install(system: System) -> None:
    """Declare a store with many secrets in a booted system that has the units, and start the service."""
    for name in ("file", "rotated"):
        component(
            system.path("/etc/secretfs/components"),
            name,
            "local.file",
            {"secretsFile": f"/etc/secretfs/{name}"},
            annotations={"secretfs/ttl": "500ms", "secretfs/idle": "1s"},
        )
    secrets = {f"secret-{number}": sealed(number) for number in range(SECRETS)}
    system.path("/etc/secretfs/file").write_text(json.dumps(secrets), encoding="utf-8")
    _rotate(system, 0)
    options = "--resources-path=/etc/secretfs/components --allow-other --mode=0444"
    system.path("/etc/secretfs/srv-secrets.conf").write_text(f"SECRETFS_OPTIONS={options}\n", encoding="utf-8")
    system.path(POINT).mkdir(exist_ok=True)
    system.path(_READER).write_text(_PROGRAM, encoding="utf-8")
    system.systemctl("start", UNIT)


@contextlib.contextmanager
def participants(system: System, reports: list[Report]) -> Iterator[None]:
    """Run four readers, a container, a process inside the mount and one with a mapping; at the end they report.

    Beside them two follow values that are rotated all the time, so that the daemon is always publishing something.
    """
    program = ("/usr/bin/python3", str(_READER))
    where = str(POINT / "file")
    started = {f"reader {number}": _start(system, *program, "reader", where, str(SECRETS)) for number in range(4)}
    started["working directory"] = _start(system, *program, "inside", where, str(SECRETS))
    started["mapping"] = _start(system, *program, "mapped", where, str(SECRETS))
    for number in range(2):
        rotated = str(POINT / "rotated")
        started[f"follower {number}"] = _start(system, *program, "follower", rotated, str(ROTATED))
    _bundle(system, [*program, "reader", "/run/secrets/file", str(SECRETS)])
    runc = ("runc", "--rootless", "true", "--root", "/run/runc", "run", "--bundle", str(_BUNDLE), "box")
    started["container"] = _start(system, *runc)
    try:
        with _rotating(system):
            yield
    finally:
        for who, process in started.items():
            out, err = process.communicate(timeout=PATIENCE)
            try:
                reports.append(Report(who, **json.loads(out)))
            except ValueError:
                reports.append(Report(who, 0, [err.decode(errors="replace")[-300:]], 1, 0.0))


def torment(system: System, *, kills: int, restarts: int, pause: tuple[float, float]) -> None:
    """Kill the daemon and restart the service, at random moments."""
    events = ["kill"] * kills + ["restart"] * restarts
    random.shuffle(events)
    for event in events:
        time.sleep(random.uniform(*pause))
        if event == "restart":
            system.systemctl("restart", UNIT)
            continue
        before = int(system.show(UNIT, "NRestarts"))
        system.systemctl("kill", "--signal=KILL", "--kill-whom=main", UNIT)
        wait_until(lambda before=before: int(system.show(UNIT, "NRestarts")) != before)  # type: ignore[misc]
    system.wait_for(UNIT, "active")


@contextlib.contextmanager
def _rotating(system: System) -> Iterator[None]:
    over = threading.Event()

    def rotate() -> None:
        version = 0
        while not over.wait(_ROTATED_EVERY):
            version += 1
            _rotate(system, version)

    thread = threading.Thread(target=rotate)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _rotate(system: System, version: int) -> None:
    new = system.path("/etc/secretfs/rotated.new")
    new.write_text(json.dumps({str(number): f"{version} {number}" for number in range(ROTATED)}), encoding="ascii")
    new.replace(system.path("/etc/secretfs/rotated"))


def _start(system: System, *command: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*system.enter(), *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def _bundle(system: System, command: list[str]) -> None:
    """Make a container of the system's own programs, with a plain bind of the mount point in it."""
    rootfs = system.path(_BUNDLE) / "rootfs"
    rootfs.mkdir(parents=True)
    for link in ("bin", "lib", "lib64"):
        (rootfs / link).symlink_to(f"usr/{link}")
    system.output("sh", "-c", f"cd {_BUNDLE} && runc spec")
    config = json.loads((system.path(_BUNDLE) / "config.json").read_text("utf-8"))
    config["process"] |= {"args": command, "terminal": False}
    binds = {"/usr": "/usr", str(_READER): str(_READER), "/run/secrets": str(POINT)}
    config["mounts"] += [
        {"destination": inside, "type": "bind", "source": outside, "options": ["bind", "ro"]}
        for inside, outside in binds.items()
    ]
    (system.path(_BUNDLE) / "config.json").write_text(json.dumps(config), encoding="utf-8")


def clear(system: System) -> None:
    """Stop the service, and take away what was installed."""
    system.systemctl("stop", UNIT)
    system.output("rm", "-r", "/etc/secretfs", str(_BUNDLE), str(_READER))
