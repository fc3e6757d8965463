"""A file for ``secretstores.local.file`` that tests rewrite. Import the fixture: ``from ... import file``."""

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from secretfs.store import SecretStore
from tests.support.manifests import component
from tests.support.opened import opened

__all__ = ["SecretsFile", "file"]

TYPE = "secretstores.local.file"


class SecretsFile:
    """A secrets file, and stores on it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.write({})

    def write(self, document: Any) -> None:
        """Replace the file, as an editor does."""
        self.write_text(json.dumps(document, ensure_ascii=False).encode())

    def write_text(self, text: bytes) -> None:
        """Replace the file with these bytes."""
        new = self.path.with_suffix(".new")
        new.write_bytes(text)
        new.replace(self.path)

    def declare(self, directory: Path, ttl: str, **properties: str) -> Path:
        """Declare it as the component ``file`` in a directory. Returns the directory."""
        annotations = {"secretfs/ttl": ttl}
        component(directory, "file", "local.file", {"secretsFile": self.path, **properties}, annotations=annotations)
        return directory

    def store(self, **properties: str) -> AbstractContextManager[SecretStore]:
        """Open a store on the file."""
        return opened(TYPE, {"secretsFile": str(self.path), **properties})


@pytest.fixture
def file(tmp_path: Path) -> SecretsFile:
    """Give an empty secrets file."""
    return SecretsFile(tmp_path / "secrets.json")
