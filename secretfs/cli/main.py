"""The command line: flags in, exit codes out. What the commands do is elsewhere."""

import io
import json
import logging
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import click
import trio

import secretfs
from secretfs.cache.store_cache import Freshness
from secretfs.cli import mount_helper
from secretfs.cli.check import Report, examine
from secretfs.cli.doctor import doctor_command
from secretfs.cli.options import PATH, audience, freshness, sources, take_freshness
from secretfs.cli.output import progress, report, reporting, warn
from secretfs.cli.run import run_command
from secretfs.cli.status import show
from secretfs.daemon import worker
from secretfs.daemon.control_client import read_status, refresh
from secretfs.daemon.processes import force_unmount, unmount_and_wait
from secretfs.daemon.serve import MountOptions
from secretfs.daemon.worker import Request
from secretfs.dapr.load import load_declaration, named_paths
from secretfs.errors import ConfigurationError
from secretfs.fs.attributes import Modes
from secretfs.linux.log import log_to_stderr, printable
from secretfs.linux.mountpoint import resolve
from secretfs.linux.process import require_owner

log = logging.getLogger(__name__)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(secretfs.__version__, prog_name="secretfs")
def cli() -> None:
    """Secrets as files: every store of your Dapr components is a directory, every secret a file.

    \b
      secretfs check --resources-path components --app-id shop
      secretfs mount --resources-path components --app-id shop /mnt/secrets
      cat /mnt/secrets/vault/db/password
      secretfs unmount /mnt/secrets
    """  # noqa: D301 - a real backspace keeps click from wrapping what follows


@cli.command(short_help="Mount the secrets at a directory.")
@sources
@freshness
@click.option("-f", "--foreground", is_flag=True, help="Stay in the foreground and log to standard error.")
@click.option(
    "--log-file", type=PATH, metavar="FILE", help="Where to log.  [default: syslog, or with -f standard error]"
)
@audience
@click.argument("mountpoint", type=PATH)
def mount(
    resources: tuple[Path, ...],
    configs: tuple[Path, ...],
    app_id: str,
    mountpoint: Path,
    *,
    foreground: bool,
    log_file: Path | None,
    mode: int,
    **flags: Any,
) -> NoReturn:
    """Mount the secrets at MOUNTPOINT, an existing directory.

    Returns once the mount answers and every store has accepted our credentials; a store that does not stops the mount,
    unless its component says ignoreErrors: true. Then it serves in the background until `secretfs unmount`.

    \b
    Exit codes:
      0  mounted
      2  a mistake in flags, manifests or configuration
      3  the mount point or FUSE refuses
      4  a store does not answer, or refuses
    """  # noqa: D301
    log_to_stderr()
    default = take_freshness(flags)
    builtin = not flags.pop("no_builtin")
    options = MountOptions(resolve(mountpoint), modes=Modes(mode), default=default, **flags)
    require_owner(options.uid)
    request = Request(resources, configs, app_id, builtin, options, foreground, log_file)
    sys.exit(worker.mount(request, click.get_current_context().obj))


@cli.command("unmount", short_help="Unmount, and end the process that serves it.")
@click.option("--force", is_flag=True, help="Whatever hangs or is in use: end who serves it, fail who reads it.")
@click.argument("mountpoint", type=PATH)
def unmount_command(mountpoint: Path, *, force: bool) -> None:
    """Unmount MOUNTPOINT and end the process that serves it. Fails while a file in it is open.

    With --force it does not fail, and waits for nobody: programs that hang in the mount, or have files of it open, get
    an error, and the processes that serve it are killed if they do not end by themselves.
    """
    path = resolve(mountpoint)
    if force:
        force_unmount(path)
    else:
        unmount_and_wait(path)


@cli.command("status", short_help="Say how a mount and its stores do.")
@click.option("--json", "as_json", is_flag=True, help="Print it for programs: .secretfs/status.json as it is.")
@click.argument("mountpoint", type=PATH)
def status_command(mountpoint: Path, *, as_json: bool) -> NoReturn:
    """Say how the mount at MOUNTPOINT and its stores do: what is wrong first. Never shows a name or value of a secret.

    Only the user who runs the mount may ask.

    \b
    Exit codes:
      0  all is well
      1  a store is down, in doubt or refuses, or old values are served
      3  there is no secretfs, it was killed, hangs, or is somebody else's
    """  # noqa: D301
    path = resolve(mountpoint)
    text = read_status(path)
    shown = show(json.loads(text), path, time.time())
    if as_json:
        click.echo(text, nl=False)
        sys.exit(shown.exit_code)
    for line in shown.lines:
        click.secho(printable(line.text), fg=(None, "yellow", "red")[line.severity])
    sys.exit(shown.exit_code)


@cli.command("refresh", short_help="Ask stores again now, without waiting for ttl.")
@click.argument("mountpoint", type=PATH)
@click.argument("paths", nargs=-1, metavar="[PATH]...")
def refresh_command(mountpoint: Path, paths: tuple[str, ...]) -> NoReturn:
    """Ask again, now, for what is known of each PATH in the mount at MOUNTPOINT; of everything, if none is given.

    A PATH is a store, a folder or a secret, such as vault/db, or absolute. Returns when the stores have answered; what
    has changed shows in the files and to inotify as every change does. Only the user who runs the mount may ask.

    \b
    Exit codes:
      0  asked and answered
      2  a PATH that is not in the mount
      3  there is no secretfs, it was killed, hangs, or is somebody else's
      4  a store does not answer, or refuses, or has no such secret
    """  # noqa: D301
    code = 0
    for error in refresh(resolve(mountpoint), mountpoint, paths):
        code = report(error)
    sys.exit(code)


@cli.command(short_help="Say what is wrong, and show what a mount would show.")
@sources
@click.option("--strict", is_flag=True, help="Take warnings for errors.")
@click.option("--connect", is_flag=True, help="Open every store and list the names in it.")
def check(
    resources: tuple[Path, ...],
    configs: tuple[Path, ...],
    app_id: str,
    *,
    no_builtin: bool,
    strict: bool,
    connect: bool,
) -> NoReturn:
    """Load everything as `mount` would, and show the tree that the app would see: names, never values.

    Without --connect nothing leaves this machine: manifests, configuration, settings and references are checked, and
    the stores shown. With it, each store has to answer, and its names are listed.

    \b
    Exit codes:
      0  all is well
      1  there are warnings
      2  a mistake in flags, manifests or configuration; with --strict, a warning
      4  a store does not answer, or refuses
    """  # noqa: D301
    declaration = load_declaration(*named_paths(resources, configs), app_id, builtin=not no_builtin)
    with progress(len(declaration.components), shown=connect) as step:
        found = trio.run(partial(examine, declaration, Freshness(), connect=connect, step=step))
    _print_found(found)
    sys.exit(found.exit_code(strict=strict))


cli.add_command(doctor_command(mount.params))
cli.add_command(run_command)


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
    asked = mount_helper.translate(sys.argv[1:], mount)
    try:
        with mount.make_context("mount", asked.flags, obj=asked.again) as context:
            context.params["source"] = asked.source
            return 0 if asked.pretend else int(mount.invoke(context))
    except click.UsageError as error:  # without its usage: nobody has typed these flags
        raise ConfigurationError(error.format_message()) from None


def _print_found(found: Report) -> None:
    for line in found.tree:
        click.echo(printable(line))
    for notice in found.notices:
        warn(str(notice))
    for failure in found.failures:
        if failure.component.ignore_errors:
            warn(f"{failure} (ignoreErrors)")
        else:
            click.secho(f"error: {printable(str(failure))}", fg="red", err=True)
