"""``secretfs apps``: add, remove and list the apps of a mount, with an answer to wait for."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import click

from secretfs.cli.options import DIRECTORY, PATH
from secretfs.daemon.app_documents import (
    change,
    declared_apps,
    document_directory,
    document_of,
    locked,
    require_shown,
)
from secretfs.dapr.app import App, apps_in_text, is_app_name
from secretfs.dapr.goyaml import read_text, split_documents
from secretfs.errors import ConfigurationError
from secretfs.linux.log import printable
from secretfs.linux.mountpoint import resolve


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
    for app in declared_apps(resolve(mountpoint))["apps"]:
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
    target = directory or document_directory(place)
    documents = {app.name: text for file in files for app, text in _documents(file)}
    if not documents:
        raise ConfigurationError(f"no app is declared in {', '.join(map(str, files))}: a document with kind: App")
    with locked(target):
        change(place, {document_of(target, name): text.encode() for name, text in documents.items()})
    for name in documents:
        require_shown(place, name)
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
    target = directory or document_directory(place)
    with locked(target):
        files = {name: document_of(target, name) for name in names}
        for name, file in files.items():
            if not is_app_name(name) or not file.is_file():
                raise ConfigurationError(f"app {name} is not declared in {file}")
        change(place, dict.fromkeys(files.values()))
    sys.exit(0)


def _documents(file: Path) -> Iterator[tuple[App, str]]:
    """Return the apps of a file, each with its document."""
    for line, text in split_documents(read_text(file)):
        for app in apps_in_text(text, str(file), line):
            yield app, text
