"""A node for tests of the CSI driver: a host with a mount of several apps, and the directory of a kubelet."""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.app_host import SECRETS, Host
from tests.support.canary import secret
from tests.support.csi import Kubelet, Protocol, binds_below
from tests.support.manifests import component, configuration, scope
from tests.support.mounted import Mounted, mounted, unmount
from tests.support.secrets_file import SecretsFile
from tests.support.volume_server import VolumeServer

WIDE = {"configuration": "wide"}
ORDERS_APP = {"appId": "orders", **WIDE}
"""The attributes of a volume that shows everything."""


class Node:
    """A node: a host with a mount, directories of two kubelets, and documents of volumes. `csi_node` makes one."""

    def __init__(self, root: Path, kubelets: Path, protocol: Protocol) -> None:
        for directory in (root, *root.parents, kubelets):
            directory.chmod(directory.stat().st_mode | 0o011)  # every user reaches the mount
        self.host, self.volumes = Host(root), root / "volumes"
        self.volumes.mkdir()
        self.sets = root / "sets"
        self.kubelet, self.another_kubelet = (Kubelet(kubelets / name, protocol) for name in ("1", "2"))
        file = SecretsFile(root / "secrets.json")
        file.write(SECRETS)
        component(
            self.host.components, "file", "local.file", {"secretsFile": file.path, "nestedSeparator": "/"},
            scopes=["orders", "payment"],
        )  # fmt: skip
        team = SecretsFile(root / "team.json")
        team.write({"db": secret("team")})
        for namespace in ("shop", "billing"):
            component(self.sets / namespace / "team", namespace, "local.file", {"secretsFile": team.path})
        self.configurations = [
            configuration(self.host.configs, scope("file", default="deny", allowed=["tls/key"]), name="strict"),
            configuration(self.host.configs, name="wide"),
        ]

    @property
    def tokens(self) -> Path:
        """Where the driver keeps tokens of pods."""
        return self.volumes.with_name("tokens")

    def mounted(
        self, env: Mapping[str, str] | None = None, *options: str
    ) -> contextlib.AbstractContextManager[Mounted]:
        return mounted(
            self.host.components,
            config=self.configurations,
            options=["--apps", str(self.volumes), "--allow-other", "--app-resources", str(self.sets), *options],
            env=env,
            mountpoint=self.host.mountpoint,
            expect_log=[r"(ERROR|WARNING) "],
        )

    def is_clean(self) -> bool:
        """Whether nothing of any volume is left."""
        return not binds_below(self.kubelet.directory) and not list(self.volumes.iterdir())


@contextlib.contextmanager
def csi_node(root: Path, protocol: Protocol) -> Iterator[Node]:
    """Make a node in a directory; what a test that failed has left mounted is unmounted in the end.

    The directories of the kubelets are elsewhere: paths of sockets end after 107 bytes, and that of a test may be long.
    """
    with tempfile.TemporaryDirectory(prefix="k") as kubelets:
        try:
            yield Node(root, Path(kubelets), protocol)
        finally:
            for path in binds_below(Path(kubelets)):
                unmount(Path(path))


@pytest.fixture(scope="module", name="protocol")
def _protocol(tmp_path_factory: pytest.TempPathFactory) -> Protocol:
    return Protocol(tmp_path_factory.mktemp("protocol"))


@pytest.fixture(scope="module", name="node")
def _node(tmp_path_factory: pytest.TempPathFactory, protocol: Protocol) -> Iterator[Node]:
    with csi_node(tmp_path_factory.mktemp("csi"), protocol) as node:
        yield node


@pytest.fixture(scope="module", name="mount")
def _mount(node: Node) -> Iterator[Mounted]:
    with node.mounted() as mount:
        yield mount


@pytest.fixture(name="kubelet")
def _kubelet(node: Node, driver: VolumeServer) -> Iterator[Kubelet]:
    """Give a kubelet of the module's driver, and take away what a test has published."""
    assert driver.process.poll() is None
    yield node.kubelet
    for document in node.volumes.iterdir():
        node.kubelet.unpublish(document.stem)
    assert node.is_clean()
