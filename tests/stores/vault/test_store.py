"""``secretstores.hashicorp.vault``: settings, names and values, on a real OpenBao."""

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from secretfs.errors import AccessDenied, MalformedAnswer, SecretNotFound, StoreUnavailable
from secretfs.store import Names, SecretStore
from secretfs.testing import Seed, StoreContract
from tests.support.canary import CANARY, secret
from tests.support.opened import opened
from tests.support.servers.openbao import OpenBao
from tests.support.vault_fixtures import Folder, kv, kv1, openbao_server

__all__ = ["kv", "kv1", "openbao_server"]

TYPE = "secretstores.hashicorp.vault"
NOWHERE = "http://127.0.0.1:1"


# --- the contract ---


class TestContract(StoreContract):
    multi_valued = True
    mark = CANARY
    binary_values = False  # a value is a JSON string

    @pytest.fixture
    def folder(self, kv: Folder) -> Folder:
        return kv

    @pytest.fixture
    def store(self, folder: Folder) -> Iterator[SecretStore]:
        with opened(TYPE, folder.metadata(vaultValueType="map" if self.multi_valued else "text")) as store:
            yield store

    @pytest.fixture
    def seed(self, folder: Folder) -> Seed:
        return lambda name, values: folder.put(name, {key: value.decode() for key, value in values.items()})

    @pytest.fixture
    def denied(self, folder: Folder, seed: Seed) -> Iterator[tuple[SecretStore, str]]:
        seed("denied", self.values("denied"))
        token = folder.server.limited_token(**{f"{folder.engine}/*": "deny", "sys/*": "read"})
        with opened(TYPE, folder.metadata(vaultToken=token)) as store:
            yield store, "denied"

    @pytest.fixture
    def unreachable(self) -> Iterator[SecretStore]:
        with opened(TYPE, {"vaultAddr": NOWHERE, "vaultToken": secret("token")}) as store:
            yield store

    @pytest.fixture
    def reads(self, folder: Folder) -> Callable[[], int]:
        return lambda: sum(operation == "read" for operation, _ in folder.requests())

    def can_hold(self, name: str) -> bool:
        return name.isprintable()  # the server's rule; it answers 400 to others


class TestTextContract(TestContract):
    multi_valued = False
    free_values = False  # a value is the whole secret as JSON
    can_be_empty = False

    def values(self, name: str, version: str = "first") -> dict[str, bytes]:
        return {name: json.dumps({"key": f"{self.mark} {version}"}, separators=(",", ":")).encode()}

    @pytest.fixture
    def seed(self, folder: Folder) -> Seed:
        return lambda name, values: folder.put(name, json.loads(values[name]))


class TestVersion1Contract(TestContract):
    has_versions = False  # KV 1 keeps neither
    tells_modified = False

    @pytest.fixture
    def folder(self, kv1: Folder) -> Folder:
        return kv1


# --- Dapr's certification cases ---


def test_a_secret_of_one_member(kv: Folder) -> None:
    kv.put("secondsecret", {"secondsecret": "efgh"})
    with opened(TYPE, kv.metadata()) as store:
        assert store.fetch("secondsecret").values == {"secondsecret": b"efgh"}
        with pytest.raises(SecretNotFound, match=r"secret nope: .*not found"):
            store.fetch("nope")


def test_a_secret_of_several_members(kv: Folder) -> None:
    kv.put("multiplekeyvaluessecret", {"first": "1", "second": "2", "third": "3"})
    with opened(TYPE, kv.metadata()) as store:
        assert store.fetch("multiplekeyvaluessecret").values == {"first": b"1", "second": b"2", "third": b"3"}


def test_the_default_prefix_is_dapr(kv: Folder) -> None:
    kv.server.put("secret/dapr/conftestsecret", {"conftestsecret": "abcd"})
    kv.server.put("secret/alternativePrefix/secretUnderAlternativePrefix", {"altPrefixKey": secret()})
    properties = kv.metadata()
    del properties["vaultKVPrefix"]
    with opened(TYPE, properties) as store:
        assert store.fetch("conftestsecret").values == {"conftestsecret": b"abcd"}
        with pytest.raises(SecretNotFound):
            store.fetch("secretUnderAlternativePrefix")
    with opened(TYPE, kv.metadata(vaultKVPrefix="alternativePrefix")) as store:
        assert store.names("").secrets == {"secretUnderAlternativePrefix"}


def test_without_a_prefix_the_store_is_the_engine(openbao_server: OpenBao) -> None:
    engine = openbao_server.mount("noprefix")
    openbao_server.put(f"{engine}/secretWithNoPrefix", {"noPrefixKey": "noProblem"})
    openbao_server.put(f"{engine}/dapr/db", {"password": secret()})
    with opened(TYPE, Folder(openbao_server, "dapr", engine).metadata(vaultKVUsePrefix="false")) as store:
        assert store.fetch("secretWithNoPrefix").values == {"noPrefixKey": b"noProblem"}
        assert store.fetch("dapr/db").values == {"password": secret().encode()}
        assert store.names("") == Names(frozenset({"secretWithNoPrefix"}), frozenset({"dapr"}))
        with pytest.raises(SecretNotFound):
            store.fetch("db")


