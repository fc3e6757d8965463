"""The CSI driver in a process of its own, and what a kubelet says to it by code that is generated from the protocol."""

import contextlib
import importlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.support.canary import leaked
from tests.support.command import ROOT, SECRETFS
from tests.support.volume_server import VolumeServer, volume_server
from tests.support.waiting import PATIENCE, wait_until

NAME = "test.secretfs.dev"
NODE = "node-1"
POD = {
    "csi.storage.k8s.io/pod.name": "orders-0",
    "csi.storage.k8s.io/pod.namespace": "shop",
    "csi.storage.k8s.io/pod.uid": "7b1d2c1e-0000-4000-8000-000000000001",
    "csi.storage.k8s.io/serviceAccount.name": "orders",
    "csi.storage.k8s.io/ephemeral": "true",
}
"""What the kubelet adds to the attributes of a volume (``podInfoOnMount``)."""


class Protocol:
    """The generated code."""

    def __init__(self, directory: Path) -> None:
        sources = ROOT / "tests/support/csi_protocol"
        names = [path.name for path in sorted(sources.glob("*.proto"))]
        output = [f"--python_out={directory}", f"--grpc_python_out={directory}"]
        command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{sources}", *output, *names]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
        sys.path.insert(0, str(directory))
        try:
            self.csi: Any = importlib.import_module("csi_pb2")
            self.csi_services: Any = importlib.import_module("csi_pb2_grpc")
            self.registration: Any = importlib.import_module("pluginregistration_pb2")
            self.registration_services: Any = importlib.import_module("pluginregistration_pb2_grpc")
        finally:
            sys.path.remove(str(directory))


class Kubelet:
    """The directory of a kubelet, and its calls to the driver. A call that fails raises `grpc.RpcError`."""

    def __init__(self, directory: Path, protocol: Protocol) -> None:
        self.directory, self.pb = directory, protocol.csi
        self._protocol = protocol

    @property
    def socket(self) -> Path:
        return self.directory / "plugins" / NAME / "csi.sock"

    @property
    def registration_socket(self) -> Path:
        return self.directory / "plugins_registry" / f"{NAME}-reg.sock"

    def target(self, volume: str) -> Path:
        """Return where a volume of a pod is to be; like the kubelet, make its parent."""
        pod = self.directory / "pods" / POD["csi.storage.k8s.io/pod.uid"]
        path = pod / "volumes/kubernetes.io~csi" / volume / "mount"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def identity(self, method: str) -> Any:
        with self._channel(self.socket) as channel:
            stub = self._protocol.csi_services.IdentityStub(channel)
            return getattr(stub, method)(getattr(self.pb, f"{method}Request")(), timeout=PATIENCE)

    def node(self, method: str, timeout: float = PATIENCE, **fields: object) -> Any:
        with self._channel(self.socket) as channel:
            stub = self._protocol.csi_services.NodeStub(channel)
            return getattr(stub, method)(getattr(self.pb, f"{method}Request")(**fields), timeout=timeout)

    def register(self, *, error: str = "") -> Any:
        """Do what the kubelet's plug-in watcher does when it finds the socket; returns what the driver says it is."""
        pb = self._protocol.registration
        with self._channel(self.registration_socket) as channel:
            stub = self._protocol.registration_services.RegistrationStub(channel)
            info = stub.GetInfo(pb.InfoRequest(), timeout=PATIENCE)
            status = pb.RegistrationStatus(plugin_registered=not error, error=error)
            stub.NotifyRegistrationStatus(status, timeout=PATIENCE)
        return info

    def publish(
        self,
        volume: str,
        attributes: Mapping[str, str] | None = None,
        *,
        target: Path | None = None,
        group: str = "",
        pod: Mapping[str, str] = POD,
        timeout: float = PATIENCE,
        **fields: object,
    ) -> Path:
        """Publish a volume as the kubelet does; returns its target."""
        target = target or self.target(volume)
        capability = self.pb.VolumeCapability(
            mount={"volume_mount_group": group}, access_mode={"mode": "SINGLE_NODE_WRITER"}
        )
        context = {**pod, **(attributes or {})}
        request = {
            "volume_id": volume, "target_path": str(target), "volume_capability": capability, "readonly": True,
            "volume_context": context,
        }  # fmt: skip
        self.node("NodePublishVolume", timeout, **request | fields)
        return target

    def unpublish(self, volume: str, target: Path | None = None) -> None:
        self.node("NodeUnpublishVolume", volume_id=volume, target_path=str(target or self.target(volume)))

    @contextlib.contextmanager
    def _channel(self, path: Path) -> Iterator[grpc.Channel]:
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(f"unix:{path}", options=options) as channel:
            yield channel


