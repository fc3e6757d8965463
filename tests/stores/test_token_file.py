"""The token of a pod in a file: what it takes at each cloud, and what it looks like when it is refused."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from secretfs.errors import AccessDenied, ConfigurationError, StoreError, StoreUnavailable
from tests.support.aws_fixtures import PARAMETERS, SECRETS, aws, moto_server
from tests.support.aws_fixtures import opened as opened_patiently
from tests.support.azure_fixtures import TYPE as AZURE
from tests.support.azure_fixtures import azure
from tests.support.canary import secret
from tests.support.gcp_fixtures import TYPE as GCP
from tests.support.gcp_fixtures import gcp
from tests.support.opened import opened
from tests.support.servers.aws import KEY, REGION, ROLE, Aws
from tests.support.servers.azure_keyvault import Azure
from tests.support.servers.azure_logins import CLIENT, TENANT, USER_ASSIGNED
from tests.support.servers.gcp import AUDIENCE, EMAIL, PROJECT, Gcp

__all__ = ["aws", "azure", "gcp", "moto_server"]

FILE, PROVIDER = "secretfs/token-file", "secretfs/workload-identity-provider"
APPLICATION = {"vaultName": "myvault", "azureTenantId": TENANT, "azureClientId": CLIENT}
BEARER = {"region": REGION, "assumeRoleArn": ROLE}


@pytest.fixture
def token(tmp_path: Path) -> Path:
    file = tmp_path / "token.jwt"
    file.write_text(secret("pod"), "ascii")
    return file


@pytest.mark.parametrize(
    ("type_", "properties", "annotations", "message"),
    [
        (AZURE, APPLICATION, {FILE: "t"}, "secretfs/token-file is not an absolute path"),
        (
            AZURE, APPLICATION | {"azureClientSecret": secret("s")}, {FILE: "/t"},
            "azureClientSecret is another way to log in than secretfs/token-file: leave one of them out",
        ),
        (
            AZURE, APPLICATION | {"azureAuthMethods": "wi,mi"}, {FILE: "/t"},
            "azureAuthMethods is another way to log in than secretfs/token-file: leave one of them out",
        ),
        (
            AZURE, {"vaultName": "myvault", "azureTenantId": TENANT}, {FILE: "/t"},
            (
                "no suitable token provider for Azure AD; errors: secretfs/token-file takes an application: give "
                "azureClientId and azureTenantId"
            ),
        ),
        (
            SECRETS, BEARER | {"accessKey": "a", "secretKey": secret("s")}, {FILE: "/t"},
            "accessKey is another way to log in than secretfs/token-file: leave one of them out",
        ),
        (PARAMETERS, {"region": REGION}, {FILE: "/t"}, "secretfs/token-file takes a role: give assumeRoleArn"),
        (
            GCP, {"projectID": PROJECT, "privateKeyID": "a"}, {FILE: "/t", PROVIDER: AUDIENCE},
            "privateKeyID is another way to log in than secretfs/token-file: leave one of them out",
        ),
        (
            GCP, {"projectID": PROJECT}, {FILE: "/t"},
            "secretfs/token-file and secretfs/workload-identity-provider count together only",
        ),
        (
            GCP, {"projectID": PROJECT}, {PROVIDER: AUDIENCE},
            "secretfs/token-file and secretfs/workload-identity-provider count together only",
        ),
        (
            GCP, {"projectID": PROJECT}, {FILE: "/t", PROVIDER: "https:" + AUDIENCE},
            (
                "secretfs/workload-identity-provider is not the name of a provider such as //iam.googleapis.com/"
                "projects/123456789/locations/global/workloadIdentityPools/pool/providers/cluster"
            ),
        ),
        (
            GCP, {"projectID": PROJECT, "clientEmail": "a/b"}, {FILE: "/t", PROVIDER: AUDIENCE},
            "clientEmail is not the address of a service account",
        ),
    ],
)  # fmt: skip
def test_what_can_never_work(
    type_: str, properties: Mapping[str, str], annotations: Mapping[str, str], message: str
) -> None:
    """A component that says two ways to log in could let a pod in as its node."""
    with pytest.raises(ConfigurationError) as caught, opened(type_, properties, annotations=annotations):
        pass
    assert str(caught.value) == f"store: {message}"


# --- Azure ---


def azure_failure(token: Path) -> StoreError:
    with opened(AZURE, APPLICATION, annotations={FILE: str(token)}) as store, pytest.raises(StoreError) as caught:
        store.fetch("db")
    return caught.value


def test_azure_takes_the_application_of_the_component(
    azure: Azure, token: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of the node's own workload identity counts, nor of its machine."""
    for name, value in (("CLIENT_ID", USER_ASSIGNED), ("TENANT_ID", "x"), ("FEDERATED_TOKEN_FILE", "/none")):
        monkeypatch.setenv(f"AZURE_{name}", value)
    azure.put("db", secret("db"))
    azure.federated.add(secret("pod"))
    with opened(AZURE, APPLICATION | {"azureAuthMethods": "wi"}, annotations={FILE: str(token)}) as store:
        assert store.fetch("db").values == {"db": secret("db").encode()}
        token.write_text(secret("renewed"), "ascii")
        azure.federated = {secret("renewed")}
        azure.revoke()
        store.fetch("db")
    assert set(azure.bearers) == {CLIENT}
    assert set(azure.hosts) == {"myvault.vault.azure.net", "login.microsoftonline.com"}


