"""A Kubernetes namespace, mounted: what kubectl changes is visible at once, and costs the server one watch."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.canary import secret
from tests.support.kube_fixtures import Namespace, kube, namespace, outside
from tests.support.manifests import component
from tests.support.mounted import Mounted, mounted
from tests.support.shell import errno_of, lines, output, wait_until

__all__ = ["kube", "namespace", "outside"]

pytestmark = pytest.mark.mount


@pytest.fixture
def mount(namespace: Namespace, tmp_path: Path) -> Iterator[Mounted]:
    namespace.put("db", {"password": secret("old").encode(), "user": b"me"})
    component(tmp_path / "components", "k8s", "kubernetes", namespace.properties(), annotations={"secretfs/ttl": "1h"})
    with mounted(tmp_path / "components") as mount:
        assert output("cat", mount.path / "k8s/db/password") == secret("old").encode()
        wait_until(lambda: "watch" in namespace.requests())
        namespace.server.forget()
        yield mount


def wait_for_content(path: Path, expected: bytes) -> None:
    """Wait until a file is there and has a content: what must be told by the watch, since the ttl is an hour."""
    wait_until(lambda: path.exists() and output("cat", path) == expected)


def test_a_change_shows_wait_for_content(namespace: Namespace, mount: Mounted) -> None:
    """kube-1: A change in Kubernetes is visible within a second, whatever `ttl` is, and costs no request."""
    db = mount.path / "k8s/db"
    namespace.kubectl("patch", "secret", "db", "--patch", f'{{"stringData": {{"password": "{secret("new")}"}}}}')
    wait_for_content(db / "password", secret("new").encode())
    assert output("cat", db / "user") == b"me"
    namespace.kubectl("create", "secret", "generic", "later", f"--from-literal=key={secret('later')}")
    wait_for_content(mount.path / "k8s/later/key", secret("later").encode())
    assert lines("ls", mount.path / "k8s") == ["db", "later"]
    namespace.kubectl("delete", "secret", "db")
    wait_until(lambda: not db.exists())
    assert errno_of((db / "password").read_bytes) == "ENOENT"
    assert lines("ls", mount.path / "k8s") == ["later"]
    assert namespace.requests() == []


def test_an_open_file_keeps_its_version(namespace: Namespace, mount: Mounted) -> None:
    """Even if a watch reports the new one (change-2)."""
    db = mount.path / "k8s/db"
    descriptor = os.open(db / "password", os.O_RDONLY)
    try:
        namespace.put("db", {"password": secret("new").encode(), "user": b"me"})
        wait_for_content(db / "password", secret("new").encode())
        assert os.read(descriptor, 100) == secret("old").encode()
    finally:
        os.close(descriptor)
