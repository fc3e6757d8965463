"""What goes wrong in a command: a line on standard error, and an exit code. Workers need it too, without click."""

import errno
import logging
import os
import shutil
import sys
import textwrap
from collections.abc import Callable
from typing import TextIO

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
    click = sys.modules.get("click")  # where it is not imported, it raises nothing
    if click is not None and isinstance(error, click.ClickException):
        error.show()
        return int(error.exit_code)
    if isinstance(error, SecretFSError):
        for line in str(error).splitlines():
            complain(line)
        return error.exit_code
    if isinstance(error, KeyboardInterrupt) or (click is not None and isinstance(error, click.Abort)):
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
