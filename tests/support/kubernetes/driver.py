"""The shipped manifests, applied to a node: the driver with four stores.

Three are files of the node. Every app may read ``shop``; ``billing`` is for the app of that name; ``own`` is another
store for each app, whose values last for an hour. ``cluster``, for the app ``orders``, has the Secrets of the
namespace "default", so its backend is the API server.
"""

import contextlib
import json
import os
import shutil
import signal
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
from tests.support.manifests import component, configuration
from tests.support.waiting import wait_until

NAMESPACE = "secretfs"
DRIVER = "csi.secretfs.dev"
PASSWORD = "shop/db/password"
POINT = "/run/secrets"
MOUNTPOINT = Path("/run/secretfs/csi/mnt")
DOCUMENTS = Path("/run/secretfs/csi/apps")
COMPONENTS = Path("/run/secretfs/components")
"""Where each pod of the driver has a copy of the components."""
ACCOUNTS = ("orders", "billing")
CONFIGURATION = "everything"
"""A Configuration that hides nothing."""
OWN = 20
"""Secrets in the store ``own`` of each app."""
STORE = Path("/var/lib/secretfs-store")
_CHANGES_OF_THE_DAEMON_SET = [
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
    {
        "op": "add",
        "path": "/spec/template/spec/containers/0/command/-",
        "value": f"--config=/run/secretfs/components/$(POD)/{CONFIGURATION}.yaml",
    },
]
_SECRETS = "/api/v1/namespaces/default/secrets"
_POD = "/var/lib/kubelet/pods/{}"

# Reads until the pod ends: counts, keeps the value that was read last, and remembers what failed.
_READER = """
n=0
[ ! -e /out/last ] || read -r n value < /out/last
while :; do
    value=$(cat {path} 2>>/out/said) && [ -n "$value" ] || echo "$n" >> /out/failures
    n=$((n + 1)); echo "$n $value" > /out/new; mv /out/new /out/last
done
"""


def volume(**attributes: str) -> dict[str, Any]:
    """Return a volume of a pod: the view of its app."""
    return {"name": "secrets", "csi": {"driver": DRIVER, "readOnly": True, "volumeAttributes": attributes}}


MOUNT = {"name": "secrets", "mountPath": POINT, "readOnly": True}


class Reader:
    """A pod that reads a file of its volume all the time."""

    def __init__(self, node: KubeNode, name: str, uid: str) -> None:
        self.name = name
        self._node = node
        self._pod = Path(_POD.format(uid))

    def reads_on(self) -> None:
        """Wait until it has read some more, which has never failed. The API server is not asked."""
        before, _ = self._last()
        wait_until(lambda: self._last()[0] > before + 3)
        assert not (self._out / "failures").exists(), (self._out / "said").read_text("utf-8", "replace")[-1000:]

    def waits_for(self, value: str) -> None:
        """Wait until it has read a value."""
        wait_until(lambda: self._last()[1] == value)

    def is_being_published(self) -> bool:
        """Whether the kubelet has begun to set up the volume."""
        return self._node.machine.path(self._pod / "volumes/kubernetes.io~csi/secrets/vol_data.json").exists()

    @property
    def target(self) -> Path:
        """The directory on which the volume is published."""
        return self._node.machine.path(self._pod / "volumes/kubernetes.io~csi/secrets/mount")

    def has_begun(self) -> bool:
        """Whether it has read anything."""
        return self._last()[0] > 0

    @property
    def _out(self) -> Path:
        return self._node.machine.path(self._pod / "volumes/kubernetes.io~empty-dir/out")

    def _last(self) -> tuple[int, str]:
        path = self._out / "last"
        number, _, value = path.read_text("utf-8").partition(" ") if path.exists() else ("0", "", "")
        return int(number), value.rstrip("\n")


