"""What a test needs to mount something, whatever it is. Import what you use: ``from ... import components, point``."""

from pathlib import Path

import pytest

from tests.support.manifests import component

__all__ = ["components", "point"]


@pytest.fixture
def components(tmp_path: Path) -> Path:
    """Declare a store, and return the directory of its manifest."""
    return component(tmp_path / "components", "env", "local.env").parent


@pytest.fixture
def point(tmp_path: Path) -> Path:
    """Make an empty directory to mount at."""
    path = tmp_path / "mnt"
    path.mkdir()
    return path
