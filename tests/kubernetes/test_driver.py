"""The driver in a real cluster, as it is shipped: manifests, image, and what pods see of all that happens to a node.

One pod reads all the time, from the first test to the last, and must never fail: what is killed, replaced and restarted
here, each test leaves running.
"""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.canary import secret
from tests.support.kubernetes.documents import pod
from tests.support.kubernetes.driver import DRIVER, MOUNT, NAMESPACE, PASSWORD, POINT, Site, prepare, volume
from tests.support.kubernetes.node import KubeNode
from tests.support.mounted import processes

pytestmark = pytest.mark.timeout(3600)  # the image may have to be built first, on a busy machine

DAEMON_SET = f"/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets/secretfs"
MOUNTPOINT = Path("/run/secretfs/csi/mnt")
READ = f"cat {POINT}/{PASSWORD}"


@pytest.fixture(scope="module", name="site")
def _site(node: KubeNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Install the driver, and start the pod that reads."""
    site = prepare(node, tmp_path_factory.mktemp("driver"))
    site.install()
    site.start_reader()
    yield site
    site.reads_on()


@contextlib.contextmanager
def once(site: Site, name: str, script: str, account: str = "orders", **attributes: str) -> Iterator[str]:
    """Run a pod with a volume to its end; yields what it printed. Then delete it."""
    document = pod(name, script, volumes=[volume(**attributes)], mounts=[MOUNT], serviceAccountName=account)
    site.node.apply(document)
    try:
        site.node.wait_for_pod(name, "Succeeded")
        yield site.node.pod_log(name)
    finally:
        site.node.delete_pod(name)


def status(site: Site) -> dict[str, Any]:
    """Return the status of the driver's container."""
    (found,) = site.pod()["status"]["containerStatuses"]
    return dict(found)


def workers(site: Site) -> set[int]:
    """Return the processes that serve the node's mount."""
    ours = set(site.node.pids())
    return {pid for pid, kind in processes(MOUNTPOINT) if kind == "worker" and pid in ours}


def test_a_pod_without_rights_reads_and_cannot_write(site: Site) -> None:
    node = site.node
    assert node.exec("reader", "id", "-u").strip() == "1000"
    assert node.exec("reader", "cat", f"{POINT}/{PASSWORD}") == secret("first")
    assert node.exec("reader", "cat", "/db/password") == secret("first")
    refused = node.try_kubectl("exec", "reader", "--", "touch", f"{POINT}/shop/x")
    assert "Read-only file system" in refused.stderr


def test_a_rotation_arrives_in_the_pod(site: Site) -> None:
    site.rotate("second")
    site.node.wait(lambda: site.shown("reader", PASSWORD) == secret("second"))
    assert site.node.exec("reader", "cat", f"{POINT}/{PASSWORD}") == secret("second")
    site.reads_on()


def test_pods_of_two_accounts_see_different_stores(site: Site) -> None:
    with once(site, "billing", f"ls {POINT}; cat {POINT}/billing/bank/key", "billing") as said:
        assert said.split() == ["billing", "shop", secret("account")]
    with once(site, "orders", f"ls {POINT}; cat {POINT}/billing/bank/key 2>&1 || true") as said:
        assert said.startswith("shop\n")
        assert "No such file" in said


def test_a_mistake_is_in_the_events_of_the_pod_and_leaves_nothing(site: Site) -> None:
    node = site.node
    node.apply(pod("wrong", READ, volumes=[volume(appid="orders")], mounts=[MOUNT]))
    node.wait(lambda: any("did you mean appId?" in event for event in node.events("wrong")))
    node.delete_pod("wrong")
    node.wait(lambda: site.has_volumes(1))


def test_the_driver_is_killed(site: Site) -> None:
    before = status(site)["restartCount"]
    (driver,) = [pid for pid, command in site.processes() if command[1:3] == ["/opt/secretfs/bin/secretfs", "csi"]]
    os.kill(driver, signal.SIGKILL)
    site.node.wait(lambda: status(site)["restartCount"] > before and status(site)["ready"])
    site.reads_on()
    with once(site, "after-a-kill", READ) as said:
        assert said == secret("second")


def test_the_daemon_that_serves_is_killed(site: Site) -> None:
    (worker,) = workers(site)
    os.kill(worker, signal.SIGKILL)
    site.node.wait(lambda: workers(site) - {worker})
    site.reads_on()


def test_the_driver_is_upgraded(site: Site) -> None:
    """A rolling update replaces its pod, and another process serves the mount."""
    pod_before, workers_before = site.pod()["metadata"]["uid"], workers(site)
    site.node.kubectl("rollout", "restart", "--namespace", NAMESPACE, "daemonset/secretfs")
    site.node.wait_for_rollout("secretfs", NAMESPACE)
    assert site.pod()["metadata"]["uid"] != pod_before
    site.node.wait(lambda: (now := workers(site)) and not now & workers_before)
    site.reads_on()
    with once(site, "after-an-upgrade", READ) as said:
        assert said == secret("second")


def test_pods_are_deleted_and_made_while_there_is_no_driver(site: Site) -> None:
    """What is to be undone waits for the driver, and so does what is to be done."""
    node = site.node
    sleeper = pod("deleted", "sleep 1000", volumes=[volume()], mounts=[MOUNT], serviceAccountName="orders")
    node.apply(sleeper)
    node.wait_for_pod("deleted", "Running")
    node.call("DELETE", DAEMON_SET)
    node.wait(lambda: not node.pods(NAMESPACE))
    node.delete_pod("deleted", wait=False)
    node.apply(pod("early", READ, volumes=[volume()], mounts=[MOUNT], serviceAccountName="orders"))
    node.wait(lambda: any("FailedMount" in event for event in node.events("early")))
    site.reads_on()
    site.install()
    node.wait_for_pod("early", "Succeeded")
    assert node.pod_log("early") == secret("second")
    node.delete_pod("early")
    node.wait(lambda: node.pod("deleted") is None and site.has_volumes(1))


def test_kubelet_is_restarted(site: Site) -> None:
    node = site.node
    node.kill("kubelet")
    site.reads_on()
    node.start_kubelet()
    with once(site, "after-kubelet", READ) as said:
        assert said == secret("second")
    site.reads_on()
    reader = node.pod("reader")
    assert reader
    assert reader["status"]["containerStatuses"][0]["restartCount"] == 0


def test_nothing_is_left_when_pods_are_gone(site: Site) -> None:
    node = site.node
    with once(site, "last", READ):
        pass
    assert DRIVER in node.kubectl("get", "csinode", "-o", "yaml")
    node.wait(lambda: site.has_volumes(1))
