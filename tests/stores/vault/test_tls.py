"""``secretstores.hashicorp.vault``: whom it trusts."""

import json
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme

from secretfs.errors import ConfigurationError, MalformedAnswer, StoreUnavailable
from secretfs.stores._http.trust import tls_context
from tests.support.canary import secret
from tests.support.opened import opened
from tests.support.servers.fake_vault import FakeVault
from tests.support.servers.openbao import OpenBao
from tests.support.vault_fixtures import Folder, kv, openbao_server, openbao_tls_server

__all__ = ["kv", "openbao_server", "openbao_tls_server"]

TYPE = "secretstores.hashicorp.vault"
REFUSED = "TLS: the server's certificate is refused: "


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="session")
def stranger() -> str:
    return pem(trustme.CA())


@pytest.fixture
def folder(openbao_tls_server: OpenBao) -> Folder:
    folder = Folder(openbao_tls_server, "dapr")
    folder.put("db", {"password": secret()})
    return folder


def pem(authority: trustme.CA) -> str:
    return authority.cert_pem.bytes().decode()


@contextmanager
def https(certificate: trustme.LeafCert) -> Iterator[tuple[FakeVault, list[str | None]]]:
    """Run a server with a certificate; it notes the names that clients ask for."""
    names: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    context.sni_callback = lambda _socket, name, _context: names.append(name)
    with FakeVault(context) as server:
        server.respond(200, json.dumps({"data": {"data": {"key": secret()}, "metadata": {"version": 1}}}).encode())
        yield server, names


def reads(address: str, **properties: str) -> bool:
    """Read a secret and say whether it came."""
    with opened(TYPE, {"vaultAddr": address, "vaultToken": secret("token"), **properties}) as store:
        return set(store.fetch("db").values.values()) == {secret().encode()}


def refusal(address: str, **properties: str) -> str:
    with pytest.raises(StoreUnavailable) as caught:
        reads(address, **properties)
    return str(caught.value)


def trusting(folder: Folder, **properties: str) -> dict[str, str]:
    return {"address": folder.server.address, "vaultToken": folder.server.token, **properties}


# --- which authorities ---


def test_ca_pem(folder: Folder) -> None:
    assert reads(**trusting(folder, caPem=folder.server.ca.read_text()))


def test_ca_cert(folder: Folder) -> None:
    assert reads(**trusting(folder, caCert=str(folder.server.ca)))


def test_ca_path_is_a_folder_with_subfolders(folder: Folder, tmp_path: Path, stranger: str) -> None:
    for name in ("a", "the-same-again"):
        (tmp_path / name).write_text(stranger, encoding="ascii")
    (tmp_path / "deeper" / "still").mkdir(parents=True)
    (tmp_path / "deeper" / "still" / "any-name.txt").write_text(
        "Vault:\n" + folder.server.ca.read_text(), encoding="ascii"
    )
    assert reads(**trusting(folder, caPath=str(tmp_path)))


def test_ca_pem_comes_before_ca_path_before_ca_cert(folder: Folder, tmp_path: Path, stranger: str) -> None:
    ca = folder.server.ca
    (tmp_path / "stranger").write_text(stranger, encoding="ascii")
    assert reads(**trusting(folder, caPem=ca.read_text(), caPath="/nowhere", caCert="/nowhere"))
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / "ca").write_bytes(ca.read_bytes())
    assert reads(**trusting(folder, caPath=str(tmp_path / "good"), caCert="/nowhere"))
    (tmp_path / "good" / "ca").unlink()
    assert REFUSED in refusal(**trusting(folder, caPath=str(tmp_path), caCert=str(ca)))
    assert REFUSED in refusal(**trusting(folder, caPem=stranger, caPath=str(ca), caCert=str(ca)))


def test_a_given_authority_replaces_the_systems(folder: Folder, monkeypatch: pytest.MonkeyPatch, stranger: str) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(folder.server.ca))
    assert reads(**trusting(folder))  # OpenSSL and Go both read this variable: it says what "the system's" are
    assert REFUSED in refusal(**trusting(folder, caPem=stranger))


def test_without_an_authority_the_systems_count(folder: Folder) -> None:
    text = refusal(**trusting(folder))
    assert text.startswith(f"secret db: {folder.server.address}: {REFUSED}")
    assert "unable to get local issuer certificate" in text


