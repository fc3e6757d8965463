"""The logins of the Secret Manager store: every source, its renewal and its failures, with google-auth as it is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from secretfs.errors import AccessDenied, StoreError, StoreUnavailable
from secretfs.stores.gcp import login as gcp_login
from tests.conftest import ExpectLog
from tests.support.canary import secret
from tests.support.gcp_fixtures import TYPE, gcp, opened
from tests.support.servers.gcp import EMAIL, PROJECT, SUBJECT_TOKEN, Gcp, failing
from tests.support.servers.http_server import Fault, dropped, saying

__all__ = ["gcp"]

BARE = {"projectID": PROJECT}


@pytest.fixture(autouse=True)
def db(gcp: Gcp) -> None:
    gcp.put("db", secret("db").encode())


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the file that GOOGLE_APPLICATION_CREDENTIALS names."""
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "credentials.json"))
    return tmp_path / "credentials.json"


def read(gcp: Gcp, properties: dict[str, str]) -> None:
    with opened(gcp, properties) as store:
        assert store.fetch("db").values == {"db": secret("db").encode()}


def test_a_service_account_signs_its_own_tokens(gcp: Gcp) -> None:
    """No token endpoint is asked, as in Dapr."""
    read(gcp, gcp.login())
    assert gcp.requests == {"access": 1}
    assert gcp.callers == [EMAIL]


def test_a_key_with_written_newlines(gcp: Gcp) -> None:
    """As it stands in the JSON file: Dapr does not take that."""
    read(gcp, gcp.login(private_key=gcp.pem.replace("\n", "\\n")))


def test_one_token_serves_until_shortly_before_its_end(gcp: Gcp) -> None:
    with opened(gcp, gcp.login()) as store:
        for _ in range(3):
            store.fetch("db")
    assert gcp.requests == {"access": 3}


def test_a_key_that_is_unknown_is_refused(gcp: Gcp) -> None:
    gcp.known_keys["kid1"] = rsa.generate_private_key(65537, 2048).public_key()
    with opened(gcp, gcp.login()) as store, pytest.raises(AccessDenied, match=r"the token is refused \(401\)$"):
        store.fetch("db")
    assert gcp.requests == {"access": 2}


def test_a_key_file_is_read_again_when_its_tokens_are_refused(gcp: Gcp, file: Path) -> None:
    file.write_text(gcp.key_file())
    with opened(gcp, BARE) as store:
        store.fetch("db")
        gcp.key = rsa.generate_private_key(65537, 2048)
        gcp.known_keys["kid1"] = gcp.key.public_key()
        file.write_text(gcp.key_file())
        assert store.fetch("db").values == {"db": secret("db").encode()}
    assert gcp.requests == {"access": 3}


def test_the_file_of_gcloud(gcp: Gcp, tmp_path: Path) -> None:
    (tmp_path / "gcloud").mkdir()
    (tmp_path / "gcloud/application_default_credentials.json").write_text(gcp.key_file())
    read(gcp, BARE)


@pytest.mark.parametrize("impersonates", [False, True])
def test_workload_identity_federation(gcp: Gcp, file: Path, tmp_path: Path, *, impersonates: bool) -> None:
    """The token of another provider is exchanged, and no project is looked up for it."""
    token = tmp_path / "token"
    token.write_text(SUBJECT_TOKEN)
    file.write_text(gcp.federation(str(token), impersonates=impersonates))
    read(gcp, BARE)
    assert gcp.requests == {"sts": 1, "access": 1} | ({"impersonate": 1} if impersonates else {})
    assert gcp.callers == [EMAIL if impersonates else "federated"]


def test_a_token_is_renewed_before_its_end_with_the_file_as_it_is_then(
    gcp: Gcp, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gcp_login, "PAUSE", 0.0)
    token = tmp_path / "token"
    token.write_text(secret("old"))
    file.write_text(gcp.federation(str(token)))
    with opened(gcp, BARE) as store:
        with pytest.raises(AccessDenied, match=r"^secret db: the login is refused \(invalid_grant\)$"):
            store.fetch("db")
        token.write_text(SUBJECT_TOKEN)
        store.fetch("db")
        gcp.revoke()
        assert store.fetch("db").values == {"db": secret("db").encode()}
    assert gcp.requests["sts"] == 3


def test_a_token_that_cannot_be_renewed_serves_until_its_end(
    gcp: Gcp, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expect_log: ExpectLog
) -> None:
    expect_log("store: the token cannot be renewed yet: 127.0.0.1:.*not possible now")
    token = tmp_path / "token"
    token.write_text(SUBJECT_TOKEN)
    file.write_text(gcp.federation(str(token)))
    with opened(gcp, BARE) as store:
        store.fetch("db")
        login = store._login  # type: ignore[attr-defined]
        monkeypatch.setattr(login._token, "renew_at", 0.0)
        gcp.login_faults.append(saying(b"", 503))
        assert store.fetch("db").values == {"db": secret("db").encode()}
        assert store.fetch("db").values == {"db": secret("db").encode()}
    assert gcp.requests["sts"] == 2  # the next attempt is later


