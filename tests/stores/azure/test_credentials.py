"""Logging in to Azure: every way, their order, and what it looks like when one fails."""

import datetime as dt
import socket
import stat
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import pkcs12

from secretfs.cache.client import CONCURRENCY
from secretfs.errors import AccessDenied, ConfigurationError, DeadlineExceeded, StoreError, StoreUnavailable, TLSFailure
from secretfs.registry.following import FollowingStore
from secretfs.settings import Property, decode
from secretfs.store import SecretStore, StoreContext
from secretfs.stores.azure import login as azure_login
from secretfs.stores.azure.credentials import CLOUDS, Identity, credential_sources
from secretfs.stores.azure.store import Settings, open_store
from secretfs.stores.azure.transport import DeadlineTransport
from tests.support.azure_fixtures import TYPE, azure, login
from tests.support.canary import secret
from tests.support.lacking import cannot_test
from tests.support.opened import opened
from tests.support.servers.azure_keyvault import Azure, failing
from tests.support.servers.azure_logins import CLIENT, TENANT, USER_ASSIGNED
from tests.support.servers.http_server import dropped, saying
from tests.support.waiting import PATIENCE

__all__ = ["azure"]

ExpectLog = Callable[[str], None]
Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
NOTHING = {"vaultName": "myvault"}
PRINCIPAL = {**NOTHING, "azureTenantId": TENANT, "azureClientId": CLIENT}


def works(properties: dict[str, str], *, deadline: float = 10.0) -> None:
    """Log in and read."""
    with opened(TYPE, properties, deadline=deadline) as store:
        store.check()


def failure(properties: dict[str, str], *, deadline: float = 10.0) -> StoreError:
    """Fail to log in."""
    with opened(TYPE, properties, deadline=deadline) as store, pytest.raises(StoreError) as caught:
        store.check()
    assert str(caught.value).startswith("list of secrets: ")
    return caught.value


def refuses(properties: dict[str, str]) -> str:
    """Fail to open, and return why."""
    with pytest.raises(ConfigurationError) as caught, opened(TYPE, properties):
        pass
    assert str(caught.value).startswith("store: ")
    return str(caught.value).removeprefix("store: ")


# --- a service principal ---


@pytest.fixture(scope="module")
def keys() -> list[rsa.RSAPrivateKey]:
    return [rsa.generate_private_key(65537, 2048) for _ in range(2)]


def certificate(key: Key) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "secretfs")])
    now = dt.datetime.now(dt.UTC)
    day = dt.timedelta(days=1)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now - day).not_valid_after(now + day)
    return builder.sign(key, hashes.SHA256())


def pem(key: Key, made: x509.Certificate, form: serialization.PrivateFormat | None = None) -> bytes:
    form = form or serialization.PrivateFormat.PKCS8
    text = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    return text + made.public_bytes(serialization.Encoding.PEM)


def pfx(key: rsa.RSAPrivateKey, made: x509.Certificate, password: str = "") -> bytes:
    encryption = serialization.BestAvailableEncryption(password.encode()) if password else serialization.NoEncryption()
    return pkcs12.serialize_key_and_certificates(b"secretfs", key, made, None, encryption)


def test_a_client_secret(azure: Azure) -> None:
    works(login())
    assert azure.bearers == [CLIENT]
    assert azure.requests == {"challenge": 1, "discovery": 1, "login": 1, "list": 1}


@pytest.mark.parametrize("form", [serialization.PrivateFormat.PKCS8, serialization.PrivateFormat.TraditionalOpenSSL])
def test_a_certificate_in_pem(
    azure: Azure, keys: list[rsa.RSAPrivateKey], tmp_path: Path, form: serialization.PrivateFormat
) -> None:
    made = certificate(keys[0])
    azure.certificates.append(made)
    text = pem(keys[0], made, form)
    works(PRINCIPAL | {"azureCertificate": text.decode()})
    # A password is for PFX only; the file comes before what is inline.
    (tmp_path / "both.pem").write_bytes(text)
    more = {
        "azureCertificateFile": str(tmp_path / "both.pem"),
        "azureCertificate": "x",
        "azureCertificatePassword": "y",
    }
    works(PRINCIPAL | more)
    assert azure.bearers == [CLIENT, CLIENT]


