"""Pods that are who they are to their clouds: real tokens of a real API server, exchanged by the unmodified SDKs."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.support.aws_fixtures import SECRETS, moto_server
from tests.support.canary import secret
from tests.support.csi import Kubelet, Protocol, csi_driver, in_pod
from tests.support.csi_cluster import Cluster, Federation, in_memory, passed_on
from tests.support.csi_node import _protocol, csi_node
from tests.support.gcp_fixtures import TYPE as GCP
from tests.support.kube_fixtures import Namespace, kube, namespace
from tests.support.manifests import component
from tests.support.servers import aws, azure_logins, gcp
from tests.support.servers.azure_keyvault import Azure
from tests.support.servers.moto_server import Moto
from tests.support.shell import errno_of

__all__ = ["_protocol", "kube", "moto_server", "namespace"]

pytestmark = [pytest.mark.mount, pytest.mark.root("needs to mount for other users, which only root can")]

BOTH = {"appId": "shop", "configuration": "wide"}
PODS = {"first": "orders", "second": "orders", "third": "billing"}


@dataclass(frozen=True)
class Cloud:
    """A cloud, and a component that reads its secrets as the pod. The node has rights of its own there."""

    audience: str
    type: str
    properties: Mapping[str, str]
    annotations: Mapping[str, str]
    node: Mapping[str, str]
    """The environment of the mount, with which it is somebody, too."""
    put: Callable[[str, str], object]
    trust: Callable[[Federation], object]
    revoke: Callable[[], object]
    """Let nobody's login count any more."""
    reads: Callable[[], int]
    """Return how often a value was read."""


@contextmanager
def azure_cloud(directory: Path, _: Moto) -> Iterator[Cloud]:
    with Azure(directory) as server:
        yield Cloud(
            audience="api://AzureADTokenExchange",
            type="azure.keyvault",
            properties={
                "vaultName": "myvault", "azureTenantId": azure_logins.TENANT, "azureClientId": azure_logins.CLIENT,
            },
            annotations={"secretfs/token-file": "{appToken:api://AzureADTokenExchange}"},
            node={**server.environment, "AZURE_POD_IDENTITY_AUTHORITY_HOST": server.address},
            put=server.put,
            trust=partial(setattr, server, "federation"),
            revoke=server.revoke,
            reads=lambda: server.requests["get"],
        )  # fmt: skip
        assert set(server.bearers) == {azure_logins.CLIENT}


@contextmanager
def aws_cloud(directory: Path, moto_server: Moto) -> Iterator[Cloud]:
    nothing = str(directory / "none")
    with aws.Aws(moto_server) as server:
        server.lifetime = 60.0  # such credentials are renewed before each request
        yield Cloud(
            audience="sts.amazonaws.com",
            type=SECRETS,
            properties={"region": aws.REGION, "endpoint": server.address, "assumeRoleArn": aws.ROLE},
            annotations={"secretfs/token-file": "{appToken:sts.amazonaws.com}"},
            node={
                "AWS_ACCESS_KEY_ID": aws.KEY, "AWS_SECRET_ACCESS_KEY": server.keys[aws.KEY].secret,
                "AWS_CONFIG_FILE": nothing, "AWS_SHARED_CREDENTIALS_FILE": nothing,
            },
            put=server.put_secret,
            trust=partial(setattr, server, "web_identities"),
            revoke=lambda: None,
            reads=lambda: server.requests["GetSecretValue"],
        )  # fmt: skip
        assert aws.KEY not in server.signers
    moto_server.reset()


@contextmanager
def gcp_cloud(directory: Path, _: Moto) -> Iterator[Cloud]:
    audience = f"https:{gcp.AUDIENCE}"
    with gcp.Gcp(directory) as server:
        yield Cloud(
            audience=audience,
            type=GCP,
            properties={"projectID": gcp.PROJECT},
            annotations={
                "secretfs/token-file": f"{{appToken:{audience}}}",
                "secretfs/workload-identity-provider": gcp.AUDIENCE,
            },
            node={
                **server.environment, "GCE_METADATA_HOST": server.address.removeprefix("http://"),
                "CLOUDSDK_CONFIG": str(directory / "none"),
            },
            put=lambda name, value: server.put(name, value.encode()),
            trust=partial(setattr, server, "subject_tokens"),
            revoke=server.revoke,
            reads=lambda: server.requests["access"],
        )  # fmt: skip
        assert set(server.callers) == {"federated"}


@pytest.fixture
def cluster(namespace: Namespace) -> Cluster:
    return Cluster(namespace)


@pytest.fixture(params=[azure_cloud, aws_cloud, gcp_cloud], ids=["azure", "aws", "gcp"])
def cloud(request: pytest.FixtureRequest, tmp_path: Path, moto_server: Moto) -> Iterator[Cloud]:
    (tmp_path / "cloud").mkdir()
    make: Callable[[Path, Moto], AbstractContextManager[Cloud]] = request.param
    with make(tmp_path / "cloud", moto_server) as cloud:
        yield cloud


@pytest.fixture
def kubelet(tmp_path: Path, protocol: Protocol, cluster: Cluster, cloud: Cloud) -> Iterator[Kubelet]:
    """Give the kubelet of a node whose driver serves a component of the cloud."""
    with in_memory(tmp_path / "n") as root, csi_node(root, protocol) as node:
        annotations = {"secretfs/ttl": "1h", "secretfs/deadline": "1m", **cloud.annotations}
        component(node.host.components, "cloud", cloud.type, cloud.properties, annotations=annotations)
        program = in_pod(cluster.account(tmp_path / "account"))
        with (
            node.mounted(cloud.node) as mount,
            csi_driver(node.kubelet.directory, mount.path, env=cluster.environment, program=program),
        ):
            yield node.kubelet


def test_a_pod_is_itself_to_its_cloud(kubelet: Kubelet, cluster: Cluster, cloud: Cloud) -> None:
    """csi-19: To Azure, AWS and GCP a pod is its service account, by workload identity, and never the node."""
    for name in ("db", "other"):
        cloud.put(name, secret(name))
    federation = Federation(cluster, cloud.audience, "orders")
    cloud.trust(federation)
    pods = {name: cluster.pod(name, account) for name, account in PODS.items()}
    tokens = {name: cluster.token(pod, cloud.audience) for name, pod in pods.items()}
    targets = {
        name: kubelet.publish(name, {**BOTH, **passed_on(tokens[name], cloud.audience)}, pod=pod)
        for name, pod in pods.items()
    }
    for name in ("first", "second"):
        assert (targets[name] / "cloud/db").read_text("utf-8") == secret("db")
    assert errno_of((targets["third"] / "cloud/db").read_text) == "EACCES"
    assert (targets["first"] / "cloud/db").read_text("utf-8") == secret("db")
    assert cloud.reads() == 1  # pods of one identity share what is cached
    assert set(federation.taken) <= {tokens["first"], tokens["second"]}

    renewed = cluster.token(pods["first"], cloud.audience, seconds=4000)
    kubelet.publish("first", {**BOTH, **passed_on(renewed, cloud.audience)}, pod=pods["first"])
    cloud.revoke()
    assert (targets["first"] / "cloud/other").read_text("utf-8") == secret("other")
    assert federation.taken[-1] == renewed
    for name in PODS:
        kubelet.unpublish(name)