def test_what_azure_says_of_a_token(azure: Azure, token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", azure.address)  # the machine would be let in
    refused = azure_failure(token)
    assert type(refused) is AccessDenied
    assert str(refused) == (
        "secret db: login.microsoftonline.com: no federated credential of the application matches the token of "
        "secretfs/token-file (AADSTS70021)"
    )
    token.unlink()
    missing = azure_failure(token)
    assert type(missing) is StoreUnavailable
    assert str(missing) == "secret db: the token of secretfs/token-file: No such file or directory"


# --- AWS ---


@pytest.fixture
def node(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> Aws:
    """Be a node with credentials of its own."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", aws.keys[KEY].secret)
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/node")
    aws.put_secret("db", secret("db"))
    aws.put_parameter("db", secret("db"))
    aws.web_identities = {secret("pod")}
    return aws


@pytest.mark.parametrize("type_", [SECRETS, PARAMETERS])
def test_aws_lends_the_role_of_the_component(node: Aws, token: Path, type_: str) -> None:
    node.lifetime = 60.0  # renewed before each request
    with opened_patiently(type_, BEARER | {"endpoint": node.address}, annotations={FILE: str(token)}) as store:
        assert store.fetch("db").values == {"db": secret("db").encode()}
        token.write_text(secret("renewed"), "ascii")
        node.web_identities = {secret("renewed")}
        store.fetch("db")
    assert KEY not in node.signers
    assert node.requests["AssumeRoleWithWebIdentity"] >= 2


@pytest.mark.parametrize(
    ("role", "contents", "message"),
    [
        (ROLE, secret("x"), "sts.eu-central-1: the web identity token is refused (InvalidIdentityToken)"),
        (f"{ROLE}-2", secret("pod"), "sts.eu-central-1: the role does not trust this identity (AccessDenied)"),
        (ROLE, "", "token.jwt: No such file or directory"),
    ],
)
def test_what_aws_says_of_a_token(node: Aws, token: Path, role: str, contents: str, message: str) -> None:
    """A check says so as well: nothing can be read."""
    token.write_text(contents, "ascii")
    if not contents:
        token.unlink()
    own = {**BEARER, "assumeRoleArn": role, "endpoint": node.address}
    with opened_patiently(SECRETS, own, annotations={FILE: str(token)}) as store:
        for ask in (store.check, lambda: store.fetch("db")):
            with pytest.raises(AccessDenied) as caught:
                ask()
            assert str(caught.value).endswith(message)
    assert node.signers == []


# --- GCP ---


@pytest.fixture
def google(gcp: Gcp, monkeypatch: pytest.MonkeyPatch) -> Gcp:
    """Be where all hosts of Google are reached by their names."""
    for name, value in gcp.environment.items():
        monkeypatch.setenv(name, value)
    gcp.put("db", secret("db").encode())
    gcp.subject_tokens = {secret("pod")}
    return gcp


@pytest.mark.parametrize("email", ["", EMAIL])
def test_gcp_exchanges_it_at_the_provider_of_the_component(google: Gcp, token: Path, email: str) -> None:
    annotations = {FILE: str(token), PROVIDER: AUDIENCE}
    with opened(GCP, {"projectID": PROJECT, "clientEmail": email}, annotations=annotations) as store:
        assert store.fetch("db").values == {"db": secret("db").encode()}
        token.write_text(secret("renewed"), "ascii")
        google.subject_tokens = {secret("renewed")}
        google.revoke()
        store.fetch("db")
    assert set(google.callers) == {email or "federated"}
    impersonated = {"iamcredentials.googleapis.com"} if email else set()
    assert set(google.hosts) == {"secretmanager.googleapis.com", "sts.googleapis.com"} | impersonated


@pytest.mark.parametrize(
    ("contents", "message"),
    [(secret("x"), "the login is refused (invalid_grant)"), ("", "token.jwt: No such file or directory")],
)
def test_what_gcp_says_of_a_token(google: Gcp, token: Path, contents: str, message: str) -> None:
    token.write_text(contents, "ascii")
    if not contents:
        token.unlink()
    annotations = {FILE: str(token), PROVIDER: AUDIENCE}
    with opened(GCP, {"projectID": PROJECT}, annotations=annotations) as store, pytest.raises(AccessDenied) as caught:
        store.fetch("db")
    assert str(caught.value).startswith("secret db: ")
    assert str(caught.value).endswith(message)
    assert google.callers == []
