"""What commands say to people: errors, warnings, progress. What they say is found out elsewhere."""

import errno
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from secretfs.errors import SecretFSError, log_defect
from secretfs.linux.log import printable, say

_LACKS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""What the machine may have too little of, whatever is done. The text of such an error names no file of ours."""

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
            say(f"secretfs: {printable(line)}")
        return error.exit_code
    if isinstance(error, (click.Abort, KeyboardInterrupt)):
        return 128 + signal.SIGINT
    if isinstance(error, OSError) and error.errno in _LACKS:
        say(f"secretfs: {error.strerror}")
        return os.EX_IOERR
    if isinstance(error, Exception):
        log_defect(log, error)
        return os.EX_SOFTWARE
    raise error


def warn(text: str) -> None:
    """Say a warning."""
    click.secho(f"warning: {printable(text)}", fg="yellow", err=True)


@contextmanager
def progress(components: int, *, shown: bool = True) -> Iterator[Callable[[], None]]:
    """Show on a terminal how far stores have been asked: two steps for each."""
    hidden = not (shown and sys.stderr.isatty())
    with click.progressbar(length=2 * components, label="Connecting", file=sys.stderr, hidden=hidden) as bar:
        yield lambda: bar.update(1)
