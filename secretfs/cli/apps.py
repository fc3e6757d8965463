"""``secretfs apps``: add, remove and list the apps of a mount, with an answer to wait for."""

import fcntl
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import click

from secretfs.cli.options import PATH
from secretfs.daemon.control_client import read_status, reload
from secretfs.dapr.app import App, apps_in_text, is_app_name
from secretfs.dapr.goyaml import read_text, split_documents
from secretfs.errors import ConfigurationError, MountError, SecretFSError
from secretfs.linux.log import printable
from secretfs.linux.mountpoint import call_with_timeout, resolve

DIRECTORY = click.option(
    "--dir",
    "directory",
    type=PATH,
    metavar="DIR",
    help="The directory for the documents.  [default: the last one that --apps names for the mount]",
)


@click.group("apps")
def apps_command() -> None:
    """Add, remove and list the apps of a mount that was made with --apps.

    A command returns when the mount shows the change. After a mistake everything is as it was before.
    """


@apps_command.command("list", short_help="List the apps of a mount.")
@click.argument("mountpoint", type=PATH)
def list_command(mountpoint: Path) -> None:
    """List the apps of the mount at MOUNTPOINT, one a line.

    \b
    Exit codes:
      0  listed
      2  the mount shows a single app
      3  there is no secretfs, it was killed, hangs, or is somebody else's
    """  # noqa: D301
    for app in _declared(resolve(mountpoint))["apps"]:
        click.echo(printable(app))


@apps_command.command("apply", short_help="Add or change apps.")
@DIRECTORY
@click.argument("mountpoint", type=PATH)
@click.argument("files", nargs=-1, required=True, type=PATH, metavar="FILE...")
def apply_command(mountpoint: Path, files: tuple[Path, ...], directory: Path | None) -> NoReturn:
    """Add or change the apps that FILE... declare in the mount at MOUNTPOINT. Returns when their directories are there.

    \b
    Exit codes:
      0  the mount shows them
      2  a mistake in a document, which changes nothing
      3  there is no secretfs, it was killed, hangs, or is somebody else's
    """  # noqa: D301
    place = resolve(mountpoint)
    target = directory or _directory(place)
    documents = {app.name: text for file in files for app, text in _documents(file)}
    if not documents:
        raise ConfigurationError(f"no app is declared in {', '.join(map(str, files))}: a document with kind: App")
    with _locked(target):
        _change(place, {target / f"{name}.yaml": text.encode() for name, text in documents.items()})
    for name in documents:
        _require_shown(place, name)
    sys.exit(0)


@apps_command.command("remove", short_help="Remove apps.")
@DIRECTORY
@click.argument("mountpoint", type=PATH)
@click.argument("names", nargs=-1, required=True, metavar="APP...")
def remove_command(mountpoint: Path, names: tuple[str, ...], directory: Path | None) -> NoReturn:
    """Remove apps from the mount at MOUNTPOINT. Returns when their directories are gone.

    \b
    Exit codes:
      0  they are gone
      2  an app that `apply` has not added
      3  there is no secretfs, it was killed, hangs, or is somebody else's
    """  # noqa: D301
    place = resolve(mountpoint)
    target = directory or _directory(place)
    with _locked(target):
        files = {name: target / f"{name}.yaml" for name in names}
        for name, file in files.items():
            if not is_app_name(name) or not file.is_file():
                raise ConfigurationError(f"app {name} is not declared in {file}")
        _change(place, dict.fromkeys(files.values()))
    sys.exit(0)


def _documents(file: Path) -> Iterator[tuple[App, str]]:
    """Return the apps of a file, each with its document."""
    for line, text in split_documents(read_text(file)):
        for app in apps_in_text(text, str(file), line):
            yield app, text


def _declared(mountpoint: Path) -> Mapping[str, Any]:
    """Return what a mount says of its apps. Raises `ConfigurationError` for a mount that shows a single app."""
    declared: Mapping[str, Any] = json.loads(read_status(mountpoint)).get("declaration", {"apps": None})
    if declared["apps"] is None:
        raise ConfigurationError(f"the mount at {mountpoint} shows a single app; mount with --apps DIR")
    return declared


def _directory(mountpoint: Path) -> Path:
    return Path(_declared(mountpoint)["app_directories"][-1])


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
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


def _change(mountpoint: Path, documents: Mapping[Path, bytes | None]) -> None:
    """Write documents, or remove those that are None, and have the mount read them. Undo it all after a mistake."""
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


def _require_shown(mountpoint: Path, app: str) -> None:
    try:
        call_with_timeout(mountpoint, partial(os.stat, mountpoint / app))
    except OSError as error:
        raise MountError(f"the mount does not show app {app}: {error.strerror}") from None
