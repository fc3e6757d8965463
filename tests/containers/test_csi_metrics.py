"""What the driver counts, as Prometheus reads it: beside the metrics of its mount, at one address."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.canary import secret
from tests.support.command import ROOT, secretfs
from tests.support.csi import NAME, NODE, Kubelet, csi_driver, refused
from tests.support.csi_node import ORDERS_APP, Node, _mount, _node, _protocol
from tests.support.mounted import Mounted
from tests.support.scrape import get, promtool, samples

__all__ = ["_mount", "_node", "_protocol"]

pytestmark = [pytest.mark.mount, pytest.mark.root("needs to mount for other users, which only root can")]

OPENMETRICS = "application/openmetrics-text"


@pytest.fixture
def address(node: Node) -> Path:
    """Give the path of a socket; that of a test may be too long."""
    return node.kubelet.directory.with_name("metrics")


@pytest.fixture
def kubelet(node: Node, mount: Mounted, address: Path) -> Iterator[Kubelet]:
    with csi_driver(node.kubelet.directory, f"--metrics-listen=unix:{address}", mount.path):
        yield node.kubelet
    assert not address.exists()


def scraped(address: Path) -> dict[str, float]:
    status, headers, page = get(address, OPENMETRICS)
    assert (status, headers["content-type"].partition(";")[0]) == (200, OPENMETRICS)
    return samples(page)


def calls(found: dict[str, float], method: str) -> dict[str, float]:
    """Return how many calls of a method there were, by status code."""
    pattern = rf"secretfs_csi_call_duration_seconds_count (\w+) {NAME} {method}"
    return {match[1]: count for name, count in found.items() if (match := re.fullmatch(pattern, name))}


def test_calls_and_volumes(kubelet: Kubelet, address: Path) -> None:
    """csi-21: Calls are counted by method and code, with their durations, and so are volumes; no metric names a pod."""
    before = scraped(address)
    assert calls(before, "NodePublishVolume") == {}
    assert (before[f"secretfs_csi_volumes {NAME}"], before[f"secretfs_csi_mount_up {NAME}"]) == (0, 1)
    target = kubelet.publish("first", ORDERS_APP)
    kubelet.publish("first", ORDERS_APP)
    kubelet.publish("second", ORDERS_APP)
    refused(kubelet.publish, "third", {"appID": "x"})
    assert (target / "file/db/password").read_text("utf-8") == secret("db")
    found = scraped(address)
    assert calls(found, "NodePublishVolume") == {"OK": 3, "INVALID_ARGUMENT": 1}
    assert found[f"secretfs_csi_volumes {NAME}"] == 2
    assert found[f"secretfs_csi_calls_running {NAME}"] == 0
    assert found[f"secretfs_csi_call_duration_seconds_sum OK {NAME} NodePublishVolume"] > 0
    for volume in ("first", "second"):
        kubelet.unpublish(volume)
    found = scraped(address)
    assert calls(found, "NodeUnpublishVolume") == {"OK": 2}
    assert found[f"secretfs_csi_volumes {NAME}"] == 0


def test_the_page_of_the_mount_is_part_of_it(kubelet: Kubelet, mount: Mounted, address: Path) -> None:
    """csi-22: One address has the metrics of the driver and of its mount, in both formats of Prometheus."""
    assert kubelet.identity("Probe").ready.value is True
    of_mount = (mount.path / ".secretfs/metrics").read_text("utf-8")
    assert samples(of_mount).keys() <= scraped(address).keys()
    _, headers, classic = get(address)
    assert headers["content-type"].startswith("text/plain")
    assert promtool("check", "metrics", text=classic) == ""
    assert "secretfs_csi_volumes" in classic
    assert "secretfs_inodes{" in classic
    assert get(address, path="/other")[0] == 404


def test_every_metric_is_documented(kubelet: Kubelet, address: Path) -> None:
    """docs/kubernetes.md has all of them, and no other (csi-21)."""
    kubelet.identity("Probe")
    found = {name.split()[0] for name in scraped(address) if name.startswith("secretfs_csi_")}
    text = (ROOT / "docs/kubernetes.md").read_text(encoding="utf-8")
    table = text.partition("| Metric of the driver |")[2].partition("\n\n")[0]
    rows = [row.split("|")[1] for row in table.splitlines()[2:]]
    assert {f"secretfs_csi_{name}" for row in rows for name in re.findall(r"`(\w+)`", row)} == {
        re.sub(r"_(bucket|sum|count)$", "", name) for name in found
    }


def test_a_mount_that_is_not_there(node: Node, tmp_path: Path) -> None:
    """The driver says so, and how its own calls end (csi-22)."""
    kubelet, address = node.another_kubelet, node.another_kubelet.directory.with_name("m")
    (tmp_path / "volumes").mkdir()
    (tmp_path / "mnt").mkdir()
    arguments = ("--dir", tmp_path / "volumes", f"--metrics-listen=unix:{address}", tmp_path / "mnt")
    with csi_driver(kubelet.directory, *arguments):
        assert refused(kubelet.publish, "v", ORDERS_APP)[0] == "UNAVAILABLE"
        found = scraped(address)
        assert (found[f"secretfs_csi_mount_up {NAME}"], found[f"secretfs_csi_volumes {NAME}"]) == (0, 0)
        assert calls(found, "NodePublishVolume") == {"UNAVAILABLE": 1}
        assert not [name for name in found if not name.startswith("secretfs_csi_")]


def test_an_address_in_use(kubelet: Kubelet, mount: Mounted, node: Node, address: Path) -> None:
    """Another driver at the same address ends with what is wrong (csi-14)."""
    assert kubelet.identity("Probe").ready.value is True
    flags = ["--node-id", NODE, "--kubelet-dir", str(node.another_kubelet.directory)]
    done = secretfs("csi", *flags, f"--metrics-listen=unix:{address}", mount.path)
    said = f"secretfs: metrics cannot be served at unix:{address}: Address already in use\n"
    assert (done.status, done.err) == (2, said)
    assert get(address)[0] == 200
