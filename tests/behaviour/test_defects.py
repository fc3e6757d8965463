"""Stores with a defect: whatever they do wrong, in the background too, costs themselves alone."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import fake_type
from tests.support.canary import secret
from tests.support.command import ROOT
from tests.support.fake_type import Fakes
from tests.support.manifests import component
from tests.support.mounted import Mounted, mounted
from tests.support.shell import errno_of, wait_until

pytestmark = pytest.mark.mount

DEFECT = [
    "a defect in secretfs",
    "unexpected ",
    "the fake says so",
    "token: cannot be used",
    "^Traceback",
    "^ ",
    "^Exception: ",
]


@pytest.fixture
def fakes(tmp_path: Path) -> Iterator[Fakes]:
    with fake_type.installed(tmp_path / "site") as site:
        component(tmp_path / "components", "good", "local.env", {"prefix": "GOOD_"})
        environment = {"PYTHONPATH": f"{ROOT}:{site}", "GOOD_TOKEN": secret("good")}
        yield Fakes(tmp_path / "components", site, environment)


@pytest.mark.parametrize("exception", ["ValueError", "ConfigurationError", "SystemExit"])
def test_a_check_that_raises(fakes: Fakes, exception: str) -> None:
    """error-14: A store that raises an unexpected error in the background counts as failing; the mount lives."""
    fakes.add("bad", {"fail": f"check={exception} names:=StoreUnavailable"}, spec={"ignoreErrors": True})
    with mounted(fakes.directory, env=fakes.env, expect_log=DEFECT) as mount:
        worker = mount.worker
        for _ in range(3):  # then the circuit breaker opens, and the store is probed
            assert errno_of(os.listdir, mount.path / "bad") == "EIO"
        wait_until(lambda: store(mount, "bad")["calls"]["check"]["failed"] >= 2)
        assert store(mount, "bad")["state"] == "down"
        assert (mount.path / "good/TOKEN").read_text() == secret("good")
        assert mount.worker == worker


def store(mount: Mounted, name: str) -> dict[str, Any]:
    """Return what the mount says of a store."""
    document = json.loads((mount.path / ".secretfs/status.json").read_text())
    found: dict[str, Any] = document["stores"][name]
    return found
