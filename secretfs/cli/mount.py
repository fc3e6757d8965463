"""``secretfs mount``: a mount that stays until it is unmounted."""

import sys
from pathlib import Path
from typing import Any, NoReturn

import click

from secretfs.cli.options import (
    API,
    KERNEL_ANSWERS,
    LOG_FORMAT,
    NONEMPTY,
    PATH,
    audience,
    auditing,
    freshness,
    metrics,
    sources,
    take_audit,
    take_freshness,
    take_sources,
)
from secretfs.daemon import start
from secretfs.daemon.request import MountOptions, Request
from secretfs.linux.log import log_to_stderr
from secretfs.linux.mountpoint import resolve
from secretfs.linux.process import require_owner


@click.command("mount")
@sources
@freshness
@click.option("-f", "--foreground", is_flag=True, help="Stay in the foreground and log to standard error.")
@click.option(
    "--log-file",
    type=PATH,
    metavar="FILE",
    help="The regular file to log to.  [default: syslog, or with -f standard error]",
)
@LOG_FORMAT
@metrics
@NONEMPTY
@KERNEL_ANSWERS
@API
@auditing
@audience
@click.argument("mountpoint", type=PATH)
def mount_command(
    mountpoint: Path,
    *,
    foreground: bool,
    log_file: Path | None,
    log_format: str,
    mode: int,
    **flags: Any,
) -> NoReturn:
    """Mount the secrets at MOUNTPOINT, an existing empty directory.

    Returns once the mount answers and every store has accepted our credentials; a store that does not stops the mount,
    unless its component says ignoreErrors: true. Then it serves in the background until `secretfs unmount`.

    \b
    Exit codes:
      0  mounted
      2  a mistake in flags, manifests or configuration
      3  the mount point or FUSE refuses
      4  a store does not answer, or refuses
    """  # noqa: D301
    as_json = log_format == "json"
    log_to_stderr(as_json=as_json and foreground)  # else it is read by the user who mounts, until the mount is ready
    named = take_sources(flags)
    default = take_freshness(flags)
    audit = take_audit(flags, foreground=foreground)
    options = MountOptions(resolve(mountpoint), mode=mode, default=default, audit=audit, **flags)
    require_owner(options.uid)
    request = Request(named, options, foreground, log_file, as_json)
    sys.exit(start.mount(request, click.get_current_context().obj))
