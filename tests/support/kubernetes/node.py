"""A real Kubernetes of one node: etcd, API server, controllers, kubelet, containerd, runc, in a `machine` of its own.

    with kube_node(tmp_path, [busybox]) as node:
        node.apply(pod("web", "sleep 1000"))
        node.wait_for_pod("web", "Running")

There is no scheduler: whatever waits binds the pods that have no node, DaemonSets' as well, to this one. All files of
a node are in its directory.
"""

import contextlib
import http.client
import json
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from tests.support.kubernetes import images, settings
from tests.support.kubernetes.settings import ADDRESS, CONTAINERD_SOCKET, NODE
from tests.support.lacking import cannot_test
from tests.support.machine import CGROUPS, Machine, hierarchies, machine, make_cgroup, removed
from tests.support.namespace_socket import HTTPS
from tests.support.servers.kube_apiserver import BINARIES, KUBECTL, require_binaries
from tests.support.waiting import wait_until

PAUSE = images.Image(settings.PAUSE, ("/bin/sleep", "2147483647"))
_PODS = "/api/v1/namespaces/{}/pods"


class KubeNode:
    """The node, and its API as the admin sees it."""

    machine: Machine

    def __init__(self, directory: Path, archives: Sequence[Path]) -> None:
        """``archives``: images as OCI archives, beside that of the pause container."""
        self.directory = directory
        self._archives = archives
        self._running: dict[str, tuple[subprocess.Popen[bytes], contextlib.ExitStack]] = {}
        self._stack = contextlib.ExitStack()
        self._client: HTTPS | None = None
        self._groups_before = _groups_of_mounts()
        self._is_installed = False

    # --- life ---

    def boot(self) -> None:
        """Start everything, and wait until the node is ready. What is on its disk may be from the boot before."""
        self.machine = self._stack.enter_context(machine(self.directory))
        self._make_cgroups()
        self.machine.shell(settings.PREPARE.format(directory=self.directory, address=ADDRESS))
        settings.write(self.directory, self.machine.name)
        if not self._is_installed:
            settings.write_identities(self.directory)
        self.start("etcd", BINARIES / "etcd", *settings.etcd(self.directory))
        self.start("containerd", "containerd", "--config", self.directory / "containerd.toml")
        self.start_apiserver(wait=False)
        self._wait(lambda: self._ctr("version").returncode == 0)
        if not self._is_installed:
            self._install_images()
        self._is_installed = True
        self._wait(self._api_is_ready)
        self.start_kubelet()
        self.start(
            "kube-controller-manager", BINARIES / "kube-controller-manager", *settings.controllers(self.directory)
        )
        self.wait(self._is_ready)

    def shut_down(self) -> None:
        """Pull the plug: kill all processes, and with them go containers, mounts and interfaces."""
        entered = list(self._groups_entered())
        for name in list(self._running):
            self.kill(name)
        self._stack.close()
        for group in entered:
            wait_until(partial(removed, group))
        for group in _groups_of_mounts() - self._groups_before:
            removed(group)  # of mounts that were taken over; one with processes in it is another node's
        if self._client:
            self._client.close()
            self._client = None

    def start(self, name: str, *command: str | Path) -> None:
        """Start a part of the node, or another program; `kill` ends it."""
        stack = contextlib.ExitStack()
        process = stack.enter_context(self.machine.running(*command, log=self.directory / f"{name}.log"))
        self._running[name] = process, stack

    def start_apiserver(self, *, wait: bool = True) -> None:
        """Start the API server, for the first time or once more. By default wait until it answers."""
        self.start("kube-apiserver", BINARIES / "kube-apiserver", *settings.apiserver(self.directory))
        if wait:
            self._wait(self._api_is_ready)

    def start_kubelet(self) -> None:
        """Start kubelet, for the first time or once more."""
        self.start("kubelet", BINARIES / "kubelet", *settings.kubelet(self.directory))

    def kill(self, name: str) -> None:
        """Kill what `start` has started, and wait for its end."""
        _, stack = self._running.pop(name)
        stack.close()

    def log(self, name: str) -> str:
        """Return what a part has written."""
        path = self.directory / f"{name}.log"
        return path.read_text("utf-8", "replace") if path.exists() else ""

    # --- what it holds ---

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, dict[str, Any]]:
        """Send a request to the API as admin; returns status and answer."""
        text = None if body is None else json.dumps(body).encode()
        status, answer = self._ask(method, path, text)
        return status, json.loads(answer)

    def _ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        if self._client is None:
            self._client = HTTPS(self.machine.leader, ADDRESS, 443, self.directory / "certs/apiserver.crt")
        headers = {"Authorization": f"Bearer {settings.token('admin')}", "Content-Type": "application/json"}
        return self._client.ask(method, path, body, headers)

    def get(self, path: str) -> dict[str, Any]:
        """Return an object of the API, or a list of them."""
        status, answer = self.call("GET", path)
        assert status == 200, answer
        return answer

    def kubectl(self, *arguments: str | Path, stdin: str = "") -> str:
        """Run the real kubectl, which must succeed; returns what it prints."""
        done = self.try_kubectl(*arguments, stdin=stdin)
        assert done.returncode == 0, (arguments, done.stderr)
        return done.stdout

    def try_kubectl(self, *arguments: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run the real kubectl."""
        command = [*self.machine.enter(), KUBECTL, f"--kubeconfig={self.directory}/admin.kubeconfig", *arguments]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)

    def apply(self, *documents: dict[str, Any]) -> None:
        """Apply documents with kubectl."""
        self.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(documents))

    def load(self, archive: Path) -> None:
        """Import the images of an OCI archive."""
        done = self._ctr("--namespace", "k8s.io", "images", "import", archive)
        assert done.returncode == 0, done.stderr.decode()

    # --- pods, in the namespace "default" ---

    def pod(self, name: str) -> dict[str, Any] | None:
        """Return a pod, or None if there is none."""
        status, answer = self.call("GET", f"{_PODS.format('default')}/{name}")
        assert status in (200, 404), answer
        return answer if status == 200 else None

    def wait_for_pod(self, name: str, wanted: str) -> None:
        """Wait until a pod is in a phase; one that has ended otherwise fails."""

        def there() -> bool:
            found = self.pod(name)
            phase = found["status"].get("phase") if found else None
            assert phase == wanted or phase not in ("Succeeded", "Failed"), self.pod_log(name)
            return phase == wanted

        self.wait(there)

    def wait_for_rollout(self, name: str, namespace: str) -> None:
        """Wait until the pod of a DaemonSet is of its newest kind and ready, and alone in its namespace."""

        def done() -> bool:
            found = self.get(f"/apis/apps/v1/namespaces/{namespace}/daemonsets/{name}")
            status, generation = found["status"], found["metadata"]["generation"]
            return bool(
                status.get("observedGeneration") == generation
                and status.get("updatedNumberScheduled") == status.get("numberReady") == 1
                and len(self.pods(namespace)) == 1
            )

        self.wait(done)

    def pods(self, namespace: str) -> list[dict[str, Any]]:
        """List the pods of a namespace."""
        found: list[dict[str, Any]] = self.get(_PODS.format(namespace))["items"]
        return found

    def pod_log(self, name: str) -> str:
        """Return what the container of a pod has printed."""
        return self.kubectl("logs", name)

    def exec(self, name: str, *command: str) -> str:
        """Run a program in a pod, which must succeed; returns what it prints."""
        return self.kubectl("exec", name, "--", *command)

    def delete_pod(self, name: str, *, wait: bool = True) -> None:
        """Delete a pod; by default wait until it is gone."""
        status, answer = self.call("DELETE", f"{_PODS.format('default')}/{name}")
        assert status in (200, 202), answer
        if wait:
            self.wait(lambda: self.pod(name) is None)

    def events(self, name: str) -> list[str]:
        """List the events about a pod, as ``reason: message``."""
        found = self.get(f"/api/v1/namespaces/default/events?fieldSelector=involvedObject.name={name}")["items"]
        return [f"{event['reason']}: {event['message']}" for event in found]

    # --- processes ---

    def pids(self) -> Iterator[int]:
        """Yield the processes in the node's own process namespace: all but those of containers with one of theirs."""
        ours = os.readlink(f"/proc/{self.machine.leader}/ns/pid")  # noqa: PTH115 - no path
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended
                if os.readlink(path / "ns/pid") == ours:  # noqa: PTH115 - likewise
                    yield int(path.name)

    def _groups_entered(self) -> Iterator[Path]:
        """Yield the control groups in which there are processes of this node's mount, which outlive its pod."""
        ours = set(self.pids()) if hasattr(self, "machine") else set()
        for group in _groups_of_mounts():
            with contextlib.suppress(OSError):  # another node's, which has removed it
                if ours & {int(pid) for pid in (group / "cgroup.procs").read_text("ascii").split()}:
                    yield group

    # --- waiting ---

    def wait(self, condition: Callable[[], object]) -> None:
        """Wait for something that happens by itself, and meanwhile do what a scheduler does."""

        def one() -> object:
            self._bind()
            return condition()

        self._wait(one)

    def _wait(self, condition: Callable[[], object]) -> None:
        def one() -> object:
            for name, (process, _) in self._running.items():
                assert process.poll() is None, f"{name} has ended: {self.log(name)[-3000:]}"
            return condition()

        try:
            wait_until(one, every=0.05)
        except AssertionError as error:
            error.add_note(f"--- end of kubelet's log ---\n{self.log('kubelet')[-3000:]}")
            raise

    def _bind(self) -> None:
        for pod in self.get("/api/v1/pods?fieldSelector=spec.nodeName=")["items"]:
            name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
            target = {"apiVersion": "v1", "kind": "Node", "name": NODE}
            body = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": target}
            status, answer = self.call("POST", f"{_PODS.format(namespace)}/{name}/binding", body)
            assert status in (201, 404, 409), answer  # deleted or bound in the meantime

    # --- parts ---

    def _make_cgroups(self) -> None:
        """Make the node's control group in every hierarchy, which kubelet does not."""
        for hierarchy in hierarchies():
            make_cgroup(hierarchy, self.machine.name)

    def _install_images(self) -> None:
        images.write(self.directory / "pause.tar", [PAUSE])
        for archive in (self.directory / "pause.tar", *self._archives):
            self.load(archive)

    def _ctr(self, *arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
        return self.machine.run("ctr", f"--address={CONTAINERD_SOCKET}", *arguments)

    def _api_is_ready(self) -> bool:
        try:
            status, _ = self._ask("GET", "/readyz")
        except (OSError, http.client.HTTPException):
            return False
        return status == 200

    def _is_ready(self) -> bool:
        status, node = self.call("GET", f"/api/v1/nodes/{NODE}")
        conditions = node["status"].get("conditions", []) if status == 200 else []
        accounts, _ = self.call("GET", "/api/v1/namespaces/default/serviceaccounts/default")
        authority, _ = self.call("GET", "/api/v1/namespaces/default/configmaps/kube-root-ca.crt")
        ready = any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
        return ready and accounts == authority == 200


def _groups_of_mounts() -> set[Path]:
    """Return the control groups that drivers have made on this machine, for mounts that outlive their pods."""
    return {group for hierarchy in hierarchies() for group in hierarchy.glob("secretfs-csi-*")}


def require_node() -> None:
    """Go on where a node can be booted."""
    require_binaries()
    if hierarchies() == [CGROUPS]:
        cannot_test("kubelet 1.20 has not been tried here with cgroup v2 alone")


@contextlib.contextmanager
def kube_node(directory: Path, archives: Sequence[Path]) -> Iterator[KubeNode]:
    """Boot a node; in the end nothing of it is left but its directory. Where `require_node` has gone on."""
    node = KubeNode(directory, archives)
    try:
        node.boot()
        yield node
    finally:
        node.shut_down()
