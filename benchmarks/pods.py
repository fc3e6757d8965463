"""What pods cost: as many as a node may have, each with a volume of ours and one of a Secret, on a real Kubernetes.

    python -m benchmarks.pods

The kubelet says when it has begun to set up a volume, and when it has. A volume of a Secret, which is a tmpfs that the
kubelet writes, is set up for the same pods at the same time. Needs root, what tests/kubernetes needs, and about 3 GB of
memory; builds the image first.
"""

import argparse
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from benchmarks.fixtures import BenchmarkError, Fixtures
from benchmarks.report import Unit
from tests.support.canary import secret
from tests.support.command import ROOT
from tests.support.kubernetes import images
from tests.support.kubernetes.documents import BUSYBOX, pod
from tests.support.kubernetes.driver import MOUNT, MOUNTPOINT, OWN, POINT, Site, prepare, volume
from tests.support.kubernetes.node import kube_node, require_node
from tests.support.kubernetes.settings import NODE
from tests.support.mounted import stands_by
from tests.support.waiting import wait_until

PODS = 109
"""A kubelet takes 110 pods; one is the driver's."""
PATIENCE = 1800.0
"""Seconds for all of them to start."""
_SCRIPT = f"cat {POINT}/own/*/password /run/plain/* > /out/read && mv /out/read /out/done && sleep 1000000"
_LINE = re.compile(
    r"I(?P<at>\d{4} [\d:.]+) .*\] (?P<step>operationExecutor\.MountVolume started|MountVolume\.SetUp succeeded)"
    r' for volume "(?P<volume>[^"]+)" .* pod "(?P<pod>[^"]+)"'
)


@dataclass(frozen=True)
class Row:
    """What the volumes of some pods took, in seconds."""

    name: str
    ours: float
    secrets: float

    def show(self) -> str:
        """Return it as a line of the table."""
        ours, secrets = Unit.SECONDS.show(self.ours), Unit.SECONDS.show(self.secrets)
        return f"{self.name:34}  {ours:>10}  {secrets:>10}  x {self.ours / self.secrets:.2f}"


@dataclass(frozen=True)
class Memory:
    """Bytes of processes, where pages that several share are divided among them (PSS)."""

    driver: int
    mount: int


def main() -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser("python -m benchmarks.pods", description=__doc__)
    parser.add_argument("--pods", type=int, default=PODS, metavar="N", help=f"pods, at most {PODS}")
    arguments = parser.parse_args()
    if not 1 < arguments.pods <= PODS:
        parser.error(f"--pods: from 2 to {PODS}")
    require_node()
    try:
        with Fixtures() as fixtures:
            for line in _measure(fixtures, arguments.pods):
                print(line, flush=True)
    except BenchmarkError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    return 0


def _measure(fixtures: Fixtures, count: int) -> Iterable[str]:
    directory = fixtures.directory("node")
    images.write(directory / "busybox.tar", [images.Image(BUSYBOX)])
    with kube_node(directory, [_image(directory), directory / "busybox.tar"]) as node:
        site = prepare(node, fixtures.directory("driver"))
        site.install()
        node.apply(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": "plain", "namespace": "default"},
                "stringData": {f"db{number}": secret(f"plain-{number}") for number in range(OWN)},
            }
        )
        first, *others = (f"pod-{number}" for number in range(count))
        _run(site, [first])
        alone, calls_of_one = _memory(site), _calls(site)
        began = time.monotonic()
        _run(site, others)
        took = time.monotonic() - began
        everyone, calls = _memory(site), _calls(site)
        set_up = set_ups(node.log("kubelet").splitlines())
    yield f"{count} pods of one identity; all but one at once: each has read {2 * OWN} files after {took:.0f} s"
    yield f"{'':34}  {'secretfs':>10}  {'Secret':>10}"
    yield _row("the first, which opens the stores", set_up, [first], 0.5).show()
    yield _row("the others, median", set_up, others, 0.5).show()
    yield _row("the others, 99 % within", set_up, others, 0.99).show()
    yield f"calls of the backend: {calls} for {count} pods, {calls_of_one} for one"
    for what, one, all_of_them in (
        ("driver", alone.driver, everyone.driver),
        ("mount", alone.mount, everyone.mount),
    ):
        each = (all_of_them - one) / len(others)
        yield f"memory of the {what}: {Unit.BYTES.show(one)} with one pod, {each / 1e3:.0f} kB for each other"


