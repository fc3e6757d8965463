"""``secretstores.hashicorp.vault``: a token that comes wrapped, on a real OpenBao."""

from pathlib import Path

import pytest

from secretfs.errors import AccessDenied, ConfigurationError
from secretfs.store import LeasingStore, SecretStore
from tests.support.canary import CANARY
from tests.support.opened import opened
from tests.support.vault_auth import count, reading, revoke_tokens
from tests.support.vault_fixtures import Folder, kv, openbao_server
from tests.support.waiting import wait_until

__all__ = ["kv", "openbao_server"]

TYPE = "secretstores.hashicorp.vault"
PATH = "auth/token/create"
VALUES = {"password": CANARY.encode()}


@pytest.fixture
def allowed(kv: Folder) -> str:
    kv.put("db", {"password": CANARY})
    return reading(kv.server, kv.prefix)


def wrapped(folder: Folder, allowed: str, ttl: str = "1h", **more: object) -> str:
    """Wrap a new token."""
    return folder.server.wrap(PATH, {"policies": [allowed], "ttl": ttl, **more})


def component(folder: Folder, **properties: str) -> dict[str, str]:
    known = folder.metadata(vaultTokenWrappingPath=f"/{PATH}", **properties)
    return {name: text for name, text in known.items() if text}


def test_it_is_opened_once_and_revoked_at_the_end(kv: Folder, allowed: str) -> None:
    properties = component(kv, vaultToken=wrapped(kv, allowed))
    kv.server.forget()
    with opened(TYPE, properties) as store:
        assert kv.server.requests() == []
        for _ in range(3):
            assert store.fetch("db").values == VALUES
        assert count(kv.server, "sys/wrapping/unwrap") == 1
    assert count(kv.server, "auth/token/revoke-self") == 1
    assert revoke_tokens(kv.server, allowed) == 0


def test_it_is_renewed(kv: Folder, allowed: str) -> None:
    with opened(TYPE, component(kv, vaultToken=wrapped(kv, allowed, ttl="4s"))) as store:
        assert store.fetch("db").values == VALUES
        wait_until(lambda: count(kv.server, "auth/token/renew-self") >= 2)
        assert store.fetch("db").values == VALUES
        assert count(kv.server, "sys/wrapping/unwrap") == 1


def test_a_new_one_in_the_file_is_opened_when_the_token_has_ended(kv: Folder, allowed: str, tmp_path: Path) -> None:
    path = tmp_path / "wrapped"
    path.write_text(wrapped(kv, allowed) + "\n", encoding="ascii")
    with opened(TYPE, component(kv, vaultToken="", vaultTokenMountPath=str(path))) as store:
        assert store.fetch("db").values == VALUES
        revoke_tokens(kv.server, allowed)
        for _ in range(2):
            with pytest.raises(AccessDenied, match=r"login with a wrapped token: it has been opened, .* a new one is"):
                store.fetch("db")
        assert count(kv.server, "sys/wrapping/unwrap") == 1
        path.write_text(wrapped(kv, allowed), encoding="ascii")
        wait_until(lambda: _reads(store))
        assert count(kv.server, "sys/wrapping/unwrap") == 2


def _reads(store: SecretStore) -> bool:
    try:
        return store.fetch("db").values == VALUES
    except AccessDenied:  # the last "no" is not asked for again within a second
        return False


def test_the_next_process_goes_on_with_the_token(kv: Folder, allowed: str) -> None:
    properties = component(kv, vaultToken=wrapped(kv, allowed))
    saved: list[bytes] = []
    with opened(TYPE, properties) as store, opened(TYPE, properties) as successor:
        assert isinstance(store, LeasingStore)
        assert isinstance(successor, LeasingStore)
        store.resume(b"", saved.append)
        store.fetch("db")
        store.hand_over()
        successor.resume(saved[-1], saved.append)
        assert successor.fetch("db").values == VALUES
        assert count(kv.server, "sys/wrapping/unwrap") == 1


def test_somebody_else_has_opened_it(kv: Folder, allowed: str) -> None:
    token = wrapped(kv, allowed)
    kv.server.call("POST", "sys/wrapping/unwrap", {"token": token})
    with (
        opened(TYPE, component(kv, vaultToken=token)) as store,
        pytest.raises(AccessDenied, match=r"login with a wrapped token: .*refused \(400\)"),
    ):
        store.fetch("db")


def test_it_was_wrapped_elsewhere(kv: Folder, allowed: str) -> None:
    elsewhere = kv.server.wrap("sys/wrapping/wrap", {"token": CANARY})
    with (
        opened(TYPE, component(kv, vaultToken=elsewhere)) as store,
        pytest.raises(AccessDenied, match="it was wrapped elsewhere than vaultTokenWrappingPath says") as caught,
    ):
        store.check()
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize(
    ("properties", "message"),
    [
        ({}, "token mount path and token not set"),
        ({"vaultToken": "t", "vaultTokenMountPath": "/t"}, "token mount path and token both set"),
        ({"vaultAuthMethod": "jwt"}, "vaultTokenWrappingPath is for vaultAuthMethod token"),
    ],
)
def test_mistakes(properties: dict[str, str], message: str) -> None:
    with (
        pytest.raises(ConfigurationError, match=message),
        opened(TYPE, {"vaultTokenWrappingPath": PATH, **properties}),
    ):
        pass
