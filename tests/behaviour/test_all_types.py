"""All eleven types of Dapr's in one mount, with the YAML of Dapr's documentation.

``data/dapr-docs/`` has it as it is there, a file for each page of
docs.dapr.io/reference/components-reference/supported-secret-stores. What stands there for a credential or an address is
filled in, and what Dapr does not have is an annotation: where the test server is, and a short `ttl`. A busy machine
gets more than the usual time to open them all.
"""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
import yaml

from secretfs.stores import BUILTIN
from tests.support.aws_fixtures import moto_server
from tests.support.canary import secret
from tests.support.command import secretfs
from tests.support.kube_fixtures import kube
from tests.support.mounted import Mounted, mounted
from tests.support.servers.aws import KEY, REGION, Aws
from tests.support.servers.azure_keyvault import Azure
from tests.support.servers.azure_logins import CLIENT, TENANT
from tests.support.servers.cuttable import Cuttable
from tests.support.servers.gcp import Gcp
from tests.support.servers.http_server import HttpServer, dropped
from tests.support.servers.kube_apiserver import KubeApiserver
from tests.support.servers.moto_server import Moto
from tests.support.servers.openbao import OpenBao
from tests.support.servers.signed_clouds import KEY as SIGNED_KEY
from tests.support.servers.signed_clouds import Clouds
from tests.support.shell import errno_of, output
from tests.support.waiting import wait_until
from tests.support.watching import watching

__all__ = ["kube", "moto_server"]

pytestmark = pytest.mark.mount

PAGES = Path(__file__).with_name("data") / "dapr-docs"
NAMESPACE = "eleven"
SHORT = {"secretfs/ttl": "2s", "secretfs/deadline": "60s"}


@dataclass(frozen=True)
class Outage:
    """How a server is taken away, and given back."""

    begin: Callable[[], object]
    end: Callable[[], object]


@dataclass(frozen=True)
class Filled:
    """A page's manifest, filled in, and what the test does on the server behind it."""

    page: str
    values: Mapping[str, str | None] = field(default_factory=dict)
    """Property to what takes the place of the placeholder; None leaves out one that the page calls optional."""
    put: Callable[[str, str], object] | None = None
    """Writes a new version of a secret."""
    outage: Outage | None = None
    key: str = ""
    """The key of a secret, in a store whose secrets are directories."""
    endpoint: str = ""

    @property
    def text(self) -> str:
        """The manifest."""
        lines = (PAGES / f"{self.page}.yaml").read_text("utf-8").splitlines()
        return "\n".join(self._filled(lines)).replace("metadata:[]", "metadata: []")  # that is no YAML, to Dapr neither

    def _filled(self, lines: list[str]) -> Iterator[str]:
        annotations = SHORT | ({"secretfs/endpoint": self.endpoint} if self.endpoint else {})
        known = ""
        for line in lines:
            item = re.fullmatch(r"\s+- name: (\w+)\s*(#.*)?", line)
            known = item[1] if item else known
            if known in self.values and self.values[known] is None:
                continue
            value = re.fullmatch(r"(\s+value\s*:).*", line)
            yield f"{value[1]} {json.dumps(self.values[known])}" if value and known in self.values else line
            if line.startswith("  name: "):
                yield f"  annotations: {json.dumps(annotations)}"
            if line == "  version: v1":
                yield "  initTimeout: 2m"

    @property
    def name(self) -> str:
        """The component's name, as on the page."""
        return str(yaml.safe_load(self.text)["metadata"]["name"])

    @property
    def type(self) -> str:
        """Its type."""
        return str(yaml.safe_load(self.text)["spec"]["type"])

    def file(self, mount: Mounted, name: str = "db") -> Path:
        """Return the file of a secret."""
        return mount.path / self.name / name / self.key


def over_http(server: HttpServer) -> Outage:
    return Outage(partial(setattr, server, "always", dropped), partial(setattr, server, "always", None))


def encoded(put: Callable[[str, bytes], object]) -> Callable[[str, str], object]:
    return lambda name, value: put(name, value.encode())


