"""``secretstores.azure.keyvault``: settings, names, values and failures, with the unmodified SDK."""

import email.utils
import logging
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from azure.core.exceptions import AzureError
from azure.core.rest import HttpRequest

from secretfs.errors import (
    AccessDenied,
    ConfigurationError,
    DeadlineExceeded,
    MalformedAnswer,
    SecretNotFound,
    StoreError,
    StoreUnavailable,
    TLSFailure,
)
from secretfs.settings import Property, decode
from secretfs.store import CachedRead, Names, RevalidatingStore, SecretStore
from secretfs.stores import load_store_type
from secretfs.stores.azure import store as azure_store
from secretfs.stores.azure.store import Settings
from secretfs.stores.azure.transport import DeadlineTransport, unanswered
from secretfs.testing import Seed, StoreContract
from tests.stores import test_docs
from tests.support.azure_fixtures import TYPE, azure, login
from tests.support.canary import CANARY, secret
from tests.support.failures import failure
from tests.support.opened import opened
from tests.support.servers.azure_keyvault import Azure, failing, throttled
from tests.support.servers.azure_logins import CLIENT, TENANT
from tests.support.servers.fake_vault import FakeVault
from tests.support.servers.http_server import Fault, dropped, saying
from tests.support.waiting import PATIENCE

__all__ = ["azure"]

NOWHERE = "http://127.0.0.1:1"
PAGE = "azure-key-vault.md"


@pytest.fixture
def store(azure: Azure) -> Iterator[SecretStore]:
    with opened(TYPE, login()) as store:
        yield store


# --- the contract ---


