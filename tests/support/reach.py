"""What a process can write to, and which other process it can look into. It changes nothing.

``python -m tests.support.reach PID DIRECTORY...`` prints it as JSON. As a store type, ``secretstores.reach``, it tries
that from within a worker.
"""

import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from secretfs.settings import setting
from secretfs.store import StoreContext
from tests.support.memory_store import MemoryStore
from tests.support.shell import errno_of

TYPE = "secretstores.reach"
SYSTEM = ("/etc/passwd", "/usr/lib/os-release", "/proc/sys/kernel/core_pattern")
"""Files that root may write."""
OF_OTHERS = ("mem", "environ", "exe", "fd/0")


def tried(pid: int, *directories: str) -> dict[str, str]:
    """Return what comes of it, by place: ``can`` or the name of an errno."""
    calls: dict[str, Callable[[], object]] = {path: partial(_open_to_write, path) for path in SYSTEM}
    calls |= {directory: partial(_make_a_file_in, directory) for directory in directories}
    calls |= {name: partial(_look, pid, name) for name in OF_OTHERS}
    return {name_of(place): errno_of(call) or "can" for place, call in calls.items()}


def name_of(place: str) -> str:
    """Return the name of a secret."""
    return place.strip("/").replace("/", "-")


def _open_to_write(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY))


def _make_a_file_in(directory: str) -> None:
    with tempfile.TemporaryFile(dir=directory):
        pass


def _look(pid: int, name: str) -> None:
    path = Path(f"/proc/{pid}", name)
    if name in ("exe", "fd/0"):
        path.readlink()
    else:
        with path.open("rb", buffering=0) as file:
            assert name == "mem" or file.read(1)


@dataclass(frozen=True, slots=True)
class Settings:
    """The properties of a ``secretstores.reach`` component."""

    arguments: str = setting("arguments", "What the command line has.")


def open_store(settings: Settings, context: StoreContext) -> MemoryStore:
    """Try it now; the secrets are what came of it."""
    found = tried(*_parsed(settings.arguments.split()))
    return MemoryStore({name: {name: code.encode()} for name, code in found.items()}, multi_valued=False)


def _parsed(arguments: list[str]) -> tuple[int, *tuple[str, ...]]:
    return int(arguments[0]), *arguments[1:]


def install(directory: Path) -> Mapping[str, str]:
    """Make the type known to processes that have the variables which are returned."""
    information = directory / "reach-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: reach\nVersion: 1.0\n", encoding="utf-8")
    (information / "entry_points.txt").write_text(f"[secretfs.stores]\n{TYPE} = {__name__}\n", encoding="utf-8")
    return {"PYTHONPATH": f"{Path(__file__).parents[2]}:{directory}"}


if __name__ == "__main__":
    json.dump(tried(*_parsed(sys.argv[1:])), sys.stdout)
