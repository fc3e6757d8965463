"""Alibaba Cloud, Huawei Cloud and Tencent Cloud with the YAML of Dapr's documentation, read from a real mount."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.canary import secret
from tests.support.command import secretfs
from tests.support.manifests import component
from tests.support.mounted import Mounted, mounted
from tests.support.servers.http_server import dropped
from tests.support.servers.signed_clouds import KEY, Clouds
from tests.support.shell import errno_of, lines, output, wait_until

pytestmark = pytest.mark.mount

# docs.dapr.io/reference/components-reference/supported-secret-stores
STORES = {
    "alibabacloudparameterstore": ("alicloud.parameterstore", "regionId", "accessKeyId", "accessKeySecret"),
    "huaweicloudcsms": ("huaweicloud.csms", "region", "accessKey", "secretAccessKey"),
    "tencentcloudssm": ("tencentcloud.ssm", "region", "secretId", "secretKey"),
}
NAMES = [f"many-{number:02}" for number in range(25)]


@pytest.fixture(scope="module")
def server() -> Iterator[Clouds]:
    with Clouds() as server:
        for name in NAMES:
            server.put(name, secret(name).encode())
        yield server


def write(directory: Path, server: Clouds, key: str = KEY) -> Path:
    """Write the components."""
    annotations = {"secretfs/ttl": "2s", "secretfs/endpoint": server.address}
    for name, (type_, region, key_id, key_secret) in STORES.items():
        properties = {region: "cn-north-4", key_id: key, key_secret: secret("access-key")}
        component(directory, name, type_, properties, annotations=annotations)
    return directory


@pytest.fixture(scope="module")
def mount(scratch: Path, server: Clouds) -> Iterator[Mounted]:
    with mounted(write(scratch / "signed", server), expect_log=["the connection broke"]) as mount:
        yield mount


def test_check_connects(tmp_path: Path, server: Clouds) -> None:
    """clouds-1: `secretfs check --connect` signs a request with the keys of the component."""
    done = secretfs("check", "--connect", "--resources-path", write(tmp_path / "good", server))
    assert done.status == 0, done.err
    done = secretfs("check", "--connect", "--resources-path", write(tmp_path / "bad", server, "ANOTHER"))
    assert done.status == 4
    assert (done.out + done.err).count("the access keys are refused") >= len(STORES)


@pytest.mark.parametrize("store", STORES)
def test_secrets_are_files(mount: Mounted, store: str) -> None:
    """clouds-2: A secret of these clouds is a file with its exact value."""
    directory = mount.path / store
    assert lines("ls", directory) == NAMES
    assert output("cat", directory / "many-03") == secret("many-03").encode()
    assert os.getxattr(directory / "many-03", "user.secretfs.version") in (b"1", b"v1")
    assert errno_of((directory / "none").read_bytes) == "ENOENT"
    whole = json.loads((directory / ".bulk.json").read_bytes())
    assert whole == {name: {name: secret(name)} for name in NAMES}


@pytest.mark.parametrize(("store", "name"), list(zip(STORES, NAMES, strict=False)))
def test_changes_and_outages(mount: Mounted, server: Clouds, store: str, name: str) -> None:
    """clouds-3: A new version shows within `ttl`, and an outage is bridged with known values."""
    path = mount.path / store / name
    assert path.read_text() == secret(name)
    server.put(name, secret("new").encode())
    wait_until(lambda: path.read_text() == secret("new"))
    server.always = dropped
    wait_until(lambda: path.read_text() == secret("new") and os.getxattr(path, "user.secretfs.stale") == b"1")
    server.always = None
    wait_until(lambda: os.getxattr(path, "user.secretfs.stale") == b"0", within=40)
