"""GCP Secret Manager with the YAML of Dapr's documentation, read by ordinary programs from a real mount."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.support.canary import secret
from tests.support.command import secretfs
from tests.support.mounted import Mounted, mounted
from tests.support.servers.gcp import NUMBER, PROJECT, Gcp
from tests.support.servers.http_server import dropped
from tests.support.shell import errno_of, lines, output, wait_until

pytestmark = pytest.mark.mount

# docs.dapr.io/reference/components-reference/supported-secret-stores/gcp-secret-manager
FIELDS = (
    "type", "project_id", "private_key_id", "client_email", "client_id", "auth_uri", "token_uri",
    "auth_provider_x509_cert_url", "client_x509_cert_url", "private_key",
)  # fmt: skip


@pytest.fixture(scope="module")
def server(scratch: Path) -> Iterator[Gcp]:
    with Gcp(scratch) as server:
        for number in range(40):
            server.put(f"many-{number:02}", secret(f"{number}").encode())
        server.put("db-password", secret("1").encode())
        server.put("keystore", b"\0\xff" + secret("keystore").encode())
        yield server


@pytest.fixture(scope="module")
def resources(scratch: Path, server: Gcp) -> Path:
    components = scratch / "gcp-components"
    components.mkdir()
    login = server.login()
    document = {
        "apiVersion": "dapr.io/v1alpha1",
        "kind": "Component",
        "metadata": {
            "name": "gcpsecretmanager",
            "annotations": {"secretfs/ttl": "2s", "secretfs/endpoint": server.address},
        },
        "spec": {
            "type": "secretstores.gcp.secretmanager",
            "version": "v1",
            "initTimeout": "1m",
            "metadata": [{"name": name, "value": login[name]} for name in FIELDS],
        },
    }
    (components / "key.yaml").write_text(yaml.safe_dump(document))
    document["metadata"]["name"] = "implicit"  # type: ignore[index]
    document["spec"]["metadata"] = [{"name": "project_id", "value": PROJECT}]  # type: ignore[index]
    (components / "implicit.yaml").write_text(yaml.safe_dump(document))
    return components


@pytest.fixture(scope="module")
def environment(server: Gcp, scratch: Path) -> dict[str, str]:
    """Lead to the metadata server, which a pod of GKE has."""
    return {"GCE_METADATA_HOST": server.address.removeprefix("http://"), "CLOUDSDK_CONFIG": str(scratch)}


@pytest.fixture(scope="module")
def mount(resources: Path, environment: dict[str, str]) -> Iterator[Mounted]:
    expected = ["the connection broke", "its latest version is disabled"]
    with mounted(resources, env=environment, expect_log=expected) as mount:
        yield mount


def test_check_connects(resources: Path, environment: dict[str, str], server: Gcp) -> None:
    """gcp-1: `secretfs check --connect` asks Secret Manager with the credentials of the component."""
    done = secretfs("check", "--connect", "--resources-path", resources, env=environment)
    assert done.status == 0, done.err
    known, server.known_keys = server.known_keys, {}
    done = secretfs("check", "--connect", "--resources-path", resources, env=environment)
    server.known_keys = known
    assert done.status == 4
    assert "the token is refused (401)" in done.out + done.err


@pytest.mark.parametrize("store", ["gcpsecretmanager", "implicit"])
def test_secrets_are_files(mount: Mounted, store: str) -> None:
    """gcp-2: A secret of GCP is a file under its id, with its exact bytes."""
    directory = mount.path / store
    assert lines("ls", directory) == sorted([*(f"many-{n:02}" for n in range(40)), "db-password", "keystore"])
    assert output("cat", directory / "keystore") == b"\0\xff" + secret("keystore").encode()
    assert os.getxattr(directory / "keystore", "user.secretfs.version") == b"1"
    assert errno_of((directory / "none").read_bytes) == "ENOENT"
    whole = json.loads((directory / ".bulk.json").read_bytes())
    assert whole["many-07"] == {"many-07": secret("7")}
    assert len(whole) == 42
    full = f"projects%2F{NUMBER}%2Fsecrets%2Fdb-password"
    assert errno_of((directory / full).read_bytes) == "ENOENT"  # what is not listed is not there


def test_a_rotation_shows_and_so_does_the_end_of_it(mount: Mounted, server: Gcp) -> None:
    """gcp-3: A new version shows within `ttl`; a latest version that is disabled is EACCES, and the log says so."""
    path = mount.path / "gcpsecretmanager/db-password"
    assert path.read_text() == secret("1")
    server.put("db-password", secret("2").encode())
    wait_until(lambda: path.read_text() == secret("2"))
    server.change("db-password", "DISABLED")
    wait_until(lambda: errno_of(path.read_bytes) == "EACCES")
    mount.said("its latest version is disabled; enable it, or add a version (400)")
    server.change("db-password", "ENABLED")
    wait_until(lambda: errno_of(path.read_bytes) != "EACCES")
    assert path.read_text() == secret("2")


def test_an_outage_is_bridged(mount: Mounted, server: Gcp) -> None:
    """gcp-4: While Secret Manager does not answer, known values are served; it answers again, and so does the file."""
    path = mount.path / "implicit/many-01"
    assert path.read_text() == secret("1")
    server.always = dropped
    wait_until(lambda: path.read_text() == secret("1") and os.getxattr(path, "user.secretfs.stale") == b"1")
    server.put("many-01", secret("new").encode())
    server.always = None
    wait_until(lambda: path.read_text() == secret("new"))
