"""The command line: flags in, exit codes out. What the commands do is elsewhere."""

import io
import os
import sys
from typing import NoReturn

import click

import secretfs
from secretfs.cli import mount_helper
from secretfs.cli.apps import apps_command
from secretfs.cli.check import check_command
from secretfs.cli.doctor import doctor_command
from secretfs.cli.mount import mount_command
from secretfs.cli.output import reporting
from secretfs.cli.refresh import refresh_command
from secretfs.cli.run import run_command
from secretfs.cli.status import status_command
from secretfs.cli.unmount import unmount_command
from secretfs.errors import ConfigurationError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
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


for command in (
    *(mount_command, unmount_command, status_command, refresh_command, check_command),
    *(doctor_command(mount_command.params), run_command, apps_command),
):
    cli.add_command(command)


def main() -> NoReturn:
    """Run the command line. Whatever goes wrong ends as a line on standard error, and an exit code."""
    if mount_helper.is_request(sys.argv[1:], cli.commands):
        mount_secretfs()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a locale without the lines of a tree is no error
    sys.exit(reporting(lambda: cli(sys.argv[1:], standalone_mode=False, obj=sys.argv[1:]) or 0))


def mount_secretfs() -> NoReturn:
    """Do what mount(8) asks of ``/sbin/mount.secretfs``."""
    os.environ["PATH"] = os.environ.get("PATH") or mount_helper.PATH
    try:
        code = reporting(_mount_as_asked)
    except SystemExit as done:
        code = int(done.code or 0)
    sys.exit(mount_helper.FAILED if code else 0)


def _mount_as_asked() -> int:
    asked = mount_helper.translate(sys.argv[1:], mount_command)
    try:
        with mount_command.make_context("mount", asked.flags, obj=asked.again) as context:
            context.params["source"] = asked.source
            return 0 if asked.pretend else int(mount_command.invoke(context))
    except click.UsageError as error:  # without its usage: nobody has typed these flags
        raise ConfigurationError(error.format_message()) from None