@pytest.mark.parametrize("password", ["", secret("pfx-password")])
def test_a_certificate_in_pfx(azure: Azure, keys: list[rsa.RSAPrivateKey], tmp_path: Path, password: str) -> None:
    made = certificate(keys[0])
    azure.certificates.append(made)
    (tmp_path / "id.pfx").write_bytes(pfx(keys[0], made, password))
    more = {"azureCertificateFile": str(tmp_path / "id.pfx"), "azureCertificatePassword": password}
    works(PRINCIPAL | more)
    assert azure.bearers == [CLIENT]


def test_certificates_that_cannot_be_used(keys: list[rsa.RSAPrivateKey], tmp_path: Path, expect_log: ExpectLog) -> None:
    made = certificate(keys[0])
    elliptic = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "id.pfx").write_bytes(pfx(keys[0], made, "right"))
    file = {"azureCertificateFile": str(tmp_path / "id.pfx")}
    unusable = "no certificate with an RSA key in PEM or PKCS#12, or a wrong password"
    for more, reason in (
        (file | {"azureCertificatePassword": secret("wrong")}, f"azureCertificateFile: {unusable}"),
        (file, f"azureCertificateFile: {unusable}"),
        ({"azureCertificate": secret("garbage")}, f"azureCertificate: {unusable}"),
        ({"azureCertificate": pem(elliptic, certificate(elliptic)).decode()}, f"azureCertificate: {unusable}"),
        (
            {"azureCertificate": made.public_bytes(serialization.Encoding.PEM).decode()},
            f"azureCertificate: {unusable}",
        ),
        (
            {"azureCertificateFile": str(tmp_path / "no.pem")},
            f"failed to read the certificate file ({tmp_path}/no.pem): No such file or directory",
        ),
    ):
        told = refuses(PRINCIPAL | more | {"azureAuthMethods": "cert"})
        assert told == f"no suitable token provider for Azure AD; errors: {reason}"
    expect_log("store: azureCertificateFile: no certificate")
    expect_log("store: azureCertificate: no certificate")
    expect_log("store: failed to read the certificate file")


def test_a_certificate_that_cannot_be_used_is_dropped_from_the_chain_aloud(
    azure: Azure, monkeypatch: pytest.MonkeyPatch, expect_log: ExpectLog
) -> None:
    monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", azure.address)
    azure.assigned.add(CLIENT)
    expect_log("store: azureCertificate: no certificate")
    works(PRINCIPAL | {"azureCertificate": secret("garbage")})
    assert azure.requests["imds"] == 1


def refused_by_name(code: int, field: str) -> str:
    return f"list of secrets: login.microsoftonline.com: {field} (AADSTS{code})"


def test_refusals_name_the_field_and_not_its_value(azure: Azure, keys: list[rsa.RSAPrivateKey]) -> None:
    azure.client_secrets.add(secret("expired"))
    azure.expired_secrets.add(secret("expired"))
    other = "00000000-0000-0000-0000-00000000abcd"
    unknown = pem(keys[1], certificate(keys[1])).decode()
    for properties, told in (
        (
            login(azureClientSecret=secret("wrong")),
            refused_by_name(7000215, "azureClientSecret is not a secret of azureClientId"),
        ),
        (login(azureClientSecret=secret("expired")), refused_by_name(7000222, "azureClientSecret has expired")),
        (login(azureClientId=other), refused_by_name(700016, "azureClientId is not known in azureTenantId")),
        (login(azureTenantId=other), refused_by_name(90002, "there is no such azureTenantId")),
        (login(azureTenantId="no.example"), refused_by_name(90002, "there is no such azureTenantId")),
        (
            PRINCIPAL | {"azureCertificate": unknown},
            refused_by_name(700027, "azureCertificate is not registered with azureClientId, or has expired"),
        ),
    ):
        error = failure(properties)
        assert (type(error), str(error)) == (AccessDenied, told)


def test_a_tenant_that_cannot_be_one(expect_log: ExpectLog) -> None:
    expect_log("client secret: azureTenantId is neither a domain nor an id")
    told = refuses(login(azureTenantId="my tenant", azureAuthMethods="creds"))
    assert told.endswith("errors: client secret: azureTenantId is neither a domain nor an id")