@pytest.mark.parametrize("prefix", ["one/two", "/one/two/"])
def test_a_prefix_of_several_segments(kv: Folder, prefix: str) -> None:
    kv.server.put("secret/one/two/db", {"password": secret()})
    with opened(TYPE, kv.metadata(vaultKVPrefix=prefix)) as store:
        assert store.names("").secrets == {"db"}
        assert store.fetch("db").values == {"password": secret().encode()}


@pytest.mark.parametrize("engine", ["customSecretsPath", "deeper/engine"])
def test_another_engine(openbao_server: OpenBao, engine: str) -> None:
    openbao_server.mount(engine)
    openbao_server.call("POST", f"{engine}/data/dapr/db", {"data": {"password": secret()}})
    with opened(TYPE, Folder(openbao_server, "dapr", engine).metadata()) as store:
        store.check()
        assert store.names("").secrets == {"db"}
        assert store.fetch("db").values == {"password": secret().encode()}


def test_text_is_the_servers_own_json(kv: Folder) -> None:
    kv.put("secondsecret", {"secondsecret": "efgh"})
    kv.put("html", {"b": "<&>", "a": [1, 2.50, None]})
    with opened(TYPE, kv.metadata(vaultValueType="text")) as store:
        assert store.fetch("secondsecret").values == {"secondsecret": b'{"secondsecret":"efgh"}'}
        assert store.fetch("html").values == {"html": rb'{"a":[1,2.5,null],"b":"\u003c\u0026\u003e"}'}


def test_text_of_version_1(kv1: Folder) -> None:
    kv1.put("secondsecret", {"secondsecret": "efgh"})
    with opened(TYPE, kv1.metadata(vaultValueType="text")) as store:
        assert store.fetch("secondsecret").values == {"secondsecret": b'{"secondsecret":"efgh"}'}


def test_the_newest_of_five_versions(kv: Folder) -> None:
    for number in ("first", "second", "third", "fourth", "fifth"):
        kv.put("secretUnderTest", {"versionedKey": f"{number}Version"})
    with opened(TYPE, kv.metadata()) as store:
        newest = store.fetch("secretUnderTest")
    assert newest.values == {"versionedKey": b"fifthVersion"}
    assert newest.version == "5"


# --- values and names ---


def test_members_that_are_no_strings(kv: Folder) -> None:
    kv.put("mixed", {"n": 5, "f": 1.5, "t": True, "z": None, "o": {"k": ["é", {}]}, "s": "5"})
    with opened(TYPE, kv.metadata()) as store:
        assert store.fetch("mixed").values == {
            "n": b"5",
            "f": b"1.5",
            "t": b"true",
            "z": b"",
            "o": '{"k":["é",{}]}'.encode(),
            "s": b"5",
        }


def test_a_secret_without_members(kv: Folder) -> None:
    kv.put("empty", {})
    with opened(TYPE, kv.metadata()) as store:
        assert store.fetch("empty").values == {}


def test_deleted_and_destroyed_is_not_found(kv: Folder) -> None:
    for name in ("deleted", "destroyed"):
        kv.put(name, {"key": secret("old")})
        kv.put(name, {"key": secret("new")})
    kv.server.call("DELETE", f"secret/data/{kv.prefix}/deleted")
    kv.server.call("PUT", f"secret/destroy/{kv.prefix}/destroyed", {"versions": [2]})
    with opened(TYPE, kv.metadata()) as store:
        for name in ("deleted", "destroyed"):
            with pytest.raises(SecretNotFound):
                store.fetch(name)
        kv.server.call("PUT", f"secret/undelete/{kv.prefix}/deleted", {"versions": [2]})
        assert store.fetch("deleted").values == {"key": secret("new").encode()}


def test_names_are_one_list_of_one_folder(kv: Folder) -> None:
    for name in ("top", "team/db", "team/sub/key", "same", "same/inner"):
        kv.put(name, {"key": secret()})
    with opened(TYPE, kv.metadata()) as store:
        store.check()
        kv.server.forget()
        assert store.names("") == Names(frozenset({"top", "same"}), frozenset({"team", "same"}))
        assert kv.server.requests() == [("list", f"secret/metadata/{kv.prefix}/")]
        assert store.names("team") == Names(frozenset({"team/db"}), frozenset({"team/sub"}))
        assert store.names("team/sub") == Names(frozenset({"team/sub/key"}))
        assert store.names("../" + kv.prefix) == Names()


def test_a_fetch_is_one_read_and_the_version_is_asked_once(kv: Folder) -> None:
    kv.put("db", {"password": secret()})
    kv.server.forget()
    with opened(TYPE, kv.metadata()) as store:
        for _ in range(3):
            store.fetch("db")
    read = ("read", f"secret/data/{kv.prefix}/db")
    assert kv.server.requests() == [("read", "sys/internal/ui/mounts/secret"), read, read, read]


