"""``secretstores.hashicorp.vault``: certificates of a PKI engine, on a real OpenBao."""

import threading

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from secretfs.errors import AccessDenied, ConfigurationError, MalformedAnswer, SecretNotFound
from secretfs.store import Names, WatchingStore, reads_have_effects
from tests.support.opened import opened
from tests.support.pki_engine import Pki, declared, matches, pki
from tests.support.vault_auth import count, userpass
from tests.support.vault_auth import policy as allow
from tests.support.vault_fixtures import openbao_server
from tests.support.waiting import PATIENCE

__all__ = ["openbao_server", "pki"]

TYPE = "secretstores.hashicorp.vault"
WEB = {"common_name": "web.example", "alt_names": "www.web.example", "ip_sans": ["192.0.2.1", "192.0.2.2"]}


def test_a_certificate_with_its_key_and_chain(pki: Pki) -> None:
    with opened(TYPE, pki.properties(), annotations=declared(web=WEB)) as store:
        store.check()
        assert store.multi_valued
        assert reads_have_effects(store)
        assert store.names("") == Names(frozenset({"web"}))
        assert pki.issued("web") == 0
        first = store.fetch("web")
        assert set(first.values) == {"certificate", "private_key", "ca_chain", "issuing_ca", "serial_number"}
        assert matches(first.values["certificate"], first.values["private_key"])
        certificate = x509.load_pem_x509_certificate(first.values["certificate"])
        assert certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "web.example"
        alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert alternatives.get_values_for_type(x509.DNSName) == ["web.example", "www.web.example"]
        assert len(alternatives.get_values_for_type(x509.IPAddress)) == 2
        chain = x509.load_pem_x509_certificates(first.values["ca_chain"])
        assert [authority.subject for authority in chain] == [certificate.issuer, chain[0].issuer]
        assert x509.load_pem_x509_certificate(first.values["issuing_ca"]) == chain[0]
        assert first.version == first.values["serial_number"].decode()
        assert store.fetch("web") is first
        assert pki.issued("web") == 1


def test_two_certificates_of_one_role(pki: Pki) -> None:
    certificates = declared(one={"role": "web", "common_name": "one"}, two={"role": "web", "common_name": "two"})
    with opened(TYPE, pki.properties(), annotations=certificates) as store:
        assert store.names("").secrets == {"one", "two"}
        assert store.fetch("one").version != store.fetch("two").version
        assert pki.issued("web") == 2


def test_only_what_is_declared_can_be_issued(pki: Pki) -> None:
    pki.role("other")
    pki.server.forget()
    with opened(TYPE, pki.properties(), annotations=declared(web=WEB)) as store:
        for name in ("other", "Web", "web/", "../web"):
            with pytest.raises(SecretNotFound):
                store.fetch(name)
        assert store.names("web") == Names()
    assert pki.server.requests() == []


@pytest.mark.parametrize(
    ("certificate", "reason"),
    [({"common_name": "x", "role": "nope"}, "refused"), ({}, "refused"), ({"common_name": "x", "ttl": "?"}, "refused")],
)
def test_what_the_engine_refuses(pki: Pki, certificate: dict[str, object], reason: str) -> None:
    with (
        opened(TYPE, pki.properties(), annotations=declared(web=certificate)) as store,
        pytest.raises(AccessDenied, match=rf"secret web: .*{reason} \(400\)"),
    ):
        store.fetch("web")


def test_the_right_to_issue_is_enough(pki: Pki) -> None:
    login = userpass(pki.server, allow(pki.server, **{f"{pki.path}/issue/web": "update"}))
    properties = {**pki.properties(), **login}
    del properties["vaultToken"]
    with opened(TYPE, properties, annotations=declared(web=WEB)) as store:
        store.check()
        assert store.names("").secrets == {"web"}
        assert store.fetch("web").values["certificate"]


