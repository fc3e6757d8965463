"""Stores with a defect: whatever they do wrong, in the background too, costs themselves alone."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import fake_type
from tests.support.canary import secret
from tests.support.command import ROOT
from tests.support.fake_type import Fakes, reference
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


def test_a_comparison_and_a_watch_that_raise(fakes: Fakes) -> None:
    """error-14: So do `unchanged` and `watch`, which no reader waits for: what is in use is read instead."""
    fails = {"secrets": {"value": {"db": {"key": secret("bad")}}}, "fail": "unchanged=ValueError watch=ValueError"}
    fakes.add("bad", fails, annotations={"secretfs/ttl": "300ms"})
    with mounted(fakes.directory, env=fakes.env, expect_log=[*DEFECT, "its changes show after ttl"]) as mount:
        worker = mount.worker
        with (mount.path / "bad/db/key").open() as key:
            wait_until(lambda: store(mount, "bad")["calls"]["compare"]["failed"] >= 2)
            before = store(mount, "bad")["calls"]["fetch"]["made"]
            wait_until(lambda: store(mount, "bad")["calls"]["fetch"]["made"] > before)
            assert key.read() == secret("bad")
        assert (mount.path / "good/TOKEN").read_text() == secret("good")
        assert mount.worker == worker


def test_a_store_that_is_opened_late_and_cannot_be(fakes: Fakes, tmp_path: Path) -> None:
    """error-14: So does a store whose new credential is of no use, when it is first called after a takeover."""

    def credential(how: str) -> None:
        (tmp_path / "new.json").write_text(json.dumps({"how": how}), encoding="utf-8")
        (tmp_path / "new.json").replace(tmp_path / "source.json")

    credential("nothing=hang")
    component(fakes.directory, "source", "local.file", {"secretsFile": tmp_path / "source.json"})
    known = {"secrets": {"value": {"db": {"key": secret("needy")}}}, "fail": reference("how")}
    fakes.add("needy", known, secret_store="source")
    log = [*DEFECT, r"process \d+ ended", "component needy", "needy: "]
    with mounted(fakes.directory, env=fakes.env, expect_log=log) as mount:
        first = mount.worker
        credential("open=ConfigurationError")
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: "took over" in mount.log)
        worker = mount.worker
        for _ in range(3):
            assert errno_of(os.listdir, mount.path / "needy") == "EIO"
        assert (mount.path / "good/TOKEN").read_text() == secret("good")
        credential("nothing=hang")
        wait_until(lambda: errno_of((mount.path / "needy/db/key").read_text) == "")
        assert mount.worker == worker != first


def store(mount: Mounted, name: str) -> dict[str, Any]:
    """Return what the mount says of a store."""
    document = json.loads((mount.path / ".secretfs/status.json").read_text())
    found: dict[str, Any] = document["stores"][name]
    return found