class TestContract(StoreContract):
    multi_valued = False
    has_folders = False  # a name takes no "/"
    binary_values = False  # a value is a JSON string
    mark = CANARY

    @pytest.fixture
    def store(self, azure: Azure) -> Iterator[SecretStore]:
        with opened(TYPE, login()) as store:
            yield store

    @pytest.fixture
    def seed(self, azure: Azure) -> Seed:
        return lambda name, values: void(azure.put(name, values[name].decode()))

    @pytest.fixture
    def denied(self, azure: Azure, store: SecretStore) -> tuple[SecretStore, str]:
        azure.put("denied", secret())
        azure.denies["get"] = "ForbiddenByRbac"
        return store, "denied"

    @pytest.fixture
    def unreachable(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[SecretStore]:
        monkeypatch.setenv("HTTPS_PROXY", NOWHERE)
        with opened(TYPE, login()) as store:
            yield store

    @pytest.fixture
    def reads(self, azure: Azure) -> Callable[[], int]:
        return lambda: azure.requests["get"]

    def can_hold(self, name: str) -> bool:
        # "CASE" is "case" to the server.
        return azure_store._NAME.fullmatch(name) is not None and name != "CASE"


def void(_: object) -> None:
    pass


# --- settings ---


@pytest.mark.parametrize(
    ("name", "environment", "address"),
    [
        ("foo", "", "https://foo.vault.azure.net"),
        ("foo", "azurepublic", "https://foo.vault.azure.net"),
        ("foo", "AZURECHINACLOUD", "https://foo.vault.azure.cn"),
        ("foo", "AzureChina", "https://foo.vault.azure.cn"),
        ("foo", "AzureUSGovernmentCloud", "https://foo.vault.usgovcloudapi.net"),
        ("foo", "azureusgovernment", "https://foo.vault.usgovcloudapi.net"),
        ("foo.vault.azure.cn", "", "https://foo.vault.azure.cn"),
        ("https://foo.vault.usgovcloudapi.net", "", "https://foo.vault.usgovcloudapi.net"),
        ("foo.vault.azure.net", "AzureChinaCloud", "https://foo.vault.azure.net"),
        ("foo.vault.azure.net", "no such cloud", "https://foo.vault.azure.net"),
    ],
)
def test_the_vault_and_its_cloud(name: str, environment: str, address: str) -> None:
    found, cloud = azure_store.vault(Settings(vault_name=name, environment=environment))
    assert f"https://{found}.{cloud.suffix}" == address


@pytest.mark.parametrize(
    "name",
    [
        "foo.vault.azure.net/",
        "https://foo",
        "foo.example",
        "foo.vault.microsoftazure.de",
        "a/b",
        "localhost:1/x?",
        "..",
    ],
)
def test_what_is_no_name_of_a_vault(name: str) -> None:
    with (
        pytest.raises(ConfigurationError, match="store: vaultName is neither the name of a vault nor its host name"),
        opened(TYPE, login(vaultName=name)),
    ):
        pass


def test_an_unknown_cloud() -> None:
    with (
        pytest.raises(ConfigurationError, match="invalid Azure cloud: AzureGermanCloud"),
        opened(TYPE, login(azureEnvironment="AzureGermanCloud")),
    ):
        pass


def test_every_name_of_every_property() -> None:
    given = {
        "VAULTNAME": "v", "spntenantid": "t", "CLIENTID": "c", "spnClientSecret": "s", "spnCertificateFile": "f",
        "spnCertificate": "p", "SPNCertificatePassword": "w", "azureCloud": "e", "entraIDAuthMethods": "m",
    }  # fmt: skip
    settings, notices = decode(Settings, [Property(name, value) for name, value in given.items()])
    assert settings == Settings("v", "t", "c", "s", "f", "p", "w", "e", "m")
    assert notices == []
    for alias in ("azureADAuthMethods", "microsoftEntraIDAuthMethods"):
        properties = [Property("vaultName", "v"), Property(alias, "mi"), Property("tenantId", "t")]
        assert decode(Settings, properties)[0].auth_methods == "mi"


def test_settings_have_no_repr() -> None:
    assert CANARY not in repr(decode(Settings, [Property(name, value) for name, value in login().items()]))


@pytest.mark.parametrize(
    ("environment", "vault", "authority"),
    [
        ("", "myvault.vault.azure.net", "login.microsoftonline.com"),
        ("AzureChinaCloud", "myvault.vault.azure.cn", "login.chinacloudapi.cn"),
        ("AzureUSGovernmentCloud", "myvault.vault.usgovcloudapi.net", "login.microsoftonline.us"),
    ],
)
def test_each_cloud_has_its_hosts_and_its_audience(azure: Azure, environment: str, vault: str, authority: str) -> None:
    azure.put("db", secret("db"))
    with opened(TYPE, login(azureEnvironment=environment)) as store:
        assert store.fetch("db").values == {"db": secret("db").encode()}
    assert azure.hosts == [vault, authority]


# --- names and values ---


def test_names_are_the_enabled_secrets_of_all_pages(azure: Azure, store: SecretStore) -> None:
    names = {f"secret-{number}" for number in range(80)}
    for name in names:
        azure.put(name, secret(name))
    azure.put("disabled", secret(), enabled=False)
    azure.put("unsaid", secret(), absent=True)
    azure.put("expired", secret(), exp=1)
    azure.put("later", secret(), nbf=1 << 33)
    azure.put_certificate("certificate", secret())
    assert store.names("").secrets == names | {"expired", "later", "certificate"}
    assert azure.requests["list"] == 4
    assert azure.requests["get"] == 0
    assert azure.requests["challenge"] == 1
    assert store.names("folder") == Names()


def test_what_has_not_changed_is_told_by_a_listing(azure: Azure, store: SecretStore) -> None:
    assert isinstance(store, RevalidatingStore)
    now, before = time.time(), int(time.time()) - 3600
    for number in range(30):
        azure.put(f"old-{number}", secret(str(number)), updated=before)
    azure.put("recent", secret("recent"))
    known = {name: CachedRead(store.fetch(name), now) for name, _ in azure.listed()}
    assert store.unchanged(known) == frozenset()  # what a listing costs is not known yet
    store.names("")
    azure.put("old-1", secret("new"))
    azure.change("old-2", enabled=False)
    azure.delete("old-3")
    azure.requests.clear()
    assert store.unchanged(known) == known.keys() - {"old-1", "old-2", "old-3", "recent"}
    assert store.unchanged({name: known[name] for name in ("old-5", "old-6")}) == frozenset()  # a listing is two pages
    assert azure.requests == {"list": 2}


def test_a_listing_that_fails_is_not_tried_again_to_compare(azure: Azure, store: SecretStore) -> None:
    assert isinstance(store, RevalidatingStore)
    for number in range(3):
        azure.put(f"s{number}", secret(str(number)), updated=1)
    known = {name: CachedRead(store.fetch(name), time.time()) for name, _ in azure.listed()}
    store.names("")
    azure.faults.append(failing(500))
    with pytest.raises(StoreUnavailable):
        store.unchanged(known)
    assert store.unchanged(known) == frozenset()
    store.names("")
    assert store.unchanged(known) == known.keys()


def test_empty_pages_are_not_the_end(azure: Azure, store: SecretStore) -> None:
    azure.empty_pages = True
    azure.page = 2
    for number in range(5):
        azure.put(f"secret-{number}", secret())
    assert len(store.names("").secrets) == 5
    assert azure.requests["list"] == 6


def test_an_empty_vault(azure: Azure, store: SecretStore) -> None:
    store.check()
    assert store.names("") == Names()


def test_the_newest_version_with_its_id_and_time(azure: Azure, store: SecretStore) -> None:
    azure.put("db", secret("old"))
    newest = azure.put("db", secret("new"), updated=1_700_000_000)
    fetched = store.fetch("db")
    assert fetched.values == {"db": secret("new").encode()}
    assert (fetched.version, fetched.modified) == (newest.id, 1_700_000_000.0)


def test_null_is_nothing(azure: Azure, store: SecretStore) -> None:
    azure.put("null", None)
    assert store.fetch("null").values == {"null": b""}


def test_another_case_is_the_same_secret_to_the_server_and_one_name_to_us(azure: Azure, store: SecretStore) -> None:
    azure.put("Db-Password", secret("db"))
    assert store.names("").secrets == {"Db-Password"}
    assert store.fetch("DB-PASSWORD").values == {"DB-PASSWORD": secret("db").encode()}


def test_expired_and_future_secrets_are_served(azure: Azure, store: SecretStore) -> None:
    azure.put("expired", secret("old"), exp=1)
    azure.put("later", secret("new"), nbf=1 << 33)
    assert store.fetch("expired").values == {"expired": secret("old").encode()}
    assert store.fetch("later").values == {"later": secret("new").encode()}


def test_disabled_and_deleted_are_not_there(azure: Azure, store: SecretStore) -> None:
    for name in ("disabled", "deleted"):
        azure.put(name, secret())
        store.fetch(name)
    azure.change("disabled", enabled=False)
    azure.delete("deleted")
    with pytest.raises(SecretNotFound, match=r"secret disabled: https://myvault.*: the secret is disabled \(403\)"):
        store.fetch("disabled")
    with pytest.raises(SecretNotFound, match=r"secret deleted: https://myvault.*: not found \(404\)"):
        store.fetch("deleted")
    assert store.names("") == Names()


def test_a_name_that_key_vault_does_not_take_is_not_asked_for(azure: Azure, store: SecretStore) -> None:
    for name in ("under_score", "a.b", "x" * 128, "ä", "db\n", "db/../other", "db?x=y"):
        with pytest.raises(SecretNotFound, match="no name that Key Vault takes"):
            store.fetch(name)
    assert azure.requests == {}


# --- rights ---


def test_the_right_to_read_is_enough(azure: Azure, store: SecretStore) -> None:
    azure.put("db", secret("db"))
    for code in ("ForbiddenByRbac", "AccessDenied"):
        azure.denies["list"] = code
        store.check()
        assert store.fetch("db").values == {"db": secret("db").encode()}
        with pytest.raises(AccessDenied, match=r"list of secrets: .*lets this identity do that"):
            store.names("")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("ForbiddenByRbac", "no role assignment lets this identity do that (403)"),
        ("AccessDenied", "no access policy of the vault lets this identity do that (403)"),
        ("ForbiddenByFirewall", "the vault's firewall does not let this address in (403)"),
        ("ForbiddenByConnection", "the vault takes no requests from public networks (403)"),
        (secret("code"), "permission denied (403)"),
        ("", "permission denied (403)"),
    ],
)
def test_refusals(azure: Azure, store: SecretStore, code: str, reason: str) -> None:
    azure.put("db", secret())
    azure.denies = {"get": code, "list": code}
    error = failure(store)
    assert type(error) is AccessDenied
    assert str(error) == f"secret db: https://myvault.vault.azure.net: {reason}"
    if "this identity" not in reason:
        with pytest.raises(AccessDenied):
            store.check()