def test_no_name_leaves_the_prefix(kv: Folder) -> None:
    kv.server.put("secret/elsewhere/db", {"password": secret()})
    kv.server.forget()
    with opened(TYPE, kv.metadata()) as store:
        for name in ("../elsewhere/db", "x/../../elsewhere/db", "./db", "//elsewhere/db", "/elsewhere/db"):
            with pytest.raises(SecretNotFound):
                store.fetch(name)
        for name in ("%2e%2e/elsewhere/db", "..%2felsewhere%2fdb"):
            with pytest.raises(SecretNotFound):
                store.fetch(name)
    assert {path for _, path in kv.server.requests() if "elsewhere" in path} <= {
        f"secret/data/{kv.prefix}/%2e%2e/elsewhere/db",
        f"secret/data/{kv.prefix}/..%2felsewhere%2fdb",
    }


# --- rights ---


def test_the_least_rights_that_work(kv: Folder) -> None:
    kv.put("team/db", {"password": secret()})
    token = kv.server.limited_token(**{f"secret/data/{kv.prefix}/*": "read", f"secret/metadata/{kv.prefix}/*": "list"})
    with opened(TYPE, kv.metadata(vaultToken=token)) as store:
        store.check()
        assert store.names("").folders == {"team"}
        assert store.names("team").secrets == {"team/db"}
        assert store.fetch("team/db").values == {"password": secret().encode()}
        with pytest.raises(SecretNotFound):
            store.fetch("nope")
    with opened(TYPE, kv.metadata(vaultToken=token, vaultKVPrefix="other")) as store:
        for call in (lambda: store.fetch("db"), lambda: store.names("")):
            with pytest.raises(AccessDenied, match=r"permission denied \(403\)"):
                call()


def test_the_right_to_one_secret_is_enough_to_read_it_in_version_1(kv1: Folder) -> None:
    kv1.put("db", {"password": secret()})
    token = kv1.server.limited_token(**{f"kv1/{kv1.prefix}/db": "read"})
    with opened(TYPE, kv1.metadata(vaultToken=token)) as store:
        assert store.fetch("db").values == {"password": secret().encode()}


def test_a_bad_token_opens_and_is_refused(kv: Folder) -> None:
    kv.put("db", {"password": secret()})
    with opened(TYPE, kv.metadata(vaultToken=secret("bad-token"))) as store:
        for call in (lambda: store.fetch("db"), lambda: store.names(""), store.check):
            with pytest.raises(AccessDenied, match="permission denied"):
                call()


def test_check_names_the_engine(kv: Folder) -> None:
    kv.server.mount("crypto", type="transit")
    for engine, error, reason in (
        ("nope", AccessDenied, "enginePath nope: .*no such engine, or the token has no rights in it"),
        ("secret/deeper", SecretNotFound, "enginePath secret/deeper: no engine is mounted there"),
        ("crypto", MalformedAnswer, "enginePath crypto: the engine is not of type kv"),
    ):
        with opened(TYPE, kv.metadata(enginePath=engine)) as store, pytest.raises(error, match=reason):
            store.check()


def test_what_transit_has_encrypted_is_left_alone(kv: Folder) -> None:
    """Who may read the secret may not always decrypt it: that is for the program that has the right to."""
    engine = kv.server.mount("transit", type="transit")
    kv.server.call("POST", f"{engine}/keys/app")
    plain = base64.b64encode(secret().encode()).decode()
    encrypted = kv.server.call("POST", f"{engine}/encrypt/app", {"plaintext": plain})["data"]["ciphertext"]
    assert encrypted.startswith("vault:v1:")
    kv.put("db", {"password": encrypted})
    kv.server.forget()
    with opened(TYPE, kv.metadata()) as store:
        assert store.fetch("db").values == {"password": encrypted.encode()}
    assert [path for _, path in kv.server.requests() if path.startswith(engine)] == []


# --- the token file ---


def test_a_token_file(kv: Folder, tmp_path: Path) -> None:
    kv.put("db", {"password": secret()})
    path = tmp_path / "token"
    path.write_text(f"\n{kv.server.token} \n", encoding="ascii")
    properties = kv.metadata(vaultTokenMountPath=str(path))
    del properties["vaultToken"]
    with opened(TYPE, properties) as store:
        assert store.fetch("db").values == {"password": secret().encode()}
        path.write_text(secret("revoked"), encoding="ascii")
        with pytest.raises(AccessDenied):
            store.fetch("db")
        path.unlink()
        with pytest.raises(StoreUnavailable, match=r"couldn't read vault token from mount path .* No such file"):
            store.fetch("db")
        path.write_text(f"{kv.server.token}\n", encoding="ascii")
        assert store.fetch("db").values == {"password": secret().encode()}
