"""Volumes with Dapr's objects: with a real API server, driver, mount and OpenBao."""

import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.canary import secret
from tests.support.csi import NAME, Kubelet, Protocol, csi_driver, in_pod, refused
from tests.support.csi_cluster import Cluster, in_memory
from tests.support.csi_node import ORDERS_APP, Node, _protocol, csi_node
from tests.support.dapr_objects import DaprObjects, install_definitions, let_read_objects
from tests.support.kube_fixtures import Namespace, kube, namespace
from tests.support.manifests import scope
from tests.support.mounted import Mounted
from tests.support.scrape import get, samples
from tests.support.servers.cuttable import Cuttable, address_of_this_machine
from tests.support.servers.kube_apiserver import KubeApiserver
from tests.support.shell import errno_of
from tests.support.vault_fixtures import Folder, kv, openbao_server
from tests.support.volume_server import VolumeServer
from tests.support.waiting import wait_until

__all__ = ["_protocol", "kube", "kv", "namespace", "openbao_server"]

pytestmark = [pytest.mark.mount, pytest.mark.root("needs to mount for other users, which only root can")]

FROM_API = {"appId": "orders", "resources": "components.dapr.io"}
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Team:
    """A namespace with components that lead to OpenBao, and with pods."""

    objects: DaprObjects
    kv: Folder
    address: str

    def pod(self, **annotations: str) -> dict[str, str]:
        """Make a pod, annotations named without ``dapr.io/``. Returns what the kubelet says of it."""
        name = f"orders-{next(_numbers)}"
        path = f"/api/v1/namespaces/{self.objects.namespace}/pods"
        metadata = {"name": name, "annotations": {f"dapr.io/{key}": text for key, text in annotations.items()}}
        spec = {"containers": [{"name": "c", "image": "localhost/busybox:1"}]}
        made = self.objects.server.call("POST", path, {"metadata": metadata, "spec": spec})
        return {
            "csi.storage.k8s.io/pod.name": name,
            "csi.storage.k8s.io/pod.namespace": self.objects.namespace,
            "csi.storage.k8s.io/pod.uid": made["metadata"]["uid"],
            "csi.storage.k8s.io/serviceAccount.name": "orders",
        }

    def component(self, name: str, *, scopes: Sequence[str] = (), **more: str) -> None:
        """Write a component for the folder of the test."""
        properties = self.kv.metadata(vaultAddr=f"http://{self.address}", **more)
        self.objects.component(name, "hashicorp.vault", properties, scopes=scopes)


@pytest.fixture
def way_to_openbao(kv: Folder) -> Iterator[str]:
    """Give a place of OpenBao that objects may name."""
    port = int(kv.server.address.rpartition(":")[2])
    address = address_of_this_machine()
    with Cuttable(port, address) as way:
        yield f"{address}:{way.port}"


@pytest.fixture
def cluster(namespace: Namespace) -> Cluster:
    install_definitions(namespace.server)
    cluster = Cluster(namespace)
    let_read_objects(namespace)
    role, account = f"pods-{namespace.name}", f"--serviceaccount={namespace.name}:driver"
    namespace.kubectl("create", "clusterrole", role, "--verb=get", "--resource=pods")
    namespace.kubectl("create", "clusterrolebinding", role, f"--clusterrole={role}", account)
    return cluster


@pytest.fixture
def team(cluster: Cluster, kv: Folder, way_to_openbao: str) -> Team:
    kv.put("db", {"password": secret("db"), "user": secret("user")})
    return Team(DaprObjects(cluster.server, cluster.namespace.name), kv, way_to_openbao)


@pytest.fixture
def others(kube: KubeApiserver, kv: Folder, way_to_openbao: str) -> Team:
    """Give another namespace."""
    name = f"another{next(_numbers)}"
    kube.create_namespace(name)
    return Team(DaprObjects(kube, name), kv, way_to_openbao)


@pytest.fixture
def node(tmp_path: Path, protocol: Protocol) -> Iterator[Node]:
    with in_memory(tmp_path / "n") as root, csi_node(root, protocol) as node:
        (root / "objects").mkdir(mode=0o700)
        yield node


@pytest.fixture
def mount(node: Node) -> Iterator[Mounted]:
    with node.mounted(None, "--app-objects", str(objects_of(node))) as mount:
        yield mount


@pytest.fixture
def account(cluster: Cluster, tmp_path: Path) -> Path:
    return cluster.account(tmp_path / "account")


@contextmanager
def driver_of(node: Node, mount: Mounted, cluster: Cluster, account: Path) -> Iterator[VolumeServer]:
    program = in_pod(account)
    flags = ["--components-from-api", f"--metrics-listen=unix:{metrics_of(node)}", str(mount.path)]
    with csi_driver(node.kubelet.directory, *flags, env=cluster.environment, program=program) as driver:
        yield driver


@pytest.fixture
def kubelet(node: Node, mount: Mounted, cluster: Cluster, account: Path) -> Iterator[Kubelet]:
    with driver_of(node, mount, cluster, account):
        yield node.kubelet


def objects_of(node: Node) -> Path:
    return node.volumes.with_name("objects")


def metrics_of(node: Node) -> Path:
    return node.kubelet.directory.with_name("metrics")


