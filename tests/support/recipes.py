"""The recipes of docs/index.md: secrets of a real OpenBao, and a shell in which the lines are typed as they stand."""

import os
import re
import signal
import ssl
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from tests.support.command import ROOT
from tests.support.manifests import component
from tests.support.mounted import Mounted
from tests.support.servers.openbao import OpenBao
from tests.support.waiting import PATIENCE, wait_until

FRESH = {"secretfs/ttl": "1s", "secretfs/deadline": "1m"}
"""A rotation shows soon, and a busy machine has a minute to answer."""

PAGE = (ROOT / "docs/index.md").read_text(encoding="utf-8")


def blocks(heading: str, language: str) -> list[str]:
    """Find the blocks in a language below a heading."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    found = re.findall(rf"^```{language}\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    assert found, heading
    return found


@contextmanager
def hearing() -> Iterator[tuple[int, list[str]]]:
    """Serve HTTP at a port; yields it, and the ``Authorization`` of each request that came."""
    heard: list[str] = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append(self.headers["Authorization"])
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        Thread(target=server.serve_forever).start()
        try:
            yield server.server_port, heard
        finally:
            server.shutdown()


def served_certificate(port: int) -> str:
    """Return the certificate that is served at a port; nothing if none is."""
    try:
        return ssl.get_server_certificate(("127.0.0.1", port), timeout=PATIENCE)
    except OSError:
        return ""


@dataclass
class Kitchen:
    """Where recipes are tried: a directory with components, and secrets of one folder of a server."""

    directory: Path
    server: OpenBao
    folder: str
    replaced: dict[str, str] = field(default_factory=dict)
    """What the page says, and what it is here: paths and ports."""

    def __post_init__(self) -> None:
        properties = {"vaultAddr": self.server.address, "vaultToken": self.server.token, "vaultKVPrefix": self.folder}
        component(self.directory / "components", "vault", "hashicorp.vault", properties, annotations=FRESH)

    def put(self, name: str, **values: str) -> None:
        """Write a secret, or another version of it."""
        self.server.put(f"secret/{self.folder}/{name}", values)

    def rotate(self, mount: Mounted, name: str, **values: str) -> None:
        """Write another version, and wait until all of it shows."""
        self.put(name, **values)
        place = mount.path / "vault" / name
        wait_until(lambda: all((place / key).read_text("utf-8") == value for key, value in values.items()))

    def here(self, text: str) -> str:
        """Write the paths and ports of this place for those of the page."""
        for told, found in self.replaced.items():
            text = text.replace(told, found)
        return text

    def shell(self, script: str, **env: str) -> str:
        """Type a script. Returns what it prints."""
        done = subprocess.run(
            self._command(script), env=self._environment(env), cwd=self.directory, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    @contextmanager
    def running(self, script: str, **env: str) -> Iterator["Running"]:
        """Type a script that goes on, and end it with SIGTERM."""
        output = self.directory / f"output-{time.monotonic_ns()}"
        with output.open("wb") as file:
            process = subprocess.Popen(
                self._command(f"exec {script}"), env=self._environment(env), cwd=self.directory,
                stdin=subprocess.DEVNULL, stdout=file, stderr=file,
            )  # fmt: skip
        running = Running(process, output)
        try:
            yield running
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE)

    def _command(self, script: str) -> list[str]:
        return ["bash", "-euo", "pipefail", "-c", self.here(script)]

    def _environment(self, env: Mapping[str, str]) -> dict[str, str]:
        path = f"{ROOT / '.venv/bin'}:{os.environ['PATH']}:/usr/sbin"
        return {"PATH": path, "HOME": str(self.directory), "LC_ALL": "C.UTF-8", **env}


@dataclass
class Running:
    """A program that goes on."""

    process: subprocess.Popen[bytes]
    output: Path

    @property
    def text(self) -> str:
        """What it has printed so far."""
        return self.output.read_text(encoding="utf-8", errors="replace")

    def prints(self, text: str) -> None:
        """Wait until it has printed a text."""

        def printed() -> bool:
            assert self.process.poll() is None or text in self.text, self.text
            return text in self.text

        wait_until(printed)
