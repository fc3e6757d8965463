"""What components of a set of objects may say, property by property."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from secretfs.dapr.component import Component, Item
from secretfs.dapr.references import TemplateContext, resolve, resolve_annotations
from secretfs.errors import ConfigurationError
from secretfs.registry.containment import RULES, require_contained, require_type
from secretfs.settings import specs
from secretfs.stores import load_store_type

VAULT, SECRETS_MANAGER, PARAMETERS = "hashicorp.vault", "aws.secretmanager", "aws.parameterstore"
KEY_VAULT, GOOGLE = "azure.keyvault", "gcp.secretmanager"
TOKENS = "/run/tokens/orders"
TOKEN_FILE = {"secretfs/token-file": "{appToken:sts}"}

REFUSED = {
    VAULT: {
        "caPath", "caCert", "vaultClientCertPath", "vaultClientKeyPath", "vaultAppRoleSecretIdPath",
        "vaultUserpassPasswordPath", "vaultAwsRole", "vaultAwsMountPath", "vaultAwsRegion", "vaultAwsServerId",
        "vaultAwsAccessKey", "vaultAwsSecretKey", "vaultAwsSessionToken", "vaultGcpRole", "vaultGcpMountPath",
        "vaultGcpKeyPath", "vaultAzureRole", "vaultAzureMountPath", "vaultAzureResource", "vaultAzureClientId",
    },
    SECRETS_MANAGER: {"trustAnchorArn", "trustProfileArn"},
    PARAMETERS: {"trustAnchorArn", "trustProfileArn"},
    KEY_VAULT: {"azureCertificateFile"},
    GOOGLE: set[str](),
}  # fmt: skip
"""Properties that are for components of the administrator."""

NEEDED = {
    VAULT: {"vaultAddr": "https://vault.example"},
    SECRETS_MANAGER: {"accessKey": "a", "secretKey": "s"},
    PARAMETERS: {"accessKey": "a", "secretKey": "s"},
    KEY_VAULT: {"azureAuthMethods": "creds"},
    GOOGLE: {"privateKeyID": "1"},
}
"""Without these there are no credentials but those of the machine."""


def addresses(host: str) -> Sequence[str]:
    """Stand in for the name service."""
    known = {
        "vault.example": ["10.1.2.3"],
        "inside.example": ["192.0.2.1", "127.0.0.1"],
        "mapped.example": ["::ffff:127.0.0.1"],
    }
    if host in known:
        return known[host]
    if host.replace(".", "").isdecimal() or ":" in host:
        return [host]
    raise OSError("unknown")


def written(kind: str, properties: dict[str, str], annotations: dict[str, str] | None = None) -> Component:
    items = tuple(Item(name, text) for name, text in properties.items())
    return Component(
        "db",
        f"secretstores.{kind}",
        "v1",
        items=items,
        annotations=annotations or {},
        tokens=TOKENS,
        contained_in="shop",
    )


def check(kind: str, properties: dict[str, str], annotations: dict[str, str] | None = None) -> None:
    component = written(kind, properties, annotations)
    context = TemplateContext({})
    resolved = resolve_annotations(component, component.annotations, context)
    require_contained(component, resolve(component, context, None)[0], resolved, addresses)


def refused(kind: str, properties: dict[str, str], annotations: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigurationError) as caught:
        check(kind, properties, annotations)
    return str(caught.value)


@pytest.mark.parametrize("kind", NEEDED)
def test_every_property_is_allowed_or_refused_on_purpose(kind: str) -> None:
    """app-28: One that a type gets later is refused, until somebody has thought about it."""
    rules = RULES[f"secretstores.{kind}"]
    allowed = {*rules.free, *rules.token_paths, *rules.addresses, *rules.choices}
    declared = {spec.name for spec in specs(load_store_type(f"secretstores.{kind}", "v1", None).Settings).values()}
    assert allowed | REFUSED[kind] == declared
    assert not allowed & REFUSED[kind]


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in REFUSED.items() for name in sorted(names)])
def test_what_is_for_the_administrator(kind: str, name: str) -> None:
    """app-28: Properties that name what the host has are refused, however they are spelt."""
    assert f"{name.upper()} is refused" in refused(kind, {**NEEDED[kind], name.upper(): "x"})
    check(kind, {**NEEDED[kind], name: ""})


@pytest.mark.parametrize("kind", NEEDED)
def test_credentials_that_are_brought_along(kind: str) -> None:
    """app-28: Without them the login would be that of the host."""
    check(kind, NEEDED[kind])
    assert "needs" in refused(kind, {})


@pytest.mark.parametrize("kind", [SECRETS_MANAGER, PARAMETERS, KEY_VAULT, GOOGLE])
def test_the_token_of_the_pod_is_a_credential(kind: str) -> None:
    check(kind, {}, TOKEN_FILE)
    assert "no other file" in refused(kind, {}, {"secretfs/token-file": "/etc/shadow"})
    assert "no other file" in refused(kind, {}, {"secretfs/token-file": f"{TOKENS}/../billing/sts.jwt"})


@pytest.mark.parametrize(
    ("kind", "name", "alias"),
    [(KEY_VAULT, "azureAuthMethods", "azureADAuthMethods"), (GOOGLE, "privateKeyID", "private_key_id")],
)
def test_an_alias_that_does_not_count_is_no_credential(kind: str, name: str, alias: str) -> None:
    """app-28: Beside the name itself, even an empty one, it is nothing that the store would log in with."""
    text = NEEDED[kind][name]
    check(kind, {alias: text})
    for spelt in (name, name.upper()):
        assert "needs" in refused(kind, {spelt: "", alias: text})
        assert "needs" in refused(kind, {alias: text, spelt: ""})


def test_paths_of_tokens() -> None:
    """app-28: A path is that of a token of the app, and of no other file."""
    kubernetes = {**NEEDED[VAULT], "vaultAuthMethod": "kubernetes"}
    check(VAULT, {**kubernetes, "vaultServiceAccountTokenPath": "{appToken:vault}"})
    assert "vaultServiceAccountTokenPath" in refused(VAULT, kubernetes)
    for path in ("/etc/shadow", f"{TOKENS}/../x.jwt", "/run/tokens/other/vault.jwt", f"{TOKENS}/.jwt/x"):
        assert "no other file" in refused(VAULT, {**kubernetes, "vaultServiceAccountTokenPath": path})


@pytest.mark.parametrize("method", ["aws", "gcp", "azure"])
def test_logins_of_the_machine(method: str) -> None:
    assert "vaultAuthMethod is refused" in refused(VAULT, {**NEEDED[VAULT], "vaultAuthMethod": method})


@pytest.mark.parametrize("methods", ["mi", "creds,managedidentity", "creds, CLI", "wi", "none,creds"])
def test_ways_to_log_in_to_azure(methods: str) -> None:
    assert "azureAuthMethods is refused" in refused(KEY_VAULT, {"azureAuthMethods": methods})
    check(KEY_VAULT, {"azureAuthMethods": "creds, Cert"})


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8200", "http://127.9.9.9", "http://[::1]:8200", "http://0.0.0.0", "http://[::]",
        "http://169.254.169.254/latest", "http://[fe80::1]", "http://[::ffff:127.0.0.1]", "https://inside.example",
        "https://mapped.example", "http://224.0.0.1", "http://240.0.0.1", "unix:///run/x",
        "http://127.1", "http://2130706433", "http://0.1.2.3", "http://localhost", "http://a.LOCALHOST.:1",
        "http://168.63.129.16", "http://[fd00:ec2::254]", "http://[64:ff9b::7f00:1]", "http://user@192.0.2.1",
        "http://192.0.2.1\\@127.0.0.1/", "ftp://192.0.2.1", "http://192.0.2.1/?x", "http://192.0.2.1#x",
        "",
    ],
)  # fmt: skip
def test_addresses_of_this_machine(url: str) -> None:
    """app-28: An address that means the host, or that only the host reaches, is refused, also if a name leads to it."""
    assert "vaultAddr" in refused(VAULT, {"vaultAddr": url})
    if url:
        assert "endpoint is refused" in refused(SECRETS_MANAGER, {**NEEDED[SECRETS_MANAGER], "endpoint": url})


@pytest.mark.parametrize(
    "url", ["https://vault.example:8200/x", "http://192.0.2.1", "https://nowhere.example", "http://[64:ff9b::c000:201]"]
)
def test_addresses_of_others(url: str) -> None:
    """Also a name that has no address now (the name service may be down), and IPv4 by way of NAT64."""
    check(VAULT, {"vaultAddr": url})


def test_variables_of_the_machine() -> None:
    component = replace(written(VAULT, NEEDED[VAULT]), items=(Item("vaultToken", env_ref="HOME"),))
    with pytest.raises(ConfigurationError, match="envRef"):
        require_contained(component, [], {}, addresses)


@pytest.mark.parametrize(
    "name", ["secretfs/max-size", "secretfs/max-names", "secretfs/permissions", "secretfs/endpoint"]
)
def test_annotations_of_the_administrator(name: str) -> None:
    assert f"annotation {name} is refused" in refused(GOOGLE, NEEDED[GOOGLE], {name: "1"})
    check(GOOGLE, NEEDED[GOOGLE], {"secretfs/ttl": "5s", "example.com/note": "x"})


@pytest.mark.parametrize("kind", ["local.file", "local.env", "kubernetes", "secretfs.directory", "anybody.made"])
def test_other_types(kind: str) -> None:
    """app-28: Types that read what the host has are refused, before anything of them is imported."""
    with pytest.raises(ConfigurationError, match="is refused in a component that others write"):
        require_type(written(kind, {}))


def test_components_of_the_administrator_may_say_anything() -> None:
    component = Component("db", "secretstores.local.file", "v1")
    require_type(component)
    require_contained(component, [], {}, addresses)
