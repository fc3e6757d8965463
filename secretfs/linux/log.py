"""Where the log goes: standard error, a file, or syslog; one line a message."""

import contextlib
import io
import logging
import logging.handlers
import os
import socket
from pathlib import Path

from secretfs.errors import ConfigurationError

_SYSLOG = "/dev/log"
_FORMAT = "%(levelname)s %(message)s"


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
            handler = _LogFile(log_file, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise ConfigurationError(f"cannot log to {log_file}: {error.strerror}") from None
        handler.setFormatter(_OneLine(f"%(asctime)s {_FORMAT}"))
        return handler
    try:
        handler = _Syslog(_SYSLOG, logging.handlers.SysLogHandler.LOG_DAEMON)
    except OSError:  # not there, or nobody listens
        return logging.NullHandler()
    handler.setFormatter(_OneLine(f"secretfs[%(process)d]: {_FORMAT}"))
    return handler


def printable(text: str) -> str:
    """Show control characters as escapes: a name must not be able to steer a terminal, or to forge a line of a log."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class _LogFile(logging.FileHandler):
    """Goes on in a new file when somebody (logrotate) has moved the old one away; a stat(2) for each line."""

    def _open(self) -> io.TextIOWrapper:
        # 0600 if it is new: names of secrets are worth protecting, too.
        os.close(os.open(self.baseFilename, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600))
        return super()._open()

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line: to the file of that name, or to the old one if there can be no new one."""
        with contextlib.suppress(OSError):
            self._follow()
        super().emit(record)

    def _follow(self) -> None:
        old = self.stream
        if old is None:  # it is opened by the first line
            return
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(Path(self.baseFilename).stat(), os.fstat(old.fileno())):
                return
        self.stream = self._open()
        old.close()


class _Syslog(logging.handlers.SysLogHandler):
    """Waits for nobody: a line may be lost when syslog hangs, and nobody who reads a secret may hang with it."""

    socket: socket.socket

    def _connect_unixsocket(self, address: str) -> None:
        super()._connect_unixsocket(address)  # type: ignore[misc]
        self.socket.settimeout(0)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Say nothing."""


class _OneLine(logging.Formatter):
    """One line for one message, whatever names it holds; only a traceback goes on below."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        return printable(super().formatMessage(record))


def log_to(handler: logging.Handler) -> None:
    """Log to ``handler`` from now on, and nowhere else."""
    root = logging.getLogger()
    for previous in root.handlers[:]:
        root.removeHandler(previous)
        previous.close()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