def test_a_certificate_is_replaced_before_it_ends(pki: Pki) -> None:
    """Whoever watches is told, also if nobody has asked for it for long: that issues nothing."""
    pki.role("short", "3s")
    changed = threading.Event()
    with opened(TYPE, pki.properties(), annotations=declared(short={"common_name": "x"})) as store:
        assert isinstance(store, WatchingStore)
        store.watch(lambda names: changed.set() if names == {"short"} else None)
        first = store.fetch("short")
        assert changed.wait(PATIENCE)
        assert pki.issued("short") == 1
        second = store.fetch("short")
        assert second.version != first.version
        assert pki.issued("short") == 2


@pytest.mark.parametrize("leased", [True, False])
def test_what_has_a_lease_is_revoked_at_the_end(pki: Pki, *, leased: bool) -> None:
    pki.role("mine", leased=leased)
    with opened(TYPE, pki.properties(), annotations=declared(mine={"common_name": "x"})) as store:
        serial = store.fetch("mine").values["serial_number"].decode()
        assert not pki.revoked(serial)
    assert pki.revoked(serial) == leased
    assert count(pki.server, "sys/leases/revoke") == leased


def test_text_is_one_file(pki: Pki) -> None:
    with opened(TYPE, pki.properties(vaultValueType="text"), annotations=declared(web=WEB)) as store:
        assert store.fetch("web").values["web"].startswith(b'{"ca_chain":[')


def test_check_wants_an_engine_of_type_pki(pki: Pki) -> None:
    with (
        opened(TYPE, pki.properties(enginePath="secret"), annotations=declared(web=WEB)) as store,
        pytest.raises(MalformedAnswer, match="enginePath secret: the engine is not of type pki"),
    ):
        store.check()


# --- what is declared ---

NOWHERE = {"vaultAddr": "http://127.0.0.1:1", "vaultToken": "t", "vaultEngineType": "pki", "enginePath": "pki"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a mapping, such as NAME: {common_name: app.example}"),
        ("[]", "not a mapping"),
        ("{}", "it declares no certificate"),
        ("web: web.example", "web: not a mapping"),
        ("{web", "not YAML"),
        ("web: {comon_name: x}", "web: unknown parameter comon_name (did you mean common_name?)"),
        ("web: {format: der}", "web: unknown parameter format"),
        ("web: {common_name: {a: b}}", "web.common_name: neither a text nor a list of texts"),
        ("web: {common_name: x, common_name: y}", "web: common_name is there twice"),
        ("web: {}\nweb: {}", "web is there twice"),
        ("web: {role: a/b}", "web: not the name of a role"),
        ("a/b: {common_name: x}", "a/b: not the name of a role; say role: NAME"),
        ("../x: {common_name: x, role: web}", "../x: not a name for a directory"),
        ("[a]: {}", "a name that is no text"),
        ("web: &a {common_name: *a}", "web.common_name: neither"),
    ],
)
def test_mistakes(text: str, message: str) -> None:
    with (
        pytest.raises(ConfigurationError) as caught,
        opened(TYPE, NOWHERE, annotations={"secretfs/certificates": text}),
    ):
        pass
    assert str(caught.value).startswith("store: secretfs/certificates: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("properties", "annotated", "message"),
    [
        ({}, False, "vaultEngineType pki needs the annotation secretfs/certificates"),
        ({"vaultDynamicPath": "issue"}, True, "vaultDynamicPath has no meaning with vaultEngineType pki"),
        ({"vaultKVPrefix": "x"}, True, "vaultKVPrefix has no meaning with vaultEngineType pki"),
        ({"vaultEngineType": "kv"}, True, "secretfs/certificates has no meaning with vaultEngineType kv"),
        ({"vaultEngineType": "x"}, True, "the types are kv, dynamic and pki"),
    ],
)
def test_what_does_not_belong_together(properties: dict[str, str], message: str, *, annotated: bool) -> None:
    annotations = declared(web=WEB) if annotated else {}
    with (
        pytest.raises(ConfigurationError, match=message),
        opened(TYPE, {**NOWHERE, **properties}, annotations=annotations),
    ):
        pass
