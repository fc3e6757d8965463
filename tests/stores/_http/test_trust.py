"""Certificates that are rotated while a store is open."""

import base64
import json
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme

from secretfs.errors import ConfigurationError, StoreUnavailable, TLSFailure
from secretfs.stores._http.trust import Trust, file_identity, tls_context
from secretfs.stores.kubernetes import http as kubernetes_http
from tests.support.azure_fixtures import TYPE as AZURE
from tests.support.azure_fixtures import azure, login
from tests.support.canary import secret
from tests.support.opened import opened
from tests.support.servers.azure_keyvault import Azure
from tests.support.servers.keep_alive import KeepAlive

__all__ = ["azure"]

KUBECONFIG = """\
clusters: [{{name: c, cluster: {{server: "{address}", {ca}}}}}]
users: [{{name: u, user: {{token: {token}}}}}]
contexts: [{{name: c, context: {{cluster: c, user: u}}}}]
current-context: c
"""


def server_side(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


def write(authority: trustme.CA, path: Path) -> None:
    path.unlink(missing_ok=True)
    authority.cert_pem.write_to_path(str(path))


def kubernetes_answer(_: str) -> tuple[int, bytes]:
    metadata = {"name": "db", "namespace": "shop", "resourceVersion": "7"}
    data = {"key": base64.b64encode(secret().encode()).decode()}
    return 200, json.dumps({"kind": "Secret", "metadata": metadata, "data": data}).encode()


@pytest.mark.parametrize("inline", [False, True], ids=["certificate-authority", "certificate-authority-data"])
def test_kubernetes(tmp_path: Path, inline: bool, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: FBT001
    monkeypatch.setattr(kubernetes_http, "_LOG_IN_AGAIN", 0.0)
    kubeconfig, file = tmp_path / "kubeconfig", tmp_path / "ca.pem"

    def publish(authority: trustme.CA) -> None:
        write(authority, file)
        data = base64.b64encode(authority.cert_pem.bytes()).decode()
        ca = f'certificate-authority-data: "{data}"' if inline else f'certificate-authority: "{file}"'
        kubeconfig.write_text(KUBECONFIG.format(address=server.address, ca=ca, token=secret("token")))

    first = trustme.CA()
    with KeepAlive(kubernetes_answer, server_side(first)) as server:
        publish(first)
        with opened(
            "secretstores.kubernetes", {"defaultNamespace": "shop", "kubeconfigPath": str(kubeconfig)}
        ) as store:
            for _ in range(2):
                assert store.fetch("db").values == {"key": secret().encode()}
                authority = trustme.CA()
                publish(authority)
                server.tls = server_side(authority)
                server.close_idle()
            assert store.fetch("db").values == {"key": secret().encode()}
            server.tls = server_side(trustme.CA())
            server.close_idle()
            with pytest.raises(TLSFailure, match="the server's certificate is refused"):
                store.fetch("db")


def test_azure_follows_the_systems_authorities(azure: Azure) -> None:
    azure.put("db", secret())
    with opened(AZURE, login()) as store:
        for _ in range(2):
            assert store.fetch("db").values == {"db": secret().encode()}
            azure.rotate_authority()
            azure.drop_connections()
        assert store.fetch("db").values == {"db": secret().encode()}


# --- Trust ---


def context_of(path: Path) -> Callable[[], ssl.SSLContext]:
    return lambda: tls_context([path.read_text("ascii")])


def test_a_context_is_made_again_when_its_file_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    write(trustme.CA(), path)
    trust = Trust("store", context_of(path), lambda: file_identity(path))
    first = trust.context()
    assert trust.context() is first
    authority = trustme.CA()
    write(authority, path)
    second = trust.context()
    assert second is not first
    assert second.get_ca_certs(binary_form=True) == [ssl.PEM_cert_to_DER_cert(authority.cert_pem.bytes().decode())]
    assert trust.context() is second


def test_a_file_that_is_being_written_is_an_outage_until_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    write(trustme.CA(), path)
    trust = Trust("store", context_of(path), lambda: file_identity(path))
    whole = path.read_text("ascii")
    for _ in range(2):
        path.write_text(whole[:100], encoding="ascii")
        with pytest.raises(StoreUnavailable, match="couldn't read PEM"):
            trust.context()
    path.write_text(whole, encoding="ascii")
    trust.context()


def test_a_first_context_that_cannot_be_made_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("", encoding="ascii")
    with pytest.raises(ConfigurationError):
        Trust("store", context_of(tmp_path / "ca.pem"))
