"""The shipped manifests, applied to a node: the driver with two stores.

Both are files of the node. Every app may read ``shop``; ``billing`` is for the app of that name.
"""

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.support.canary import secret
from tests.support.command import ROOT
from tests.support.kubernetes.documents import pod
from tests.support.kubernetes.node import KubeNode
from tests.support.kubernetes.settings import NODE
from tests.support.manifests import component
from tests.support.waiting import wait_until

NAMESPACE = "secretfs"
DRIVER = "csi.secretfs.dev"
PASSWORD = "shop/db/password"
POINT = "/run/secrets"
ACCOUNTS = ("orders", "billing")
STORE = Path("/var/lib/secretfs-store")
_STORE_OF_THE_NODE = [
    {
        "op": "add",
        "path": "/spec/template/spec/volumes/-",
        "value": {"name": "store", "hostPath": {"path": str(STORE)}},
    },
    {
        "op": "add",
        "path": "/spec/template/spec/containers/0/volumeMounts/-",
        "value": {"name": "store", "mountPath": str(STORE), "readOnly": True},
    },
]
_VOLUMES = "/var/lib/kubelet/pods/{}/volumes"

# Reads until the pod ends: counts, and remembers what failed.
_READER = f"""
n=$(cat /out/reads 2>/dev/null || echo 0)
while :; do
    v=$(cat {POINT}/{PASSWORD} 2>>/out/said) && [ -n "$v" ] || echo "$n" >> /out/failures
    n=$((n + 1)); echo $n > /out/new; mv /out/new /out/reads
done
"""


def volume(**attributes: str) -> dict[str, Any]:
    """Return a volume of a pod: the view of its app."""
    return {"name": "secrets", "csi": {"driver": DRIVER, "readOnly": True, "volumeAttributes": attributes}}


MOUNT = {"name": "secrets", "mountPath": POINT, "readOnly": True}


@dataclass
class Site:
    """A node with the driver."""

    node: KubeNode
    overlay: Path
    _reader: str = ""

    def install(self) -> None:
        """Apply the overlay, and wait until the kubelet knows the driver."""
        self.node.kubectl("apply", "-k", self.overlay)
        self.node.wait_for_rollout("secretfs", NAMESPACE)
        self.node.wait(self.is_registered)

    def is_registered(self) -> bool:
        """Whether the kubelet has said to the API server that this node has the driver."""
        status, found = self.node.call("GET", f"/apis/storage.k8s.io/v1/csinodes/{NODE}")
        drivers = (found["spec"].get("drivers") or []) if status == 200 else []
        return any(each["name"] == DRIVER for each in drivers)

    def pod(self) -> dict[str, Any]:
        """Return the driver's pod."""
        (found,) = self.node.pods(NAMESPACE)
        return found

    def rotate(self, value: str) -> None:
        """Write the password of the store ``shop``."""
        self.write("shop", {"db": {"password": secret(value)}})

    def write(self, store: str, secrets: Mapping[str, Mapping[str, str]]) -> None:
        """Write what a store has."""
        path = self.node.machine.path(STORE / f"{store}.json")
        path.parent.mkdir(exist_ok=True)
        new = path.with_suffix(".new")
        new.write_text(json.dumps(secrets), encoding="utf-8")
        new.replace(path)

    def start_reader(self) -> None:
        """Run the pod ``reader``, as a user without rights: it reads all the time."""
        self.node.apply(
            pod(
                "reader",
                _READER,
                volumes=[volume(), {"name": "out", "emptyDir": {}}],
                mounts=[
                    MOUNT,
                    {"name": "out", "mountPath": "/out"},
                    {"name": "secrets", "mountPath": "/db", "subPath": "shop/db", "readOnly": True},
                ],
                serviceAccountName="orders",
                securityContext={"runAsUser": 1000, "runAsGroup": 1000, "runAsNonRoot": True, "fsGroup": 1000},
                restartPolicy="Always",
            )
        )
        self.node.wait_for_pod("reader", "Running")
        self._reader = self._uid("reader")
        self.reads_on()

    def reads_on(self) -> None:
        """Wait until the reader has read some more, which has never failed."""
        before = self._reads()
        wait_until(lambda: self._reads() > before + 3)
        assert not (self._out / "failures").exists(), (self._out / "said").read_text("utf-8", "replace")[-1000:]

    def shown(self, name: str, path: str) -> str:
        """Return what a file of a pod's volume has, as the node sees it."""
        place = f"{_VOLUMES.format(self._uid(name))}/kubernetes.io~csi/secrets/mount/{path}"
        return self.node.machine.path(place).read_text("utf-8")

    def has_volumes(self, count: int) -> bool:
        """Whether so many volumes are mounted for pods, and so many are declared to the mount."""
        table = Path(f"/proc/{self.node.machine.leader}/mountinfo").read_text("utf-8")
        points = [line.split()[4] for line in table.splitlines()]
        mounted = [
            point for point in points if point.startswith("/var/lib/kubelet/") and "/kubernetes.io~csi/" in point
        ]
        declared = list(self.node.machine.path("/run/secretfs/csi/apps").glob("*.yaml"))
        return len(mounted) == len(declared) == count

    def processes(self) -> Iterator[tuple[int, list[str]]]:
        """Yield the processes in the node's own process namespace, with their arguments."""
        for pid in self.node.pids():
            with contextlib.suppress(OSError):  # it has ended
                yield pid, Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")

    @property
    def _out(self) -> Path:
        return self.node.machine.path(f"{_VOLUMES.format(self._reader)}/kubernetes.io~empty-dir/out")

    def _reads(self) -> int:
        path = self._out / "reads"
        return int(path.read_text("ascii")) if path.exists() else 0

    def _uid(self, name: str) -> str:
        found = self.node.pod(name)
        assert found
        return str(found["metadata"]["uid"])


def prepare(node: KubeNode, directory: Path) -> Site:
    """Make the namespaces, accounts and Secrets that the tests have, and an overlay of the base with the stores."""
    shutil.copytree(ROOT / "deploy/kubernetes", directory / "kubernetes")
    overlay = directory / "kubernetes/tested"
    overlay.mkdir()
    for name, scopes in {"shop": [], "billing": ["billing"]}.items():
        properties = {"secretsFile": f"{STORE}/{name}.json", "multiValued": "true"}
        component(overlay, name, "local.file", properties, scopes=scopes, annotations={"secretfs/ttl": "1s"})
    kustomization = {
        "namespace": NAMESPACE,
        "resources": ["../base"],
        "configMapGenerator": [
            {
                "name": "secretfs-components",
                "namespace": NAMESPACE,
                "behavior": "merge",
                "files": ["shop.yaml", "billing.yaml"],
            }
        ],
        "patches": [{"target": {"kind": "DaemonSet"}, "patch": json.dumps(_STORE_OF_THE_NODE)}],
        "generatorOptions": {"disableNameSuffixHash": True},
    }
    (overlay / "kustomization.yaml").write_text(yaml.safe_dump(kustomization), encoding="utf-8")
    for name in ACCOUNTS:
        node.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": "default"}})
    site = Site(node, overlay)
    site.rotate("first")
    site.write("billing", {"bank": {"key": secret("account")}})
    return site
