"""Output of the commands for people: errors, warnings, progress."""

import errno
import logging
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

import click

from secretfs.errors import SecretFSError, log_defect
from secretfs.linux.log import printable, say

_LACKS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""What the machine may have too little of, whatever is done. The text of such an error names no file of ours."""

_INTERRUPTED = 130  # 128 + SIGINT, as a shell has it

log = logging.getLogger(__name__)


def reporting(work: Callable[[], int]) -> int:
    """Run ``work`` to an exit code; what is wrong is said on standard error."""
    try:
        return work()
    except (Exception, BaseExceptionGroup, KeyboardInterrupt) as error:  # noqa: BLE001 - each has its exit code
        return report(error)


def report(error: BaseException) -> int:
    """Say what is wrong. Returns the exit code for it."""
    if isinstance(error, BaseExceptionGroup):  # trio's; the first of it says enough
        return report(error.exceptions[0])
    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    if isinstance(error, SecretFSError):
        for line in str(error).splitlines():
            complain(line)
        return error.exit_code
    if isinstance(error, (click.Abort, KeyboardInterrupt)):
        return _INTERRUPTED
    if isinstance(error, OSError) and error.errno in _LACKS:
        say(f"secretfs: {error.strerror}")
        return os.EX_IOERR
    if isinstance(error, (Exception, SystemExit)):  # one of a store; its text may quote a secret
        log_defect(log, error)
        return os.EX_SOFTWARE
    raise error


def complain(text: str) -> None:
    """Say on standard error what is wrong."""
    say(wrap(f"secretfs: {printable(text)}", sys.stderr))


def warn(text: str) -> None:
    """Show a warning."""
    click.secho(wrap(f"warning: {printable(text)}", sys.stderr), fg="yellow", err=True)


def wrap(text: str, stream: TextIO, indent: str = "") -> str:
    """Break a line between words where a terminal would break it anywhere. What goes elsewhere stays one line."""
    if not stream.isatty():
        return text
    return textwrap.fill(
        text,
        shutil.get_terminal_size().columns,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


@contextmanager
def progress(steps: int, *, shown: bool = True) -> Iterator[Callable[[], None]]:
    """Show on a terminal how far the stores are, in so many steps; leave nothing of it there."""
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        show()

    def show() -> None:
        text = f"connecting to the stores: {100 * done // steps if steps else 100} %"
        click.echo(f"\r{text}", nl=False, err=True)

    if not (shown and sys.stderr.isatty()):
        yield lambda: None
        return
    try:
        show()
        yield step
    finally:
        click.echo("\r\033[K", nl=False, err=True)
