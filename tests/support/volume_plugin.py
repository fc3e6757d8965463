"""The volume plug-in in a process of its own, and what an engine says to it: HTTP on a Unix socket."""

import contextlib
import http.client
import json
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.support.command import SECRETFS
from tests.support.volume_server import VolumeServer, volume_server
from tests.support.waiting import PATIENCE


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("plugin", timeout=PATIENCE)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))


class Engine:
    """An engine that talks to the volume plug-in at a socket."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def call(self, name: str, request: Mapping[str, object] | None = None, body: bytes | None = None) -> dict[str, Any]:
        """Call the plug-in as an engine does."""
        with contextlib.closing(_Connection(self.path)) as connection:
            connection.request("POST", f"/{name}", json.dumps(request or {}).encode() if body is None else body)
            response = connection.getresponse()
            assert response.getheader("content-type") == "application/vnd.docker.plugins.v1.2+json"
            answer: dict[str, Any] = json.loads(response.read())
            assert response.status == (500 if answer["Err"] else 200)
            return answer

    def driver(self, name: str, volume: str = "", **arguments: object) -> dict[str, Any]:
        """Make a call of the volume driver; it must not be refused."""
        answer = self.call(f"VolumeDriver.{name}", ({"Name": volume} if volume else {}) | arguments)
        assert answer.pop("Err") == ""
        return answer

    def refused(self, name: str, volume: str, **arguments: object) -> str:
        """Make a call that must be refused; returns what is said."""
        error: str = self.call(f"VolumeDriver.{name}", {"Name": volume} | arguments)["Err"]
        assert error
        return error


class Plugin(Engine):
    """A running volume plug-in."""

    def __init__(self, server: VolumeServer, path: Path) -> None:
        super().__init__(path)
        self.server = server


@contextlib.contextmanager
def volume_plugin(mountpoint: Path, path: Path, *arguments: str) -> Iterator[Plugin]:
    """Run ``secretfs volume-plugin``, as `volume_server` does."""
    command = [*SECRETFS, "volume-plugin", "--socket", str(path), *arguments, str(mountpoint)]
    with volume_server(command) as server:
        yield Plugin(server, path)
