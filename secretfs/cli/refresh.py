"""``secretfs refresh``: ask the stores again now."""

import sys
from pathlib import Path
from typing import NoReturn

import click

from secretfs.cli.options import PATH
from secretfs.cli.reporting import report
from secretfs.daemon.control_client import refresh
from secretfs.linux.mountpoint import resolve


@click.command("refresh")
@click.argument("mountpoint", type=PATH)
@click.argument("paths", nargs=-1, metavar="[PATH]...")
def refresh_command(mountpoint: Path, paths: tuple[str, ...]) -> NoReturn:
    """Ask again, now, for what is known of each PATH in the mount at MOUNTPOINT; of everything, if none is given.

    A PATH is a store, a folder or a secret, such as vault/db, or absolute. Returns when the stores have answered; what
    has changed shows in the files and to inotify as every change does. Only the user who runs the mount may ask.

    \b
    Exit codes:
      0  asked and answered
      2  a mistake in flags, or a PATH that is not below MOUNTPOINT
      3  there is no secretfs, it was killed, hangs, or is somebody else's
      4  a store does not answer, or refuses, or has no such secret
    """  # noqa: D301
    code = 0
    for error in refresh(resolve(mountpoint), mountpoint, paths):
        code = report(error)
    sys.exit(code)
