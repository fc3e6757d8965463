"""``secretstores.secretfs.sops``: a file that is encrypted with SOPS. Dapr has no such store.

The tool ``sops`` decrypts it: it gets the file on standard input and gives JSON on standard output, so no value is ever
in an argument, in the environment or in another file. What it says on standard error is never shown: it may quote a
value. Names and shapes are those of `secretfs.stores.local_file`, and so is how a change is noticed.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from secretfs.errors import (
    AccessDenied,
    ConfigurationError,
    DeadlineExceeded,
    MalformedAnswer,
    StoreError,
    StoreUnavailable,
)
from secretfs.settings import setting
from secretfs.store import StoreContext
from secretfs.stores._files import FileIdentity, read_file
from secretfs.stores.local_file import FileStore, multi_valued, nested_separator

_PAUSE: Final = 10.0
"""Seconds after which a file is tried again that could not be decrypted. Each attempt costs a process."""
_TYPES: Final = {".yaml": "yaml", ".yml": "yaml", ".json": "json", ".env": "dotenv", ".ini": "ini"}
"""End of the name of a file to the type that SOPS takes it for. Other files have no names in them."""
_BEGINNING: Final = re.compile(rb"(?:[ \t]*(?:#[^\n]*|\r)?\n|%[^\n]*\n)*---(?=\s)")
"""What a YAML document may begin with: empty lines, comments and directives, and its mark."""
_NEXT_DOCUMENT: Final = re.compile(rb"\n---\s")
_NO_KEY: Final = 128  # sops/cmd/sops/codes: CouldNotRetrieveKey
_ALTERED: Final = frozenset({24, 25, 51, 52})  # ErrorDecryptingMac, ErrorDecryptingTree, MacMismatch, MacNotFound


@dataclass(frozen=True, slots=True)
class Settings:
    """The properties of a ``secretstores.secretfs.sops`` component."""

    secrets_file: str = setting(
        "secretsFile",
        "Path of the encrypted file: `.yaml`, `.yml`, `.json`, `.env` or `.ini`. A relative path starts at the working"
        " directory.",
        required=True,
    )
    key_file: str = setting(
        "ageKeyFile",
        "Path of a file with age identities. Without it, the keys that `sops` finds by itself: SOPS_AGE_KEY_FILE,"
        " `~/.config/sops/age/keys.txt`, those of clouds, PGP.",
        guards=True,
    )
    nested_separator: str = nested_separator()
    multi_valued: bool = multi_valued()


@dataclass(frozen=True, slots=True)
class _Failure:
    identity: FileIdentity
    until: float
    error: StoreError


class Decrypter:
    """Decrypts one file, whenever it is asked to."""

    def __init__(self, path: Path, command: list[str], environ: Mapping[str, str], deadline: float) -> None:
        self._path = path
        self._command = command
        self._environ = environ
        self._deadline = deadline
        self._failure: _Failure | None = None

    def read(self) -> tuple[FileIdentity, bytes]:
        """Return what is in the file, as JSON. Raises `StoreError`, whose text begins with the path, and OSError."""
        identity, data = read_file(self._path)
        failure = self._failure
        if failure is not None and failure.identity == identity and time.monotonic() < failure.until:
            raise type(failure.error)(str(failure.error))
        try:
            return identity, self._decrypted(data)
        except StoreError as error:
            self._failure = _Failure(identity, time.monotonic() + _PAUSE, error)
            raise

    def _decrypted(self, data: bytes) -> bytes:
        beginning = _BEGINNING.match(data)
        if _NEXT_DOCUMENT.search(data, beginning.end() if beginning else 0):
            raise MalformedAnswer(f"{self._path}: several YAML documents, of which sops hands out the first only")
        try:
            # In /: a working directory that is a mount of ours, or gone, is none for a process.
            done = subprocess.run(  # noqa: S603 - nothing of the command is anybody's input
                self._command,
                input=data,
                capture_output=True,
                cwd="/",
                env={**os.environ, **self._environ},
                timeout=self._deadline,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise DeadlineExceeded(f"{self._path}: sops does not end in time") from None
        except OSError as error:
            raise StoreUnavailable(f"{self._path}: {self._command[0]}: {error.strerror}") from None
        if done.returncode:
            raise self._refusal(done.returncode)
        return done.stdout

    def _refusal(self, status: int) -> StoreError:
        if status == _NO_KEY:
            return AccessDenied(f"{self._path}: no key that sops finds decrypts it ({status})")
        if status in _ALTERED:
            return MalformedAnswer(f"{self._path}: it was altered without its key ({status})")
        if status < 0:
            return StoreUnavailable(f"{self._path}: sops was ended by signal {-status}")
        return MalformedAnswer(f"{self._path}: sops does not take it: is it encrypted? ({status})")


def open_store(settings: Settings, context: StoreContext) -> FileStore:
    """Decrypt the file. Raises `ConfigurationError` when that is not possible."""
    path = Path(settings.secrets_file).absolute()
    try:
        command = [_tool(), "decrypt", "--input-type", _type_of(path), "--output-type", "json", "/dev/stdin"]
        decrypter = Decrypter(path, command, _environ(settings), context.deadline)
        separator, multi_valued = settings.nested_separator, settings.multi_valued
        return FileStore(path, separator, multi_valued=multi_valued, read=decrypter.read)
    except StoreError as error:
        raise ConfigurationError(f"{context.component}: secretsFile: {error}") from None
    except ConfigurationError as error:
        raise ConfigurationError(f"{context.component}: {error}") from None


def _tool() -> str:
    """Find the tool: where programs are, or beside Python, as for a package from PyPI."""
    found = shutil.which("sops") or shutil.which("sops", path=str(Path(sys.executable).parent))
    if found is None:
        raise ConfigurationError("it needs the program sops, which is not in PATH: github.com/getsops/sops")
    return found


def _type_of(path: Path) -> str:
    found = next((kind for end, kind in _TYPES.items() if path.name.endswith(end)), "")
    if not found:
        raise ConfigurationError(f"secretsFile: its name ends with none of {', '.join(_TYPES)}")
    return found


def _environ(settings: Settings) -> Mapping[str, str]:
    if not settings.key_file:
        return {}
    key_file = Path(settings.key_file).absolute()
    if not os.access(key_file, os.R_OK):
        raise ConfigurationError(f"ageKeyFile: {key_file} is not there, or cannot be read")
    return {"SOPS_AGE_KEY_FILE": str(key_file)}
