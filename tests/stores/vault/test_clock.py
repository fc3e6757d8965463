"""The clock of a Vault, as it shows in the date of its answers."""

import time
from collections.abc import Iterator
from email.utils import formatdate

import pytest

from secretfs.errors import AccessDenied
from secretfs.registry.following import FollowingStore
from secretfs.settings import Property
from secretfs.store import ClockedStore, SecretStore
from tests.support.canary import secret
from tests.support.memory_store import MemoryStore
from tests.support.opened import opened
from tests.support.servers.fake_vault import FakeVault
from tests.support.vault_fixtures import Folder, kv, openbao_server

__all__ = ["kv", "openbao_server"]

TYPE = "secretstores.hashicorp.vault"


@pytest.fixture
def fake() -> Iterator[FakeVault]:
    with FakeVault() as server:
        server.tells_version = False
        yield server


def told(store: SecretStore) -> float | None:
    assert isinstance(store, ClockedStore)
    return store.clock_skew()


def test_that_of_a_real_server(kv: Folder) -> None:
    with opened(TYPE, kv.metadata()) as store:
        assert told(store) is None, "nothing has been asked yet"
        store.check()
        ahead = told(store)
        assert ahead is not None
        assert -5 < ahead < 5


@pytest.mark.parametrize("seconds", [-3600, 90])
def test_one_that_is_wrong_also_when_we_are_refused(fake: FakeVault, seconds: int) -> None:
    with opened(TYPE, {"vaultAddr": fake.address, "vaultToken": secret("token")}) as store:
        fake.respond(403, b"{}", f"Date: {formatdate(time.time() + seconds, usegmt=True)}")
        with pytest.raises(AccessDenied):
            store.check()
        ahead = told(store)
        assert ahead is not None
        assert seconds - 5 < ahead <= seconds


@pytest.mark.parametrize("header", ["X-Nothing: 1", "Date: soon", "Date:"])
def test_one_that_is_not_told(fake: FakeVault, header: str) -> None:
    with opened(TYPE, {"vaultAddr": fake.address, "vaultToken": secret("token")}) as store:
        fake.respond(403, b"{}", header)
        with pytest.raises(AccessDenied):
            store.check()
        assert told(store) is None


def test_a_store_with_credentials_from_another_one_tells_it_too(fake: FakeVault) -> None:
    with opened(TYPE, {"vaultAddr": fake.address, "vaultToken": secret("token")}) as vault:
        fake.respond(403, b"{}", f"Date: {formatdate(time.time() + 90, usegmt=True)}")
        store = FollowingStore("store", lambda: [Property("token", "x")], lambda _: vault)
        with pytest.raises(AccessDenied):
            store.check()
        assert (told(store) or 0) > 80
    plain = FollowingStore("store", lambda: [Property("token", "x")], lambda _: MemoryStore({}))
    assert told(plain) is None
