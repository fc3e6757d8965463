"""What a failed connection means, in all stores that speak HTTP."""

import ssl
from pathlib import Path

import pytest
import trustme

from secretfs.errors import MalformedAnswer, StoreError, TLSFailure
from tests.support.canary import secret
from tests.support.kube_fixtures import Namespace, kube, namespace, outside
from tests.support.opened import opened
from tests.support.servers.fake_vault import FakeVault
from tests.support.servers.keep_alive import KeepAlive

__all__ = ["kube", "namespace", "outside"]

KUBECONFIG = """\
clusters: [{{name: c, cluster: {{server: "{address}"}}}}]
users: [{{name: u, user: {{token: {token}}}}}]
contexts: [{{name: c, context: {{cluster: c, user: u}}}}]
current-context: c
"""
TLS_WANTED = "the server speaks TLS, so the address must start with https://"


def failure(store: str, address: str, tmp_path: Path) -> StoreError:
    """Read from a store at an address, and return the error."""
    if store == "vault":
        properties = {"vaultAddr": address, "vaultToken": secret("token")}
        type_ = "secretstores.hashicorp.vault"
    else:
        path = tmp_path / "kubeconfig"
        path.write_text(KUBECONFIG.format(address=address, token=secret("token")))
        properties = {"defaultNamespace": "shop", "kubeconfigPath": str(path)}
        type_ = "secretstores.kubernetes"
    with opened(type_, properties) as opened_store, pytest.raises(StoreError) as caught:
        opened_store.fetch("db")
    return caught.value


@pytest.mark.parametrize("store", ["vault", "kubernetes"])
def test_tls_for_a_server_without_it(store: str, tmp_path: Path) -> None:
    with FakeVault() as server:
        server.respond(400, b"Bad Request")
        error = failure(store, server.address.replace("http", "https"), tmp_path)
    assert type(error) is TLSFailure
    assert "the server does not speak TLS: does its address start with http://?" in str(error)


@pytest.mark.parametrize("store", ["vault", "kubernetes"])
@pytest.mark.parametrize(
    "body",
    [
        b"Client sent an HTTP request to an HTTPS server.\n",
        b"<center>The plain HTTP request was sent to HTTPS port</center>",
        b"Reason: You're speaking plain HTTP to an SSL-enabled server port.<br />",
    ],
)
def test_no_tls_for_a_server_that_says_what_it_wants(store: str, body: bytes, tmp_path: Path) -> None:
    with FakeVault() as server:
        server.tells_version = False
        server.respond(400, body)
        error = failure(store, server.address, tmp_path)
    assert isinstance(error, MalformedAnswer)
    assert TLS_WANTED in str(error)


@pytest.mark.parametrize("store", ["vault", "kubernetes"])
def test_no_tls_for_a_server_that_answers_with_an_alert(store: str, tmp_path: Path) -> None:
    with FakeVault() as server:
        server.tells_version = False
        server.answer = b"\x15\x03\x01\x00\x02\x02\x46"
        error = failure(store, server.address, tmp_path)
    assert isinstance(error, MalformedAnswer)
    assert TLS_WANTED in str(error)


@pytest.mark.parametrize("store", ["vault", "kubernetes"])
def test_no_tls_for_a_server_that_says_nothing(store: str, tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    with KeepAlive(lambda _: (200, b""), context) as server:
        error = failure(store, server.address.replace("https", "http"), tmp_path)
    assert "the connection broke; if the server speaks TLS, the address must start with https://" in str(error)


def test_no_tls_for_a_real_api_server(namespace: Namespace, tmp_path: Path) -> None:
    address = namespace.server.address.replace("https", "http")
    assert TLS_WANTED in str(failure("kubernetes", address, tmp_path))
