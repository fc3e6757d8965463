"""``secretstores.kubernetes``: how it finds the API server and who it says it is."""

import base64
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from secretfs.errors import AccessDenied, ConfigurationError, StoreUnavailable
from secretfs.settings import Property, decode
from secretfs.store import StoreContext
from secretfs.stores.kubernetes import http as kubernetes_http
from secretfs.stores.kubernetes.store import Settings, open_store
from tests.conftest import ExpectLog
from tests.support.canary import CANARY, secret
from tests.support.kube_fixtures import Namespace, kube, kubernetes, namespace, outside, watching
from tests.support.servers.cuttable import Cuttable
from tests.support.servers.kube_apiserver import KubeApiserver, token

__all__ = ["kube", "namespace", "outside"]


def written(path: Path, document: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document if isinstance(document, str) else yaml.safe_dump(document), encoding="utf-8")
    return path


def refusal(annotations: dict[str, str] | None = None, **properties: str) -> str:
    settings, _ = decode(Settings, [Property(name, value) for name, value in properties.items()])
    with pytest.raises(ConfigurationError) as caught:
        open_store(settings, StoreContext("k8s", annotations=annotations or {}))
    return str(caught.value)


@pytest.fixture
def db(namespace: Namespace) -> Namespace:
    """Give the test a namespace with a secret."""
    namespace.put("db", {"key": secret().encode()})
    return namespace


# --- what makes no sense is said before anybody is contacted ---


def test_a_namespace_must_come_from_somewhere(kube: KubeApiserver) -> None:
    """In the words of Dapr."""
    assert refusal(kubeconfigPath=str(kube.kubeconfig("reader"))) == (
        "k8s: namespace is missing on metadata and NAMESPACE env variable, and no default namespace is set"
    )


@pytest.mark.parametrize("name", ["../default", "a/b", "A", "a b", "-a", "x" * 64])
def test_what_cannot_be_a_namespace(name: str) -> None:
    assert refusal(defaultNamespace=name) == f"k8s: the namespace: {name!r} cannot be the name of a namespace"
    assert "cannot be the name of a namespace" in refusal({"secretfs/namespaces": f"good,{name}"})


@pytest.mark.parametrize("text", ["", " ", "a,,b", "a,*", "*,*"])
def test_a_list_of_namespaces_that_is_none(text: str) -> None:
    assert refusal({"secretfs/namespaces": text}).startswith("k8s: secretfs/namespaces: '")


@pytest.mark.parametrize(("listed", "only"), [(None, "shop"), ("shop", ""), ("a,b", ""), ("*", "")])
def test_the_only_namespace(tmp_path: Path, listed: str | None, only: str) -> None:
    """No request is sent for that."""
    cluster = {"name": "c", "cluster": {"server": "https://192.0.2.1"}}
    context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
    config = {
        "clusters": [cluster],
        "contexts": [context],
        "users": [{"name": "u", "user": {}}],
        "current-context": "c",
    }
    properties = {"defaultNamespace": "shop", "kubeconfigPath": str(written(tmp_path / "config", config))}
    settings, _ = decode(Settings, [Property(name, value) for name, value in properties.items()])
    annotations = {} if listed is None else {"secretfs/namespaces": listed}
    store = open_store(settings, StoreContext("k8s", annotations=annotations))
    assert store.namespace == only
    store.close()


def test_no_cluster_and_no_kubeconfig(tmp_path: Path) -> None:
    assert refusal(defaultNamespace="x") == "k8s: not inside a cluster, and there is no kubeconfig ~/.kube/config"
    path = tmp_path / "nope"
    assert refusal(defaultNamespace="x", kubeconfigPath=str(path)).endswith(f"there is no kubeconfig {path}")


