"""What holds the mount lives outside of the driver's pod: containers as engines make and end them, without an engine.

A pod here is a process in control groups, a network and a mount namespace of its own, on a machine with processes of
its own. It ends as a container does: everything in its control groups is killed.
"""

import contextlib
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.canary import secret
from tests.support.command import ROOT, run
from tests.support.csi import NAME, NODE, Kubelet, Protocol
from tests.support.csi_node import _protocol
from tests.support.machine import Machine, hierarchies, machine, make_cgroup, quoted
from tests.support.manifests import component
from tests.support.scrape import get, samples
from tests.support.systemd import booted
from tests.support.waiting import wait_until

__all__ = ["_protocol"]

pytestmark = [pytest.mark.mount, pytest.mark.root("needs to make namespaces and control groups, which only root can")]

STATE, KUBELET, TARGET = "/srv/state", "/srv/kubelet", "/srv/kubelet/pods/p/volumes/kubernetes.io~csi/v/mount"
FILE = f"{TARGET}/file/db"


@pytest.fixture
def node() -> Iterator[Machine]:
    """Give a machine that sees its own control groups and nothing above, so that all of them are removed with it."""
    with machine() as node:
        for hierarchy in hierarchies():
            node.output("mount", "--bind", make_cgroup(hierarchy, node.name), hierarchy)
        yield node


class Pod:
    """A container of the driver."""

    def __init__(self, node: Machine, name: str, log: Path) -> None:
        self.groups = [hierarchy / node.name / name for hierarchy in hierarchies()]
        self.log = log

    def processes(self) -> set[int]:
        """Return all processes that are in any of its control groups."""
        texts = [(group / "cgroup.procs").read_text("ascii") for group in self.groups if group.is_dir()]
        return {int(pid) for text in texts for pid in text.split()}

    def end(self) -> None:
        """End it as a container's runtime does."""

        def kill() -> bool:
            for pid in self.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return not self.processes()

        wait_until(kill)

    @property
    def has_mounted(self) -> bool:
        return "serving volumes at" in self.log.read_text("utf-8")


@contextlib.contextmanager
def pod(node: Machine, name: str, log: Path, components: str = "/srv/components") -> Iterator[Pod]:
    """Run a driver in a container, until it is ended."""
    running = Pod(node, name, log)
    enter = "\n".join(
        f"mkdir -p {quoted(str(group))}; echo $$ 2>/dev/null > {quoted(str(group))}/cgroup.procs || true"
        for group in (hierarchy / name for hierarchy in hierarchies())
    )
    driver = ["python", "-m", "secretfs", "csi", "--node-id", NODE, "--name", NAME, "--kubelet-dir", KUBELET]
    driver += [f"--metrics-listen=unix:{STATE}/metrics", f"{STATE}/mnt", "--", "--resources-path", components]
    alone = ["unshare", "--mount", "--propagation=unchanged", "--net", "--uts", "--ipc"]
    with node.running("sh", "-c", f"{enter}\nexec {quoted(*alone, *driver)}", log=log) as process:
        wait_until(lambda: running.has_mounted or process.poll() is not None)
        assert process.poll() is None, log.read_text("utf-8")
        yield running
        running.end()


def prepare(node: Machine, *, value: str) -> None:
    """Give the node what pods read."""
    component(node.path("/srv/components"), "file", "local.file", {"secretsFile": "/srv/secrets.json"})
    node.path("/srv/secrets.json").write_text(f'{{"db": "{value}"}}', "utf-8")
    node.path(TARGET).parent.mkdir(parents=True, exist_ok=True)


def serving(node: Machine) -> set[int]:
    """Return the processes of the mount: supervisor, worker, and what they have started."""
    found = set()
    for directory in node.path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (directory / "cmdline").read_bytes().split(b"\0")
            if f"{STATE}/mnt".encode() in command and b"csi" not in command:
                found.add(int(directory.name))
    return found


def named_after_the_mount(node: Machine) -> set[int]:
    """Return the supervisor and the worker: those that end only with the mount, or when others take over."""
    found = set()
    for pid in serving(node):
        with contextlib.suppress(OSError):  # it was on its way to be something else
            if (node.path("/proc") / str(pid) / "comm").read_text("utf-8").startswith("secretfs:"):
                found.add(pid)
    return found


