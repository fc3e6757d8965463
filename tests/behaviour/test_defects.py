"""Stores with a defect: whatever they do wrong, in the background too, costs themselves alone."""

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
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
    """No reader waits for `unchanged` and `watch`: what is in use is read instead (error-14)."""
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
    """A new worker opens it at its first call, with a credential that is of no use (error-14)."""

    credential = add_needy(fakes, tmp_path)
    log = [*DEFECT, r"process \d+ ended", "component needy", "needy: "]
    with mounted(fakes.directory, env=fakes.env, expect_log=log) as mount:
        first = mount.worker
        credential("open=ConfigurationError")
        os.kill(first, signal.SIGKILL)
        mount.said("took over")
        worker = mount.worker
        for _ in range(3):
            assert errno_of(os.listdir, mount.path / "needy") == "EIO"
        assert (mount.path / "good/TOKEN").read_text() == secret("good")
        credential("nothing=hang")
        wait_until(lambda: errno_of((mount.path / "needy/db/key").read_text) == "")
        assert mount.worker == worker != first


@pytest.mark.parametrize(
    ("how", "said"),
    [("open=SystemExit", "unexpected SystemExit"), ("watch=ValueError close=ValueError", "its changes show after ttl")],
)
def test_a_rotated_credential_with_which_a_store_raises(fakes: Fakes, tmp_path: Path, how: str, said: str) -> None:
    """The store that is open goes on; another credential is tried as soon as there is one (error-14)."""
    credential = add_needy(fakes, tmp_path)
    with mounted(fakes.directory, env=fakes.env, expect_log=[*DEFECT, "needy: "]) as mount:
        worker = mount.worker
        assert (mount.path / "needy/db/key").read_text() == secret("needy")
        credential(how)
        wait_until(lambda: re.search(f"needy: .*{said}", mount.log))
        credential("something=hang")
        times = 2 if how.startswith("watch") else 1
        mount.said("needy: opened with new credentials", times)
        assert (mount.path / "needy/db/key").read_text() == secret("needy")
        assert mount.worker == worker


def add_needy(fakes: Fakes, directory: Path) -> Callable[[str], None]:
    """Add a store that goes wrong as its credential says. Returns what rotates that credential."""

    def rotate(how: str) -> None:
        (directory / "new.json").write_text(json.dumps({"how": how}), encoding="utf-8")
        (directory / "new.json").replace(directory / "source.json")

    rotate("nothing=hang")
    source = {"secretsFile": directory / "source.json"}
    component(fakes.directory, "source", "local.file", source, annotations={"secretfs/ttl": "1s"})
    needy = {"secrets": {"value": {"db": {"key": secret("needy")}}}, "fail": reference("how")}
    fakes.add("needy", needy, secret_store="source")
    return rotate


def store(mount: Mounted, name: str) -> dict[str, Any]:
    """Return what the mount says of a store."""
    document = json.loads((mount.path / ".secretfs/status.json").read_text())
    found: dict[str, Any] = document["stores"][name]
    return found