@dataclass
class Site:
    """A node with the driver."""

    node: KubeNode
    overlay: Path

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

    def lose(self, store: str) -> None:
        """Take away the file of a store."""
        self._file(store).unlink()

    def write_cluster(self, value: str) -> None:
        """Write the password of the store ``cluster``: a Secret."""
        document = {"metadata": {"name": "db"}, "stringData": {"password": secret(value)}}
        status, answer = self.node.call("PUT", f"{_SECRETS}/db", document)
        if status == 404:
            status, answer = self.node.call("POST", _SECRETS, document)
        assert status in (200, 201), answer

    def write(self, store: str, secrets: Mapping[str, Mapping[str, str]]) -> None:
        """Write what a store has."""
        path = self._file(store)
        path.parent.mkdir(exist_ok=True)
        new = path.with_suffix(".new")
        new.write_text(json.dumps(secrets), encoding="utf-8")
        new.replace(path)

    def start_reader(self, name: str, path: str = PASSWORD, *, wait: bool = True, **attributes: str) -> Reader:
        """Run a pod that reads all the time, as a user without rights. By default wait until it reads."""
        self.node.apply(
            pod(
                name,
                _READER.format(path=f"{POINT}/{path}"),
                volumes=[volume(**attributes), {"name": "out", "emptyDir": {}}],
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
        reader = Reader(self.node, name, self._uid(name))
        if wait:
            self.node.wait_for_pod(name, "Running")
            reader.reads_on()
        return reader

    def freeze_readers(self) -> None:
        """Stop all readers, so that they cannot see what is killed beside them."""
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended
                ours = self.node.machine.name in (path / "cgroup").read_text("utf-8")
                if ours and b"/out/failures" in (path / "cmdline").read_bytes():
                    os.kill(int(path.name), signal.SIGSTOP)

    def shown(self, name: str, path: str) -> str:
        """Return what a file of a pod's volume has, as the node sees it."""
        place = f"{_POD.format(self._uid(name))}/volumes/kubernetes.io~csi/secrets/mount/{path}"
        return self.node.machine.path(place).read_text("utf-8")

    def has_volumes(self, count: int) -> bool:
        """Whether so many volumes are mounted for pods, and so many are declared to the mount."""
        table = Path(f"/proc/{self.node.machine.leader}/mountinfo").read_text("utf-8")
        points = [line.split()[4] for line in table.splitlines()]
        mounted = [
            point for point in points if point.startswith("/var/lib/kubelet/") and "/kubernetes.io~csi/" in point
        ]
        declared = list(self.node.machine.path(DOCUMENTS).glob("*.yaml"))
        return len(mounted) == len(declared) == count

    def processes(self) -> Iterator[tuple[int, list[str]]]:
        """Yield the processes in the node's own process namespace, with their arguments."""
        for pid in self.node.pids():
            with contextlib.suppress(OSError):  # it has ended
                yield pid, Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")

    def drivers(self) -> set[int]:
        """Return the processes of drivers, of which there is one unless it is being replaced. The probe is none."""
        ours = ["/opt/secretfs/bin/secretfs", "csi"]
        return {pid for pid, command in self.processes() if command[1:3] == ours and "--probe" not in command}

    def mount_processes(self) -> set[int]:
        """Return the processes of the mount, which have left the driver's pod."""
        found = set()
        for pid in self.node.pids():
            with contextlib.suppress(OSError):  # it has ended
                if "/secretfs-csi-" in Path(f"/proc/{pid}/cgroup").read_text("utf-8"):
                    found.add(pid)
        return found

    def driver_log(self) -> str:
        """Return what the containers of drivers have written, as containerd keeps it. The API server is not asked."""
        logs = self.node.machine.path("/var/log/pods").glob(f"{NAMESPACE}_*/csi/*.log")
        return "".join(path.read_text("utf-8", "replace") for path in sorted(logs))

    def store(self, name: str) -> dict[str, Any]:
        """Return what the mount's status says of a store."""
        status = json.loads(self.node.machine.path(MOUNTPOINT / ".secretfs/status.json").read_bytes())
        return dict(status["stores"][name])

    def _file(self, store: str) -> Path:
        return self.node.machine.path(STORE / f"{store}.json")

    def _uid(self, name: str) -> str:
        found = self.node.pod(name)
        assert found
        return str(found["metadata"]["uid"])


def prepare(node: KubeNode, directory: Path) -> Site:
    """Make the namespaces, accounts and Secrets that the tests have, and an overlay of the base with the stores."""
    shutil.copytree(ROOT / "deploy/kubernetes", directory / "kubernetes")
    overlay = directory / "kubernetes/tested"
    overlay.mkdir()
    for name, file, ttl in (("shop", "shop", "1s"), ("billing", "billing", "1s"), ("own", "own-{appID}", "1h")):
        properties = {"secretsFile": f"{STORE}/{file}.json", "multiValued": "true"}
        scopes = ["billing"] if name == "billing" else []
        component(overlay, name, "local.file", properties, scopes=scopes, annotations={"secretfs/ttl": ttl})
    properties, annotations = {"defaultNamespace": "default"}, {"secretfs/ttl": "1s"}
    component(overlay, "cluster", "kubernetes", properties, scopes=["orders"], annotations=annotations)
    configuration(overlay, name=CONFIGURATION)
    kustomization = {
        "namespace": NAMESPACE,
        "resources": ["../base"],
        "configMapGenerator": [
            {
                "name": "secretfs-components",
                "namespace": NAMESPACE,
                "behavior": "merge",
                "files": [f"{name}.yaml" for name in ("shop", "billing", "own", "cluster", CONFIGURATION)],
            }
        ],
        "patches": [{"target": {"kind": "DaemonSet"}, "patch": json.dumps(_CHANGES_OF_THE_DAEMON_SET)}],
        "generatorOptions": {"disableNameSuffixHash": True},
    }
    (overlay / "kustomization.yaml").write_text(yaml.safe_dump(kustomization), encoding="utf-8")
    for name in ACCOUNTS:
        node.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": "default"}})
    node.apply(*_rights_on_secrets())
    site = Site(node, overlay)
    site.rotate("first")
    site.write("billing", {"bank": {"key": secret("account")}})
    for name in ACCOUNTS:
        site.write(f"own-{name}", {f"db{number}": {"password": secret(f"{name}-{number}")} for number in range(OWN)})
    site.write_cluster("first")
    return site


def _rights_on_secrets() -> Iterator[dict[str, Any]]:
    """Yield what lets the driver's account read the Secrets of the namespace "default"."""
    api, metadata = "rbac.authorization.k8s.io", {"name": "secretfs-secrets", "namespace": "default"}
    rules = [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get", "list", "watch"]}]
    yield {"apiVersion": f"{api}/v1", "kind": "Role", "metadata": metadata, "rules": rules}
    yield {
        "apiVersion": f"{api}/v1",
        "kind": "RoleBinding",
        "metadata": metadata,
        "roleRef": {"apiGroup": api, "kind": "Role", "name": metadata["name"]},
        "subjects": [{"kind": "ServiceAccount", "name": "secretfs", "namespace": NAMESPACE}],
    }
