"""Reading what is not known yet, from a real OpenBao: what FUSE and the cache add to the way to the server."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import hvac

from benchmarks.fixtures import Fixtures
from benchmarks.race import Effort, step, timed
from benchmarks.report import SECRETFS, Section
from secretfs.store import SecretStore, StoreContext
from secretfs.stores.vault.store import Settings, open_store
from tests.support.manifests import component
from tests.support.servers.openbao import OpenBao, openbao

STORE, HVAC = "store in process", "hvac in process"

_PREFIX = "dapr"
_KEYS = ("password", "username")


@dataclass(frozen=True)
class Vault:
    """A server with secrets, and three ways to them."""

    names: list[str]
    resources: Path
    """Manifests for `secretfs mount`."""
    store: SecretStore
    client: hvac.Client
    address: str
    token: str = field(repr=False)

    def fetch(self, name: str) -> None:
        """Read a secret with our store."""
        self.store.fetch(name)

    def read(self, name: str) -> None:
        """Read a secret with hvac as it comes."""
        self.client.secrets.kv.v2.read_secret_version(path=f"{_PREFIX}/{name}", raise_on_deleted_version=True)

    def rotate(self, name: str) -> None:
        """Write other values."""
        secret = {key: f"{name}-{time.time_ns()}" for key in _KEYS}
        self.client.secrets.kv.v2.create_or_update_secret(path=f"{_PREFIX}/{name}", secret=secret)

    def fetch_all(self) -> None:
        """Read all secrets with our store, one after the other."""
        for name in self.names:
            self.fetch(name)

    def read_all(self) -> None:
        """Read all secrets with hvac, one after the other."""
        for name in self.names:
            self.read(name)


@contextlib.contextmanager
def vault(fixtures: Fixtures, effort: Effort) -> Iterator[Vault]:
    """Run a server and fill it."""
    with contextlib.ExitStack() as stack:
        with step(f"starting OpenBao and writing {effort.names} secrets"):
            server = stack.enter_context(openbao(fixtures.directory("openbao")))
            names = [f"service-{index:04}" for index in range(effort.names)]
            for name in names:
                server.put(f"secret/{_PREFIX}/{name}", {key: f"{name}-{key:0>40}" for key in _KEYS})
        store = open_store(Settings(address=server.address, token=server.token), StoreContext("bench"))
        stack.callback(store.close)
        client = hvac.Client(url=server.address, token=server.token)
        stack.callback(client.adapter.close)
        yield Vault(names, _manifests(fixtures, server), store, client, server.address, server.token)


def _manifests(fixtures: Fixtures, server: OpenBao) -> Path:
    resources = fixtures.directory("resources")
    component(resources, "vault", "hashicorp.vault", {"vaultAddr": server.address, "vaultToken": server.token})
    return resources


def measure(fixtures: Fixtures, effort: Effort, server: Vault) -> Section:
    """Read secrets for the first time, one after the other; each contestant reads each once."""
    section = Section("Cold, from OpenBao", (STORE, HVAC))
    *names, unmeasured = server.names[: effort.cold + 1]
    with step(f"{effort.cold} cold reads"), fixtures.secretfs(server.resources) as mount:
        contestants = {
            SECRETFS: lambda name: (mount.path / "vault" / name / _KEYS[0]).read_bytes(),
            STORE: server.fetch,
            HVAC: server.read,
        }
        turns = list(contestants.items())
        samples: dict[str, list[float]] = {name: [] for name in contestants}
        for _, read in turns:
            read(unmeasured)  # connects, and makes secretfs list the folder
        for count, name in enumerate(names):
            first = count % len(turns)
            for contestant, read in turns[first:] + turns[:first]:
                samples[contestant].append(timed(lambda: read(name)))  # noqa: B023 - called at once
    section.add("read of a secret", samples)
    return section