def refused(call: Any, *arguments: Any, **options: Any) -> tuple[str, str]:
    """Make a call that has to fail; returns the name of its status code, and its text."""
    with pytest.raises(grpc.RpcError) as refusal:
        call(*arguments, **options)
    text = str(refusal.value.details())
    assert not leaked(text)
    return refusal.value.code().name, text


def csi_driver(
    kubelet: Path, *arguments: str | Path, env: Mapping[str, str] | None = None, program: Sequence[str] = SECRETFS
) -> contextlib.AbstractContextManager[VolumeServer]:
    """Run ``secretfs csi``, as `volume_server` does."""
    flags = ["--node-id", NODE, "--name", NAME, "--kubelet-dir", str(kubelet)]
    return volume_server([*program, "csi", *flags, *map(str, arguments)], env)


def killed_at(place: str, when: str) -> list[str]:
    """Return the program of a driver that is killed before, or after, it calls a function of its modules for volumes.

    It says where its threads are, as `wait_for_gathered` asks it.
    """
    return [sys.executable, "-c", _OBSERVED + _KILLED, place, when]


def held_at(place: str, volume: str, fifo: Path) -> list[str]:
    """Return the program of a driver that calls a function for a volume when something was written to a FIFO."""
    return [sys.executable, "-c", _HELD, place, volume, str(fifo)]


def observed() -> list[str]:
    """Return the program of a driver that says where its threads are, as `wait_for_gathered` asks it."""
    return [sys.executable, "-c", _OBSERVED + "main()"]


def wait_for_gathered(driver: VolumeServer, count: int) -> None:
    """Wait until so many threads of an `observed` driver wait: for others to change documents, or for their lock."""
    wait_until(lambda: sum(map(_is_gathered, _threads(driver))) == count, every=0.05)


def _is_gathered(thread: str) -> bool:
    return "group_commit.py" in thread and bool(re.search(r"in (wait_for|locked)$", thread, re.MULTILINE))


def _threads(driver: VolumeServer) -> list[str]:
    """Return where each thread of a driver is."""
    before = len(driver.log)
    driver.process.send_signal(signal.SIGUSR1)
    wait_until(lambda: "that was the last thread\n" in driver.log[before:] or driver.process.poll() is not None)
    assert driver.process.poll() is None, driver.log[before:]
    return re.split(r"^Thread \d+$", driver.log[before:], flags=re.MULTILINE)


# In a thread of its own: what faulthandler does in a signal handler now and then ends a process whose threads go on.
_OBSERVED = """
import os, signal, sys, threading, traceback
from secretfs.cli.main import main
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
def observe():
    while signal.sigwait([signal.SIGUSR1]):
        for number, frame in sys._current_frames().items():
            print(f"Thread {number}", *traceback.format_stack(frame), sep="\\n", file=sys.stderr)
        print("that was the last thread", file=sys.stderr, flush=True)
threading.Thread(target=observe, daemon=True).start()
"""

_KILLED = """
from secretfs.containers.csi import volumes
from secretfs.daemon import group_commit
place, when = sys.argv[1:3]
sys.argv[:3] = ["secretfs"]
module = volumes if hasattr(volumes, place) else group_commit
function = getattr(module, place)
def fatal(*arguments, **options):
    if when == "after":
        function(*arguments, **options)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(module, place, fatal)
main()
"""

_HELD = """
import sys
from secretfs.cli.main import main
from secretfs.containers.csi import volumes
place, volume, fifo = sys.argv[1:4]
sys.argv[:4] = ["secretfs"]
function = getattr(volumes, place)
def held(*arguments):
    if volume in arguments:
        open(fifo, "rb").read()
    return function(*arguments)
setattr(volumes, place, held)
main()
"""


def in_pod(account: Path) -> list[str]:
    """Return the program of a driver that finds the files of its service account in a directory."""
    return [sys.executable, "-c", _IN_POD, str(account)]


_IN_POD = """
import pathlib, sys
from secretfs.cli.main import main
from secretfs.containers.csi.api_server import ApiServer
ApiServer.__init__.__defaults__ = (pathlib.Path(sys.argv[1]),)
sys.argv[:2] = ["secretfs"]
main()
"""


def binds_below(directory: Path) -> list[str]:
    """Return what is mounted below a directory."""
    lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    return [path for line in lines if (path := line.split()[4]).startswith(f"{directory}{os.sep}")]
