"""Fixtures with GCP on loopback. Import those you use: ``from tests.support.gcp_fixtures import gcp, opened``."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from secretfs.store import SecretStore
from tests.support import opened as support
from tests.support.servers.gcp import Gcp

__all__ = ["TYPE", "gcp", "opened"]

TYPE = "secretstores.gcp.secretmanager"


@pytest.fixture
def gcp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gcp]:
    """Run GCP. The machine is none of Google's, and nobody has logged in with gcloud."""
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path / "gcloud"))
    with Gcp(tmp_path) as server:
        yield server


def opened(
    gcp: Gcp, properties: Mapping[str, str], *, deadline: float = support.DEADLINE, **annotations: str
) -> AbstractContextManager[SecretStore]:
    """Open a store that speaks with this server."""
    more = {"secretfs/endpoint": gcp.address} | {f"secretfs/{name}": value for name, value in annotations.items()}
    return support.opened(TYPE, properties, deadline=deadline, annotations=more)