def watched(node: Node) -> tuple[float, float]:
    """Return what the metrics say of namespaces: those that are watched, and those that are behind."""
    page = samples(get(metrics_of(node), "application/openmetrics-text")[2])
    named = (f"secretfs_csi_watched_namespaces{end} {NAME}" for end in ("", "_behind"))
    watched, behind = (page[each] for each in named)
    return watched, behind


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))  # noqa: PTH208 - names are what counts


def reads(path: Path, text: str) -> bool:
    """Whether a file has a text by now."""
    try:
        return path.read_text("utf-8") == text
    except OSError:
        return False


def test_a_volume_shows_objects(kubelet: Kubelet, node: Node, team: Team) -> None:
    """csi-24: With `components.dapr.io` it shows Dapr's objects in its namespace, and follows them."""
    team.component("vault")
    team.component("hidden", scopes=["billing"])
    target = kubelet.publish("v", FROM_API, pod=team.pod())
    assert names(target) == ["vault"]
    assert (target / "vault/db/password").read_text("utf-8") == secret("db")
    team.kv.server.call("POST", f"{team.kv.engine}/data/{team.kv.prefix}-b/db", {"data": {"password": secret("b")}})
    team.component("vault", vaultKVPrefix=f"{team.kv.prefix}-b")
    wait_until(lambda: reads(target / "vault/db/password", secret("b")))
    team.component("more")
    wait_until(lambda: names(target) == ["more", "vault"])
    team.objects.delete("Component", "vault")
    wait_until(lambda: names(target) == ["more"])
    kubelet.unpublish("v")
    assert node.is_clean()
    assert names(objects_of(node)) == []


def test_scopes_of_a_configuration(kubelet: Kubelet, team: Team) -> None:
    """A Configuration object says which secrets of its components a pod sees (csi-24)."""
    team.component("vault")
    team.kv.put("more", {"x": secret("x")})
    team.objects.configuration("strict", scope("vault", default="deny", allowed=["more"]))
    target = kubelet.publish("v", FROM_API, pod=team.pod(config="strict"))
    assert (target / "vault/more/x").read_text("utf-8") == secret("x")
    assert errno_of((target / "vault/db").stat) in ("EACCES", "ENOENT")
    team.objects.configuration("strict", scope("vault", default="deny", allowed=["db"]))
    wait_until(lambda: reads(target / "vault/db/user", secret("user")))


def test_namespaces_that_know_nothing_of_each_other(kubelet: Kubelet, team: Team, others: Team) -> None:
    """What is wrong in one is nobody else's business, and neither are its components (csi-24)."""
    team.component("vault")
    others.component("vault", vaultKVPrefix="nothing")
    mine = kubelet.publish("v", FROM_API, pod=team.pod())
    theirs = kubelet.publish("w", FROM_API, pod=others.pod())
    all_of_the_node = kubelet.publish("x", ORDERS_APP, pod=others.pod())
    assert errno_of((theirs / "vault/db").stat) == "ENOENT"
    others.objects.put("Component", "vault", {"spec": {"type": "secretstores.hashicorp.vault", "metadata": "wrong"}})
    others.objects.put("Component", "file", {"spec": {"type": "secretstores.local.file", "version": "v1"}})
    others.objects.put("Configuration", "strict", {"spec": {"secrets": {"scopes": 5}}})
    others.component("good")
    wait_until(lambda: reads(theirs / "good/db/password", secret("db")))
    assert names(theirs) == ["file", "good", "vault"]  # the last as it was before the mistake
    assert errno_of((theirs / "file/x").stat) == "EIO"
    assert names(mine) == ["vault"]
    assert (mine / "vault/db/password").read_text("utf-8") == secret("db")
    assert (all_of_the_node / "file/tls/key").read_text("utf-8") == secret("key")
    kubelet.publish("y", FROM_API, pod=team.pod())


def test_a_namespace_without_components(kubelet: Kubelet, node: Node, team: Team) -> None:
    """Nothing to see is a mistake, and it is one no more when there is something (csi-24)."""
    code, text = refused(kubelet.publish, "v", FROM_API, pod=team.pod())
    assert (code, text) == (
        "FAILED_PRECONDITION",
        "app id orders sees no secret store; compare it with the scopes of the components",
    )
    assert node.is_clean()
    assert names(objects_of(node)) == []
    team.component("vault")
    kubelet.publish("v", FROM_API, pod=team.pod())


def test_the_next_driver_goes_on(
    node: Node, mount: Mounted, cluster: Cluster, account: Path, team: Team, kube: KubeApiserver
) -> None:
    """A driver is killed, and the API server with it: what they knew is served, and then what is new (csi-24)."""
    team.component("vault")
    with driver_of(node, mount, cluster, account) as killed:
        target = node.kubelet.publish("v", FROM_API, pod=team.pod())
        killed.kill()
    another = team.pod()
    kube.kill()
    with driver_of(node, mount, cluster, account):
        assert (target / "vault/db/password").read_text("utf-8") == secret("db")
        code, text = refused(node.kubelet.publish, "w", FROM_API, pod=another)
        assert (code, "cannot ask the API server" in text) == ("UNAVAILABLE", True)
        assert watched(node) == (1, 1)
        kube.restart()
        team.component("more")
        wait_until(lambda: names(target) == ["more", "vault"])
        wait_until(lambda: watched(node) == (1, 0))
        node.kubelet.unpublish("v")
    assert names(objects_of(node)) == []