# --- tokens that are refused ---


@pytest.mark.parametrize("claims", [True, False])
def test_a_token_that_is_refused_before_its_end_is_no_error(azure: Azure, store: SecretStore, claims: bool) -> None:  # noqa: FBT001
    azure.put("db", secret("db"))
    store.fetch("db")
    azure.claims_challenge = claims
    azure.revoke()
    assert store.fetch("db").values == {"db": secret("db").encode()}
    assert azure.requests["login"] == 2


def test_all_threads_that_are_refused_log_in_once(azure: Azure, store: SecretStore) -> None:
    names = [f"secret-{number}" for number in range(8)]
    for name in names:
        azure.put(name, secret(name))
    with ThreadPoolExecutor(8) as pool:
        assert [list(fetched.values) for fetched in pool.map(store.fetch, names)] == [[name] for name in names]
        assert azure.requests["login"] == 1
        azure.claims_challenge = False
        azure.revoke()
        assert len(list(pool.map(store.fetch, names))) == 8
    # One that was refused with the first token may come to it after another one has logged in with the second.
    assert azure.requests["login"] <= 3


def test_a_token_that_is_refused_again_and_again(azure: Azure, store: SecretStore) -> None:
    azure.put("db", secret())
    azure.token_ttl = -1
    azure.claims_challenge = False
    error = failure(store)
    assert type(error) is AccessDenied
    assert "the token is refused: AKV10046 (401)" in str(error)
    assert azure.requests["login"] == 2


