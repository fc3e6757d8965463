"""The driver in a real cluster, as it is shipped: manifests, image, and what pods see of all that happens to a node.

One pod reads all the time, from the first test to the last, and must never fail: what is killed, replaced and restarted
here, each test leaves running.
"""

import contextlib
import os
import signal
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from tests.support.canary import secret
from tests.support.kubernetes.documents import pod
from tests.support.kubernetes.driver import (
    COMPONENTS,
    CONFIGURATION,
    DRIVER,
    MOUNT,
    MOUNTPOINT,
    NAMESPACE,
    OWN,
    PASSWORD,
    POINT,
    Reader,
    Site,
    prepare,
    volume,
)
from tests.support.kubernetes.node import KubeNode
from tests.support.mounted import processes
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(3600)  # the image may have to be built first, on a busy machine

DAEMON_SET = f"/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets/secretfs"
CLUSTERED = "cluster/db/password"
READ = f"cat {POINT}/{PASSWORD}"


@pytest.fixture(scope="module", name="site")
def _site(node: KubeNode, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Install the driver."""
    site = prepare(node, tmp_path_factory.mktemp("driver"))
    site.install()
    return site


@pytest.fixture(scope="module", name="reader", autouse=True)
def _reader(site: Site) -> Iterator[Reader]:
    """Run the pod that reads."""
    reader = site.start_reader("reader")
    yield reader
    reader.reads_on()


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


def test_a_rotation_arrives_in_the_pod(site: Site, reader: Reader) -> None:
    site.rotate("second")
    site.node.wait(lambda: site.shown("reader", PASSWORD) == secret("second"))
    assert site.node.exec("reader", "cat", f"{POINT}/{PASSWORD}") == secret("second")
    reader.reads_on()


def test_pods_of_two_accounts_see_different_stores(site: Site) -> None:
    with once(site, "billing", f"ls {POINT}; cat {POINT}/billing/bank/key", "billing") as said:
        assert said.split() == ["billing", "own", "shop", secret("account")]
    with once(site, "orders", f"ls {POINT}; cat {POINT}/billing/bank/key 2>&1 || true") as said:
        assert said.startswith("cluster\nown\nshop\n")
        assert "No such file" in said


def test_a_mistake_is_in_the_events_of_the_pod_and_leaves_nothing(site: Site) -> None:
    node = site.node
    node.apply(pod("wrong", READ, volumes=[volume(appid="orders")], mounts=[MOUNT]))
    node.wait(lambda: any("did you mean appId?" in event for event in node.events("wrong")))
    node.delete_pod("wrong")
    node.wait(lambda: site.has_volumes(1))


def test_the_driver_is_killed(site: Site, reader: Reader) -> None:
    before = status(site)["restartCount"]
    (driver,) = site.drivers()
    os.kill(driver, signal.SIGKILL)
    site.node.wait(lambda: status(site)["restartCount"] > before and status(site)["ready"])
    reader.reads_on()
    with once(site, "after-a-kill", READ) as said:
        assert said == secret("second")


def test_the_daemon_that_serves_is_killed(site: Site, reader: Reader) -> None:
    (worker,) = workers(site)
    os.kill(worker, signal.SIGKILL)
    site.node.wait(lambda: workers(site) - {worker})
    reader.reads_on()


def test_the_driver_is_upgraded(site: Site, reader: Reader) -> None:
    """A rolling update replaces its pod, and another process serves the mount."""
    pod_before, workers_before = site.pod()["metadata"]["uid"], workers(site)
    site.node.kubectl("rollout", "restart", "--namespace", NAMESPACE, "daemonset/secretfs")
    site.node.wait_for_rollout("secretfs", NAMESPACE)
    assert site.pod()["metadata"]["uid"] != pod_before
    site.node.wait(lambda: (now := workers(site)) and not now & workers_before)
    reader.reads_on()
    with once(site, "after-an-upgrade", READ) as said:
        assert said == secret("second")


def test_pods_are_deleted_and_made_while_there_is_no_driver(site: Site, reader: Reader) -> None:
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
    reader.reads_on()
    site.install()
    node.wait_for_pod("early", "Succeeded")
    assert node.pod_log("early") == secret("second")
    node.delete_pod("early")
    node.wait(lambda: node.pod("deleted") is None and site.has_volumes(1))


def test_kubelet_is_restarted(site: Site, reader: Reader) -> None:
    node = site.node
    node.kill("kubelet")
    reader.reads_on()
    node.start_kubelet()
    with once(site, "after-kubelet", READ) as said:
        assert said == secret("second")
    reader.reads_on()
    found = node.pod("reader")
    assert found
    assert found["status"]["containerStatuses"][0]["restartCount"] == 0


def test_the_api_server_is_down(site: Site, reader: Reader) -> None:
    """csi-30: While the API server is down pods read on, rotations arrive, and a driver that is killed is replaced."""
    node = site.node
    clustered = site.start_reader("clustered", CLUSTERED)
    (driver,) = site.drivers()
    os.kill(driver, signal.SIGSTOP)  # so that the kubelet knows these pods, and their volumes are to be made
    try:
        declared = site.start_reader("declared", wait=False, appId="orders", configuration=CONFIGURATION)
        annotated = site.start_reader("annotated", wait=False, appId="orders")
        node.wait(lambda: declared.is_being_published() and annotated.is_being_published())
        node.kill("kube-apiserver")
    finally:
        os.kill(driver, signal.SIGCONT)
    wait_until(declared.has_begun)
    wait_until(lambda: "cannot ask the API server" in site.driver_log())
    site.rotate("third")
    reader.waits_for(secret("third"))
    declared.waits_for(secret("third"))
    os.kill(driver, signal.SIGKILL)
    wait_until(lambda: site.drivers() - {driver})
    wait_until(lambda: site.store("cluster")["stale_values"])
    for each in (reader, clustered, declared):
        each.reads_on()
    assert not annotated.has_begun()

    node.start_apiserver()
    node.wait(annotated.has_begun)
    site.write_cluster("second")
    clustered.waits_for(secret("second"))
    site.rotate("second")
    for each in (reader, clustered, declared, annotated):
        each.reads_on()
    for each in (clustered, declared, annotated):
        node.delete_pod(each.name)
    node.wait(lambda: site.has_volumes(1))


def test_a_backend_is_down(site: Site, reader: Reader) -> None:
    """csi-31: While a backend is down pods read what it had last, those that start as well; then they read on."""
    site.lose("shop")
    wait_until(lambda: site.store("shop")["stale_values"])
    reader.reads_on()
    with once(site, "while-it-is-down", READ) as said:
        assert said == secret("second")
    site.rotate("fourth")
    reader.waits_for(secret("fourth"))
    assert site.store("shop")["state"] == "ok"
    reader.reads_on()


def test_pods_of_one_identity_share_what_is_read(site: Site) -> None:
    """csi-33: All pods of an identity together ask a backend as often as one of them does."""
    script = f"cat {POINT}/own/*/password; echo; sleep 1000"

    def has_read_all(name: str, account: str) -> bool:
        return site.node.pod_log(name).count(secret(account)) == OWN

    def calls(account: str, *names: str) -> int:
        """Let pods read all of the store of their app, and count what it was asked."""
        sleepers = [pod(name, script, volumes=[volume()], mounts=[MOUNT], serviceAccountName=account) for name in names]
        site.node.apply(*sleepers)
        for name in names:
            site.node.wait_for_pod(name, "Running")
            site.node.wait(partial(has_read_all, name, account))
        made: int = site.store(f"{account}/own")["calls"]["fetch"]["made"]
        for name in names:
            site.node.delete_pod(name)
        return made

    assert calls("orders", *(f"together-{number}" for number in range(4))) == calls("billing", "alone") == OWN


def test_the_node_is_rebooted(site: Site, reader: Reader) -> None:
    """csi-32: After a reboot of the node pods read again; of those that were deleted meanwhile nothing is mounted."""
    node = site.node
    forgotten = site.start_reader("forgotten")
    node.kill("kubelet")
    node.kubectl("delete", "pod", "forgotten", "--grace-period=0", "--force")
    assert list(forgotten.target.iterdir())
    site.freeze_readers()
    node.shut_down()

    node.boot()
    node.wait(lambda: site.has_volumes(1))
    reader.reads_on()
    assert not list(forgotten.target.iterdir())
    site.rotate("after-the-boot")
    reader.waits_for(secret("after-the-boot"))
    assert node.exec("reader", "cat", "/db/password") == secret("after-the-boot")
    (copy,) = node.machine.path(COMPONENTS).iterdir()
    assert copy.name == site.pod()["metadata"]["uid"]
    with once(site, "after-the-boot", READ) as said:
        assert said == secret("after-the-boot")


def test_nothing_is_left_when_pods_are_gone(site: Site) -> None:
    node = site.node
    with once(site, "last", READ):
        pass
    assert DRIVER in node.kubectl("get", "csinode", "-o", "yaml")
    node.wait(lambda: site.has_volumes(1))
