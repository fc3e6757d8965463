"""Draws the main charts of examples/monitoring/secretfs-dashboard.json, from what happens to a real mount.

    python -m benchmarks.dashboard docs/monitoring.svg

Two minutes: programs read, secrets are rotated, the server hangs, the worker is killed. A real Prometheus scrapes the
mount every second and answers the queries of the dashboard.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import yaml

from benchmarks.chart import Chart, Points, draw
from tests.support.canary import secret
from tests.support.manifests import component
from tests.support.mounted import Mounted, mounted
from tests.support.servers.openbao import OpenBao, free_port, openbao
from tests.support.waiting import wait_until

ROOT: Final = Path(__file__).resolve().parents[1]
TITLES: Final = (
    "Reads",
    "Wait of cold reads",
    "Age of the oldest value in use",
    "Values in memory",
    "Calls of stores",
    "From a change noticed until published",
)
SECRETS: Final = 40
LENGTH, HANGS, ANSWERS, KILL = 120, 45, 70, 95
"""Seconds: of it all; and from the beginning until the server hangs, answers again, and the worker is killed."""
LIVE: Final = r"process \d+ ended|vault: "


def main() -> int:
    """Draw into the file that is named."""
    (target,) = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="secretfs-dashboard-") as directory, openbao(Path(directory, "bao")) as bao:
        port = free_port()
        with _mounted(Path(directory), bao, port) as mount, _prometheus(Path(directory), port) as prometheus:
            begin = time.time()
            _happens(mount, bao)
            charts = [_chart(panel, prometheus, begin) for panel in _panels()]
    marks: dict[float, str] = {HANGS: "server hangs", ANSWERS: "answers", KILL: "kill -9"}
    Path(target).write_text(draw(charts, LENGTH, marks), encoding="utf-8")
    return 0


@contextmanager
def _mounted(directory: Path, bao: OpenBao, port: int) -> Iterator[Mounted]:
    for number in range(SECRETS):
        bao.put(f"secret/app/{number}", {"password": secret(str(number))})
    metadata = {"vaultAddr": bao.address, "vaultToken": bao.token, "vaultKVPrefix": "app"}
    annotations = {"secretfs/ttl": "5s", "secretfs/deadline": "2s"}
    component(directory / "components", "vault", "hashicorp.vault", metadata, annotations=annotations)
    component(directory / "components", "env", "local.env", {"prefix": "DASHBOARD_"})
    options = [f"--metrics-listen=127.0.0.1:{port}"]
    environment = {"DASHBOARD_A": secret("a")}
    with mounted(directory / "components", options=options, env=environment, expect_log=[LIVE]) as mount:
        yield mount


@contextmanager
def _prometheus(directory: Path, port: int) -> Iterator[str]:
    """Run a Prometheus that scrapes the mount; yields its address."""
    scrape = {"job_name": "secretfs", "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
    config = directory / "prometheus.yaml"
    config.write_text(yaml.safe_dump({"global": {"scrape_interval": "1s"}, "scrape_configs": [scrape]}), "utf-8")
    address = f"127.0.0.1:{free_port()}"
    storage = f"--storage.tsdb.path={directory / 'prometheus'}"
    command = ["prometheus", f"--config.file={config}", storage, f"--web.listen-address={address}"]
    with (directory / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_until(lambda: _query(f"http://{address}", "query", query="secretfs_build_info"))
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait()


def _happens(mount: Mounted, bao: OpenBao) -> None:
    begin, over = time.monotonic(), threading.Event()
    readers = [threading.Thread(target=_read, args=(mount.path, number, over)) for number in range(3)]
    for reader in readers:
        reader.start()
    hanging = bao.hanging()
    for second in range(LENGTH):
        time.sleep(max(0.0, begin + second - time.monotonic()))
        if second == HANGS:
            hanging.__enter__()
        elif second == ANSWERS:
            hanging.__exit__(None, None, None)
        elif second == KILL:
            os.kill(mount.worker, signal.SIGKILL)
        if second % 4 == 0 and not HANGS <= second < ANSWERS:
            number = random.randrange(SECRETS)
            bao.put(f"secret/app/{number}", {"password": secret(f"{number} {second}")})
    over.set()
    for reader in readers:
        reader.join()


def _read(mountpoint: Path, seed: int, over: threading.Event) -> None:
    """Read secrets, more and more of them."""
    chosen, begin = random.Random(seed), time.monotonic()
    while not over.wait(0.02):
        known = min(SECRETS, 3 + int(time.monotonic() - begin) // 3)
        with suppress(OSError):
            (mountpoint / f"vault/{chosen.randrange(known)}/password").read_bytes()
            (mountpoint / "env/A").read_bytes()


def _panels() -> list[dict[str, Any]]:
    dashboard = json.loads((ROOT / "examples/monitoring/secretfs-dashboard.json").read_text("utf-8"))
    panels = {panel["title"]: panel for panel in dashboard["panels"]}
    return [panels[title] for title in TITLES]


def _chart(panel: dict[str, Any], prometheus: str, begin: float) -> Chart:
    lines: dict[str, Points] = {}
    for target in panel["targets"]:
        query = target["expr"].replace("$mountpoint", ".*").replace("$store", ".*").replace("$__rate_interval", "8s")
        for series in _query(prometheus, "query_range", query=query, start=begin, end=begin + LENGTH, step=1):
            name = target["legendFormat"]
            for label, value in series["metric"].items():
                name = name.replace(f"{{{{{label}}}}}", value)
            lines[name] = [(float(at) - begin, float(value)) for at, value in series["values"]]
    return Chart(panel["title"], panel["fieldConfig"]["defaults"]["unit"], lines)


def _query(prometheus: str, kind: str, **parameters: str | float) -> list[dict[str, Any]]:
    try:
        with urllib.request.urlopen(f"{prometheus}/api/v1/{kind}?{urllib.parse.urlencode(parameters)}") as answer:
            result: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    except urllib.error.URLError:  # it does not listen yet
        return []
    return result


if __name__ == "__main__":
    sys.exit(main())
