"""Pods that are who they are to their backends: real tokens of a real API server, and logins at a real OpenBao."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import csi_cluster
from tests.support.canary import secret
from tests.support.csi import NAME, Kubelet, Protocol, csi_driver, in_pod, refused
from tests.support.csi_cluster import Cluster, in_memory
from tests.support.csi_node import Node, _protocol, csi_node
from tests.support.kube_fixtures import Namespace, kube, namespace
from tests.support.manifests import component
from tests.support.mounted import Mounted
from tests.support.scrape import get, samples
from tests.support.shell import errno_of
from tests.support.vault_auth import enable, reading, role
from tests.support.vault_fixtures import Folder, kv, openbao_server
from tests.support.volume_server import VolumeServer

__all__ = ["_protocol", "kube", "kv", "namespace", "openbao_server"]

pytestmark = [pytest.mark.mount, pytest.mark.root("needs to mount for other users, which only root can")]


@pytest.fixture
def cluster(namespace: Namespace) -> Cluster:
    return Cluster(namespace)


@pytest.fixture
def auth(cluster: Cluster, kv: Folder) -> str:
    """Let OpenBao take the tokens of the service account ``orders``. Returns the path of that login."""
    auth = enable(kv.server, "jwt")
    kv.server.call("POST", f"auth/{auth}/config", {"jwt_validation_pubkeys": [cluster.key]})
    bound = {"role_type": "jwt", "bound_audiences": ["vault"], "user_claim": "sub"}
    bound["bound_subject"] = cluster.subject("orders")
    kv.server.call("POST", f"auth/{auth}/role/app", {**role(reading(kv.server, kv.prefix)), **bound})
    return auth


@pytest.fixture
def node(tmp_path: Path, protocol: Protocol, auth: str, kv: Folder) -> Iterator[Node]:
    """Give a node whose store logs in with the token of each pod."""
    with in_memory(tmp_path / "n") as root, csi_node(root, protocol) as node:
        login = {"vaultAuthMethod": "jwt", "vaultJwtRole": "app", "vaultJwtMountPath": auth}
        own = {**kv.metadata(), **login, "vaultJwtPath": "{appToken:vault}"}
        del own["vaultToken"]
        component(node.host.components, "vault", "hashicorp.vault", own, annotations={"secretfs/ttl": "1h"})
        yield node


@pytest.fixture
def mount(node: Node) -> Iterator[Mounted]:
    with node.mounted() as mount:
        yield mount


@pytest.fixture(name="driver")
def _driver(node: Node, mount: Mounted, cluster: Cluster, tmp_path: Path) -> Iterator[VolumeServer]:
    program = in_pod(cluster.account(tmp_path / "account"))
    metrics = f"--metrics-listen=unix:{node.kubelet.directory.with_name('metrics')}"
    with csi_driver(node.kubelet.directory, metrics, mount.path, env=cluster.environment, program=program) as driver:
        yield driver


@pytest.fixture
def kubelet(node: Node, driver: VolumeServer) -> Kubelet:
    assert driver.process.poll() is None
    return node.kubelet


BOTH = {"appId": "shop", "configuration": "wide"}
REVIEWS = ("accepted", "refused", "failed")
PODS = {"first": "orders", "second": "orders", "third": "billing"}


def passed_on(token: str, audience: str = "vault") -> dict[str, str]:
    return csi_cluster.passed_on(token, audience)


def test_each_pod_reads_as_itself(kubelet: Kubelet, node: Node, cluster: Cluster, kv: Folder) -> None:
    """csi-17: A pod reads as its service account: one that is refused sees EACCES, and others notice nothing."""
    kv.put("db", {"password": secret("db")})
    kv.server.forget()
    pods = {name: cluster.pod(name, account) for name, account in PODS.items()}
    targets = {
        name: kubelet.publish(name, {**BOTH, **passed_on(cluster.token(pod, "vault"))}, pod=pod)
        for name, pod in pods.items()
    }
    for name in ("first", "second"):
        assert (targets[name] / "vault/db/password").read_text("utf-8") == secret("db")
    assert errno_of((targets["third"] / "vault/db/password").read_text) == "EACCES"
    assert kv.requests().count(("read", "data/db")) == 1  # pods of one identity share what is cached
    for file in node.tokens.glob("*/*/*.jwt"):
        assert file.stat().st_mode & 0o777 == 0o600
    kubelet.unpublish("second")
    assert (targets["first"] / "vault/db/password").read_text("utf-8") == secret("db")
    for name in ("first", "third"):
        kubelet.unpublish(name)
    assert list(node.tokens.iterdir()) == []


def test_tokens_that_are_renewed(kubelet: Kubelet, node: Node, cluster: Cluster, driver: VolumeServer) -> None:
    """csi-18: A token that the kubelet renews takes the place of the one before, once it is confirmed."""
    pod, other = cluster.pod("first", "orders"), cluster.pod("other", "orders")
    old, new = cluster.token(pod, "vault"), cluster.token(pod, "vault", "more")
    kubelet.publish("first", {**BOTH, **passed_on(old)}, pod=pod)
    kubelet.publish("first", {**BOTH, **passed_on(new)}, pod=pod)
    file = node.tokens / f"{cluster.namespace.name}:orders" / "current" / "vault.jwt"
    assert file.read_text("ascii") == new
    for wrong, code in ((cluster.token(other, "vault"), "PERMISSION_DENIED"), (secret("x"), "PERMISSION_DENIED")):
        assert refused(kubelet.publish, "first", {**BOTH, **passed_on(wrong)}, pod=pod)[0] == code
    assert refused(kubelet.publish, "first", {**BOTH, **passed_on(new, "other")}, pod=pod)[0] == "PERMISSION_DENIED"
    assert file.read_text("ascii") == new
    kubelet.publish("other", {**BOTH, **passed_on(cluster.token(other, "vault"))}, pod=other)
    assert file.read_text("ascii") != new
    kubelet.unpublish("other")
    assert file.read_text("ascii") == new  # the pod of the other one is gone, and its token with it
    kubelet.unpublish("first")
    assert "a token is not that of pod" in driver.log
    assert not [token for token in (old, new, secret("x")) if token in driver.log]
    counted = samples(get(node.kubelet.directory.with_name("metrics"), "application/openmetrics-text")[2])
    reviews = {result: counted[f"secretfs_csi_token_reviews_total {NAME} {result}"] for result in REVIEWS}
    assert reviews == {"accepted": 3, "refused": 3, "failed": 0}


def test_a_token_of_somebody_else(kubelet: Kubelet, node: Node, cluster: Cluster) -> None:
    """A pod that says it is another one is refused, and nothing is left of it (csi-18)."""
    pod = cluster.pod("first", "billing")
    claimed = {**pod, "csi.storage.k8s.io/serviceAccount.name": "orders"}
    said = refused(kubelet.publish, "v", {**BOTH, **passed_on(cluster.token(pod, "vault"))}, pod=claimed)
    assert (said[0], "a token is not that of pod" in said[1]) == ("PERMISSION_DENIED", True)
    said = refused(kubelet.publish, "v", {**BOTH, "csi.storage.k8s.io/serviceAccount.tokens": "[]"}, pod=pod)
    assert said == ("INVALID_ARGUMENT", "the tokens of the pod are not what a kubelet passes on")
    assert not node.tokens.exists() or list(node.tokens.iterdir()) == []
    assert list(node.volumes.iterdir()) == []


def test_a_pod_without_tokens(kubelet: Kubelet, cluster: Cluster) -> None:
    """Without tokenRequests its store is not served, and says nothing of other pods (csi-17)."""
    pod = cluster.pod("first", "orders")
    code, text = refused(kubelet.publish, "v", BOTH, pod=pod)
    assert code == "FAILED_PRECONDITION"
    assert text == "app id shop sees no secret store; compare it with the scopes of the components"