def test_a_refusal_that_nobody_has_a_word_for(azure: Azure) -> None:
    azure.login_faults.append(
        saying(b'{"error": "x", "error_description": "AADSTS12345: %s"}' % secret().encode(), 400)
    )
    error = failure(login())
    assert (type(error), str(error)) == (AccessDenied, refused_by_name(12345, "the login is refused"))
    azure.login_faults.append(saying(b'{"error": "%s"}' % secret().encode(), 400))
    error = failure(login())
    assert type(error) is AccessDenied
    assert str(error).endswith("login.microsoftonline.com: the login is refused (400)")


def test_an_authority_in_trouble_refuses_nobody(azure: Azure) -> None:
    for fault, kind, told in (
        (failing(503), StoreUnavailable, "server error (503)"),
        (failing(429), StoreUnavailable, "too many requests (429)"),
        (saying(b"<html>"), StoreError, "the answer is no token"),
        (saying(b"{}"), StoreError, "the answer is no token"),
        (azure.hang, DeadlineExceeded, "no answer in time"),
    ):
        azure.login_faults.append(fault)
        error = failure(login(), deadline=2)
        assert isinstance(error, kind)
        assert not isinstance(error, AccessDenied)
        assert str(error) == f"list of secrets: login.microsoftonline.com: {told}"
    azure.login_faults += [dropped, dropped]
    assert str(failure(login())).endswith("login.microsoftonline.com: the connection broke")


# --- what changes ---


def test_tokens_that_end_are_replaced(azure: Azure) -> None:
    azure.token_ttl = 6
    azure.put("db", secret("db"))
    with opened(TYPE, login()) as store:
        while azure.requests["login"] < 3:
            assert store.fetch("db").values == {"db": secret("db").encode()}
            time.sleep(0.02)
        assert store.fetch("db").values == {"db": secret("db").encode()}
    assert azure.requests["refused"] == 0
    assert azure.requests["login"] == 3


def test_a_rotated_certificate_file(azure: Azure, keys: list[rsa.RSAPrivateKey], tmp_path: Path) -> None:
    old, new = map(certificate, keys)
    path = tmp_path / "id.pem"
    path.write_bytes(pem(keys[0], old))
    azure.certificates.append(old)
    with opened(TYPE, PRINCIPAL | {"azureCertificateFile": str(path)}) as store:
        store.check()
        azure.certificates[:] = [new]
        azure.revoke()
        path.write_bytes(pem(keys[1], new))
        store.check()
        path.write_bytes(b"half writ")
        azure.claims_challenge = False
        azure.revoke()
        with pytest.raises(StoreUnavailable, match="azureCertificateFile: no certificate"):
            store.check()


def test_a_rotated_client_secret_that_is_a_reference(azure: Azure) -> None:
    azure.put("db", secret("db"))
    upstream = [secret("client-secret")]

    def look() -> list[Property]:
        return [Property(name, value) for name, value in login(azureClientSecret=upstream[0]).items()]

    def reopen(properties: list[Property]) -> SecretStore:
        return open_store(decode(Settings, properties)[0], StoreContext("store", deadline=2))

    with closing(FollowingStore("store", look, reopen)) as store:
        assert store.fetch("db").values == {"db": secret("db").encode()}
        azure.client_secrets = {secret("new-client-secret")}
        azure.revoke()
        upstream[0] = secret("new-client-secret")
        assert store.fetch("db").values == {"db": secret("db").encode()}


def test_a_login_that_fails_while_the_token_is_still_good_is_no_error(azure: Azure, expect_log: ExpectLog) -> None:
    expect_log(r"the token cannot be renewed, and is good for \d s more: login.*azureClientSecret is not a secret")
    azure.put("db", secret("db"))
    azure.token_ttl = 6
    with opened(TYPE, login()) as store:
        store.fetch("db")
        azure.client_secrets.clear()
        while azure.requests["login"] < 2:
            store.fetch("db")
            time.sleep(0.02)
        store.fetch("db")

        def until_its_end() -> None:
            while True:
                store.fetch("db")
                time.sleep(0.02)

        with pytest.raises(AccessDenied, match="azureClientSecret is not a secret"):
            until_its_end()
    assert azure.requests["login"] < 8


