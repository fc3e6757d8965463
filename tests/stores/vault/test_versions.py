"""``secretstores.hashicorp.vault``: older versions of secrets, and what people write down about them."""

import pytest

from secretfs.errors import AccessDenied, SecretNotFound
from secretfs.store import SecretStore, VersionedStore
from tests.support.canary import secret
from tests.support.opened import opened
from tests.support.vault_fixtures import Folder, kv, kv1, openbao_server

__all__ = ["kv", "kv1", "openbao_server"]

TYPE = "secretstores.hashicorp.vault"


def versioned(store: SecretStore) -> VersionedStore:
    assert isinstance(store, VersionedStore)
    return store


def test_each_version(kv: Folder) -> None:
    for number in range(1, 4):
        kv.put("team/db", {"password": secret(str(number))})
    with opened(TYPE, kv.metadata()) as store:
        assert versioned(store).keeps_versions
        for number in (2, 1, 3):
            found = versioned(store).fetch_version("team/db", str(number))
            assert found.values == {"password": secret(str(number)).encode()}
            assert found.version == str(number)
            assert found.modified is not None


def test_one_version_is_one_request(kv: Folder) -> None:
    kv.put("db", {"password": secret()})
    with opened(TYPE, kv.metadata()) as store:
        store.fetch("db")
        kv.server.forget()
        versioned(store).fetch_version("db", "1")
        assert kv.server.requests() == [("read", f"secret/data/{kv.prefix}/db")]


def test_what_is_deleted_or_destroyed_is_not_found_until_it_is_undeleted(kv: Folder) -> None:
    for number in range(1, 4):
        kv.put("db", {"password": secret(str(number))})
    kv.server.call("POST", f"secret/delete/{kv.prefix}/db", {"versions": [1]})
    kv.server.call("PUT", f"secret/destroy/{kv.prefix}/db", {"versions": [2]})
    with opened(TYPE, kv.metadata()) as store:
        for version in ("1", "2", "4"):
            with pytest.raises(SecretNotFound, match=rf"secret db, version {version}: .*not found \(404\)"):
                versioned(store).fetch_version("db", version)
        kv.server.call("POST", f"secret/undelete/{kv.prefix}/db", {"versions": [1]})
        assert versioned(store).fetch_version("db", "1").values == {"password": secret("1").encode()}


@pytest.mark.parametrize("version", ["", "0", "-1", "+1", "01", "1.0", " 1", "1 ", "latest", "²", "1" * 19, "1&x=2"])
def test_no_other_name_is_one_of_a_version(kv: Folder, version: str) -> None:
    """The server takes 0 and less for the newest version, and answers 400 to what is no number."""
    kv.put("db", {"password": secret()})
    with opened(TYPE, kv.metadata()) as store:
        store.fetch("db")
        kv.server.forget()
        with pytest.raises(SecretNotFound):
            versioned(store).fetch_version("db", version)
        assert kv.server.requests() == []


def test_the_largest_number_is_only_not_there(kv: Folder) -> None:
    kv.put("db", {"password": secret()})
    with opened(TYPE, kv.metadata()) as store, pytest.raises(SecretNotFound, match="404"):
        versioned(store).fetch_version("db", "9" * 18)


def test_the_right_to_read_the_secret_is_enough(kv: Folder) -> None:
    kv.put("db", {"password": secret()})
    kv.put("other", {"password": secret()})
    token = kv.server.limited_token(**{f"secret/data/{kv.prefix}/db": "read"})
    with opened(TYPE, kv.metadata(vaultToken=token)) as store:
        assert versioned(store).fetch_version("db", "1").values == {"password": secret().encode()}
        with pytest.raises(AccessDenied):
            versioned(store).fetch_version("other", "1")


def test_version_1_of_the_engine_keeps_none(kv1: Folder) -> None:
    kv1.put("db", {"password": secret()})
    with opened(TYPE, kv1.metadata()) as store:
        with pytest.raises(SecretNotFound, match="an engine of version 1 keeps no versions"):
            versioned(store).fetch_version("db", "1")
        assert not versioned(store).keeps_versions


def test_custom_metadata(kv: Folder) -> None:
    kv.put("db", {"password": secret()})
    with opened(TYPE, kv.metadata()) as store:
        assert store.fetch("db").metadata == {}
        written = {"owner": "team payments", "ünïcode/key": "ü", "ticket": "OPS-1"}
        kv.server.call("POST", f"secret/metadata/{kv.prefix}/db", {"custom_metadata": written})
        kv.server.forget()
        assert store.fetch("db").metadata == written
        assert kv.server.requests() == [("read", f"secret/data/{kv.prefix}/db")]