@pytest.fixture(scope="module")
def stores(
    scratch: Path, own_server: OpenBao, kube: KubeApiserver, moto_server: Moto, environment: dict[str, str]
) -> Iterator[list[Filled]]:
    """Run the servers, each with the secrets ``db`` and ``other``."""
    with ExitStack() as stack:
        aws, gcp = stack.enter_context(Aws(moto_server)), stack.enter_context(Gcp(scratch))
        clouds = stack.enter_context(Clouds())
        (scratch / "azure").mkdir()
        azure = stack.enter_context(Azure(scratch / "azure"))
        ways = [stack.enter_context(Cuttable(port)) for port in (own_server.port, kube.port)]
        kube.create_namespace(NAMESPACE)
        clouds.token = secret("token")
        environment |= {
            "AWS_ENDPOINT_URL": aws.address,
            "HTTPS_PROXY": azure.address,
            "NO_PROXY": "127.0.0.1",
            "SSL_CERT_FILE": str(azure.ca),
            "KUBECONFIG": str(kube.kubeconfig("reader", port=ways[1].port)),
        }
        secrets_file, aside = scratch / "secrets.json", scratch / "aside"
        there: dict[str, str] = {}

        def put_file(name: str, value: str) -> None:
            there[name] = value
            new = secrets_file.with_suffix(".new")
            new.write_text(json.dumps(there))
            new.replace(secrets_file)

        keys = {"region": REGION, "accessKey": KEY, "secretKey": secret("secret-key"), "sessionToken": ""}
        signed = encoded(clouds.put), over_http(clouds), "", clouds.address
        found = [
            Filled("envvar-secret-store"),
            Filled(
                "file-secret-store",
                {"secretsFile": str(secrets_file)},
                put_file,
                Outage(partial(secrets_file.rename, aside), partial(aside.rename, secrets_file)),
            ),
            Filled(
                "hashicorp-vault",
                {
                    "vaultAddr": f"http://127.0.0.1:{ways[0].port}", "vaultToken": own_server.token,
                    "skipVerify": "false", "vaultKVPrefix": "dapr", "vaultKVUsePrefix": "true", "caCert": None,
                    "caPath": None, "caPem": None,
                    "tlsServerName": None, "vaultTokenMountPath": None,
                },
                lambda name, value: own_server.put(f"secret/dapr/{name}", {"password": value}),
                Outage(ways[0].cut, ways[0].mend),
                "password",
            ),
            Filled(
                "kubernetes-secret-store",
                {},
                lambda name, value: kube.put(NAMESPACE, name, {"password": value.encode()}),
                Outage(ways[1].cut, ways[1].mend),
                "password",
            ),
            Filled(
                "azure-keyvault",
                {
                    "vaultName": "myvault", "azureTenantId": TENANT, "azureClientId": CLIENT,
                    "azureClientSecret": secret("client-secret"),
                },
                azure.put,
                over_http(azure),
            ),
            Filled("aws-secret-manager", keys, aws.put_secret, over_http(aws)),
            Filled(
                "aws-parameter-store",
                {**keys, "prefix": "/shop/"},
                lambda name, value: aws.put_parameter(f"/shop/{name}", value),
                over_http(aws),
            ),
            Filled("gcp-secret-manager", gcp.login(), encoded(gcp.put), over_http(gcp), "", gcp.address),
            Filled(
                "alicloud-oos-parameter-store",
                {
                    "regionId": "cn-hangzhou", "accessKeyId": SIGNED_KEY, "accessKeySecret": secret("access-key"),
                    "securityToken": secret("token"),
                },
                *signed,
            ),
            Filled(
                "huaweicloud-csms",
                {"region": "cn-north-4", "accessKey": SIGNED_KEY, "secretAccessKey": secret("access-key")},
                *signed,
            ),
            Filled(
                "tencentcloud-ssm",
                {
                    "region": "ap-guangzhou", "secretId": SIGNED_KEY, "secretKey": secret("access-key"),
                    "token": secret("token"),
                },
                *signed,
            ),
        ]  # fmt: skip
        for store in found:
            for name in ("db", "other", "known"):
                if store.put:
                    store.put(name, secret(f"{name}-1"))
        yield found
    moto_server.reset()


