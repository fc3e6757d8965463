"""``secretstores.hashicorp.vault``: dynamic secrets, on a real OpenBao and a real PostgreSQL."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from secretfs.errors import AccessDenied, MalformedAnswer, SecretNotFound
from secretfs.store import ExpiringStore, Names, WatchingStore
from secretfs.stores.vault import token as vault_token
from secretfs.stores.vault.dynamic import DynamicStore
from tests.conftest import ExpectLog
from tests.support.database_engine import Engine, database
from tests.support.opened import opened
from tests.support.servers.openbao import OpenBao
from tests.support.servers.postgres import Postgres
from tests.support.vault_auth import count, logins, revoke_tokens
from tests.support.vault_fixtures import openbao_server
from tests.support.waiting import PATIENCE, reading_all_the_time, wait_until

__all__ = ["database", "openbao_server"]

TYPE = "secretstores.hashicorp.vault"


# --- the database engine ---


def test_one_read_for_everybody_and_revoked_at_the_end(openbao_server: OpenBao, database: Postgres) -> None:
    engine = Engine(openbao_server, database)
    with opened(TYPE, engine.login()) as store, ThreadPoolExecutor(8) as pool:
        store.check()
        assert store.multi_valued
        assert isinstance(store, WatchingStore)
        assert store.names("") == Names(frozenset({"app"}))
        assert store.names("app") == Names()
        assert engine.made() == 0
        assert isinstance(store, ExpiringStore)
        assert (store.expiry().leases, store.expiry().next_lease) == (0, None)
        first, *others = pool.map(store.fetch, ["app"] * 16)
        assert all(other is first for other in others)
        assert set(first.values) == {"username", "password"}
        assert first.version.startswith(f"{engine.path}/creds/app/")
        assert first.modified is not None
        assert abs(first.modified - time.time()) < 60
        assert engine.made() == 1
        assert engine.works(first.values)
        expiry = store.expiry()
        assert expiry.leases == 1
        assert expiry.next_lease is not None
        assert 0 < expiry.next_lease - time.time() <= 3601
        assert expiry.token is not None
        assert 0 < expiry.token - time.time() <= 3601
        with pytest.raises(SecretNotFound):
            store.fetch("../roles/app")
    assert count(engine.server, "sys/leases/revoke") == 1
    wait_until(lambda: not engine.works(first.values))


def test_what_a_role_is_not_allowed(openbao_server: OpenBao, database: Postgres) -> None:
    engine = Engine(openbao_server, database)
    with opened(TYPE, engine.login()) as store:
        openbao_server.call("DELETE", f"{engine.path}/roles/app")
        assert store.names("") == Names()
        with pytest.raises(Exception, match="secret app: "):
            store.fetch("app")
    limited = openbao_server.limited_token(**{f"{engine.path}/creds/other": "read"})
    with opened(TYPE, engine.given(limited)) as store:
        store.check()
        for call in (lambda: store.names(""), lambda: store.fetch("app")):
            with pytest.raises(AccessDenied, match=r"permission denied \(403\)"):
                call()


def test_renewed_while_in_use_and_replaced_before_the_end(openbao_server: OpenBao, database: Postgres) -> None:
    engine = Engine(openbao_server, database, ttl="6s", most="12s")
    changed: list[frozenset[str]] = []
    seen: dict[bytes, float] = {}

    def works(values: Any) -> bool:
        seen.setdefault(values["username"], time.monotonic())
        return engine.works(values)

    with opened(TYPE, engine.login()) as store:
        assert isinstance(store, DynamicStore)
        store.watch(changed.append)
        with reading_all_the_time(store, "app", works) as reader:
            wait_until(lambda: len(seen) == 2)
        assert reader.reads > 20
        assert changed == [{"app"}]
        assert engine.made() == 2
        assert count(engine.server, "sys/leases/renew") >= 1
    sooner, later = seen.values()
    assert later - sooner > 6.5  # longer than without a renewal
    assert changed == [{"app"}] * 2  # so that nobody goes on with what is revoked now


def test_unused_it_ends_and_is_made_anew(openbao_server: OpenBao, database: Postgres) -> None:
    engine = Engine(openbao_server, database, ttl="4s")
    with opened(TYPE, {**engine.login(), "vaultDynamicIdle": "1ms"}) as store:
        first = store.fetch("app")
        wait_until(lambda: not engine.works(first.values))
        assert count(engine.server, "sys/leases/renew") == 0
        second = store.fetch("app")
        assert second.version != first.version
        assert engine.works(second.values)


def test_a_lease_that_somebody_revokes_is_noticed_at_the_next_renewal(
    openbao_server: OpenBao, database: Postgres
) -> None:
    engine = Engine(openbao_server, database, ttl="5s")
    changed = threading.Event()
    with opened(TYPE, engine.login()) as store:
        assert isinstance(store, DynamicStore)
        store.watch(lambda _: changed.set())
        first = store.fetch("app")
        openbao_server.call("PUT", "sys/leases/revoke", {"lease_id": first.version, "sync": True})
        assert changed.wait(PATIENCE)
        assert engine.works(store.fetch("app").values)


def test_a_new_token_means_new_credentials(openbao_server: OpenBao, database: Postgres) -> None:
    """Leases end with the token that took them."""
    engine = Engine(openbao_server, database)
    changed = threading.Event()
    with opened(TYPE, engine.login(ttl="6s", most="9s")) as store:
        assert isinstance(store, DynamicStore)
        store.watch(lambda _: changed.set())
        first = store.fetch("app")
        assert changed.wait(PATIENCE)
        assert engine.works(first.values)  # there is time to change over
        second = store.fetch("app")
        assert second.version != first.version
        assert engine.works(second.values)
        assert logins(engine.server) == 2


def test_a_revoked_token_takes_its_leases_along(openbao_server: OpenBao, database: Postgres) -> None:
    engine = Engine(openbao_server, database, ttl="1s")
    with opened(TYPE, engine.login()) as store:
        with reading_all_the_time(store, "app", bool):
            store.fetch("app")
            revoke_tokens(openbao_server, engine.allowed)
            wait_until(lambda: logins(engine.server) == 2)
        assert engine.works(store.fetch("app").values)
        assert engine.made() == 2


def test_a_given_token_may_have_no_right_to_revoke(
    openbao_server: OpenBao, database: Postgres, expect_log: ExpectLog
) -> None:
    engine = Engine(openbao_server, database)
    may_not = openbao_server.limited_token(**{f"{engine.path}/creds/*": "read"})
    expect_log(r"store: leases are left to end by themselves: 1; the last: .*permission denied \(403\)")
    with opened(TYPE, engine.given(may_not)) as store:
        first = store.fetch("app")
    assert engine.works(first.values)
    may = openbao_server.limited_token(**{f"{engine.path}/creds/*": "read", "sys/leases/revoke": "update"})
    with opened(TYPE, engine.given(may)) as store:
        second = store.fetch("app")
    wait_until(lambda: not engine.works(second.values))


def test_closing_takes_no_longer_than_it_may(openbao_server: OpenBao, database: Postgres) -> None:
    engine = Engine(openbao_server, database)
    with opened(TYPE, engine.login(), deadline=PATIENCE) as store:
        store.fetch("app")
        with openbao_server.hanging():
            started = time.monotonic()
            store.close()
            assert time.monotonic() - started < vault_token.CLOSE_TIMEOUT + PATIENCE / 2


def test_text_is_one_file(openbao_server: OpenBao, database: Postgres) -> None:
    engine = Engine(openbao_server, database)
    with opened(TYPE, {**engine.login(), "vaultValueType": "text"}) as store:
        values = store.fetch("app").values
        assert list(values) == ["app"]
        assert values["app"].startswith(b'{"password":"')


def test_static_roles_have_no_lease(openbao_server: OpenBao, database: Postgres) -> None:
    engine = Engine(openbao_server, database)
    database.query("CREATE ROLE fixed LOGIN")
    fixed = {"db_name": "postgres", "username": "fixed", "rotation_period": "24h"}
    openbao_server.call("POST", f"{engine.path}/static-roles/fixed", fixed)
    paths = {"vaultDynamicPath": "static-creds", "vaultDynamicRolesPath": "static-roles"}
    with opened(TYPE, engine.given(openbao_server.token, **paths)) as store:
        assert store.names("") == Names(frozenset({"fixed"}))
        first = store.fetch("fixed").values
        assert engine.works(first)
        openbao_server.call("POST", f"{engine.path}/rotate-role/fixed")
        assert store.fetch("fixed").values["password"] != first["password"]


# --- other engines ---


def test_passwords_of_ssh(openbao_server: OpenBao) -> None:
    path = openbao_server.mount("ssh", type="ssh")
    openbao_server.call(
        "POST", f"{path}/roles/otp", {"key_type": "otp", "default_user": "app", "cidr_list": "0.0.0.0/0"}
    )
    properties = {"vaultAddr": openbao_server.address, "vaultToken": openbao_server.token, "enginePath": path}
    dynamic = {"vaultEngineType": "dynamic", "vaultDynamicParameters": '{"ip": "192.0.2.1"}'}
    with opened(TYPE, {**properties, **dynamic}) as store:
        assert store.names("") == Names(frozenset({"otp"}))
        assert store.fetch("otp").values["username"] == b"app"


def test_an_engine_without_a_list(openbao_server: OpenBao) -> None:
    properties = {"vaultAddr": openbao_server.address, "vaultToken": openbao_server.token, "vaultEngineType": "dynamic"}
    path = openbao_server.mount("totp", type="totp")
    with opened(TYPE, {**properties, "enginePath": path}) as store:
        store.check()
        with pytest.raises(AccessDenied, match="the engine lists no names there"):
            store.names("")
    with opened(TYPE, properties) as store, pytest.raises(MalformedAnswer, match="enginePath secret: the engine makes"):
        store.check()
