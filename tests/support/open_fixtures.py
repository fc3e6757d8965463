"""Fixtures for what the kernel reports of opens: ``from tests.support.open_fixtures import group, mount``."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from secretfs.linux.fanotify import open_group
from tests.support.canary import secret
from tests.support.manifests import component
from tests.support.mounted import Mounted, mounted

__all__ = ["group", "mount"]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mounted]:
    """Mount the secrets ``A`` and ``B`` of a store ``env``."""
    component(tmp_path / "components", "env", "local.env", {"prefix": "SFS_"})
    with mounted(tmp_path / "components", env={"SFS_A": secret("a"), "SFS_B": secret("b")}) as mount:
        yield mount


@pytest.fixture
def group() -> Iterator[int]:
    """Open what the kernel reports opens to."""
    group = open_group()
    yield group
    os.close(group)
