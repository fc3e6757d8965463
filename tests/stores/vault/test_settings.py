"""``secretstores.hashicorp.vault``: what its properties mean, without a server where that is enough."""

from pathlib import Path
from typing import Any

import pytest

from secretfs.errors import ConfigurationError
from secretfs.settings import Property, decode, unknown_properties
from secretfs.store import StoreContext
from secretfs.stores.vault.store import Settings, open_store
from tests.support.canary import CANARY, secret
from tests.support.opened import opened
from tests.support.vault_fixtures import Folder, kv, openbao_server

__all__ = ["kv", "openbao_server"]

TYPE = "secretstores.hashicorp.vault"
NOWHERE = "http://127.0.0.1:1"


def settings(**properties: str) -> Settings:
    return decode(Settings, [Property(name, value) for name, value in properties.items()])[0]


def refusal(**properties: str) -> str:
    with pytest.raises(ConfigurationError) as caught, opened(TYPE, properties):
        pass
    return str(caught.value)


def test_defaults() -> None:
    given = settings()
    assert (given.address, given.prefix, given.use_prefix, given.engine, given.value_type, given.skip_verify) == (
        "https://127.0.0.1:8200",
        "dapr",
        True,
        "secret",
        "map",
        False,
    )


@pytest.mark.parametrize("name", ["vaultAddr", "vaultKVPrefix", "enginePath", "vaultValueType"])
def test_empty_is_the_default(name: str) -> None:
    fields = settings(**{name: ""})
    assert (fields.address, fields.prefix, fields.engine, fields.value_type) == (
        "https://127.0.0.1:8200",
        "dapr",
        "secret",
        "map",
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [("true", True), ("1", True), ("YES", True), ("false", False), ("", False), ("invalid", False)],
)
def test_use_prefix_is_truthy(text: str, expected: Any) -> None:
    assert settings(vaultKVUsePrefix=text).use_prefix is expected


@pytest.mark.parametrize(
    ("text", "expected"), [("true", True), ("True", False), ("1", False), ("yes", False), ("", False)]
)
def test_skip_verify_is_the_exact_word(text: str, expected: Any) -> None:
    assert settings(skipVerify=text).skip_verify is expected


@pytest.mark.parametrize("text", ["Map", "TEXT", "json"])
def test_value_type_is_one_of_two(text: str) -> None:
    with pytest.raises(ConfigurationError, match="invalid value type, accepted values are map or text"):
        settings(vaultValueType=text)


@pytest.mark.parametrize(("text", "expected"), [("map", True), ("text", False)])
def test_the_value_type_decides_the_shape(text: str, expected: Any) -> None:
    with opened(TYPE, {"vaultToken": secret("token"), "vaultValueType": text}) as store:
        assert store.multi_valued is expected


def test_slashes_and_blanks_around_a_namespace_and_an_engine_do_no_harm() -> None:
    given = settings(vaultNamespace=" /team/payments/ ", enginePath="/teams/payments/kv/")
    assert (given.namespace, given.engine) == ("team/payments", "teams/payments/kv")


@pytest.mark.parametrize("text", ["t\xe9am", "team\nX-Vault-Token: other"])
def test_a_namespace_is_what_a_header_can_carry(text: str) -> None:
    with pytest.raises(ConfigurationError, match="vaultNamespace: it has characters that no HTTP header can carry"):
        settings(vaultNamespace=text)


def test_a_token_is_needed() -> None:
    assert refusal() == "store: token mount path and token not set"
    assert refusal(vaultToken="", vaultTokenMountPath="") == "store: token mount path and token not set"


def test_one_token_is_enough() -> None:
    assert refusal(vaultToken=secret("token"), vaultTokenMountPath="/t") == "store: token mount path and token both set"


def test_a_token_file_must_be_there(tmp_path: Path) -> None:
    path = tmp_path / "token"
    assert refusal(vaultTokenMountPath=str(path)) == (
        f"store: couldn't read vault token from mount path {path} err: No such file or directory"
    )


@pytest.mark.parametrize("raw", [b"", b" \n", CANARY.encode() + b"\xff", CANARY.encode() + b"\nsecond line"])
def test_a_token_must_be_one(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "token").write_bytes(raw)
    assert "the token " in refusal(vaultTokenMountPath=str(tmp_path / "token"))
    if raw.strip():
        assert "the token has characters that no token has" in refusal(vaultToken=raw.decode("latin-1"))


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1:8200", "ftp://host", "https://", "https://h:port", "https://user:pw@h", "https://h/?a=b", "//h"],
)
def test_the_address_must_be_a_url(address: str) -> None:
    assert refusal(vaultAddr=address, vaultToken=secret("token")).startswith("store: vaultAddr ")


def test_nothing_shows_the_token() -> None:
    given = settings(vaultToken=secret("token"))
    store = open_store(given, StoreContext("store"))
    shown = f"{given} {given!r} {store} {store!r} {[*vars(store).values()]} {vars(store._adapter)}"
    store.close()
    assert CANARY not in shown


def test_opening_contacts_nobody() -> None:
    with opened(TYPE, {"vaultAddr": NOWHERE, "vaultToken": secret("token")}):
        pass


def test_the_environment_has_no_say(monkeypatch: pytest.MonkeyPatch, kv: Folder) -> None:
    kv.put("db", {"password": secret()})
    for name in ("VAULT_ADDR", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "BAO_ADDR"):
        monkeypatch.setenv(name, NOWHERE)
    for name in ("VAULT_TOKEN", "VAULT_NAMESPACE", "VAULT_CACERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.setenv(name, "/nowhere")
    with opened(TYPE, kv.metadata()) as store:
        assert store.fetch("db").values == {"password": secret().encode()}


@pytest.mark.parametrize("typo", ["vaultAdr", "vaultNamspace", "caCrt", "tlsServrName"])
def test_a_typo_that_leaves_the_default_of_what_guards_is_unsafe(typo: str) -> None:
    properties = [Property("vaultToken", "t"), Property(typo, "x")]
    (notice,) = unknown_properties(Settings, properties)
    assert notice.unsafe
    assert " has its default" in str(notice)
    meant = str(notice).partition("did you mean ")[2].partition("?")[0]
    (harmless,) = unknown_properties(Settings, [*properties, Property(meant, "x")])
    assert not harmless.unsafe


def test_another_typo_is_not() -> None:
    (notice,) = unknown_properties(Settings, [Property("vaultKVPrefx", "x")])
    assert not notice.unsafe