def test_other_variables_do_not_count(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "VAULT_CACERT", "VAULT_CAPATH"):
        monkeypatch.setenv(name, str(folder.server.ca))
    monkeypatch.setenv("VAULT_SKIP_VERIFY", "true")
    assert REFUSED in refusal(**trusting(folder))


def test_an_intermediate_authority_is_enough(authority: trustme.CA) -> None:
    intermediate = authority.create_child_ca()
    with https(intermediate.issue_cert("127.0.0.1")) as (server, _):
        assert reads(server.address, caPem=pem(intermediate))
        assert reads(server.address, caPem=pem(authority))


def test_the_servers_own_certificate_is_enough(authority: trustme.CA) -> None:
    certificate = authority.issue_cert("127.0.0.1")
    with https(certificate) as (server, _):
        assert reads(server.address, caPem=certificate.cert_chain_pems[0].bytes().decode())


@pytest.mark.parametrize("field", ["caPem", "caCert", "caPath"])
@pytest.mark.parametrize(
    "text", ["", "no certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_a_bad_authority_does_not_open(field: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "ca").write_text(text, encoding="ascii")
    value = {"caPem": text or " ", "caCert": str(tmp_path / "ca"), "caPath": str(tmp_path)}[field]
    with pytest.raises(ConfigurationError, match="store: couldn't read PEM"):
        reads("https://127.0.0.1", **{field: value})


def test_an_authority_that_is_not_there_does_not_open(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="store: couldn't read PEM: /nowhere: No such file or directory"):
        reads("https://127.0.0.1", caCert="/nowhere")
    with pytest.raises(ConfigurationError, match=r"caPath: couldn't read PEM: .* holds no file"):
        reads("https://127.0.0.1", caPath=str(tmp_path))


# --- which name ---


def test_the_host_must_be_in_the_certificate(authority: trustme.CA) -> None:
    with https(authority.issue_cert("vault.example")) as (server, names):
        text = refusal(server.address, caPem=pem(authority))
        assert "IP address mismatch, certificate is not valid for '127.0.0.1'" in text
        assert reads(server.address, caPem=pem(authority), tlsServerName="vault.example")
        assert names[-1] == "vault.example"


def test_another_server_name(folder: Folder) -> None:
    ca = folder.server.ca.read_text()
    assert reads(**trusting(folder, caPem=ca, tlsServerName="localhost"))
    text = refusal(**trusting(folder, caPem=ca, tlsServerName="elsewhere.example"))
    assert "Hostname mismatch, certificate is not valid for 'elsewhere.example'" in text


@pytest.mark.parametrize("name", [".example", "a" * 64 + ".example", "\u2260" * 70])
def test_a_server_name_must_be_one(name: str) -> None:
    with pytest.raises(ConfigurationError, match="store: tlsServerName is not a host name"):
        reads("https://127.0.0.1", tlsServerName=name)


def test_a_common_name_is_no_name(authority: trustme.CA) -> None:
    with https(authority.issue_cert(common_name="vault.example")) as (server, _):
        assert REFUSED in refusal(server.address, caPem=pem(authority), tlsServerName="vault.example")


# --- not at all ---


def test_skip_verify(folder: Folder, expect_log: Callable[[str], None]) -> None:
    expect_log(r"store: skipVerify is true: any server that answers for https://127\.0\.0\.1:\d+ gets the token")
    assert reads(**trusting(folder, skipVerify="true"))
    assert reads(**trusting(folder, skipVerify="true", caPem="ignored", caCert="/ignored", tlsServerName="ignored"))
    assert REFUSED in refusal(**trusting(folder, skipVerify="True"))


def test_plain_text_for_a_tls_server(folder: Folder) -> None:
    with pytest.raises(MalformedAnswer, match="the server speaks TLS, so the address must start with https://"):
        reads(folder.server.address.replace("https", "http"))


def test_tls_for_a_plain_text_server(kv: Folder) -> None:
    assert "TLS: wrong version number" in refusal(kv.server.address.replace("http", "https"))


def test_nothing_older_than_tls_1_2() -> None:
    assert tls_context(None).minimum_version == ssl.TLSVersion.TLSv1_2
    assert tls_context(None, verify=False).minimum_version == ssl.TLSVersion.TLSv1_2
