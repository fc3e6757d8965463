"""``secretfs install-units``: what a package of a distribution brings, for a command that pip or a file brought."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import click

from secretfs.cli.options import PATH
from secretfs.errors import ConfigurationError
from secretfs.install.files import Place, install, uninstall
from secretfs.linux.log import printable


@click.command("install-units")
@click.option("--prefix", type=PATH, default=Path("/usr/local"), show_default=True, metavar="DIR", help="Where to.")
@click.option(
    "--root",
    type=PATH,
    default=Path("/"),
    metavar="DIR",
    help="A directory that stands for the root of the system, as DESTDIR does for make.",
)
@click.option(
    "--command",
    "command",
    type=PATH,
    metavar="FILE",
    help="The command that units and links name, as an absolute path.  [default: this one]",
)
@click.option("--remove", is_flag=True, help="Remove what was installed. The command itself stays.")
@click.pass_context
def install_units_command(ctx: click.Context, *, prefix: Path, root: Path, command: Path | None, remove: bool) -> None:
    """Install what the system looks for beside the command.

    These are units of systemd in PREFIX/lib/systemd, links to the command in PREFIX/bin and /sbin/mount.secretfs,
    manual pages, completions for bash, fish and zsh, and a word in /etc/updatedb.conf that keeps secrets out of the
    index of updatedb. A package of the distribution has all of that.

    \b
      python3 -m venv /opt/secretfs
      /opt/secretfs/bin/pip install 'secretfs-fuse[all]'
      /opt/secretfs/bin/secretfs install-units

    \b
    Exit codes:
      0  installed, or removed
      2  a mistake in flags, the command is not there, or a file cannot be written
    """  # noqa: D301 - a real backspace keeps click from wrapping what follows
    from secretfs.cli.main import cli  # noqa: PLC0415 - it imports this module
    from secretfs.cli.manual_pages import manual_pages  # noqa: PLC0415 - it imports the libraries of all stores

    if not prefix.is_absolute():
        raise ConfigurationError(f"--prefix {prefix}: give an absolute path")
    place = Place(prefix, Path(os.path.abspath(root)))  # noqa: PTH100 - a link stays a link
    pages = manual_pages(cli)
    try:
        if remove:
            uninstall(place, cli, pages)
        else:
            install(place, _commands(command or _this_command(), place), cli, pages)
    except OSError as error:
        raise ConfigurationError(f"{printable(str(error.filename))}: {error.strerror}") from None
    # A system that is imagined, or one without systemd, has nothing to be told.
    if place.root == Path("/") and Path("/run/systemd/system").is_dir():
        subprocess.run(["systemctl", "daemon-reload"], check=False)  # noqa: S607 - wherever it is


def _commands(command: Path, place: Place) -> Mapping[str, Path]:
    """Find what the links are to, by name. A command that is one file is mount.secretfs, too."""
    if not command.is_absolute():
        raise ConfigurationError(f"--command {command}: give an absolute path")
    if not any(os.access(path, os.X_OK) for path in (place.below_root(command), command)):
        raise ConfigurationError(f"{command} is not there, or is no program: name the command with --command")
    helper = command.with_name("mount.secretfs")
    has_helper = any(path.exists() for path in (place.below_root(helper), helper))
    return {"secretfs": command, "mount.secretfs": helper if has_helper else command}


def _this_command() -> Path:
    """Return the file that was started, or with ``python -m secretfs`` the command beside the interpreter."""
    started = Path(os.path.abspath(sys.argv[0]))  # noqa: PTH100 - a link stays a link: what it is to may change
    return started if started.suffix != ".py" else Path(sys.executable).with_name("secretfs")
