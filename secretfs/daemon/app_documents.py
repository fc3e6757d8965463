"""The documents of apps that programs add to a running mount and take away again, with an answer to wait for.

Each app has a file of its own, ``NAME.yaml``, in one directory. Whoever changes it holds `locked` meanwhile.
"""

import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from secretfs.daemon.control_client import read_status, reload
from secretfs.errors import ConfigurationError, MountError, SecretFSError
from secretfs.linux.mountpoint import call_with_timeout


def declared_apps(mountpoint: Path) -> Mapping[str, Any]:
    """Return what a mount says of its apps: ``apps`` by name, and ``app_directories``.

    Raises `ConfigurationError` for a mount that shows a single app, `MountError` for one that does not answer.
    """
    declared: Mapping[str, Any] = json.loads(read_status(mountpoint)).get("declaration", {"apps": None})
    if declared["apps"] is None:
        raise ConfigurationError(f"the mount at {mountpoint} shows a single app; mount with --apps DIR")
    return declared


def document_directory(mountpoint: Path) -> Path:
    """Return the directory for documents that programs add: the last one that ``--apps`` names."""
    return Path(declared_apps(mountpoint)["app_directories"][-1])


def document_of(directory: Path, app: str) -> Path:
    """Return the file of an app."""
    return directory / f"{app}.yaml"


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Let nobody else change the documents of a directory meanwhile."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise ConfigurationError(f"{directory}: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def change(mountpoint: Path, documents: Mapping[Path, bytes | None]) -> None:
    """Write documents, or remove those that are None, and have the mount read them. Undo it all after a mistake.

    Raises `ConfigurationError` with the mistake, `MountError` if the mount does not answer.
    """
    before = {path: _read(path) for path in documents}
    try:
        _write(documents)
        reason = reload(mountpoint)
    except SecretFSError:
        _write(before)
        raise
    if reason:
        _write(before)
        reload(mountpoint)
        raise ConfigurationError(reason)


def require_shown(mountpoint: Path, app: str) -> None:
    """Make sure that a mount shows an app. Raises `MountError`."""
    try:
        call_with_timeout(mountpoint, partial(os.stat, mountpoint / app))
    except OSError as error:
        raise MountError(f"the mount does not show app {app}: {error.strerror}") from None


def without_place(message: str, document: Path) -> str:
    """Take the place of a mistake out of its message: that document is gone."""
    return re.sub(rf"^{re.escape(str(document))}(:\d+)?: ", "", message)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from None


def _write(documents: Mapping[Path, bytes | None]) -> None:
    for path, text in documents.items():
        new = path.with_name(f".{path.name}.new")  # a reload passes over what begins with a dot
        try:
            if text is None:
                path.unlink(missing_ok=True)
            else:
                new.write_bytes(text)
                new.replace(path)
        except OSError as error:
            raise ConfigurationError(f"cannot write {path}: {error.strerror}") from None
