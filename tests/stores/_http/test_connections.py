"""Connections that died while they were idle, in all stores that speak HTTP."""

import base64
import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme

from secretfs.errors import StoreError, StoreUnavailable
from secretfs.store import SecretStore
from secretfs.stores._http import connections
from secretfs.stores._http.trust import Trust, tls_context
from secretfs.stores.vault.http import Connections, Endpoint
from tests.support.azure_fixtures import TYPE as AZURE
from tests.support.azure_fixtures import azure, login
from tests.support.canary import secret
from tests.support.opened import opened
from tests.support.servers.azure_keyvault import Azure
from tests.support.servers.http_server import dropped
from tests.support.servers.keep_alive import Answer, End, KeepAlive, close, half_close, reset
from tests.support.waiting import PATIENCE

__all__ = ["azure"]

VAULT = "secretstores.hashicorp.vault"
KUBERNETES = "secretstores.kubernetes"
VALUES = {"key": secret().encode()}
ENDS = [close, reset, half_close]
KUBECONFIG = """\
clusters: [{{name: c, cluster: {{server: "{address}", certificate-authority: "{ca}"}}}}]
users: [{{name: u, user: {{token: {token}}}}}]
contexts: [{{name: c, context: {{cluster: c, user: u}}}}]
current-context: c
"""


def vault_answer(target: str) -> tuple[int, bytes]:
    """Answer as a Vault with one secret."""
    if "/ui/mounts/" in target:
        return 200, json.dumps({"data": {"path": "secret/", "type": "kv", "options": {"version": "2"}}}).encode()
    return 200, json.dumps({"data": {"data": {"key": secret()}, "metadata": {"version": 1}}}).encode()


def kubernetes_answer(_: str) -> tuple[int, bytes]:
    """Answer as an API server with one secret."""
    item = {
        "kind": "Secret",
        "metadata": {"name": "db", "namespace": "shop", "resourceVersion": "7"},
        "data": {"key": base64.b64encode(secret().encode()).decode()},
    }
    return 200, json.dumps(item).encode()


@pytest.fixture(params=["plain", "tls"])
def tls(request: pytest.FixtureRequest, tmp_path: Path) -> ssl.SSLContext | None:
    """What the server shows; the authority is in ``ca.pem``."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    if request.param == "plain":
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


@contextmanager
def vault(tmp_path: Path, tls: ssl.SSLContext | None) -> Iterator[tuple[KeepAlive, SecretStore]]:
    with KeepAlive(vault_answer, tls) as server:
        properties = {"vaultAddr": server.address, "vaultToken": secret("token"), "caCert": str(tmp_path / "ca.pem")}
        with opened(VAULT, properties) as store:
            yield server, store


@contextmanager
def kubernetes(tmp_path: Path, tls: ssl.SSLContext | None) -> Iterator[tuple[KeepAlive, SecretStore]]:
    with KeepAlive(kubernetes_answer, tls) as server:
        path = tmp_path / "kubeconfig"
        path.write_text(KUBECONFIG.format(address=server.address, ca=tmp_path / "ca.pem", token=secret("token")))
        with opened(KUBERNETES, {"defaultNamespace": "shop", "kubeconfigPath": str(path)}) as store:
            yield server, store


@pytest.fixture(params=[vault, kubernetes], ids=["vault", "kubernetes"])
def both(
    request: pytest.FixtureRequest, tmp_path: Path, tls: ssl.SSLContext | None
) -> Iterator[tuple[KeepAlive, SecretStore]]:
    """A server and a store that reads ``db`` from it."""
    with request.param(tmp_path, tls) as both:
        yield both


@pytest.mark.parametrize("end", ENDS)
def test_a_read_over_a_dead_connection_is_sent_again(both: tuple[KeepAlive, SecretStore], end: End) -> None:
    server, store = both
    assert store.fetch("db").values == VALUES
    server.ends_used = end
    before = len(server.requests)
    assert store.fetch("db").values == VALUES
    assert len(server.requests) == before + 2  # once in vain
    assert len(set(server.requests[before:])) == 1


def test_a_connection_that_was_closed_before_the_request_costs_nothing(both: tuple[KeepAlive, SecretStore]) -> None:
    server, store = both
    store.fetch("db")
    server.close_idle()
    before = len(server.requests)
    assert store.fetch("db").values == VALUES
    assert len(server.requests) == before + 1


def test_all_of_a_pool_may_be_dead(both: tuple[KeepAlive, SecretStore]) -> None:
    server, store = both
    store.fetch("db")
    together = threading.Barrier(4)
    plain = server.answer

    def at_once(target: str) -> Answer:
        together.wait(PATIENCE)
        return plain(target)

    server.answer = at_once
    readers = [threading.Thread(target=store.fetch, args=["db"]) for _ in range(4)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    server.answer = plain
    server.ends_used = reset
    for _ in range(4):
        assert store.fetch("db").values == VALUES


@pytest.mark.parametrize("end", ENDS)
def test_a_new_connection_that_breaks_is_an_outage(both: tuple[KeepAlive, SecretStore], end: End) -> None:
    server, store = both
    server.ends_all = end
    with pytest.raises(StoreUnavailable, match="the connection broke"):
        store.fetch("db")
    assert len(server.requests) == 1


def test_a_read_is_sent_again_once(both: tuple[KeepAlive, SecretStore]) -> None:
    server, store = both
    store.fetch("db")
    server.ends_all = close
    before = len(server.requests)
    with pytest.raises(StoreUnavailable, match="the connection broke"):
        store.fetch("db")
    assert len(server.requests) == before + 2


@pytest.mark.parametrize(("young", "new"), [(1000.0, 0), (0.0, 1)])
def test_what_has_effects_takes_a_connection_that_cannot_have_died(
    monkeypatch: pytest.MonkeyPatch, young: float, new: int
) -> None:
    monkeypatch.setattr(connections, "_YOUNG", young)
    with KeepAlive(lambda _: (200, b"{}")) as server:
        to = Connections(Endpoint(server.address, 2.0, Trust("store", lambda: tls_context([]))))
        for method in ("GET", "POST", "GET"):
            assert to.exchange(method, "/", "", b"") == (200, b"{}")
        to.close()
        assert server.connections == 1 + new


def test_a_read_that_has_effects_is_sent_once() -> None:
    with KeepAlive(lambda _: (200, b"{}")) as server:
        to = Connections(Endpoint(server.address, 2.0, Trust("store", lambda: tls_context([]))))
        to.exchange("GET", "/", "", None, once=True)
        server.ends_used = server.ends_all = close
        with pytest.raises(StoreUnavailable, match="the connection broke"):
            to.exchange("GET", "/", "", None, once=True)
        to.close()
        assert len(server.requests) == 2


# --- Azure ---


@pytest.mark.parametrize("end", ENDS)
def test_a_read_from_azure_over_a_dead_connection_is_sent_again(azure: Azure, end: End) -> None:
    azure.put("db", secret())
    with opened(AZURE, login()) as store:
        store.check()
        before = azure.requests["get"]
        azure.ends = end
        azure.faults.append(dropped)
        assert store.fetch("db").values == {"db": secret().encode()}
        assert azure.requests["get"] == before + 1  # and one that was dropped before it counted
        azure.faults += [dropped, dropped]
        with pytest.raises(StoreError, match="the connection broke"):
            store.fetch("db")