@pytest.fixture(scope="module")
def environment(scratch: Path) -> dict[str, str]:
    """Lead to the servers, and to nothing else of this machine."""
    nowhere = {name: str(scratch / name) for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE")}
    return {
        **nowhere,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AZURE_POD_IDENTITY_AUTHORITY_HOST": "http://127.0.0.1:1",
        "CLOUDSDK_CONFIG": str(scratch),
        "NAMESPACE": NAMESPACE,
        "db": secret("db-1"),
    }


@pytest.fixture(scope="module")
def resources(scratch: Path, stores: list[Filled]) -> Path:
    directory = scratch / "eleven"
    directory.mkdir()
    for store in stores:
        (directory / f"{store.page}.yaml").write_text(store.text)
    return directory


@pytest.fixture(scope="module")
def mount(resources: Path, environment: dict[str, str]) -> Iterator[Mounted]:
    expected = ["the connection broke", "cannot connect", "No such file or directory", "is unavailable"]
    with mounted(resources, env=environment, expect_log=expected) as mount:
        yield mount


def test_check_connects(resources: Path, environment: dict[str, str], stores: list[Filled]) -> None:
    """types-1: `secretfs check --connect` reaches each of Dapr's eleven types of stores with the YAML of Dapr's
    documentation."""
    ours = {type_ for type_ in BUILTIN if not type_.startswith("secretstores.secretfs.")}
    assert {store.type for store in stores} == ours
    assert len(ours) == 11
    done = secretfs("check", "--connect", "--resources-path", resources, env=environment)
    assert done.status == 0, done.err
    assert all(store.name in done.out + done.err for store in stores)


def test_an_outage_is_bridged(mount: Mounted, stores: list[Filled]) -> None:
    """types-4: While their servers do not answer, known values of all of them are served and marked stale, and what
    nobody has read is EIO; afterwards the newest version shows."""
    # Before any `.bulk.json` is read: what is new upstream is in the next version of that, and so it would be read.
    away = [(store, store.put, store.outage) for store in stores if store.put and store.outage]
    assert len(away) == len(stores) - 1
    for store, put, _ in away:
        put("late", secret("late"))
        wait_until(partial(is_listed, mount.path / store.name, "late"))
        assert store.file(mount, "known").read_text() == secret("known-1")
    for _, _, outage in away:
        outage.begin()
    for store, _, _ in away:
        wait_until(partial(is_stale, store.file(mount, "known")))
        assert store.file(mount, "known").read_text() == secret("known-1"), store.name
        assert errno_of(store.file(mount, "late").read_bytes) == "EIO", store.name
    for _, put, outage in away:
        outage.end()
        put("known", secret("known-2"))
    for store, _, _ in away:
        wait_until(partial(shows, store.file(mount, "known"), secret("known-2")))


def test_every_secret_is_a_file(mount: Mounted, stores: list[Filled]) -> None:
    """types-2: In one mount, a secret of each of the eleven is a file, a missing one ENOENT, and all are in
    `.bulk.json`."""
    for store in stores:
        file = store.file(mount)
        assert output("cat", file) == secret("db-1").encode(), store.name
        assert errno_of((mount.path / store.name / "missing").stat) == "ENOENT", store.name
        whole = json.loads((mount.path / store.name / ".bulk.json").read_bytes())
        assert whole["db"] == {store.key or "db": secret("db-1")}, store.name


def test_a_rotation_is_an_event(mount: Mounted, stores: list[Filled], tmp_path: Path) -> None:
    """types-3: A new version of a secret of any of them, but the environment, is an atomic replacement that inotify
    sees."""
    changing = [(store.file(mount, "other"), store.put) for store in stores if store.put]
    for file, _ in changing:
        assert file.read_text() == secret("other-1")
    with watching(tmp_path / "events", *(file.parent for file, _ in changing)) as watch:
        for _, put in changing:
            put("other", secret("other-2"))
        for file, _ in changing:
            watch.wait_for(f"{file.name} MOVED_TO {file.parent}/")
            assert file.read_text() == secret("other-2")


def is_listed(directory: Path, name: str) -> bool:
    return name in os.listdir(directory)  # noqa: PTH208


def is_stale(file: Path) -> bool:
    """Read a file, and tell whether its value is older than its `ttl`."""
    return bool(file.read_bytes()) and os.getxattr(file, "user.secretfs.stale") == b"1"


def shows(file: Path, text: str) -> bool:
    return file.read_text() == text
