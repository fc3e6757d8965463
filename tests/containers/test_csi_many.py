"""The CSI driver when many volumes come and go at the same time: they wait for the mount together."""

import fcntl
import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.canary import secret
from tests.support.csi import (
    Kubelet,
    Protocol,
    binds_below,
    csi_driver,
    held_at,
    killed_at,
    observed,
    refused,
    wait_for_gathered,
)
from tests.support.csi_node import ORDERS_APP, WIDE, Node, _kubelet, _mount, _node, _protocol, csi_node
from tests.support.manifests import component
from tests.support.mounted import Mounted
from tests.support.scrape import scrape
from tests.support.volume_server import VolumeServer
from tests.support.waiting import wait_until

__all__ = ["_kubelet", "_mount", "_node", "_protocol"]

pytestmark = [pytest.mark.mount, pytest.mark.root("needs to mount for other users, which only root can")]

MANY = [f"v{number}" for number in range(10)]


@pytest.fixture(name="driver")
def _driver(node: Node, mount: Mounted) -> Iterator[VolumeServer]:
    with csi_driver(node.kubelet.directory, mount.path, program=observed()) as driver:
        yield driver


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(len(MANY) + 4) as pool:
        yield pool


class SilentServer:
    """A server of a store that does not answer; when it closes, the connection to it is lost."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._asking: list[socket.socket] = []
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"

    def wait_until_asked(self) -> None:
        self._asking.append(self._listening.accept()[0])

    def close(self) -> None:
        for each in (self._listening, *self._asking):
            each.close()


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keep the driver from changing documents, as another program does that changes some."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def reloads(mount: Mounted) -> float:
    """Return how often the mount was asked to read everything: nothing else is written to it."""
    return scrape(mount.path).get("secretfs_fuse_message_duration_seconds_count write", 0.0)


def said(call: Future[Any]) -> tuple[str, str]:
    """Return how a publish was refused."""
    return refused(call.result)


def test_one_reload_for_all(
    node: Node, mount: Mounted, kubelet: Kubelet, driver: VolumeServer, pool: ThreadPoolExecutor
) -> None:
    """csi-36: Volumes that come and go while the mount reads what is declared are all in what it reads next."""
    slow = node.sets / "shop/slow"
    leaving = kubelet.publish("leaving", ORDERS_APP)
    before = reloads(mount)
    with closing(SilentServer()) as server:
        properties = {"vaultAddr": server.url, "vaultToken": secret("token")}
        patient = {"secretfs/deadline": "10m"}
        component(slow, "silent", "hashicorp.vault", properties, annotations=patient, init_timeout="1h")
        component(slow, "file", "local.file", {"secretsFile": node.sets.with_name("team.json")})
        first = pool.submit(kubelet.publish, "first", {"appId": "orders", "resources": "slow"})
        server.wait_until_asked()
        others = [pool.submit(kubelet.publish, name, ORDERS_APP) for name in MANY]
        gone = pool.submit(kubelet.unpublish, "leaving")
        wait_for_gathered(driver, len(MANY) + 1)
    targets = [call.result() for call in (first, *others)]
    gone.result()
    assert reloads(mount) - before == 2
    assert sorted(binds_below(kubelet.directory)) == sorted(map(str, targets))
    assert (targets[1] / "file/tls/key").read_text(encoding="utf-8") == secret("key")
    assert not leaving.exists()
    wait_until(lambda: not (mount.path / "leaving").exists())


WRONG: dict[str, dict[str, str]] = {
    "misspelt": {"appId": "orders", "configuration": "wid"},
    "undecided": {"appId": "orders"},
    "unseen": {"appId": "ordres", **WIDE},
}


def test_mistakes_of_some(
    node: Node, mount: Mounted, kubelet: Kubelet, driver: VolumeServer, pool: ThreadPoolExecutor
) -> None:
    """csi-37: Of volumes that come at once, one with a mistake is refused as if it had come alone, and no other is."""
    alone = {name: refused(kubelet.publish, name, wrong) for name, wrong in WRONG.items()}
    with locked(node.volumes):
        calls = {name: pool.submit(kubelet.publish, name, wrong) for name, wrong in WRONG.items()}
        others = [pool.submit(kubelet.publish, name, ORDERS_APP) for name in MANY]
        wait_for_gathered(driver, len(calls) + len(others))
        assert not list(node.volumes.iterdir())
    assert {name: said(call) for name, call in calls.items()} == alone
    targets = [call.result() for call in others]
    assert sorted(binds_below(kubelet.directory)) == sorted(map(str, targets))
    assert sorted(path.stem for path in node.volumes.iterdir()) == MANY
    wait_until(lambda: not (mount.path / "unseen").exists())


def test_a_view_that_takes_its_time(node: Node, mount: Mounted, tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    """csi-38: A volume whose view is not there yet keeps no other one from coming or going."""
    kubelet, fifo = node.another_kubelet, tmp_path / "fifo"
    os.mkfifo(fifo)
    with csi_driver(kubelet.directory, mount.path, program=held_at("require_shown", "slow", fifo)):
        slow = pool.submit(kubelet.publish, "slow", ORDERS_APP)
        gate = _opened(fifo)
        try:
            target = kubelet.publish("v", ORDERS_APP)
            assert binds_below(kubelet.directory) == [str(target)]
            kubelet.unpublish("v")
            assert not slow.done()
        finally:
            os.close(gate)
        target = slow.result()
        assert binds_below(kubelet.directory) == [str(target)]
        kubelet.unpublish("slow")
    assert node.is_clean()


def _opened(fifo: Path) -> int:
    """Open a FIFO for writing when somebody reads it."""
    opened: list[int] = []

    def is_open() -> bool:
        try:
            opened.append(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:  # ENXIO: nobody reads it yet
            return False
        return True

    wait_until(is_open)
    return opened[0]


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_with_many_under_way(node: Node, mount: Mounted, when: str, pool: ThreadPoolExecutor) -> None:
    """Nothing is left of volumes that come at once if the driver is killed meanwhile (csi-11)."""
    kubelet = node.another_kubelet
    with csi_driver(kubelet.directory, mount.path, program=killed_at("change", when)) as driver:
        with locked(node.volumes):
            calls = [pool.submit(kubelet.publish, name, ORDERS_APP) for name in MANY]
            wait_for_gathered(driver, len(calls))
        assert {said(call)[0] for call in calls} == {"UNAVAILABLE"}
        assert driver.process.wait() == -signal.SIGKILL
    assert {(mount.path / name).exists() for name in MANY} == {when == "after"}
    with csi_driver(kubelet.directory, mount.path):
        assert node.is_clean()
        wait_until(lambda: not any((mount.path / name).exists() for name in MANY))
        kubelet.publish(MANY[0], ORDERS_APP)
        kubelet.unpublish(MANY[0])
    assert node.is_clean()


def test_a_mount_that_dies_with_many_under_way(tmp_path: Path, protocol: Protocol, pool: ThreadPoolExecutor) -> None:
    """While the mount is dead all that come at once wait for it, and those that go do not (csi-12)."""
    with (
        csi_node(tmp_path, protocol) as node,
        node.mounted() as mount,
        csi_driver(node.kubelet.directory, mount.path, program=observed()) as driver,
    ):
        kubelet = node.kubelet
        kubelet.publish("leaving", ORDERS_APP)
        with locked(node.volumes):
            calls = [pool.submit(kubelet.publish, name, ORDERS_APP) for name in MANY]
            gone = pool.submit(kubelet.unpublish, "leaving")
            wait_for_gathered(driver, len(MANY) + 1)
            mount.kill()
        for call in calls:
            code, text = said(call)
            assert (code, text.startswith(f"the secretfs at {mount.path} was killed")) == ("UNAVAILABLE", True)
        gone.result()
        assert node.is_clean()


def test_one_volume_twice(node: Node, kubelet: Kubelet, driver: VolumeServer, pool: ThreadPoolExecutor) -> None:
    """What is asked for a volume that waits is refused, and another one of the same pod is not (csi-8)."""
    with locked(node.volumes):
        calls = [pool.submit(kubelet.publish, name, ORDERS_APP) for name in ("v", "w")]
        wait_for_gathered(driver, 2)
        for call in (kubelet.publish, kubelet.unpublish):
            assert refused(call, "v") == ("ABORTED", "another call for volume v is under way")
    targets = [call.result() for call in calls]
    assert sorted(binds_below(kubelet.directory)) == sorted(map(str, targets))
