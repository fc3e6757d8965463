"""Work in the background, started so that nobody has to guess whether it came up."""

import contextlib
import logging
import logging.handlers
import os
import sys
from collections.abc import Callable
from pathlib import Path

from secretfs.errors import ConfigurationError

_SYSLOG = "/dev/log"
_FORMAT = "%(levelname)s %(message)s"


def run_in_background(work: Callable[[Callable[[], None]], int], handler: logging.Handler) -> int:
    """Fork; in the child run ``work(ready)``. Returns in the parent once the child calls ``ready`` or has ended.

    Until it is ready the child shares this terminal, so its errors are seen; then it leaves the session (not before:
    an automount lets only the process group that asked for the mount through to the mount point), closes the terminal
    and logs to ``handler``. The result is 0, or the exit status of a child that never became ready.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)

        def ready() -> None:
            _leave_terminal(handler)
            with contextlib.suppress(BrokenPipeError):  # who asked for the mount is gone; its users are not
                os.write(write_end, b"\0")
            os.close(write_end)

        os._exit(_run(work, ready))
    os.close(write_end)
    came_up = os.read(read_end, 1)
    os.close(read_end)
    if came_up:
        return 0
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code > 0 else 128 - code


def log_to_stderr() -> None:
    """Log to standard error, one line each."""
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine(_FORMAT))
    log_to(handler)


def open_log(log_file: Path | None) -> logging.Handler:
    """Open where a background process logs: a file, else syslog, else nowhere. Raises `ConfigurationError`."""
    handler: logging.Handler
    if log_file is not None:
        try:
            # 0600 if it is new: names of secrets are worth protecting, too.
            os.close(os.open(log_file, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600))
            handler = logging.FileHandler(log_file, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise ConfigurationError(f"cannot log to {log_file}: {error.strerror}") from None
        handler.setFormatter(_OneLine(f"%(asctime)s {_FORMAT}"))
        return handler
    try:
        handler = logging.handlers.SysLogHandler(_SYSLOG, logging.handlers.SysLogHandler.LOG_DAEMON)
    except OSError:  # not there, or nobody listens
        return logging.NullHandler()
    handler.setFormatter(_OneLine(f"secretfs[%(process)d]: {_FORMAT}"))
    return handler


def printable(text: str) -> str:
    """Show control characters as escapes: a name must not be able to steer a terminal, or to forge a line of a log."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class _OneLine(logging.Formatter):
    """One line for one message, whatever names it holds; only a traceback goes on below."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        return printable(super().formatMessage(record))


def _run(work: Callable[[Callable[[], None]], int], ready: Callable[[], None]) -> int:
    """Run the work to an exit status. The child must never return into the parent's call stack."""
    try:
        return work(ready)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except BaseException as error:  # noqa: BLE001 - the last resort of a process
        logging.getLogger(__name__).critical("ended by %s", type(error).__name__)
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        logging.shutdown()


def _leave_terminal(handler: logging.Handler) -> None:
    os.setsid()
    os.chdir("/")
    log_to(handler)
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    os.close(null)


def log_to(handler: logging.Handler) -> None:
    """Log to ``handler`` from now on, and nowhere else."""
    root = logging.getLogger()
    for previous in root.handlers[:]:
        root.removeHandler(previous)
        previous.close()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
