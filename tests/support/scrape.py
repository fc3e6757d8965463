"""Scrapes of a mount, read as Prometheus reads them, and Prometheus' own tool to check them with."""

import shutil
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tests.support.canary import leaked
from tests.support.waiting import PATIENCE


def samples(page: str) -> dict[str, float]:
    """Return the samples of a page, by name and the values of labels other than the mount point, sorted by label."""
    assert not leaked(page)
    found = {}
    for family in text_string_to_metric_families(page):  # type: ignore[no-untyped-call]
        for sample in family.samples:
            labels = sorted((name, value) for name, value in sample.labels.items() if name != "mountpoint")
            found[" ".join((sample.name, *(value for _, value in labels)))] = sample.value
    return found


def scrape(mount: Path) -> dict[str, float]:
    """Read the control file of a mount."""
    return samples((mount / ".secretfs/metrics").read_text())


def get(
    address: Path | tuple[str, int], accept: str = "", path: str = "/metrics"
) -> tuple[int, Mapping[str, str], str]:
    """Ask an endpoint. Returns status, headers and body."""
    family = socket.AF_UNIX if isinstance(address, Path) else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as connection:
        connection.settimeout(PATIENCE)
        connection.connect(str(address) if isinstance(address, Path) else address)
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: secretfs\r\nAccept: {accept}\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
    head, _, body = answer.partition("\r\n\r\n")
    first, *rest = head.split("\r\n")
    return (
        int(first.split()[1]),
        {name.lower(): value for name, _, value in (line.partition(": ") for line in rest)},
        body,
    )


def promtool(*arguments: str | Path, text: str = "", cwd: Path | None = None) -> str:
    """Run promtool, which must find nothing wrong. Returns what it says."""
    if shutil.which("promtool") is None:
        pytest.fail("promtool is missing: scripts/setup.sh dev installs it, with Debian's prometheus")
    done = subprocess.run(
        ["promtool", *map(str, arguments)],
        input=text, cwd=cwd, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr
