"""Volumes and recipes for containers, with the engines that people use."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.engines import Site, site
from tests.support.machine import machine

__all__ = ["_site"]


@pytest.fixture(scope="module", name="site")
def _site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Give the tests of a module a machine with a mount and the volume plug-in."""
    logs: Path = tmp_path_factory.mktemp("engines")
    with machine() as one, site(one, logs) as found:
        yield found