@pytest.mark.parametrize(
    "document",
    [
        "",
        "[]",
        "a: [",
        "kind: Config",
        {"current-context": "c", "contexts": [], "clusters": [], "users": []},
        {"current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "x"}}], "clusters": [], "users": []},
        {"current-context": "c", "users": [{"name": "u", "user": {"token": secret("token")}}, {"nameless": 1}]},
    ],
)
def test_a_kubeconfig_that_makes_no_sense(tmp_path: Path, document: Any) -> None:
    path = written(tmp_path / "config", document)
    assert refusal(defaultNamespace="x", kubeconfigPath=str(path)).startswith(f"k8s: {path}: not a kubeconfig")


def test_a_kubeconfig_that_cannot_be_read(tmp_path: Path) -> None:
    assert refusal(defaultNamespace="x", kubeconfigPath=str(tmp_path)) == f"k8s: {tmp_path}: Is a directory"


# --- which kubeconfig counts ---


def test_the_order_of_kubeconfigs(db: Namespace, outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, nobody = (db.server.kubeconfig(user).read_text() for user in ("reader", "nobody"))
    places = [outside / "given", outside / "variable", outside / ".kube" / "config"]
    monkeypatch.setenv("KUBECONFIG", str(places[1]))

    def works(**properties: str) -> bool:
        try:
            with kubernetes({"defaultNamespace": db.name, **properties}) as store:
                store.fetch("db")
        except AccessDenied:
            return False
        return True

    for place in places:
        for each in places:
            written(each, reader if each is place else nobody)
        assert works(kubeconfigPath=str(places[0])) is (place is places[0])
        assert works() is (place is places[1])
    monkeypatch.delenv("KUBECONFIG")
    assert works()


# --- how to prove who we are ---


def test_a_client_certificate_whose_key_is_in_the_file(db: Namespace, tmp_path: Path) -> None:
    """The key is in no file of ours by the time the server is asked."""
    certificate, key = db.server.client_certificate("reader", "somebody")
    data = {
        "client-certificate-data": base64.b64encode(certificate).decode(),
        "client-key-data": base64.b64encode(key).decode(),
    }
    path = db.server.kubeconfig("by-certificate", data)
    before = set(Path(os.environ["TMPDIR"]).rglob("*"))
    for _ in range(2):
        with kubernetes({"defaultNamespace": db.name, "kubeconfigPath": str(path)}) as store:
            assert store.fetch("db").values == {"key": secret().encode()}
            assert set(Path(os.environ["TMPDIR"]).rglob("*")) == before


def test_a_client_certificate_in_files_next_to_the_kubeconfig(db: Namespace) -> None:
    certificate, key = db.server.client_certificate("reader", "somebody")
    (db.server.directory / "client.pem").write_bytes(certificate)
    (db.server.directory / "client.key").write_bytes(key)
    path = db.server.kubeconfig("files", {"client-certificate": "client.pem", "client-key": "client.key"})
    with kubernetes({"defaultNamespace": db.name, "kubeconfigPath": str(path)}) as store:
        assert store.fetch("db").values == {"key": secret().encode()}


def test_a_certificate_that_is_none(db: Namespace) -> None:
    garbage = base64.b64encode(b"garbage").decode()
    path = db.server.kubeconfig("garbage", {"client-certificate-data": garbage, "client-key-data": garbage})
    with (
        kubernetes({"defaultNamespace": db.name, "kubeconfigPath": str(path)}) as store,
        pytest.raises(StoreUnavailable, match="secret db: the certificates for the server cannot be read"),
    ):
        store.fetch("db")


PLUGIN = """\
#!{python}
import json, os, pathlib
here = pathlib.Path(__file__).parent
with open(here / "runs", "a") as runs:
    runs.write("run\\n")
assert json.loads(os.environ["KUBERNETES_EXEC_INFO"])["kind"] == "ExecCredential"
print((here / "says").read_text())
"""


@pytest.fixture
def plugin(db: Namespace, tmp_path: Path) -> Callable[[object], tuple[dict[str, str], Path]]:
    """Make an exec plugin that says this. Returns the properties of a store that uses it, and its log."""
    path = written(tmp_path / "plugin", PLUGIN.format(python=sys.executable))
    path.chmod(0o755)

    def make(says: object) -> tuple[dict[str, str], Path]:
        written(tmp_path / "says", says if isinstance(says, str) else json.dumps(says))
        section = {"apiVersion": "client.authentication.k8s.io/v1", "command": str(path), "interactiveMode": "Never"}
        kubeconfig = db.server.kubeconfig("plugin", {"exec": section})
        return {"defaultNamespace": db.name, "kubeconfigPath": str(kubeconfig)}, tmp_path / "runs"

    return make


def credential(**status: str) -> dict[str, object]:
    return {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status}


def test_an_exec_plugin_runs_once(plugin: Callable[..., tuple[dict[str, str], Path]]) -> None:
    properties, runs = plugin(credential(token=token("reader"), expirationTimestamp="2000-01-01T00:00:00Z"))
    with kubernetes(properties) as store:
        assert not runs.exists()
        for _ in range(3):
            assert store.fetch("db").values == {"key": secret().encode()}
    assert runs.read_text() == "run\n"


def test_an_exec_plugin_gives_a_certificate(db: Namespace, plugin: Callable[..., tuple[dict[str, str], Path]]) -> None:
    certificate, key = db.server.client_certificate("reader", "somebody")
    given = credential(clientCertificateData=certificate.decode(), clientKeyData=key.decode())
    with kubernetes(plugin(given)[0]) as store:
        assert store.fetch("db").values == {"key": secret().encode()}


def test_an_exec_plugin_runs_again_when_its_token_is_refused(
    plugin: Callable[..., tuple[dict[str, str], Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes_http, "_LOG_IN_AGAIN", 0)
    properties, runs = plugin(credential(token=secret("expired")))
    with kubernetes(properties) as store:
        with pytest.raises(AccessDenied, match=r"the credentials are not accepted \(401\)"):
            store.fetch("db")
        plugin(credential(token=token("reader")))
        assert store.fetch("db").values == {"key": secret().encode()}
    assert len(runs.read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("says", "reason"),
    [
        (secret("garbage"), "what it printed is no ExecCredential"),
        ("{}", "what it printed is no ExecCredential"),
        (credential(clientCertificateData="x", clientKeyData="y"), "the certificates for the server cannot be read"),
    ],
)
def test_an_exec_plugin_that_says_nothing_useful(
    plugin: Callable[..., tuple[dict[str, str], Path]], says: object, reason: str
) -> None:
    with kubernetes(plugin(says)[0]) as store, pytest.raises(StoreUnavailable, match=reason) as caught:
        store.fetch("db")
    assert CANARY not in str(caught.value)


def test_an_exec_plugin_that_fails(plugin: Callable[..., tuple[dict[str, str], Path]], tmp_path: Path) -> None:
    properties, _ = plugin("")
    for text, reason in (
        (f"#!/bin/sh\necho {secret('stderr')} >&2; exit 3", "process returned 3$"),
        ("#!/nonexistent", "cannot be run: No such file or directory$"),
    ):
        (tmp_path / "plugin").write_text(text)
        with kubernetes(properties) as store, pytest.raises(StoreUnavailable, match=reason):
            store.fetch("db")


def test_a_token_file_is_read_again_when_its_token_is_refused(
    db: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes_http, "_LOG_IN_AGAIN", 0)
    db.kubectl("create", "serviceaccount", "shop")
    db.kubectl("create", "role", "shop", "--verb=get,list,watch", "--resource=secrets")
    db.kubectl("create", "rolebinding", "shop", "--role=shop", f"--serviceaccount={db.name}:shop")
    path = written(tmp_path / "token", db.server.service_account_token(db.name, "shop", expires_in=-60))
    kubeconfig = db.server.kubeconfig("token-file", {"tokenFile": str(path)})
    with kubernetes({"defaultNamespace": db.name, "kubeconfigPath": str(kubeconfig)}) as store:
        for call in (lambda: store.fetch("db"), lambda: store.names(""), store.check):
            with pytest.raises(AccessDenied, match=r"the credentials are not accepted \(401\)"):
                call()
        written(path, db.server.service_account_token(db.name, "shop"))
        assert store.fetch("db").values == {"key": secret().encode()}
        watching(store)
        assert store.fetch("db").values == {"key": secret().encode()}


def test_a_refused_token_is_not_asked_for_at_every_read(db: Namespace, tmp_path: Path) -> None:
    path = written(tmp_path / "token", secret("wrong"))
    kubeconfig = db.server.kubeconfig("token-file", {"tokenFile": str(path)})
    with kubernetes({"defaultNamespace": db.name, "kubeconfigPath": str(kubeconfig)}) as store:
        for _ in range(2):
            with pytest.raises(AccessDenied):
                store.fetch("db")
        written(path, token("reader"))
        with pytest.raises(AccessDenied):
            store.fetch("db")
        time.sleep(kubernetes_http._LOG_IN_AGAIN)
        assert store.fetch("db").values == {"key": secret().encode()}


def test_a_token_that_no_header_can_carry(db: Namespace) -> None:
    kubeconfig = db.server.kubeconfig("odd", {"token": secret("two\nlines")})
    with (
        kubernetes({"defaultNamespace": db.name, "kubeconfigPath": str(kubeconfig)}) as store,
        pytest.raises(StoreUnavailable, match="there is no usable token"),
    ):
        store.fetch("db")


# --- whom we believe ---


def test_a_server_that_nobody_vouches_for(db: Namespace, tmp_path: Path, expect_log: ExpectLog) -> None:
    document = yaml.safe_load(db.server.kubeconfig("reader").read_text())
    cluster = document["clusters"][0]["cluster"]
    del cluster["certificate-authority"]
    path = written(tmp_path / "config", document)
    properties = {"defaultNamespace": db.name, "kubeconfigPath": str(path)}
    with (
        kubernetes(properties) as store,
        pytest.raises(StoreUnavailable, match="TLS: the server's certificate is refused: self-signed"),
    ):
        store.fetch("db")
    cluster["insecure-skip-tls-verify"] = True
    written(path, document)
    expect_log("insecure-skip-tls-verify: any server that answers for https://127.0.0.1:.* gets the token")
    with kubernetes(properties) as store:
        assert store.fetch("db").values == {"key": secret().encode()}


def test_another_name_in_the_certificate(db: Namespace, tmp_path: Path) -> None:
    document = yaml.safe_load(db.server.kubeconfig("reader").read_text())
    document["clusters"][0]["cluster"]["tls-server-name"] = "elsewhere.example"
    path = written(tmp_path / "config", document)
    with (
        kubernetes({"defaultNamespace": db.name, "kubeconfigPath": str(path)}) as store,
        pytest.raises(StoreUnavailable, match="certificate is refused: Hostname mismatch"),
    ):
        store.fetch("db")


def test_the_environment_is_heeded_as_by_go(db: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Proxies do not matter to a server on this machine, nor bundles for requests to anybody."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nonexistent")
    with db.store() as store:
        assert store.fetch("db").values == {"key": secret().encode()}


def test_proxies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = {"server": "https://kubernetes.example:6443"}
    document = {
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": {"token": secret("token")}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "c",
    }

    def connections() -> int:
        path = written(tmp_path / "config", document)
        with Cuttable(1) as proxy:
            address = f"http://127.0.0.1:{proxy.port}"
            environment = {name: value.format(address) for name, value in variables.items()}
            if "proxy-url" in cluster:
                cluster["proxy-url"] = address
                written(path, document)
            for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"):
                monkeypatch.setenv(name, environment.get(name, ""))
            with (
                kubernetes({"defaultNamespace": "x", "kubeconfigPath": str(path)}) as store,
                pytest.raises(StoreUnavailable),
            ):
                store.fetch("db")
            return proxy.connections

    variables = {"HTTPS_PROXY": "{}"}
    assert connections() == 1
    variables = {"HTTP_PROXY": "{}"}
    assert connections() == 0
    variables = {"HTTPS_PROXY": "{}", "NO_PROXY": ".example"}
    assert connections() == 0
    cluster["proxy-url"] = "to be filled in"
    assert connections() == 1
