"""``secretstores.hashicorp.vault``: logins with identities of clouds, on a server that checks what they show."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from secretfs.errors import AccessDenied, ConfigurationError, DeadlineExceeded, StoreUnavailable
from tests.support.canary import CANARY, secret
from tests.support.opened import opened
from tests.support.servers.http_server import Answer, dropped, saying
from tests.support.servers.vault_clouds import ACCESS_KEY, CLIENT, MACHINE, ROLE, SECRET_KEY, VALUES, CloudVault

TYPE = "secretstores.hashicorp.vault"
PATIENT = 20.0
"""Seconds: a busy machine takes its time to import an SDK."""
EXPECTED = {name: text.encode() for name, text in VALUES.items()}


@pytest.fixture
def vault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CloudVault]:
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with CloudVault() as server:
        monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", server.address)
        yield server


def properties(vault: CloudVault, method: str, **more: str) -> dict[str, str]:
    return {"vaultAddr": vault.address, "vaultAuthMethod": method, **more}


def logs_in(vault: CloudVault, given: dict[str, str]) -> dict[str, object]:
    """Read twice on one login, and once more when its token is gone. Returns what the login said."""
    with opened(TYPE, given, deadline=PATIENT) as store:
        assert vault.logins == []
        assert store.fetch("db").values == EXPECTED
        assert store.fetch("db").values == EXPECTED
        assert len(vault.logins) == 1
        assert CANARY not in f"{store!r} {vars(store)}"
        vault.revoke()
        assert store.fetch("db").values == EXPECTED
    assert vault.logins[0] == vault.logins[1]
    return vault.logins[0]


# --- AWS ---

STATIC = {"vaultAwsAccessKey": ACCESS_KEY, "vaultAwsSecretKey": SECRET_KEY}


def test_aws_with_keys(vault: CloudVault) -> None:
    assert logs_in(vault, properties(vault, "aws", vaultAwsRole=ROLE, **STATIC)) == {"role": ROLE}


def test_aws_with_what_the_sdk_finds(vault: CloudVault, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys in the environment, with a session token; the role has the name of the identity."""
    vault.session_token = secret("session-token")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("AWS_SESSION_TOKEN", vault.session_token)
    assert logs_in(vault, properties(vault, "aws")) == {"role": None}


def test_aws_keys_are_looked_for_at_each_login(vault: CloudVault, tmp_path: Path) -> None:
    profile = tmp_path / "aws_shared_credentials_file"
    profile.write_text(f"[default]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n")
    with opened(TYPE, properties(vault, "aws"), deadline=PATIENT) as store:
        store.fetch("db")
        vault.keys = {"AKIANEW": secret("new")}
        vault.revoke()
        profile.write_text(f"[default]\naws_access_key_id = AKIANEW\naws_secret_access_key = {secret('new')}\n")
        assert store.fetch("db").values == EXPECTED


def test_aws_in_another_region_for_one_server(vault: CloudVault) -> None:
    vault.region, vault.server_id = "eu-central-1", "vault.example"
    more = {"vaultAwsRegion": "eu-central-1", "vaultAwsServerId": "vault.example"}
    logs_in(vault, properties(vault, "aws", **STATIC, **more))


@pytest.mark.parametrize(
    "wrong", [{"vaultAwsSecretKey": secret("wrong")}, {"vaultAwsAccessKey": "AKIAOTHER"}, {"vaultAwsServerId": "other"}]
)
def test_aws_refused(vault: CloudVault, wrong: dict[str, str]) -> None:
    with (
        opened(TYPE, properties(vault, "aws", **{**STATIC, **wrong}), deadline=PATIENT) as store,
        pytest.raises(AccessDenied, match=r"secret db: login with aws: .*refused \(400\)") as caught,
    ):
        store.fetch("db")
    assert CANARY not in str(caught.value)


def test_aws_without_credentials(vault: CloudVault) -> None:
    with (
        opened(TYPE, properties(vault, "aws"), deadline=PATIENT) as store,
        pytest.raises(AccessDenied, match="login with aws: no credentials: neither vaultAwsAccessKey nor"),
    ):
        store.fetch("db")
    assert vault.requests["/v1/auth/aws/login"] == 0


# --- GCP ---


def key_file(vault: CloudVault, path: Path) -> Path:
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415

    pem = vault.google.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    info = {"type": "service_account", "client_email": "orders@shop-prod.iam.gserviceaccount.com"}
    info |= {"private_key": pem.decode(), "private_key_id": "1", "token_uri": "https://oauth2.googleapis.com/token"}
    path.write_text(json.dumps(info), encoding="utf-8")
    return path


def test_gcp_with_the_key_of_a_service_account(vault: CloudVault, tmp_path: Path) -> None:
    key = key_file(vault, tmp_path / "key.json")
    assert logs_in(vault, properties(vault, "gcp", vaultGcpRole=ROLE, vaultGcpKeyPath=str(key))) == {"role": ROLE}


def test_gcp_with_a_key_that_is_not_known_and_one_that_is_gone(vault: CloudVault, tmp_path: Path) -> None:
    with CloudVault() as other:
        key = key_file(other, tmp_path / "key.json")
    given = properties(vault, "gcp", vaultGcpRole=ROLE, vaultGcpKeyPath=str(key))
    with (
        opened(TYPE, given, deadline=PATIENT) as store,
        pytest.raises(AccessDenied, match=r"login with gcp: .*refused \(400\)"),
    ):
        store.fetch("db")
    with opened(TYPE, given, deadline=PATIENT) as store:
        key.unlink()
        with pytest.raises(StoreUnavailable, match=r"login with gcp: vaultGcpKeyPath: .*No such file"):
            store.fetch("db")


