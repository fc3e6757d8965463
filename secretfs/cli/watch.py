"""``secretfs watch``: a program that is run when secrets change."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from secretfs.cli.on_change import on_change, take_on_change
from secretfs.cli.options import LOG_FORMAT, PATH
from secretfs.daemon.on_change import Hook
from secretfs.daemon.watch import watch
from secretfs.errors import ConfigurationError
from secretfs.linux.log import log_to_stderr
from secretfs.linux.sd_notify import service_manager


@click.command("watch")
@on_change("What to run, as exec:COMMAND.")
@LOG_FORMAT
@click.argument("paths", nargs=-1, required=True, type=PATH, metavar="PATH...")
def watch_command(paths: tuple[Path, ...], *, log_format: str, **flags: Any) -> None:
    """Run a program when the content of a file at or below a PATH changes.

    \b
      secretfs watch --on-change='exec:nginx -s reload' /srv/secrets/pki/www

    PATH may be a secret, its directory, or one that something is mounted at later: a mount may come, go and be
    replaced. A file that is there again as it was has not changed. For a service there is the unit secretfs-reload@.

    \b
    Exit codes:
      0  ended by a signal
      2  a mistake in flags
    """  # noqa: D301 - a real backspace keeps click from wrapping what follows
    step = take_on_change(flags)
    if not isinstance(step.step, Hook):
        raise ConfigurationError("say what to run: --on-change=exec:COMMAND")
    log_to_stderr(as_json=log_format == "json")
    manager = service_manager(os.environ)

    def ready() -> None:
        if manager is not None:
            with suppress(OSError):  # it is gone, or busy: then it waits in vain, and says so
                manager.notify(READY=1)

    watch([Path(os.path.abspath(path)) for path in paths], step, ready)  # noqa: PTH100 - a link stays a link
