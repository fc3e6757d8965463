"""Pluggable secret stores in processes of their own, in Python and in JavaScript, and the folder of their sockets."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from secretfs.stores._sockets import FOLDER
from tests.support.command import ROOT
from tests.support.node import require_node

PROGRAMS = ROOT / "tests/support/plug_ins"
MULTI_VALUED = "MULTIPLE_KEY_VALUES_PER_SECRET"
LANGUAGES = ("python", "javascript")


class PlugIn:
    """A plug-in that serves ``folder/NAME.sock``."""

    def __init__(self, language: str, folder: Path, directory: Path, name: str, *, multi_valued: bool) -> None:
        self.socket = folder / f"{name}.sock"
        self._directory = directory
        self._command = [*_interpreter(language), str(self.socket), str(directory)]
        self._environment = require_node() if language == "javascript" else dict(os.environ)
        self._process: subprocess.Popen[str] | None = None
        self._state: dict[str, Any] = {
            "features": [MULTI_VALUED] if multi_valued else [],
            "denied": [],
            "broken": [],
            "secrets": {},
        }
        self._save()

    def start(self) -> None:
        """Start it, and wait until it serves."""
        self._process = subprocess.Popen(
            self._command,
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            env=self._environment,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        """End it. Its socket stays."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.communicate()
            self._process = None

    def put(self, name: str, values: Mapping[str, bytes], served: str = "secrets") -> None:
        """Put a secret, or a new version of it, into what is served to components of a set."""
        self._state.setdefault(served, {})[name] = {key: value.decode() for key, value in values.items()}
        self._save()

    def change(self, **state: Any) -> None:
        """Change what it serves, or how."""
        self._state |= state
        self._save()

    def calls(self, method: str = "") -> list[dict[str, Any]]:
        """Return what it was asked so far, or that with one method."""
        path = self._directory / "calls.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        calls = [json.loads(line) for line in lines]
        return [call for call in calls if method in ("", call["method"])]

    def _save(self) -> None:
        new = self._directory / "state.new"
        new.write_text(json.dumps(self._state), encoding="utf-8")
        new.replace(self._directory / "state.json")


def socket_folder(within: Path, patch: pytest.MonkeyPatch) -> Path:
    """Make a folder for sockets that nobody else may enter, and name it in the environment."""
    folder = within / "s"
    folder.mkdir(mode=0o700)
    patch.setenv(FOLDER, str(folder))
    return folder


@contextmanager
def plug_in(
    language: str, folder: Path, directory: Path, name: str = "example", *, multi_valued: bool = False
) -> Iterator[PlugIn]:
    """Run a plug-in, with a directory of its own, whose socket is in a folder."""
    directory.mkdir(exist_ok=True)
    compile_protocol(directory)
    running = PlugIn(language, folder, directory, name, multi_valued=multi_valued)
    try:
        running.start()
        yield running
    finally:
        running.kill()


def compile_protocol(directory: Path) -> None:
    """Generate the Python code of the protocol into a directory, if it is not there."""
    if not (directory / "secretstore_pb2_grpc.py").exists():
        output = [f"--python_out={directory}", f"--grpc_python_out={directory}"]
        command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROGRAMS}", *output, "secretstore.proto"]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def _interpreter(language: str) -> list[str]:
    if language == "python":
        return [sys.executable, str(PROGRAMS / "plug_in.py")]
    return ["node", str(PROGRAMS / "plug_in.js")]
