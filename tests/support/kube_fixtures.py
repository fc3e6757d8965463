"""Fixtures with a real Kubernetes API server. Import those you use: ``from ... import kube, namespace``.

One server serves all tests of a session; each test has a namespace of its own in it.
"""

import itertools
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from secretfs.settings import Property, decode
from secretfs.store import StoreContext
from secretfs.stores.kubernetes.store import KubernetesStore, Settings, open_store
from tests.support.servers.kube_apiserver import KubeApiserver, kube_apiserver
from tests.support.shell import wait_until

__all__ = ["Changes", "Namespace", "is_live", "kube", "kubernetes", "namespace", "outside", "watching"]

DEADLINE = 10.0

_numbers = itertools.count(1)
_SERVER = pytest.StashKey[KubeApiserver]()


@dataclass(frozen=True)
class Namespace:
    """A namespace, for one test."""

    server: KubeApiserver
    name: str

    def put(self, name: str, values: Mapping[str, bytes], **more: Any) -> str:
        """Write a secret, or a new version of it; returns its version."""
        return self.server.put(self.name, name, values, **more)

    def delete(self, name: str) -> None:
        """Delete a secret."""
        self.server.delete(self.name, name)

    def kubectl(self, *arguments: str, stdin: bytes = b"") -> str:
        """Run the real kubectl in it."""
        return self.server.kubectl("--namespace", self.name, *arguments, stdin=stdin)

    def requests(self) -> list[str]:
        """List the requests for its secrets since `KubeApiserver.forget`: ``get db``, ``list``, ``watch``."""
        return self.server.requests(self.name)

    def properties(self, user: str = "reader") -> dict[str, str]:
        """Return the properties of a component that serves it."""
        return {"defaultNamespace": self.name, "kubeconfigPath": str(self.server.kubeconfig(user))}

    def store(self, user: str = "reader", **annotations: str) -> AbstractContextManager[KubernetesStore]:
        """Open a store that serves it; ``label_selector`` is the annotation ``secretfs/label-selector``."""
        return kubernetes(self.properties(user), annotations)


class Changes:
    """What a store has said that changed."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._lock = threading.Lock()

    def __call__(self, names: frozenset[str]) -> None:
        """Take what a store says."""
        with self._lock:
            self._names += sorted(names)

    def wait_for(self, *names: str) -> None:
        """Wait until all of these have changed, and forget everything that has."""
        wait_until(lambda: set(names) <= set(self._names))
        self.take()

    def take(self) -> list[str]:
        """Return what has changed, and forget it."""
        with self._lock:
            names, self._names = self._names, []
        return names


@contextmanager
def kubernetes(
    properties: Mapping[str, str], annotations: Mapping[str, str] | None = None, *, deadline: float = DEADLINE
) -> Iterator[KubernetesStore]:
    """Open a store, and close it; annotations are named without ``secretfs/``, and with ``_``."""
    settings, notices = decode(Settings, [Property(name, value) for name, value in properties.items()])
    assert notices == []
    texts = {f"secretfs/{name.replace('_', '-')}": text for name, text in (annotations or {}).items()}
    store = open_store(settings, StoreContext("k8s", deadline=deadline, annotations=texts))
    try:
        yield store
    finally:
        store.close()


def is_live(store: KubernetesStore) -> bool:
    """Tell whether a store answers from its copy, and watches."""
    return all(copy.live and copy._stream is not None for copy in store._caches.values())


def watching(store: KubernetesStore) -> Changes:
    """Let a store watch, and wait until it does."""
    changes = Changes()
    store.watch(changes)
    wait_until(lambda: is_live(store))
    changes.take()
    return changes


@pytest.fixture(autouse=True)
def outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Take the test out of a cluster that it may run in, into a home without a kubeconfig. Returns the home."""
    for name in ("KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT", "KUBECONFIG", "NAMESPACE"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    return home


@pytest.fixture(scope="session")
def kube(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeApiserver]:
    """Run a server. A fixture that several modules import is several fixtures; the stash makes them one server."""
    stash = request.config.stash
    if _SERVER in stash:
        yield stash[_SERVER]
        return
    with kube_apiserver(tmp_path_factory.mktemp("kube")) as server:
        stash[_SERVER] = server
        yield server


@pytest.fixture
def namespace(kube: KubeApiserver) -> Namespace:
    """Give the test a namespace of its own."""
    name = f"test{next(_numbers)}"
    kube.create_namespace(name)
    kube.forget()
    return Namespace(kube, name)
