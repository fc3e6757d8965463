"""``secretfs run``: a command with a mount of its own, from the flags to its end."""

import logging
import math
import os
from pathlib import Path
from typing import Any, NoReturn

import click

from secretfs.cli.on_change import on_change, take_on_change
from secretfs.cli.options import (
    API,
    KERNEL_ANSWERS,
    LOG_FORMAT,
    NONEMPTY,
    PATH,
    audience,
    freshness_for_a_command,
    sources,
    take_freshness,
    take_sources,
)
from secretfs.cli.reporting import reporting
from secretfs.cli.variables import take_variables, variables
from secretfs.daemon.command import ParentPipe, end_as, run
from secretfs.daemon.handover import Handover
from secretfs.daemon.request import MountOptions, Request
from secretfs.daemon.serve import Observer
from secretfs.daemon.worker import work
from secretfs.errors import ConfigurationError
from secretfs.linux.log import log_to, log_to_stderr
from secretfs.linux.log_destinations import log_in_thread, open_log
from secretfs.linux.mountpoint import require_directory, resolve
from secretfs.linux.namespace import empty_directory, enter
from secretfs.linux.preflight import require_device


@click.command(
    "run",
    context_settings={"allow_interspersed_args": False},
    options_metavar="[OPTIONS] --",
)
@sources
@freshness_for_a_command
@on_change("What happens to the command when a secret that it has read changes.")
@variables
@click.option(
    "--at",
    type=PATH,
    metavar="DIR",
    help="An existing empty directory to mount at.  [default: an empty one such as /mnt]",
)
@NONEMPTY
@KERNEL_ANSWERS
@API
@click.option("--log-file", type=PATH, metavar="FILE", help="Where to log.  [default: warnings, to standard error]")
@LOG_FORMAT
@audience
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run_command(
    command: tuple[str, ...],
    *,
    at: Path | None,
    log_file: Path | None,
    log_format: str,
    **flags: Any,
) -> NoReturn:
    """Run COMMAND with the secrets mounted where nobody else sees them. Its variable SECRETFS says where.

    It takes no rights and leaves no trace: the mount is in a namespace of its own and gone with the command. Standard
    input and output are the command's, the signals that are sent to secretfs are passed on to it, and its end is ours:
    by its exit code, or by the signal that killed it. A command that was never started ends otherwise.

    \b
    Exit codes:
      2    a mistake in flags, manifests or configuration
      3    the mount point, FUSE or the kernel refuses
      4    a store does not answer, or refuses
      126  the command cannot be run
      127  there is no such command
    """  # noqa: D301 - a real backspace keeps click from wrapping what follows
    as_json = log_format == "json"
    log_to_stderr(as_json=as_json)
    logging.getLogger().setLevel(logging.WARNING)
    handler = open_log(log_file, as_json=as_json) if log_file else None
    flags["idle"] = math.inf if flags["idle"] is None else flags["idle"]
    default = take_freshness(flags)
    step = take_on_change(flags)
    mask = flags.pop("mask")
    wanted = take_variables(flags)
    if mask and not wanted:
        raise ConfigurationError("--mask hides values of --env and --env-from: give one of them")
    named = take_sources(flags)
    place = _private_place(at, nonempty=flags["nonempty"], uid=flags["uid"], gid=flags["gid"])
    options = MountOptions(place, default=default, **flags)
    request = Request(named, options, foreground=True)

    def serve(line: ParentPipe) -> int:
        def ready() -> None:
            if handler is not None:
                log_to(handler)
            log_in_thread()
            line.ready()

        return work(request, Handover(), Observer(ready, line.changed), line.ended)

    end_as(run(lambda line: reporting(lambda: serve(line)), command, place, step, wanted, mask=mask))


def _private_place(at: Path | None, *, nonempty: bool, uid: int | None, gid: int | None) -> Path:
    """Leave for a mount namespace of our own; returns where to mount in it."""
    if at is not None:
        at = resolve(at)
        require_directory(at, nonempty=nonempty)
    require_device()
    if not enter() and not ({uid, gid} <= {None} or (uid, gid) == (os.getuid(), os.getgid())):
        raise ConfigurationError("--uid, --gid: without the right to mount, the files can belong to no other user")
    return at or empty_directory()