def test_a_vault_that_wants_a_token_for_somebody_else(azure: Azure, store: SecretStore) -> None:
    azure.put("db", secret())
    azure.resource = "https://management.azure.com"
    assert type(failure(store)) is MalformedAnswer
    assert azure.requests["login"] == 0


def test_a_vault_of_another_tenant(azure: Azure, store: SecretStore) -> None:
    azure.tenant = "00000000-0000-0000-0000-00000000abcd"
    error = failure(store)
    assert type(error) is AccessDenied
    assert str(error).endswith("the token is refused: it is from another tenant, AKV10032 (401)")
    azure.tenant = TENANT  # the vault is moved
    store.check()


# --- a vault in trouble ---


def test_throttled_with_a_pause_that_is_short_enough(azure: Azure, store: SecretStore) -> None:
    azure.put("db", secret("db"))
    azure.faults += [throttled(Retry_After="0"), throttled(Retry_After="1")]
    started = time.monotonic()
    assert store.fetch("db").values == {"db": secret("db").encode()}
    assert time.monotonic() - started >= 1.0


def test_throttled_until_a_date(azure: Azure, store: SecretStore) -> None:
    azure.put("db", secret("db"))
    azure.faults.append(throttled(Retry_After=email.utils.formatdate(time.time() + 0.5, usegmt=True)))
    assert store.fetch("db").values == {"db": secret("db").encode()}


@pytest.mark.parametrize("headers", [{}, {"Retry_After": "30"}, {"Retry_After": "soon"}, {"Retry_After": "-1"}])
def test_throttled_for_too_long(azure: Azure, store: SecretStore, headers: dict[str, str]) -> None:
    store.check()
    azure.faults.append(throttled(**headers))  # once: a second request would be answered
    error = failure(store)
    assert type(error) is StoreUnavailable
    assert "too many requests (429)" in str(error)