def _image(directory: Path) -> Path:
    """Build the image that is shipped; returns its archive."""
    archive = directory / "secretfs.oci.tar"
    built = subprocess.run([ROOT / "scripts/build-image", "--cached", archive], check=False)
    if built.returncode:
        raise BenchmarkError("the image cannot be built")
    return archive


def _run(site: Site, names: Sequence[str]) -> None:
    """Make pods, and wait until each has read everything."""
    site.node.apply(*(_pod(name) for name in names))
    pods = site.node.machine.path("/var/lib/kubelet/pods")
    uids = {each["metadata"]["uid"] for each in site.node.pods("default") if each["metadata"]["name"] in names}
    wait_until(lambda: all(_has_read(pods / uid) for uid in uids), within=PATIENCE, every=0.05)


def _has_read(place: Path) -> bool:
    return (place / "volumes/kubernetes.io~empty-dir/out/done").exists()


def _pod(name: str) -> dict[str, Any]:
    volumes = [volume(), {"name": "plain", "secret": {"secretName": "plain"}}, {"name": "out", "emptyDir": {}}]
    mounts: list[dict[str, Any]] = [MOUNT]
    mounts += ({"name": each, "mountPath": path} for each, path in (("plain", "/run/plain"), ("out", "/out")))
    return pod(name, _SCRIPT, volumes=volumes, mounts=mounts, serviceAccountName="orders", nodeName=NODE)


def _calls(site: Site) -> int:
    made: int = site.store("orders/own")["calls"]["fetch"]["made"]
    return made


def _memory(site: Site) -> Memory:
    wait_until(lambda: stands_by(MOUNTPOINT))  # the last process of a mount to start
    return Memory(_pss(site.drivers()), _pss(site.mount_processes()))


def _pss(pids: Collection[int]) -> int:
    if not pids:
        raise BenchmarkError("a process to be measured has ended")
    rows = (Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines() for pid in pids)
    return sum(int(line.split()[1]) << 10 for row in rows for line in row if line.startswith("Pss:"))


def set_ups(log: Iterable[str]) -> Mapping[tuple[str, str], float]:
    """Return the seconds that each set-up of a volume took, by pod and volume: from kubelet's log with --v=1."""
    began: dict[tuple[str, str], datetime] = {}
    took: dict[tuple[str, str], float] = {}
    for match in filter(None, map(_LINE.match, log)):
        at = datetime.strptime(f"2000{match['at']}", "%Y%m%d %H:%M:%S.%f")  # noqa: DTZ007 - differences only
        key = match["pod"], match["volume"]
        if match["step"].endswith("started"):
            began.setdefault(key, at)
        else:
            took.setdefault(key, (at - began.get(key, at)) / timedelta(seconds=1))  # it logs the start a moment later
    return took


def _row(name: str, set_up: Mapping[tuple[str, str], float], pods: Sequence[str], share: float) -> Row:
    ours, secrets = ([set_up[each, kind] for each in pods] for kind in ("secrets", "plain"))
    return Row(name, _within(ours, share), _within(secrets, share))


def _within(values: Sequence[float], share: float) -> float:
    """Return what a share of the values is not above."""
    if share == 0.5:
        return statistics.median(values)
    return sorted(values)[max(0, round(share * len(values)) - 1)]


if __name__ == "__main__":
    sys.exit(main())