# google-auth reads the address of the metadata server when it is imported, so this takes a process.
_READER = """
import json, sys
from tests.support.opened import opened
from secretfs.errors import StoreError
with opened("secretstores.hashicorp.vault", json.loads(sys.argv[1]), deadline=20.0) as store:
    try:
        print(sorted(store.fetch("db").values))
    except StoreError as error:
        print(type(error).__name__, error)
print(sorted({"azure", "botocore", "google"} & {name.partition(".")[0] for name in sys.modules}))
"""


def in_a_process(given: dict[str, str], **environment: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", _READER, json.dumps(given)],
        env=os.environ | environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.splitlines()


def test_gcp_with_the_identity_of_the_machine(vault: CloudVault) -> None:
    given = properties(vault, "gcp", vaultGcpRole=ROLE)
    answer, imported = in_a_process(given, GCE_METADATA_HOST=vault.address.removeprefix("http://"))
    assert (answer, imported) == ("['password']", "['google']")
    assert vault.logins == [{"role": ROLE}]
    answer, _ = in_a_process(given, GCE_METADATA_HOST="127.0.0.1:1")
    assert answer.startswith("StoreUnavailable secret db: login with gcp: no identity of the metadata server: ")


# --- Azure ---

PLACE = {"subscription_id": "sub-1", "resource_group_name": "shop", "vm_name": "vm-7"}


def test_azure_with_the_identity_of_a_machine(vault: CloudVault) -> None:
    assert logs_in(vault, properties(vault, "azure", vaultAzureRole=ROLE)) == {"role": ROLE, **PLACE}


def test_azure_with_one_of_several_identities_in_a_scale_set(vault: CloudVault) -> None:
    vault.machine = {**MACHINE, "vmScaleSetName": "web"}
    said = logs_in(vault, properties(vault, "azure", vaultAzureRole=ROLE, vaultAzureClientId=CLIENT))
    assert said == {"role": ROLE, "subscription_id": "sub-1", "resource_group_name": "shop", "vmss_name": "web"}


def test_azure_where_nothing_is_known_of_the_machine(vault: CloudVault) -> None:
    vault.machine = None
    assert logs_in(vault, properties(vault, "azure", vaultAzureRole=ROLE)) == {"role": ROLE}


def test_azure_whose_metadata_fail(vault: CloudVault) -> None:
    """An outage is no refusal, and takes no longer than it may."""
    given = properties(vault, "azure", vaultAzureRole=ROLE)
    for fault, error in ((vault.hang, DeadlineExceeded), (saying(b"?", 500), StoreUnavailable)):
        vault.login_faults.extend([probe, fault, fault])
        with opened(TYPE, given, deadline=2.0) as store, pytest.raises(error, match="secret db: login with azure: "):
            store.fetch("db")
        vault.login_faults.clear()
    with opened(TYPE, given, deadline=PATIENT) as store:
        assert store.fetch("db").values == EXPECTED


def probe() -> Answer:
    return Answer.json(400, {"error": "invalid_request"})


def test_aws_whose_metadata_fail(vault: CloudVault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{vault.address}/metadata/instance/compute")
    given = properties(vault, "aws")
    for fault, error in ((vault.hang, DeadlineExceeded), (dropped, StoreUnavailable), (saying(b"?"), AccessDenied)):
        vault.login_faults.append(fault)
        with opened(TYPE, given, deadline=2.0) as store, pytest.raises(error, match="secret db: login with aws: "):
            store.fetch("db")
        vault.login_faults.clear()
    assert vault.requests["/v1/auth/aws/login"] == 0


# --- what they share ---


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        ("gcp", {}, "vaultAuthMethod gcp needs vaultGcpRole"),
        ("azure", {}, "vaultAuthMethod azure needs vaultAzureRole"),
        ("gcp", {"vaultGcpRole": "r", "vaultGcpKeyPath": "/no"}, "vaultGcpKeyPath: /no: No such file or directory"),
        ("aws", {"vaultAwsAccessKey": "a"}, "vaultAwsAccessKey and vaultAwsSecretKey count together only"),
        ("aws", {"vaultGcpRole": "r"}, "vaultGcpRole is for vaultAuthMethod gcp, and vaultAuthMethod is aws"),
        ("token", {"vaultAzureRole": "r"}, "vaultAzureRole is for vaultAuthMethod azure"),
    ],
)
def test_mistakes(vault: CloudVault, method: str, given: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message), opened(TYPE, properties(vault, method, **given)):
        pass
    assert vault.requests == {}


def test_a_key_of_gcp_that_is_none(vault: CloudVault, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(json.dumps({"type": "authorized_user", "private_key": CANARY}))
    with (
        pytest.raises(ConfigurationError, match="not the key of a service account in JSON") as caught,
        opened(TYPE, properties(vault, "gcp", vaultGcpRole="r", vaultGcpKeyPath=str(path))),
    ):
        pass
    assert CANARY not in str(caught.value)


def test_a_login_imports_the_sdk_of_its_cloud_alone(vault: CloudVault) -> None:
    token = {"vaultAddr": vault.address, "vaultToken": secret("none")}
    assert in_a_process(token)[1] == "[]"
    assert in_a_process(properties(vault, "aws", **STATIC)) == ["['password']", "['botocore']"]
    assert in_a_process(properties(vault, "azure", vaultAzureRole=ROLE)) == ["['password']", "['azure']"]