def test_throttled_while_being_closed(azure: Azure) -> None:
    with opened(TYPE, login(), deadline=30) as store, ThreadPoolExecutor(1) as pool:
        store.check()
        azure.faults.append(throttled(Retry_After="20"))
        waiting = pool.submit(store.fetch, "db")
        while azure.faults:
            time.sleep(0.01)
        store.close()
        assert isinstance(waiting.exception(timeout=PATIENCE), StoreUnavailable)


@pytest.mark.parametrize(
    ("fault", "kind", "reason"),
    [
        (failing(500), StoreUnavailable, "internal server error (500)"),
        (failing(503, **{"Retry-After": "20"}), StoreUnavailable, "service unavailable (503)"),
        (failing(302, Location="https://elsewhere.example/"), StoreUnavailable, "it sends us elsewhere"),
        (failing(404), MalformedAnswer, "unexpected status (404)"),
        (failing(400), MalformedAnswer, "unexpected status (400)"),
        (saying(f"<html>{secret()}".encode()), MalformedAnswer, "the answer is not JSON"),
        (saying(f'["{secret()}"]'.encode()), MalformedAnswer, "not an answer of Key Vault"),
        (saying(b'{"value": "' + secret().encode() + b'", "id": 7}'), MalformedAnswer, "not an answer of Key Vault"),
        (saying(b'{"value": "' + secret().encode() + b'"}'), MalformedAnswer, "not an answer of Key Vault"),
        (saying(b"x", 200, {"Content-Encoding": "gzip"}), MalformedAnswer, "the answer is compressed"),
        (
            saying(b"{}", 200, {"Content-Length": "100", "Connection": "close"}),
            StoreUnavailable,
            "the connection broke",
        ),
    ],
)
def test_strange_answers(azure: Azure, store: SecretStore, fault: Fault, kind: type[StoreError], reason: str) -> None:
    store.check()
    azure.faults += [fault, fault]
    azure.latency = 0
    error = failure(store)
    assert (type(error), reason in str(error)) == (kind, True), str(error)


def test_a_connection_that_was_closed_while_idle_is_no_error(azure: Azure, store: SecretStore) -> None:
    azure.put("db", secret("db"))
    store.check()
    azure.faults.append(dropped)
    assert store.fetch("db").values == {"db": secret("db").encode()}
    azure.faults += [dropped, dropped]
    assert "the connection broke" in str(failure(store))


def test_a_vault_that_hangs(azure: Azure) -> None:
    with opened(TYPE, login(), deadline=2.0) as store:
        store.check()
        for call in (lambda: store.fetch("db"), store.check, lambda: store.names("")):
            azure.faults.append(azure.hang)  # once: a second request would be answered
            with pytest.raises(DeadlineExceeded, match=r"myvault\.vault\.azure\.net: no answer in time"):
                call()


def test_a_listing_has_one_deadline_for_all_its_pages(azure: Azure) -> None:
    azure.page, azure.latency = 1, 0.2
    for number in range(40):
        azure.put(f"secret-{number}", secret())
    with opened(TYPE, login(), deadline=4.0) as store:
        with pytest.raises(DeadlineExceeded):
            store.names("")
        assert 0 < azure.requests["list"] < 40


# --- whom it trusts, and what it takes from the environment ---


def test_an_authority_that_nobody_knows(
    azure: Azure, monkeypatch: pytest.MonkeyPatch, expect_log: Callable[[str], None]
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(azure.ca))
    with opened(TYPE, login()) as store:
        assert "TLS: the server's certificate is refused: " in str(failure(store))
    azure.complaints.clear()


