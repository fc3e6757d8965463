"""The command line: flags in, exit codes out. What the commands do is elsewhere."""

import importlib
import io
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Final, NoReturn, cast

import click

import secretfs
from secretfs.cli.reporting import reporting
from secretfs.errors import ConfigurationError

COMMANDS: Final[Mapping[str, str]] = {
    "apps": "Add, remove and list the apps of a mount.",
    "cat": "Print secrets without a mount.",
    "check": "Check everything that a mount loads, and show its tree.",
    "csi": "Serve the apps of a mount as volumes of Kubernetes.",
    "doctor": "Say whether a mount would come up here, and what to do if not.",
    "get": "Print one secret, or all keys of one, without a mount.",
    "init": "Write a first component, commented, and check it.",
    "install-units": "Install units of systemd, mount.secretfs and manual pages.",
    "mount": "Mount the secrets at a directory.",
    "refresh": "Ask stores again now, without waiting for ttl.",
    "render": "Show what a rendered file would be, with asterisks for values.",
    "run": "Run a command with secrets mounted for it alone.",
    "status": "Show the health of a mount and its stores, or of all mounts.",
    "top": "Watch stores, readers and rotations live.",
    "tree": "Print names without a mount, and never a value.",
    "unmount": "Unmount, and end the process that serves it.",
    "volume-plugin": "Serve the apps of a mount as volumes of Docker and Podman.",
    "watch": "Run a program when secrets change.",
}
"""Every command in a line. It is in the module of its name."""

_MOUNT_FAILED: Final = 32
"""Exit status of a mount that failed (mount(8), EXIT STATUS)."""

_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where programs are. mount(8) gives helpers an empty one."""


class _Commands(click.Group):
    """The commands, each imported when it is asked for: none waits for the libraries of the others."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return command(cmd_name) if cmd_name in COMMANDS else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def command(name: str) -> click.Command:
    """Import the command of a name in `COMMANDS`."""
    module_name = name.replace("-", "_")
    module = importlib.import_module(f"secretfs.cli.{module_name}")
    found = cast("click.Command", getattr(module, f"{module_name}_command"))
    found.short_help = COMMANDS[name]
    return found


@click.group(
    cls=_Commands,
    commands=[click.Command(name) for name in COMMANDS],  # stand-ins: click knows the names, and hints at the nearest
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(secretfs.__version__, prog_name="secretfs")
def cli() -> None:
    """Secrets as files: every store of your Dapr components is a directory, every secret a file.

    \b
      secretfs check --resources-path components --app-id shop
      secretfs mount --resources-path components --app-id shop /mnt/secrets
      cat /mnt/secrets/vault/db/password
      secretfs unmount /mnt/secrets

    \b
    Exit codes, of which each command lists its own:
      0    success
      1    warnings, or a store that is not well
      2    a mistake in flags, manifests or configuration
      3    the mount point, FUSE or the kernel refuses
      4    a store does not answer, or refuses
      70   a defect in secretfs
      74   the machine lacks memory, disk space or file descriptors
      130  interrupted
    """  # noqa: D301 - a real backspace keeps click from wrapping what follows


def is_for_mount(arguments: Sequence[str]) -> bool:
    """Whether a command line is none for people, but what mount.fuse3 makes of ``mount -t fuse.secretfs``."""
    return list(arguments[2:3]) == ["-o"] and arguments[0] not in COMMANDS and not arguments[0].startswith("-")


def main() -> NoReturn:
    """Run the command line. Whatever goes wrong ends as a line on standard error, and an exit code."""
    by_name = PurePath(sys.argv[0]).name == "mount.secretfs"  # a link to a command that is one file
    if by_name or is_for_mount(sys.argv[1:]):
        mount_secretfs()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a locale without the lines of a tree is no error
    color = False if os.environ.get("NO_COLOR") else None  # no-color.org; None: on a terminal
    sys.exit(reporting(lambda: cli(sys.argv[1:], standalone_mode=False, obj=sys.argv[1:], color=color) or 0))


def mount_secretfs() -> NoReturn:
    """Do what mount(8) asks of ``/sbin/mount.secretfs``."""
    os.environ["PATH"] = os.environ.get("PATH") or _PATH
    try:
        code = reporting(_mount_as_asked)
    except SystemExit as done:
        code = int(done.code or 0)
    sys.exit(_MOUNT_FAILED if code else 0)


def _mount_as_asked() -> int:
    from secretfs.cli.mount_helper import asks_for_help, help_text, translate  # noqa: PLC0415 - nobody else waits

    mount_command = command("mount")
    if asks_for_help(sys.argv[1:]):
        click.echo(help_text(mount_command), nl=False)
        return 0
    asked = translate(sys.argv[1:], mount_command)
    try:
        with mount_command.make_context("mount", asked.flags, obj=asked.again) as context:
            context.params["source"] = asked.source
            return 0 if asked.pretend else int(mount_command.invoke(context))
    except click.UsageError as error:  # without its usage: nobody has typed these flags
        raise ConfigurationError(error.format_message()) from None
