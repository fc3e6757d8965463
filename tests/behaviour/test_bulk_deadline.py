"""Requests for a whole store end in time, however many secrets it has."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import fake_type
from tests.support.canary import secret
from tests.support.command import ROOT
from tests.support.fake_type import Fakes
from tests.support.mounted import Mounted, mounted
from tests.support.shell import errno_of

pytestmark = pytest.mark.mount

SECRETS = 240
DELAY = 0.1
"""Seconds for each of them: 3 s in all, eight at a time."""


@pytest.fixture(scope="module")
def mount(scratch: Path) -> Iterator[Mounted]:
    with fake_type.installed(scratch / "site") as site:
        fakes = Fakes(scratch / "components", site, {"PYTHONPATH": f"{ROOT}:{site}"})
        many = json.dumps({f"s{number:03}": {"k": secret(str(number))} for number in range(SECRETS)})
        brief = {"secretfs/deadline": "500ms"}
        fakes.add("brief", secrets=many, delay=str(DELAY), annotations=brief)
        fakes.add("long", secrets=many, delay=str(DELAY), annotations={**brief, "secretfs/bulk-deadline": "1m"})
        expected = [
            r"brief: \.bulk\.(json|env) is not complete: [0-9]+ of 240 secrets are read: no answer within 500ms"
        ]
        with mounted(fakes.directory, env=fakes.env, expect_log=expected) as mount:
            yield mount


def reads(mount: Mounted, store: str) -> int:
    """Return how many secrets have been asked for."""
    document = json.loads((mount.path / ".secretfs/status.json").read_text())
    fetches: int = document["stores"][store]["calls"]["fetch"]["made"]
    return fetches


def test_a_bulk_file(mount: Mounted) -> None:
    """bulk-12: A bulk file takes `deadline` in all, or a longer `secretfs/bulk-deadline`, else it is ETIMEDOUT."""
    assert errno_of((mount.path / "brief/.bulk.json").read_bytes) == "ETIMEDOUT"
    assert errno_of((mount.path / "brief/.bulk.env").read_bytes) == "ETIMEDOUT"
    assert reads(mount, "brief") < SECRETS / 2
    assert len(json.loads((mount.path / "long/.bulk.json").read_bytes())) == SECRETS


def test_a_refresh(mount: Mounted) -> None:
    """control-10: A refresh may take as long as a bulk file, else it is ETIMEDOUT, and the rest is expired."""
    refresh = mount.path / ".secretfs/refresh"
    assert len(json.loads((mount.path / "long/.bulk.json").read_bytes())) == SECRETS
    errno_of((mount.path / "brief/.bulk.json").read_bytes)
    before, fresh = reads(mount, "brief"), reads(mount, "long")
    assert errno_of(refresh.write_bytes, b"brief\n") == "ETIMEDOUT"
    assert reads(mount, "brief") - before < SECRETS / 2
    refresh.write_bytes(b"long\n")
    assert reads(mount, "long") == fresh + SECRETS
