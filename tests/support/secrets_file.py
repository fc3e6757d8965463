"""A file for ``secretstores.local.file`` that tests rewrite. Import the fixture: ``from ... import file``."""

import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from secretfs.store import SecretStore
from secretfs.testing import Seed, StoreContract
from tests.support.canary import CANARY
from tests.support.manifests import component
from tests.support.opened import opened

__all__ = ["FileContract", "SecretsFile", "file"]

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


class FileContract(StoreContract):
    """The contract for a store on a file with JSON, or with what becomes JSON, which the fixture ``file`` gives."""

    multi_valued = False
    mark = CANARY
    binary_values = False  # a value is a JSON string
    has_versions = False
    can_be_denied = False  # a file is refused as a whole, which is a failure of the store
    counts_reads = False  # nobody answers who could count

    @pytest.fixture
    def store(self, file: Any) -> Iterator[SecretStore]:
        with file.store(multiValued=str(self.multi_valued)) as store:
            yield store

    @pytest.fixture
    def seed(self, file: Any) -> Seed:
        document: dict[str, Any] = {}

        def seed(name: str, values: Mapping[str, bytes]) -> None:
            texts = {key: value.decode() for key, value in values.items()}
            document[name] = texts if self.multi_valued else texts[name]
            file.write(document)

        return seed

    @pytest.fixture
    def unreachable(self, file: Any) -> Iterator[SecretStore]:
        with file.store() as store:
            file.path.unlink()
            yield store


@pytest.fixture
def file(tmp_path: Path) -> SecretsFile:
    """Give an empty secrets file."""
    return SecretsFile(tmp_path / "secrets.json")