def test_a_failed_login_speaks_for_those_who_ask_next(azure: Azure) -> None:
    with opened(TYPE, login(azureClientSecret=secret("wrong"))) as store, ThreadPoolExecutor(8) as pool:
        for waiting in [pool.submit(store.fetch, f"secret-{number}") for number in range(40)]:
            assert isinstance(waiting.exception(), AccessDenied)
        assert azure.requests["login"] == 1
        azure.client_secrets.add(secret("wrong"))
        time.sleep(azure_login._PAUSE + 0.1)
        store.check()


_THREADS = 2 * CONCURRENCY  # as many as connections are kept: urllib3 warns of more


def test_one_thread_logs_in_and_the_others_wait_no_longer_than_they_may(azure: Azure) -> None:
    azure.login_faults.append(azure.hang)
    with opened(TYPE, login(), deadline=3.0) as store, ThreadPoolExecutor(_THREADS) as pool:
        started = time.monotonic()
        for waiting in [pool.submit(store.fetch, "db") for _ in range(_THREADS)]:
            assert isinstance(waiting.exception(), DeadlineExceeded)
        assert time.monotonic() - started < _THREADS * 3.0 / 2  # not one after the other
    assert azure.requests["login"] == 1


# --- workload identity ---


@pytest.fixture
def pod(azure: Azure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Be a pod with a workload identity. Returns the file of its token."""
    path = tmp_path / "azure-identity-token"
    path.write_text(secret("federated"), encoding="ascii")
    azure.federated.add(secret("federated"))
    monkeypatch.setenv("AZURE_CLIENT_ID", CLIENT)
    monkeypatch.setenv("AZURE_TENANT_ID", TENANT)
    monkeypatch.setenv("AZURE_FEDERATED_TOKEN_FILE", str(path))
    return path


def test_workload_identity(azure: Azure, pod: Path) -> None:
    # The component's own azureClientId is for other ways.
    works(NOTHING | {"azureClientId": USER_ASSIGNED})
    assert azure.bearers == [CLIENT]
    assert azure.requests["discovery"] == 0


def test_workload_identity_asks_the_authority_of_its_environment(
    azure: Azure, pod: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_AUTHORITY_HOST", "https://login.chinacloudapi.cn/")
    works({"vaultName": "myvault.vault.azure.cn"})
    assert azure.hosts == ["myvault.vault.azure.cn", "login.chinacloudapi.cn"]


def test_a_rotated_token_file(azure: Azure, pod: Path) -> None:
    with opened(TYPE, NOTHING) as store:
        store.check()
        azure.federated = {secret("rotated")}
        azure.revoke()
        pod.write_text(secret("rotated"), encoding="ascii")
        store.check()


def test_workload_identity_that_fails(azure: Azure, pod: Path) -> None:
    azure.federated.clear()
    error = failure(NOTHING)
    assert type(error) is AccessDenied
    assert "no federated credential of the application matches the token in AZURE_FEDERATED_TOKEN_FILE" in str(error)
    pod.unlink()
    error = failure(NOTHING)
    assert type(error) is StoreUnavailable
    assert str(error).endswith("the token in AZURE_FEDERATED_TOKEN_FILE: No such file or directory")


def test_workload_identity_without_its_environment(monkeypatch: pytest.MonkeyPatch, expect_log: ExpectLog) -> None:
    monkeypatch.setenv("AZURE_CLIENT_ID", CLIENT)
    told = refuses(NOTHING | {"azureAuthMethods": "wi"})
    assert "AZURE_TENANT_ID, AZURE_FEDERATED_TOKEN_FILE not set in the environment" in told
    monkeypatch.setenv("AZURE_TENANT_ID", TENANT)
    monkeypatch.setenv("AZURE_FEDERATED_TOKEN_FILE", "/x")
    monkeypatch.setenv("AZURE_AUTHORITY_HOST", "http://login.example")
    expect_log("workload identity: 'http://login.example' is an invalid authority")
    assert "'http://login.example' is an invalid authority" in refuses(NOTHING | {"azureAuthMethods": "wi"})


# --- managed identities ---


@pytest.fixture
def imds(azure: Azure, monkeypatch: pytest.MonkeyPatch) -> Azure:
    """Be a virtual machine."""
    monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", azure.address)
    return azure


def test_a_virtual_machine(imds: Azure) -> None:
    works(NOTHING)
    assert imds.bearers == ["machine"]
    assert (imds.requests["probe"], imds.requests["imds"]) == (1, 1)


def test_a_user_assigned_identity(imds: Azure) -> None:
    works(NOTHING | {"azureClientId": USER_ASSIGNED})
    assert imds.bearers == [USER_ASSIGNED]


def test_an_identity_that_is_not_assigned_is_a_refusal(imds: Azure) -> None:
    error = failure(NOTHING | {"azureClientId": CLIENT})
    assert type(error) is AccessDenied
    assert "azureClientId: the requested identity isn't assigned to this resource" in str(error)


def test_a_machine_without_an_identity_lets_the_next_one_try(
    imds: Azure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imds.assigned.clear()
    error = failure(NOTHING)
    assert type(error) is StoreUnavailable
    assert "managed identity: no identity is assigned to this resource; Azure CLI: az is not on the path" in str(error)
    imds.cli(tmp_path / "bin", token=imds.mint("developer"))
    works(NOTHING)
    assert imds.bearers == ["developer"]


def test_workload_identity_is_no_managed_identity(imds: Azure, pod: Path) -> None:
    works(NOTHING | {"azureAuthMethods": "mi"})
    assert imds.bearers == ["machine"]


def test_the_identity_endpoint_in_trouble(imds: Azure) -> None:
    for status, kind, told in (
        (500, StoreUnavailable, "server error (500)"),
        (429, StoreUnavailable, "too many requests (429)"),
        (410, StoreUnavailable, "the identity endpoint is being updated (410)"),
        (401, AccessDenied, "the login is refused (401)"),
    ):
        imds.login_faults.append(failing(status))
        error = failure(NOTHING)
        assert (type(error), str(error)) == (kind, f"list of secrets: 127.0.0.1: {told}")
    imds.login_faults.append(
        saying(b"unreachable " + secret().encode(), 403, {"Content-Type": "text/plain"})
    )  # Docker Desktop
    assert "managed identity: no response from the IMDS endpoint" in str(failure(NOTHING))
    imds.login_faults.append(imds.hang)
    assert type(failure(NOTHING, deadline=0.5)) is DeadlineExceeded


def test_an_endpoint_that_nobody_answers_at_is_given_up_quickly(azure: Azure, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=1) as silent:
        monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        error = failure(NOTHING, deadline=PATIENCE)
        assert time.monotonic() - started < PATIENCE / 2
    assert type(error) is StoreUnavailable
    assert "managed identity: no response from the IMDS endpoint" in str(error)
    started = time.monotonic()
    monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", "http://127.0.0.1:1")
    assert "no response from the IMDS endpoint" in str(failure(NOTHING, deadline=PATIENCE))
    assert time.monotonic() - started < PATIENCE / 2


def test_app_service(azure: Azure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IDENTITY_ENDPOINT", f"{azure.address}/appservice/token")
    monkeypatch.setenv("IDENTITY_HEADER", secret("identity-header"))
    works(NOTHING)
    works(NOTHING | {"azureClientId": USER_ASSIGNED})
    assert azure.bearers == ["machine", USER_ASSIGNED]
    error = failure(NOTHING | {"azureClientId": CLIENT})
    assert (type(error), "the login is refused (400)" in str(error)) == (AccessDenied, True)
    assert azure.requests["probe"] == 0


def test_azure_ml(azure: Azure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSI_ENDPOINT", f"{azure.address}/ml/token")
    monkeypatch.setenv("MSI_SECRET", secret("msi-secret"))
    works(NOTHING)
    works(NOTHING | {"azureClientId": USER_ASSIGNED})
    assert azure.bearers == ["machine", USER_ASSIGNED]


def test_cloud_shell(azure: Azure, monkeypatch: pytest.MonkeyPatch, expect_log: ExpectLog) -> None:
    monkeypatch.setenv("MSI_ENDPOINT", f"{azure.address}/shell/token")
    works(NOTHING)
    assert azure.bearers == ["machine"]
    expect_log("managed identity: client_id should not be set for cloud shell managed identity")
    assert "cloud shell" in refuses(NOTHING | {"azureClientId": USER_ASSIGNED})


def test_service_fabric(azure: Azure, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint, thumbprint = azure.service_fabric()
    monkeypatch.setenv("IDENTITY_ENDPOINT", endpoint)
    monkeypatch.setenv("IDENTITY_HEADER", secret("identity-header"))
    monkeypatch.setenv("IDENTITY_SERVER_THUMBPRINT", thumbprint)
    works(NOTHING)
    assert azure.bearers == ["machine"]
    assert type(failure(NOTHING | {"azureClientId": USER_ASSIGNED})) is AccessDenied
    monkeypatch.setenv("IDENTITY_SERVER_THUMBPRINT", "00" * 20)
    error = failure(NOTHING)
    assert (type(error), "managed identity: TLS: " in str(error)) == (TLSFailure, True)
    assert azure.requests["fabric"] == 1


@pytest.fixture
def arc_key() -> Iterator[Path]:
    folder = Path("/var/opt/azcmagent/tokens")
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        key = folder / "secretfs-test.key"
        key.write_text(secret("arc"), encoding="ascii")
    except OSError:
        cannot_test(f"the SDK looks nowhere but in {folder}, where only root may write")
    yield key
    key.unlink()
    for path in made:
        path.rmdir()


def test_azure_arc(azure: Azure, arc_key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    azure.arc_key = arc_key
    monkeypatch.setenv("IDENTITY_ENDPOINT", f"{azure.address}/arc/token")
    monkeypatch.setenv("IMDS_ENDPOINT", azure.address)
    works(NOTHING)
    assert azure.bearers == ["machine"]
    assert azure.requests["arc"] == 2
    azure.arc_key = arc_key.with_name("other.key")
    error = failure(NOTHING)
    assert (type(error), str(error)) == (
        AccessDenied,
        f"list of secrets: managed identity: {azure.arc_key}: No such file or directory",
    )


# --- the Azure CLI ---


def test_the_azure_cli(azure: Azure, tmp_path: Path) -> None:
    azure.cli(tmp_path / "bin", token=azure.mint("developer"))
    with opened(TYPE, NOTHING) as store:
        for _ in range(3):
            store.check()
    assert azure.bearers == ["developer"] * 3
    log = (tmp_path / "bin" / "az.log").read_text(encoding="ascii").splitlines()
    assert log == [
        f"account get-access-token --output json --resource https://vault.azure.net --tenant {TENANT}"
    ]  # one process for all


def test_a_token_for_somebody_else(azure: Azure, tmp_path: Path) -> None:
    azure.cli(tmp_path / "bin", token=azure.mint("developer", audience="https://management.azure.com"))
    error = failure(NOTHING | {"azureAuthMethods": "cli"})
    assert type(error) is AccessDenied
    assert str(error).endswith("the token is refused: it is for another audience, AKV10022 (401)")


def test_an_azure_cli_that_fails(azure: Azure, tmp_path: Path) -> None:
    only = NOTHING | {"azureAuthMethods": "cli"}
    for error, kind, told in (
        ("Please run 'az login' to setup account.", StoreUnavailable, "Azure CLI: az login is needed"),
        (
            f"AADSTS70043: expired {secret()}; run az login",
            AccessDenied,
            "Azure CLI: the login is refused (AADSTS70043)",
        ),
        (secret("what"), AccessDenied, "Azure CLI: the login is refused"),
    ):
        azure.cli(tmp_path / "bin", error=error, returncode=1)
        raised = failure(only)
        assert (type(raised), str(raised).endswith(told)) == (kind, True), raised
    azure.cli(tmp_path / "bin", token="", hangs=True)
    raised = failure(only, deadline=1)
    assert (type(raised), "az gives no answer" in str(raised)) == (StoreUnavailable, True)
    (tmp_path / "bin" / "az").chmod(stat.S_IRUSR)
    assert "az is not on the path" in str(failure(only))


# --- the chain ---


def chain(identity: Identity | None = None, methods: str = "") -> list[str]:
    transport = DeadlineTransport("store", 1)
    try:
        return [
            source.name for source in credential_sources("store", identity or Identity(CLOUDS[0]), methods, transport)
        ]
    finally:
        transport.shut()


def everything(keys: list[rsa.RSAPrivateKey]) -> Identity:
    text = pem(keys[0], certificate(keys[0])).decode()
    return Identity(CLOUDS[0], TENANT, CLIENT, secret("client-secret"), certificate=text)


def test_the_default_order(pod: Path, keys: list[rsa.RSAPrivateKey], monkeypatch: pytest.MonkeyPatch) -> None:
    names = [
        "client secret",
        "client certificate",
        "workload identity",
        "SPIFFE workload identity",
        "managed identity",
        "Azure CLI",
    ]
    assert chain(everything(keys)) == names
    assert chain(everything(keys), "  ") == names
    monkeypatch.setenv("IMDS_ENDPOINT", "http://127.0.0.1:1")
    assert chain(everything(keys)) == names[:-1]
    assert chain(everything(keys), "cli") == names[-1:]


def test_what_joins_the_chain() -> None:
    assert chain() == ["managed identity", "Azure CLI"]
    assert chain(Identity(CLOUDS[0], TENANT, "", secret())) == ["managed identity", "Azure CLI"]
    assert chain(Identity(CLOUDS[0], TENANT, CLIENT)) == ["SPIFFE workload identity", "managed identity", "Azure CLI"]


def test_chosen_methods(pod: Path, keys: list[rsa.RSAPrivateKey]) -> None:
    identity = everything(keys)
    expected = ["Azure CLI", "client secret", "managed identity"]
    assert chain(identity, " CLI, Creds ,managedIdentity") == expected
    assert chain(identity, "commandlineinterface,clientcredentials,mi") == expected
    assert chain(identity, "cert,clientcertificate") == ["client certificate"] * 2
    assert chain(identity, "wi,workloadidentity,spiffe,SpiffeWorkloadIdentity") == (
        ["workload identity"] * 2 + ["SPIFFE workload identity"] * 2
    )


@pytest.mark.parametrize("methods", ["None", "mi,none", "none,superauth"])
def test_no_method_at_all(methods: str) -> None:
    assert refuses(login(azureAuthMethods=methods)) == (
        "all Azure auth methods have been disabled with auth method 'None'"
    )


@pytest.mark.parametrize(("methods", "wrong"), [("mi,SUPERAUTH", "superauth"), ("mi,", ""), ("a,none", "a")])
def test_unknown_methods(methods: str, wrong: str) -> None:
    assert refuses(login(azureAuthMethods=methods)) == f"invalid Azure auth method: {wrong}"


def test_an_empty_chain() -> None:
    assert refuses(NOTHING | {"azureAuthMethods": "creds,cert,wi,spiffe"}) == (
        "no suitable token provider for Azure AD; errors: "
        "parameters clientId, clientSecret, and tenantId must all be present; missing client certificate; "
        "workload identity: AZURE_CLIENT_ID, AZURE_TENANT_ID, AZURE_FEDERATED_TOKEN_FILE not set in the environment; "
        "parameters clientId and tenantId must be present for SPIFFE workload identity"
    )


def test_spiffe_is_unavailable_and_says_so(azure: Azure) -> None:
    error = failure(PRINCIPAL | {"azureAuthMethods": "spiffe"})
    assert type(error) is StoreUnavailable
    assert "SPIFFE workload identity: there is no source of SPIFFE identities here" in str(error)


def test_a_refusal_ends_the_chain(imds: Azure) -> None:
    assert type(failure(login(azureClientSecret=secret("wrong")))) is AccessDenied
    assert imds.requests["probe"] == 0


def test_the_way_that_worked_is_kept(imds: Azure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imds.cli(tmp_path / "bin", token=imds.mint("developer"))
    with opened(TYPE, NOTHING) as store:
        store.check()
        imds.assigned.clear()
        imds.revoke()
        with pytest.raises(StoreUnavailable, match="no identity is assigned to this resource"):
            store.check()
    assert imds.bearers == ["machine"]


def test_no_time_left_is_no_refusal() -> None:
    transport = DeadlineTransport("store", 0.0)
    for source in credential_sources(
        "store", Identity(CLOUDS[0], TENANT, CLIENT, secret("client-secret")), "creds,mi,cli", transport
    ):
        with pytest.raises(DeadlineExceeded, match="no answer in time"):
            source.token(transport, "https://vault.azure.net/.default", {})
    transport.shut()