def test_passwords_for_hosts_are_not_used(azure: Azure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text(f"default login me password {secret('netrc')}\n", encoding="ascii")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    azure.put("db", secret("db"))
    with opened(TYPE, login()) as store:
        assert store.fetch("db").values == {"db": secret("db").encode()}


def test_no_proxy_is_heeded(azure: Azure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "vault.azure.net")
    with opened(TYPE, login(vaultName="no-such-vault-of-secretfs")) as store:
        assert type(failure(store)) in (StoreUnavailable, DeadlineExceeded)
    assert azure.hosts == []


def test_a_proxy_that_is_down(azure: Azure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", NOWHERE)
    with opened(TYPE, login()) as store:
        assert str(failure(store)).endswith("the proxy does not connect us")


def unanswered_by(url: str) -> StoreError:
    """Send a request directly, and return what came of it."""
    transport = DeadlineTransport("store", 0.5)
    with pytest.raises((AzureError, StoreError)):
        transport.send(HttpRequest("GET", url))
    transport.shut()
    return unanswered(transport.outcome)


def test_servers_that_are_not_there_or_not_what_they_should_be() -> None:
    error = unanswered_by("https://127.0.0.1:1/")
    assert (type(error), str(error)) == (StoreUnavailable, "127.0.0.1: cannot connect: Connection refused")
    with FakeVault() as server:
        server.respond(200, b"plain text")
        error = unanswered_by(server.address.replace("http", "https"))
        assert (type(error), "127.0.0.1: TLS: " in str(error)) == (TLSFailure, True)


def test_a_body_that_stops_in_the_middle(azure: Azure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HTTPS_PROXY")
    azure.login_faults.append(saying(b"{", 200, {"Content-Length": "100"}))
    error = unanswered_by(f"{azure.address}/shell/token")
    assert (type(error), str(error)) == (DeadlineExceeded, "127.0.0.1: no answer in time")


# --- what it costs, and what it says ---


def test_274_secrets_in_parallel(azure: Azure) -> None:
    names = [f"secret-{number}" for number in range(274)]
    for name in names:
        azure.put(name, secret(name))
    with opened(TYPE, login()) as store, ThreadPoolExecutor(8) as pool:
        store.check()
        azure.latency = 0.05
        fetched = dict(zip(names, pool.map(store.fetch, names), strict=True))
    assert all(fetched[name].values == {name: secret(name).encode()} for name in names)
    assert 1 + 4 < len(azure.hosts) <= 1 + 8  # many at once, and connections are kept


def test_not_even_the_sdks_debug_logs_show_a_secret(azure: Azure, store: SecretStore) -> None:
    azure.put("db", secret("db"))
    loggers = [logging.getLogger(name) for name in ("azure", "msal")]
    assert [logger.level for logger in loggers] == [logging.CRITICAL + 1] * 2
    try:
        for logger in loggers:
            logger.setLevel(logging.DEBUG)
        store.fetch("db")
        store.names("")
    finally:
        azure_store.quiet_sdks()


def test_headers_that_cannot_be_parsed_are_not_logged(azure: Azure, store: SecretStore) -> None:
    store.check()
    azure.faults.append(saying(b"{}", 200, {f"X-Key\r\n{secret()}\r\nX-More": "1"}))
    failure(store)


def test_failures_are_not_logged_by_the_sdks(azure: Azure) -> None:
    with opened(TYPE, login(azureClientSecret=secret("wrong"))) as store:
        failure(store)


def test_a_missing_sdk_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "azure"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "secretfs.stores.azure.store")
    with pytest.raises(ConfigurationError, match=r"pip install secretfs-fuse\[azure\]"):
        load_store_type(TYPE)


# --- the page ---


def test_the_page_says_what_the_store_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(test_docs.PAGES, TYPE, PAGE)
    test_docs.test_the_table_of_properties_is_what_the_store_reads(TYPE)
    test_docs.test_the_yaml_is_a_component_without_a_mistake(TYPE)


def test_the_identity_is_the_one_that_was_given(azure: Azure, store: SecretStore) -> None:
    store.check()
    assert azure.bearers == [CLIENT]
