"""What a type of store costs that nobody has declared: nothing. Each type imports its own SDK, and no other one."""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from secretfs.stores import BUILTIN
from tests.support.command import environment, run
from tests.support.manifests import component
from tests.support.servers.azure_logins import CLIENT, TENANT
from tests.support.servers.gcp import Gcp
from tests.support.sops import SOPS, Encrypted

SDKS = frozenset({
    "azure", "botocore", "dateutil", "google", "grpc", "hvac", "hypercorn", "jeepney", "jinja2", "jmespath",
    "kubernetes", "msal", "oauthlib", "prometheus_client", "requests", "requests_oauthlib", "rich", "secretstorage",
    "urllib3", "websocket",
})  # fmt: skip
"""All that an extra installs and a store could import."""
REFUSED = "http://127.0.0.1:1"
"""Where nobody listens: a store has tried to send a request when it says so."""
AWS = frozenset({"botocore", "dateutil", "jmespath", "urllib3"})
SIGNED = frozenset({"urllib3"})
NOTHING: frozenset[str] = frozenset()
EXPECTED: Mapping[str, frozenset[str]] = {
    "secretstores.alicloud.parameterstore": SIGNED,
    "secretstores.aws.parameterstore": AWS,
    "secretstores.aws.secretmanager": AWS,
    "secretstores.azure.keyvault": frozenset({"azure", "msal", "requests", "urllib3"}),
    "secretstores.gcp.secretmanager": frozenset({"google", "urllib3"}),
    "secretstores.hashicorp.vault": frozenset({"hvac", "requests", "urllib3"}),
    "secretstores.huaweicloud.csms": SIGNED,
    # Its client imports what logins with OpenID and with gcloud may need; google.auth only where that is installed.
    "secretstores.kubernetes": frozenset({
        "dateutil", "google", "kubernetes", "oauthlib", "requests", "requests_oauthlib", "urllib3", "websocket",
    }),
    "secretstores.local.env": NOTHING,
    "secretstores.local.file": NOTHING,
    "secretstores.secretfs.directory": NOTHING,
    "secretstores.secretfs.keyring": frozenset({"jeepney", "secretstorage"}),
    "secretstores.secretfs.sops": NOTHING,
    "secretstores.tencentcloud.ssm": SIGNED,
}  # fmt: skip

KUBECONFIG = {
    "clusters": [{"name": "c", "cluster": {"server": REFUSED}}],
    "users": [{"name": "u", "user": {"token": "token"}}],
    "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
    "current-context": "c",
}
"""YAML is a superset of JSON."""
CODE = """
import sys
from secretfs.cli.main import main
sys.argv[1:] = ["check", "--connect", "--resources-path", sys.argv[1]]
try: main()
except SystemExit as end: print("exit:", end.code)
print("modules:", *sys.modules)
"""


def kubeconfig(directory: Path) -> dict[str, str]:
    (directory / "kubeconfig").write_text(json.dumps(KUBECONFIG))
    return {"kubeconfigPath": str(directory / "kubeconfig"), "defaultNamespace": "shop"}


def json_file(directory: Path) -> dict[str, str]:
    (directory / "secrets.json").write_text('{"a": "b"}')
    return {"secretsFile": str(directory / "secrets.json")}


def service_account(directory: Path) -> dict[str, str]:
    with Gcp(directory) as server:
        return server.login()


def encrypted(directory: Path) -> dict[str, str]:
    file = Encrypted.make(directory)
    file.write({"a": "b"})
    return file.properties()


KEYS = {"accessKey": "key", "secretKey": "secret", "endpoint": REFUSED, "region": "eu-central-1"}
LOGIN = {"azureTenantId": TENANT, "azureClientId": CLIENT, "azureClientSecret": "secret"}
PROPERTIES: Mapping[str, Callable[[Path], Mapping[str, str]]] = {
    "alicloud.parameterstore": lambda _: {"regionId": "r", "accessKeyId": "key", "accessKeySecret": "secret"},
    "aws.parameterstore": lambda _: KEYS,
    "aws.secretmanager": lambda _: KEYS,
    "azure.keyvault": lambda _: {"vaultName": "myvault", **LOGIN},
    "gcp.secretmanager": service_account,
    "hashicorp.vault": lambda _: {"vaultAddr": REFUSED, "vaultToken": "token"},
    "huaweicloud.csms": lambda _: {"region": "r", "accessKey": "key", "secretAccessKey": "secret"},
    "kubernetes": kubeconfig,
    "local.env": lambda _: {},
    "local.file": json_file,
    "secretfs.directory": lambda directory: {"path": str(directory)},
    "secretfs.keyring": lambda _: {},
    "secretfs.sops": encrypted,
    "tencentcloud.ssm": lambda _: {"region": "r", "secretId": "key", "secretKey": "secret"},
}
"""What lets a store of a type open, and call somebody who is not there."""


def imported(type_: str, directory: Path) -> list[str]:
    """Let `secretfs check --connect` open a store and call it. Returns the modules that there are then."""
    signed = type_.split(".")[1] in ("alicloud", "gcp", "huaweicloud", "tencentcloud")
    annotations = {"secretfs/endpoint": REFUSED} if signed else {}
    properties = PROPERTIES[type_.removeprefix("secretstores.")](directory)
    component(directory / "c", "store", type_, properties, annotations=annotations)
    env = {
        "HTTPS_PROXY": REFUSED, "AZURE_POD_IDENTITY_AUTHORITY_HOST": REFUSED, "AWS_EC2_METADATA_DISABLED": "true",
        "HOME": str(directory), "CLOUDSDK_CONFIG": str(directory), "PATH": str(SOPS.parent),
        "DBUS_SESSION_BUS_ADDRESS": f"unix:path={directory}/nowhere",
    }  # fmt: skip
    done = run([sys.executable, "-c", CODE, str(directory / "c")], env=environment(env))
    is_local = type_.split(".")[1] == "local" or type_.endswith((".directory", ".sops"))
    assert f"exit: {0 if is_local else 4}\n" in done.out, done.out + done.err  # it was opened, and nobody answered
    return done.out.rpartition("modules: ")[2].split()


def test_the_table_has_every_type() -> None:
    assert EXPECTED.keys() == BUILTIN.keys()
    assert frozenset().union(*EXPECTED.values()) <= SDKS


@pytest.mark.parametrize("type_", BUILTIN)
def test_a_type_imports_its_own_sdk_and_no_other(type_: str, tmp_path: Path) -> None:
    modules = imported(type_, tmp_path)
    assert {name.partition(".")[0] for name in modules} & SDKS == EXPECTED[type_]
    stores = {name.split(".")[2] for name in modules if name.startswith("secretfs.stores.")}
    own = BUILTIN[type_].split(".")[2]
    others = {module.split(".")[2] for module in BUILTIN.values()} - {own}
    assert stores & others == ({"local_file"} if own == "sops" else set())
