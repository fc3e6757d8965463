"""The stores of AWS with the YAML of Dapr's documentation, read by ordinary programs from a real mount."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.aws_fixtures import moto_server
from tests.support.canary import secret
from tests.support.command import secretfs
from tests.support.mounted import Mounted, mounted
from tests.support.servers.aws import KEY, REGION, Aws
from tests.support.servers.http_server import dropped
from tests.support.servers.moto_server import Moto
from tests.support.shell import errno_of, lines, output, wait_until

__all__ = ["moto_server"]

pytestmark = pytest.mark.mount

SECRETS, PARAMETERS = 200, 30

# docs.dapr.io/reference/components-reference/supported-secret-stores/aws-secret-manager and aws-parameter-store; the
# deadline and the init timeout are for moto on a busy machine.
MANIFEST = """\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata:
  name: {name}
  annotations: {{secretfs/ttl: {ttl}, secretfs/deadline: 20s}}
spec:
  type: secretstores.aws.{type}
  version: v1
  initTimeout: 1m
  metadata:
  - name: region
    value: "{region}"
  - name: accessKey
    value: "{key}"
  - name: secretKey
    value: "{secret}"
  - name: sessionToken
    value: ""
{more}"""


@pytest.fixture(scope="module")
def server(moto_server: Moto) -> Iterator[Aws]:
    with Aws(moto_server) as server:
        for number in range(SECRETS):
            server.call("secretsmanager.CreateSecret", Name=f"many/{number:03}", SecretString=secret(f"{number}"))
        for number in range(PARAMETERS):
            server.put_parameter(f"/shop/{number:02}", secret(f"parameter-{number}"))
        server.put_secret("shop/db", json.dumps({"user": "shop", "password": secret("1")}))
        server.put_secret("keystore", b"\0\xff" + secret("keystore").encode())
        yield server
    moto_server.reset()


def write_manifests(components: Path, ttl: str) -> Path:
    """Write a component for each kind of store into a directory that is made."""
    components.mkdir()
    known = {"region": REGION, "key": KEY, "secret": secret("secret-key"), "ttl": ttl}
    for name, type_, more in (
        ("awssecretmanager", "secretmanager", ""),
        ("multi", "secretmanager", '  - name: multipleKeyValuesPerSecret\n    value: "true"\n'),
        ("awsparameterstore", "parameterstore", "  - name: prefix\n    value: /shop/\n"),
    ):
        (components / f"{name}.yaml").write_text(MANIFEST.format(name=name, type=type_, more=more, **known))
    return components


@pytest.fixture(scope="module")
def resources(scratch: Path) -> Path:
    return write_manifests(scratch / "components", "2s")


@pytest.fixture(scope="module")
def environment(server: Aws) -> dict[str, str]:
    """Lead to the server: that is how the SDK is told of another one."""
    return {"AWS_ENDPOINT_URL": server.address, "AWS_EC2_METADATA_DISABLED": "true"}


@pytest.fixture(scope="module")
def mount(resources: Path, environment: dict[str, str]) -> Iterator[Mounted]:
    with mounted(resources, env=environment, expect_log=["the connection broke"]) as mount:
        yield mount


def test_check_connects(resources: Path, environment: dict[str, str]) -> None:
    """aws-1: `secretfs check --connect` asks AWS with the credentials of the component."""
    done = secretfs("check", "--connect", "--resources-path", resources, env=environment)
    assert done.status == 0, done.err
    done = secretfs(
        "check",
        "--connect",
        "--resources-path",
        resources,
        env={**environment, "AWS_ENDPOINT_URL": "http://127.0.0.1:1"},
    )
    assert done.status == 4
    assert "cannot connect: Connection refused" in done.out + done.err


def test_reading_all_takes_few_requests(tmp_path: Path, environment: dict[str, str], server: Aws) -> None:
    """aws-3: Many secrets are read 20 with one request of Secrets Manager, 10 with one of the Parameter Store."""
    # Nothing is refreshed, however long it takes; nor by the mount of the tests below, which is not there yet.
    patient = write_manifests(tmp_path / "components", "1h")
    with mounted(patient, env=environment, expect_log=["the connection broke"]) as mount:
        before = server.requests.copy()
        whole = json.loads((mount.path / "awsparameterstore/.bulk.json").read_bytes())
        assert whole == {f"{n:02}": {f"{n:02}": secret(f"parameter-{n}")} for n in range(PARAMETERS)}
        whole = json.loads((mount.path / "multi/.bulk.json").read_bytes())
        assert whole["many/007"] == {"many/007": secret("7")}
        assert len(whole) == SECRETS + 2
        store = mount.path / "awssecretmanager/many"
        files = sorted(store.iterdir())
        assert [file.read_text() for file in files] == [secret(f"{number}") for number in range(SECRETS)]
        asked = server.requests - before
    assert asked["GetParameter"] + asked["GetParameters"] <= PARAMETERS / 10 + 1
    reads = asked["GetSecretValue"] + asked["BatchGetSecretValue"]
    assert reads <= 2 * (SECRETS / 20 + 3), asked


def test_secrets_are_files_and_names_are_folders(mount: Mounted) -> None:
    """aws-2: A secret of AWS is a file with its exact bytes, also if they are binary."""
    store = mount.path / "awssecretmanager"
    assert lines("ls", store) == ["keystore", "many", "shop"]
    assert output("cat", store / "keystore") == b"\0\xff" + secret("keystore").encode()
    assert json.loads(output("cat", store / "shop/db"))["password"].startswith(secret("")[:8])
    assert errno_of((store / "shop/none").read_bytes) == "ENOENT"
    assert lines("ls", mount.path / "multi/shop/db") == ["password", "user"]
    assert output("cat", mount.path / "multi/shop/db/user") == b"shop"


def test_a_version_has_its_labels(mount: Mounted) -> None:
    """xattr-4: `user.secretfs.stages` is which labels the store has on the version, such as AWSCURRENT, with commas."""
    path = mount.path / "awssecretmanager/keystore"
    path.read_bytes()
    assert os.getxattr(path, "user.secretfs.stages") == b"AWSCURRENT"
    assert len(os.getxattr(path, "user.secretfs.version")) == 36
    parameter = mount.path / "awsparameterstore/00"
    assert os.getxattr(parameter, "user.secretfs.version") == b"1"
    assert errno_of(os.getxattr, parameter, "user.secretfs.stages") == "ENODATA"


def test_a_rotation_shows(mount: Mounted, server: Aws) -> None:
    """aws-4: A new version shows within `ttl` in a file that is in use."""
    path = mount.path / "multi/shop/db/password"
    assert path.read_text() == secret("1")
    server.put_secret("shop/db", json.dumps({"user": "shop", "password": secret("2")}))
    wait_until(lambda: path.read_text() == secret("2"))


def test_an_outage_is_bridged(mount: Mounted, server: Aws) -> None:
    """aws-5: While AWS does not answer, known values are served; it answers again, and so does the file."""
    path = mount.path / "awsparameterstore/01"
    assert path.read_text() == secret("parameter-1")
    server.always = dropped
    wait_until(lambda: path.read_text() == secret("parameter-1") and os.getxattr(path, "user.secretfs.stale") == b"1")
    assert errno_of((mount.path / "multi/unknown").read_bytes) in ("EIO", "ENOENT")
    server.put_parameter("/shop/01", secret("new"))
    server.always = None
    wait_until(lambda: path.read_text() == secret("new"))