def test_failures_of_a_login_are_asked_for_once_in_a_while(gcp: Gcp, file: Path, tmp_path: Path) -> None:
    file.write_text(gcp.federation(str(tmp_path / "none")))
    with opened(gcp, BARE) as store:
        for _ in range(2):
            with pytest.raises(AccessDenied):
                store.fetch("db")


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (saying(b"", 503), StoreUnavailable),
        (saying(b"", 429), StoreUnavailable),
        (failing(403, "PERMISSION_DENIED"), AccessDenied),
        (saying(secret().encode()), AccessDenied),
        (saying(b"{}"), AccessDenied),
        (dropped, StoreUnavailable),
    ],
    ids=["down", "throttled", "denied", "no JSON", "no token", "dropped"],
)
def test_failures_of_sts(gcp: Gcp, file: Path, tmp_path: Path, fault: Fault, kind: type[StoreError]) -> None:
    (tmp_path / "token").write_text(SUBJECT_TOKEN)
    file.write_text(gcp.federation(str(tmp_path / "token")))
    gcp.login_faults.append(fault)
    with opened(gcp, BARE) as store, pytest.raises(kind, match=r"^secret db: ") as caught:
        store.fetch("db")
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "GOOGLE_APPLICATION_CREDENTIALS: No such file or directory"),
        (secret(), "GOOGLE_APPLICATION_CREDENTIALS: not JSON"),
        ("[]", "GOOGLE_APPLICATION_CREDENTIALS: a type of credentials that is not known"),
        ('{"type": "other"}', "GOOGLE_APPLICATION_CREDENTIALS: a type of credentials that is not known"),
        ('{"type": "service_account"}', "GOOGLE_APPLICATION_CREDENTIALS: they are incomplete or wrong"),
        ('{"type": "external_account"}', "GOOGLE_APPLICATION_CREDENTIALS: they are incomplete or wrong"),
        ('{"type": "authorized_user"}', "GOOGLE_APPLICATION_CREDENTIALS: they are incomplete or wrong"),
        ('{"type": "impersonated_service_account"}', "GOOGLE_APPLICATION_CREDENTIALS: they are incomplete or wrong"),
    ],
)
def test_files_that_hold_no_credentials(gcp: Gcp, file: Path, text: str | None, message: str) -> None:
    """They may be replaced, so the mount starts."""
    if text is not None:
        file.write_text(text)
    with opened(gcp, BARE) as store, pytest.raises(AccessDenied) as caught:
        store.fetch("db")
    assert str(caught.value) == f"secret db: {message}"


# google-auth reads the address of the metadata server when it is imported, so this takes a process.
_READER = """
import sys
from tests.support.opened import opened
from secretfs.errors import StoreError
with opened(sys.argv[1], {"projectID": sys.argv[2]}, annotations={"secretfs/endpoint": sys.argv[3]}) as store:
    try:
        print(sorted(store.fetch("db").values), store.fetch("db").version)
    except StoreError as error:
        print(type(error).__name__, error)
sdks = {"botocore", "azure", "hvac", "kubernetes", "google", "requests"}
print(sorted(sdks & {name.partition(".")[0] for name in sys.modules}))
"""


def in_a_process(gcp: Gcp, **environment: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", _READER, TYPE, PROJECT, gcp.address],
        env=os.environ | environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.splitlines()


def test_the_metadata_server(gcp: Gcp) -> None:
    """Of a machine, or of a pod whose service account is bound to one of Google's (GKE)."""
    answer, imported = in_a_process(gcp, GCE_METADATA_HOST=gcp.address.removeprefix("http://"))
    assert answer == "['db'] 1"
    assert gcp.callers == ["machine", "machine"]
    assert gcp.requests["metadata"] == 2
    assert imported == "['google', 'requests']"


def test_no_credentials_at_all(gcp: Gcp) -> None:
    answer, _ = in_a_process(gcp, GCE_METADATA_HOST="127.0.0.1:1")
    assert answer.startswith(
        "StoreUnavailable secret db: no other credentials than those of the metadata server: 127.0.0.1: "
    )


def test_a_mount_with_a_key_imports_no_other_sdk(gcp: Gcp, file: Path) -> None:
    file.write_text(gcp.key_file())
    assert in_a_process(gcp)[1] == "['google']"
    assert json.loads(file.read_text())["type"] == "service_account"
