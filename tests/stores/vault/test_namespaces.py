"""``secretstores.hashicorp.vault``: namespaces, and engines that are mounted some levels deep, on a real OpenBao."""

import itertools
from typing import Any

import pytest

from secretfs.errors import AccessDenied
from secretfs.store import Names
from tests.support.canary import secret
from tests.support.opened import opened
from tests.support.servers.openbao import OpenBao
from tests.support.vault_fixtures import openbao_server
from tests.support.waiting import wait_until

__all__ = ["openbao_server"]

TYPE = "secretstores.hashicorp.vault"
VALUES = {"password": secret().encode()}
_numbers = itertools.count(1)


class Namespace:
    """A namespace in a namespace of its own, with users, and an engine some levels deep that has one secret."""

    def __init__(self, server: OpenBao) -> None:
        outer = f"ns{next(_numbers)}"
        server.call("POST", f"sys/namespaces/{outer}")
        server.call("POST", f"{outer}/sys/namespaces/team")
        self.server = server
        self.path = f"{outer}/team"

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Send a request as root, in this namespace."""
        return self.server.call(method, f"{self.path}/{path}", body)

    def engine(self, version: int) -> str:
        """Mount an engine with a secret, and return where: some levels deep."""
        path = self.server.mount(f"apps/orders/kv{version}", version=version, namespace=self.path)
        values = {"password": secret()}
        if version == 1:
            self.call("POST", f"{path}/team/db", values)
        else:
            self.call("POST", f"{path}/data/team/db", {"data": values})
        return path

    def user(self, *rules: str) -> dict[str, str]:
        """Make a user who may read what the rules name. Returns the properties of a component that logs in."""
        policy = "\n".join(f'path "{path}" {{ capabilities = ["read", "list"] }}' for path in rules)
        self.call("PUT", "sys/policies/acl/app", {"policy": policy})
        self.call("POST", "sys/auth/userpass", {"type": "userpass"})
        self.call("POST", "auth/userpass/users/app", {"password": secret("user"), "token_policies": ["app"]})
        return {
            "vaultAddr": self.server.address,
            "vaultKVUsePrefix": "false",
            "vaultAuthMethod": "userpass",
            "vaultUserpassUsername": "app",
            "vaultUserpassPassword": secret("user"),
        }


@pytest.fixture
def namespace(openbao_server: OpenBao) -> Namespace:
    return Namespace(openbao_server)


@pytest.mark.parametrize("version", [1, 2])
def test_an_engine_in_a_namespace(namespace: Namespace, version: int) -> None:
    path = namespace.engine(version)
    properties = {**namespace.user(f"{path}/*"), "enginePath": path}
    with opened(TYPE, {**properties, "vaultNamespace": namespace.path}) as store:
        store.check()
        assert store.names("") == Names(folders=frozenset({"team"}))
        assert store.names("team") == Names(frozenset({"team/db"}))
        assert store.fetch("team/db").values == VALUES
    with opened(TYPE, properties) as store, pytest.raises(AccessDenied, match="login with userpass"):
        store.check()


def test_an_engine_below_the_namespace_of_a_token(namespace: Namespace) -> None:
    """A token of a namespace may have rights in those below it: their engines are paths of it, also in OpenBao."""
    path = f"{namespace.path}/{namespace.engine(2)}"
    token = namespace.server.limited_token(**{f"{path}/*": "read list"})
    properties = {"vaultAddr": namespace.server.address, "vaultToken": token, "vaultKVUsePrefix": "false"}
    with opened(TYPE, {**properties, "enginePath": path}) as store:
        store.check()
        assert store.fetch("team/db").values == VALUES


def test_no_such_namespace_is_no_empty_store(namespace: Namespace) -> None:
    """Not even for a token that may do all."""
    path = namespace.engine(2)
    properties = {"vaultAddr": namespace.server.address, "vaultToken": namespace.server.token, "enginePath": path}
    with opened(TYPE, {**properties, "vaultNamespace": "nope"}) as store:
        for call in (store.check, lambda: store.names(""), lambda: store.fetch("db")):
            with pytest.raises(AccessDenied, match=r"there is no such namespace \(404\)"):
                call()


def test_no_such_engine_is_no_empty_store(namespace: Namespace) -> None:
    properties = {"vaultAddr": namespace.server.address, "vaultToken": namespace.server.token, "enginePath": "no/kv"}
    with opened(TYPE, {**properties, "vaultNamespace": namespace.path}) as store:
        for call in (lambda: store.names(""), lambda: store.fetch("db")):
            with pytest.raises(AccessDenied, match=r"no engine is mounted there \(404\)"):
                call()


def test_leases_of_a_namespace_are_given_back_there(namespace: Namespace) -> None:
    namespace.server.mount("deep/pki", type="pki", namespace=namespace.path)
    namespace.call("POST", "deep/pki/root/generate/internal", {"common_name": "root.example", "ttl": "24h"})
    role = {"allow_any_name": True, "enforce_hostnames": False, "ttl": "1h", "generate_lease": True}
    namespace.call("POST", "deep/pki/roles/web", role)
    properties = {
        "vaultAddr": namespace.server.address,
        "vaultToken": namespace.server.token,
        "vaultNamespace": namespace.path,
        "enginePath": "deep/pki",
        "vaultEngineType": "dynamic",
        "vaultDynamicPath": "issue",
        "vaultDynamicParameters": '{"common_name": "app.example"}',
    }
    with opened(TYPE, properties) as store:
        assert store.names("") == Names(frozenset({"web"}))
        serial = store.fetch("web").values["serial_number"].decode()
        assert namespace.call("GET", f"deep/pki/cert/{serial}")["data"]["revocation_time"] == 0
    wait_until(lambda: namespace.call("GET", f"deep/pki/cert/{serial}")["data"]["revocation_time"] > 0)
