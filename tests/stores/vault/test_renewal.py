"""``secretstores.hashicorp.vault``: tokens that end, on a real OpenBao."""

import threading
from typing import Any

import pytest

from secretfs.stores.vault import token as vault_token
from tests.conftest import ExpectLog
from tests.support.canary import secret
from tests.support.opened import opened
from tests.support.vault_auth import approle, count, logins, reading, revoke_tokens
from tests.support.vault_fixtures import Folder, kv, openbao_server
from tests.support.waiting import PATIENCE, reading_all_the_time, wait_until

__all__ = ["kv", "openbao_server"]

TYPE = "secretstores.hashicorp.vault"
RENEW, REVOKE, LOOK = "auth/token/renew-self", "auth/token/revoke-self", "auth/token/lookup-self"


def token_component(kv: Folder, **role: Any) -> tuple[str, dict[str, str]]:
    kv.put("db", {"password": secret()})
    allowed = reading(kv.server, kv.prefix)
    properties = {**kv.metadata(), **approle(kv.server, allowed, **role)}
    del properties["vaultToken"]
    kv.server.forget()
    return allowed, properties


def is_right(values: Any) -> bool:
    return bool(values == {"password": secret().encode()})


def test_hours_of_reads_with_a_token_of_seconds(kv: Folder) -> None:
    """Renewed while the server renews, replaced when it does not or somebody revokes it: never an error."""
    allowed, properties = token_component(kv, ttl="4s", most="9s")
    with opened(TYPE, properties) as store, reading_all_the_time(store, "db", is_right) as reader:
        wait_until(lambda: logins(kv.server) == 3)  # two lives of nine seconds each are over
        assert count(kv.server, RENEW) >= 2
        assert count(kv.server, LOOK) <= 1  # a reader meets a dead token only if this machine sleeps for seconds
        for number in (4, 5, 6):
            revoke_tokens(kv.server, allowed)
            wait_until(lambda number=number: logins(kv.server) >= number)  # type: ignore[misc]
        assert reader.reads > 100
    assert logins(kv.server) <= 8
    assert count(kv.server, LOOK) <= 5
    assert revoke_tokens(kv.server, allowed) == 0
    assert count(kv.server, REVOKE) >= 1


@pytest.mark.parametrize("role", [{"token_no_default_policy": True}, {"token_type": "batch"}, {"most": "4s"}])
def test_a_token_that_cannot_be_renewed_is_replaced_in_time(kv: Folder, role: dict[str, Any]) -> None:
    _, properties = token_component(kv, **{"ttl": "4s", **role})
    with opened(TYPE, properties) as store, reading_all_the_time(store, "db", is_right):
        wait_until(lambda: logins(kv.server) == 3)
    if "token_type" not in role:  # batch tokens end at a full second, up to one too early
        assert count(kv.server, LOOK) <= 1


def test_a_token_lives_on_while_nobody_reads(kv: Folder) -> None:
    _, properties = token_component(kv, ttl="4s")
    with opened(TYPE, properties) as store:
        store.fetch("db")
        wait_until(lambda: count(kv.server, RENEW) >= 2)
        assert is_right(store.fetch("db").values)
        assert logins(kv.server) == 1


def test_nothing_is_asked_after_the_end(kv: Folder) -> None:
    _, properties = token_component(kv, ttl="1s")
    with opened(TYPE, properties) as store:
        store.fetch("db")
    renewers = [thread for thread in threading.enumerate() if thread.name == "store: renewals"]
    for thread in renewers:
        thread.join(PATIENCE)
        assert not thread.is_alive()


def test_a_given_token_is_renewed_and_not_revoked(kv: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vault_token, "FIRST_LOOKUP", 0.0)
    kv.put("db", {"password": secret()})
    token = secret("periodic")
    allowed = reading(kv.server, kv.prefix)
    kv.server.call("POST", "auth/token/create", {"id": token, "policies": [allowed], "period": "4s"})
    kv.server.forget()
    with opened(TYPE, kv.metadata(vaultToken=token)) as store:
        store.fetch("db")
        wait_until(lambda: count(kv.server, RENEW) >= 2)
        assert is_right(store.fetch("db").values)
    assert count(kv.server, REVOKE) == 0
    assert count(kv.server, LOOK) == 1


def test_a_given_token_that_must_end_is_said_to(
    kv: Folder, monkeypatch: pytest.MonkeyPatch, expect_log: ExpectLog, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(vault_token, "FIRST_LOOKUP", 0.0)
    expect_log("store: vaultToken ends in 0 s and cannot be renewed any more")
    token = secret("ends")
    kv.server.call("POST", "auth/token/create", {"id": token, "ttl": "1s", "explicit_max_ttl": "1s"})
    kv.server.forget()
    with opened(TYPE, kv.metadata(vaultToken=token)) as store:
        store.names("")
        wait_until(lambda: "cannot be renewed any more" in caplog.text)