def metrics(node: Machine) -> dict[str, float]:
    """Return what the driver of now says, of itself and of the mount."""
    return samples(get(node.path(f"{STATE}/metrics"), "application/openmetrics-text")[2])


def test_the_mount_outlives_the_pod(node: Machine, protocol: Protocol, tmp_path: Path) -> None:
    """csi-15: The mount outlives the driver's pod, and the next one takes it over: readers see no error meanwhile."""
    prepare(node, value=secret("db"))
    kubelet = Kubelet(node.path(KUBELET), protocol)
    reader = f"while cat {FILE} > /srv/read && mv /srv/read /srv/good; do :; done; touch /srv/failed"
    with pod(node, "first", tmp_path / "first") as first:
        kubelet.publish("v", {"appId": "orders"}, target=Path(TARGET))
        assert node.output("cat", FILE) == secret("db")
        assert metrics(node)["secretfs_takeovers_total"] == 0
        outside, named = serving(node), named_after_the_mount(node)
        assert "the mount ends with this container" not in first.log.read_text("utf-8")
        with node.running("sh", "-c", reader, log=tmp_path / "reader") as reading:
            wait_until(node.path("/srv/good").exists)
            first.end()
            assert serving(node) >= named
            assert node.output("cat", FILE) == secret("db")
            with pod(node, "second", tmp_path / "second") as second:
                wait_until(lambda: not serving(node) & outside)
                kubelet.publish("v", {"appId": "orders"}, target=Path(TARGET))
                node.path("/srv/secrets.json").write_text(f'{{"db": "{secret("new")}"}}', "utf-8")
                wait_until(lambda: node.output("cat", FILE) == secret("new"))
                counted = metrics(node)  # at the address of the pod that was killed
                assert (counted["secretfs_takeovers_total"], counted[f"secretfs_csi_volumes {NAME}"]) == (1, 1)
                second.end()
                _renew(node.path("/srv/good"))
                wait_until(lambda: not node.run("pgrep", "-f", "secretfs csi").stdout)
            assert reading.poll() is None
            assert not node.path("/srv/failed").exists()


def _renew(file: Path) -> None:
    """Wait until a reader has read once more."""
    file.unlink()
    wait_until(file.exists)


def test_a_mistake_in_the_next_version(node: Machine, protocol: Protocol, tmp_path: Path) -> None:
    """csi-16: A new driver with a mistake in its configuration ends before it takes over: the mount serves on."""
    prepare(node, value=secret("db"))
    kubelet = Kubelet(node.path(KUBELET), protocol)
    with pod(node, "first", tmp_path / "first") as first:
        kubelet.publish("v", {"appId": "orders"}, target=Path(TARGET))
        first.end()
        before = named_after_the_mount(node)
        command = ["python", "-m", "secretfs", "csi", "--node-id", NODE, "--name", NAME, "--kubelet-dir", KUBELET]
        said = node.refused(*command, f"{STATE}/mnt", "--", "--resources-path", "/srv/nowhere")
        assert "/srv/nowhere" in said
        said = node.refused(*command, f"{STATE}/mnt", "--", "--resource-path", "/srv/components")
        assert "after --: No such option" in said
        assert serving(node) >= before
        assert node.output("cat", FILE) == secret("db")


def test_where_the_host_has_systemd() -> None:
    """There it is a transient scope, which is gone with its last process (csi-15)."""
    outside = [sys.executable, "-P", "-m", "secretfs.containers.csi.outside"]
    with booted() as system:
        command = quoted(*outside, "/usr/bin/cat", "/proc/self/cgroup")
        done = run([*system.enter({"PYTHONPATH": str(ROOT)}), "sh", "-c", f"{command}; exit $?"])  # it has a parent
        assert (done.status, done.err) == (0, "")
        assert re.search(r"^0::/system\.slice/secretfs-csi-\d+\.scope$", done.out, re.MULTILINE), done.out
        scopes = ["list-units", "--all", "--no-legend", "secretfs-csi-*"]
        wait_until(lambda: not system.systemctl(*scopes).strip())
