"""Regions and credentials of the AWS stores: every source of the default chain, its renewal, and its failures."""

import json
from pathlib import Path

import pytest

from secretfs.errors import AccessDenied, ConfigurationError, MalformedAnswer, StoreError, StoreUnavailable
from secretfs.stores.aws import client as aws_client
from tests.conftest import ExpectLog
from tests.support.aws_fixtures import PARAMETERS, SECRETS, aws, moto_server, opened
from tests.support.canary import CANARY, secret
from tests.support.servers.aws import KEY, POD_TOKEN, REGION, ROLE, WEB_TOKEN, Aws, Key, failing
from tests.support.servers.http_server import Fault, dropped, saying

__all__ = ["aws", "moto_server"]

BARE = {"region": REGION}
STATIC = {"accessKey": "a", "secretKey": secret()}


@pytest.fixture(autouse=True)
def db(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    aws.put_secret("db", secret("db"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", aws.address)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "aws_config_file"


def read(properties: dict[str, str]) -> None:
    with opened(SECRETS, properties) as store:
        assert store.fetch("db").values == {"db": secret("db").encode()}


# --- regions ---


def test_where_the_region_comes_from(aws: Aws, monkeypatch: pytest.MonkeyPatch, config: Path) -> None:
    """The order of the SDK for Go, which Dapr has; botocore alone does not know AWS_REGION."""

    def seen(**properties: str) -> set[str]:
        aws.regions.clear()
        with opened(SECRETS, STATIC | {"accessKey": KEY, "secretKey": secret("secret-key")} | properties) as store:
            store.check()
        return set(aws.regions)

    config.write_text("[default]\nregion = eu-north-1\n[profile other]\nregion = eu-west-3\n")
    assert seen() == {"eu-north-1"}
    monkeypatch.setenv("AWS_PROFILE", "other")
    assert seen() == {"eu-west-3"}
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-2")
    assert seen() == {"us-west-2"}
    monkeypatch.setenv("AWS_REGION", "ap-south-1")
    assert seen() == {"ap-south-1"}
    assert seen(region=REGION) == {REGION}


@pytest.mark.parametrize("type_", [SECRETS, PARAMETERS])
@pytest.mark.parametrize(
    ("properties", "message"),
    [
        ({}, "store: there is no region: neither here, nor in AWS_REGION, nor in a profile"),
        ({"region": "eu central"}, "store: region is not the name of a region"),
        ({"region": REGION, "endpoint": "localhost:4566"}, "store: endpoint is not a URL"),
        ({"region": REGION, "endpoint": "https://user@host"}, "store: endpoint is not a URL"),
        (
            {"region": REGION, "trustAnchorArn": "a", "trustProfileArn": "b", "assumeRoleArn": "c"},
            "store: trustAnchorArn, trustProfileArn and assumeRoleArn log in with the identity of Dapr's sidecar",
        ),
    ],
)
def test_what_can_never_work_stops_the_mount(type_: str, properties: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught, opened(type_, STATIC | properties):
        pass
    assert str(caught.value).startswith(message)


def test_a_profile_that_is_in_no_file_stops_the_mount(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with (
        pytest.raises(ConfigurationError, match="the profile that AWS_PROFILE names is in no file"),
        opened(SECRETS, BARE),
    ):
        pass


def test_files_that_cannot_be_parsed_stop_the_mount(config: Path) -> None:
    config.write_text(f"{CANARY}\n")
    with (
        pytest.raises(ConfigurationError, match="the configuration files of AWS: ConfigParseError"),
        opened(SECRETS, {}),
    ):
        pass


def test_a_role_without_a_trust_anchor_does_nothing_and_is_said_aloud(aws: Aws, expect_log: ExpectLog) -> None:
    expect_log("store: trustAnchorArn, trustProfileArn and assumeRoleArn do nothing, as in Dapr")
    read(aws.login(assumeRoleArn=ROLE))
    assert aws.requests["AssumeRole"] == 0


def test_half_of_a_key_does_not_count_and_is_said_aloud(
    aws: Aws, monkeypatch: pytest.MonkeyPatch, expect_log: ExpectLog
) -> None:
    expect_log("store: accessKey and secretKey count together only, as in Dapr: this one is ignored")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret("secret-key"))
    read(BARE | {"accessKey": "AKIAOTHER"})
    assert aws.signers == [KEY]


# --- the default chain ---


def test_static_keys_come_before_everything_else(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAOTHER")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret("other"))
    read(aws.login())


def test_keys_in_the_environment(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    lent = aws.lend()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", lent["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", lent["SecretAccessKey"])
    monkeypatch.setenv("AWS_SESSION_TOKEN", lent["Token"])
    read(BARE)
    assert aws.signers == [lent["AccessKeyId"]]


def write_keys(tmp_path: Path, name: str, key: str, text: str, token: str = "") -> None:
    file = tmp_path / "aws_shared_credentials_file"
    more = f"aws_session_token = {token}\n" if token else ""
    file.write_text(f"[{name}]\naws_access_key_id = {key}\naws_secret_access_key = {text}\n{more}")


def test_keys_in_a_profile_and_their_rotation(aws: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is replaced is read again when its keys are refused: the reader sees no error."""
    monkeypatch.setattr(aws_client, "PAUSE", 0.0)
    write_keys(tmp_path, "default", KEY, secret("secret-key"))
    with opened(SECRETS, BARE) as store:
        store.fetch("db")
        del aws.keys[KEY]
        aws.keys["AKIANEW"] = Key(secret("new"))
        with pytest.raises(AccessDenied, match="the access key is not known"):
            store.fetch("db")
        write_keys(tmp_path, "default", "AKIANEW", secret("new"))
        assert store.fetch("db").values == {"db": secret("db").encode()}
    assert aws.signers[-1] == "AKIANEW"


def test_credentials_that_are_refused_are_looked_for_once_in_a_while(aws: Aws, tmp_path: Path) -> None:
    """Making a client costs 0.1 s of CPU; a program that polls must not have one made all the time."""
    write_keys(tmp_path, "default", "AKIANOBODY", secret("secret-key"))
    with opened(SECRETS, BARE) as store:
        for _ in range(5):
            with pytest.raises(AccessDenied):
                store.fetch("db")
    assert aws.requests["GetSecretValue"] <= 10


def test_a_profile_with_a_role(aws: Aws, config: Path, tmp_path: Path) -> None:
    """Static keys of another profile assume it; the request to STS goes to the region, or to the endpoint."""
    write_keys(tmp_path, "base", KEY, secret("secret-key"))
    config.write_text(f"[default]\nrole_arn = {ROLE}\nsource_profile = base\nregion = {REGION}\n")
    read({"endpoint": aws.address})
    assert aws.requests["AssumeRole"] == 1
    assert aws.signers == [KEY, "ASIA0001"]


def test_nobody_is_asked_for_a_code_of_a_device(aws: Aws, config: Path, tmp_path: Path) -> None:
    """The daemon has no terminal, and may have that of somebody else."""
    write_keys(tmp_path, "base", KEY, secret("secret-key"))
    role = f"role_arn = {ROLE}\nsource_profile = base\nmfa_serial = arn:aws:iam::123456789012:mfa/me\n"
    config.write_text(f"[default]\n{role}region = {REGION}\n")
    with (
        opened(SECRETS, {"endpoint": aws.address}) as store,
        pytest.raises(AccessDenied, match=r"^secret db: the source of the credentials gives none \(assume-role\)$"),
    ):
        store.fetch("db")


def web_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str = WEB_TOKEN) -> Path:
    """Set what EKS sets in a pod whose service account has a role (IRSA)."""
    file = tmp_path / "token"
    file.write_text(token)
    monkeypatch.setenv("AWS_ROLE_ARN", ROLE)
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(file))
    monkeypatch.setenv("AWS_REGION", REGION)
    return file


def test_the_role_of_a_service_account(aws: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    web_identity(tmp_path, monkeypatch)
    read({})
    assert aws.requests == {"AssumeRoleWithWebIdentity": 1, "GetSecretValue": 1}
    assert aws.signers == ["ASIA0001"]


def test_a_role_is_assumed_again_before_its_credentials_end(
    aws: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fifteen minutes before, with the token as it is then."""
    file = web_identity(tmp_path, monkeypatch, secret("old"))
    aws.lifetime = 300
    with opened(SECRETS, {}) as store:
        with pytest.raises(AccessDenied, match=r"sts.eu-central-1: the web identity token is refused"):
            store.fetch("db")
        file.write_text(WEB_TOKEN)
        monkeypatch.setattr(aws_client, "PAUSE", 0.0)
        for _ in range(3):
            store.fetch("db")
    assert aws.requests["AssumeRoleWithWebIdentity"] >= 3


def sts_error(code: str, status: int) -> Fault:
    text = f"<ErrorResponse><Error><Code>{code}</Code><Message>{secret()}</Message></Error></ErrorResponse>"
    return saying(text.encode(), status, {"Content-Type": "text/xml"})


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        (sts_error("Throttling", 400), StoreUnavailable, "sts.eu-central-1: too many requests"),
        (sts_error("AccessDenied", 403), AccessDenied, "sts.eu-central-1: the role does not trust this identity"),
        (saying(b"<html>", 503, {"Content-Type": "text/html"}), StoreUnavailable, "sts.eu-central-1: server error"),
        (saying(secret().encode(), 200, {"Content-Type": "text/xml"}), MalformedAnswer, "not an answer of AWS"),
        (dropped, StoreUnavailable, "the connection broke"),
    ],
    ids=["throttled", "denied", "down", "garbage", "dropped"],
)
def test_failures_of_sts(
    aws: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault, kind: type[StoreError], message: str
) -> None:
    web_identity(tmp_path, monkeypatch)
    aws.login_faults.append(fault)
    with opened(SECRETS, {}) as store:
        with pytest.raises(kind, match=message) as caught:
            store.fetch("db")
        assert str(caught.value).startswith("secret db: ")
        monkeypatch.setattr(aws_client, "PAUSE", 0.0)
        assert store.fetch("db").values == {"db": secret("db").encode()}


def test_a_token_file_that_is_not_there(aws: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    web_identity(tmp_path, monkeypatch).unlink()
    with opened(SECRETS, {}) as store, pytest.raises(AccessDenied, match=r"token: No such file or directory$"):
        store.fetch("db")


def pod_identity(aws: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str = POD_TOKEN) -> Path:
    """Set what EKS sets in a pod whose service account has a Pod Identity association."""
    file = tmp_path / "pod-token"
    file.write_text(token)
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{aws.address}/v1/credentials")
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(file))
    return file


def test_pod_identity(aws: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pod_identity(aws, tmp_path, monkeypatch)
    read(BARE)
    assert aws.requests == {"pod": 1, "GetSecretValue": 1}


def test_an_agent_that_refuses_is_asked_once_and_again_later(
    aws: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SDK alone would ask three times, and wait for a second after each."""
    file = pod_identity(aws, tmp_path, monkeypatch, secret("wrong"))
    with opened(SECRETS, BARE) as store:
        with pytest.raises(AccessDenied, match=r"the source of the credentials gives none \(container-role\)"):
            store.fetch("db")
        assert aws.requests["pod"] == 1
        file.write_text(POD_TOKEN)
        monkeypatch.setattr(aws_client, "PAUSE", 0.0)
        assert store.fetch("db").values == {"db": secret("db").encode()}


def test_an_agent_that_is_down_is_an_outage(aws: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pod_identity(aws, tmp_path, monkeypatch)
    aws.login_faults.append(lambda: None)
    with opened(SECRETS, BARE) as store, pytest.raises(StoreUnavailable, match="the connection broke"):
        store.fetch("db")


def test_the_identity_of_a_machine(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    """IMDSv2: a session token first."""
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", aws.address)
    aws.has_identity = True
    read(BARE)
    assert aws.requests == {"imds": 3, "GetSecretValue": 1}


def test_no_credentials_at_all_and_some_later(aws: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(SECRETS, BARE) as store:
        with pytest.raises(AccessDenied, match=r"^secret db: no credentials: neither accessKey nor the environment"):
            store.fetch("db")
        write_keys(tmp_path, "default", KEY, secret("secret-key"))
        monkeypatch.setattr(aws_client, "PAUSE", 0.0)
        assert store.fetch("db").values == {"db": secret("db").encode()}


def test_a_program_for_credentials(aws: Aws, config: Path, tmp_path: Path) -> None:
    """As AWS's aws_signing_helper for IAM Roles Anywhere."""
    lent = aws.lend()
    answer = {"Version": 1, "SessionToken": lent.pop("Token"), **lent}
    program = tmp_path / "helper"
    program.write_text(f"#!/bin/sh\ncat <<'EOF'\n{json.dumps(answer)}\nEOF\n")
    program.chmod(0o700)
    config.write_text(f"[default]\ncredential_process = {program}\nregion = {REGION}\n")
    read({})


def test_own_authorities(aws: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "none.pem"))
    with pytest.raises(ConfigurationError, match="store: AWS_CA_BUNDLE cannot be read"), opened(SECRETS, aws.login()):
        pass


def test_throttling_of_a_login_shows_no_text(aws: Aws) -> None:
    aws.faults.append(failing("ThrottlingException", secret("text")))
    with opened(SECRETS, aws.login()) as store, pytest.raises(StoreUnavailable):
        store.fetch("db")
