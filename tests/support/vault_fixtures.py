"""Fixtures with a real OpenBao. Import those you use: ``from tests.support.vault_fixtures import kv, openbao_server``.

One server serves all tests of a session; each test has a folder of its own in it. A test that wants to hurt a server
starts its own, with `tests.support.servers.openbao.openbao`.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.servers.openbao import OpenBao, openbao

__all__ = ["Folder", "kv", "kv1", "openbao_server", "openbao_tls_server"]

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Folder:
    """A folder of an engine, for one test: what a component with this ``vaultKVPrefix`` serves."""

    server: OpenBao
    prefix: str
    engine: str = "secret"
    version: int = 2

    def put(self, name: str, values: Mapping[str, Any]) -> None:
        """Write a new version of a secret."""
        self.server.put(f"{self.engine}/{self.prefix}/{name}", values, version=self.version)

    def delete(self, name: str) -> None:
        """Delete a secret for good."""
        self.server.delete(f"{self.engine}/{self.prefix}/{name}")

    def metadata(self, **more: str) -> dict[str, str]:
        """Return the properties of a component that serves this folder, with or without other ones."""
        return {
            "vaultAddr": self.server.address,
            "vaultToken": self.server.token,
            "enginePath": self.engine,
            "vaultKVPrefix": self.prefix,
            **more,
        }

    def requests(self) -> list[tuple[str, str]]:
        """List the requests for it since `OpenBao.forget`, without the prefix: ``("read", "data/name")``.

        Those for other folders are of mounts that refresh what they have, whatever a test does.
        """
        engine, folder = f"{self.engine}/", f"{self.prefix}/"
        return [
            (operation, path.removeprefix(engine).replace(folder, "", 1))
            for operation, path in self.server.requests()
            if path.startswith(engine) and f"/{folder}" in path
        ]


# A fixture that several modules import is several fixtures; the stash makes them one server.
_PLAIN = pytest.StashKey[OpenBao]()
_TLS = pytest.StashKey[OpenBao]()


@pytest.fixture(scope="session")
def openbao_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    """Run a server without TLS that knows what it was asked; besides ``secret`` it has ``kv1``, of version 1."""
    stash = request.config.stash
    if _PLAIN in stash:
        yield stash[_PLAIN]
        return
    with openbao(tmp_path_factory.mktemp("openbao"), audit=True) as server:
        server.mount("kv1", version=1)
        stash[_PLAIN] = server
        yield server


@pytest.fixture(scope="session")
def openbao_tls_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    """Run a server with TLS; its authority is in `OpenBao.ca`."""
    stash = request.config.stash
    if _TLS in stash:
        yield stash[_TLS]
        return
    with openbao(tmp_path_factory.mktemp("openbao-tls"), tls=True) as server:
        stash[_TLS] = server
        yield server


@pytest.fixture
def kv1(openbao_server: OpenBao) -> Folder:
    """Give the test a folder of its own in an engine of version 1."""
    openbao_server.forget()
    return Folder(openbao_server, f"test{next(_numbers)}", "kv1", version=1)


@pytest.fixture
def kv(openbao_server: OpenBao) -> Folder:
    """Give the test a folder of its own."""
    openbao_server.forget()
    return Folder(openbao_server, f"test{next(_numbers)}")
