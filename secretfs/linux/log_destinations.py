"""Where the log of a daemon goes: a file, or syslog; one line a message.

A process that serves readers also calls `log_in_thread`: a disk that is slow then delays the log alone.
"""

import contextlib
import copy
import io
import logging
import logging.handlers
import os
import queue
import socket
import threading
from pathlib import Path
from typing import Final

from secretfs.errors import ConfigurationError, Notice
from secretfs.linux.log import PATIENCE, CountsLost, StandardError, line_format
from secretfs.linux.regular_file import open_regular
from secretfs.linux.runtime_directory import make_runtime_directory, runtime_file

QUEUE: Final = 10_000
"""Lines that wait for the thread at most."""
LIMIT: Final = 1 << 20
"""Bytes of a log in the runtime directory, which is in memory, before it is moved to ``.1``."""

_SYSLOG = "/dev/log"


def open_log(log_file: Path, *, as_json: bool = False) -> logging.Handler:
    """Open a file to log to. Raises `ConfigurationError` if it cannot be one."""
    try:
        return _with_time(_LogFile(log_file), as_json=as_json)
    except OSError as error:
        raise ConfigurationError(f"cannot log to {log_file}: {error.strerror}") from None


def open_syslog(mountpoint: Path, *, as_json: bool = False) -> logging.Handler:
    """Open syslog; if there is none, a file of that mount in the runtime directory."""
    try:
        handler = _Syslog(_SYSLOG, logging.handlers.SysLogHandler.LOG_DAEMON)
        handler.socket.getpeername()  # logging says nothing of a socket that is not there, or that nobody listens at
    except OSError:
        return _fallback(mountpoint, as_json=as_json)
    handler.ident = f"secretfs[{os.getpid()}]: "
    handler.setFormatter(line_format(as_json=as_json))
    return handler


def describe_fallback(handler: logging.Handler) -> Notice | None:
    """Say where a log goes that was to go to syslog; None if it goes there, or to a file that was named."""
    if isinstance(handler, logging.NullHandler):
        return Notice(f"there is no syslog at {_SYSLOG}, and no runtime directory: nothing is logged; give --log-file")
    if isinstance(handler, _LogFile) and handler.limit:
        return Notice(f"there is no syslog at {_SYSLOG}: logging to {handler.baseFilename}; --log-file names another")
    return None


def log_in_thread() -> None:
    """Have a thread write what is logged from now on. Call it when nothing is forked any more."""
    root = logging.getLogger()
    (handler,) = root.handlers
    root.removeHandler(handler)
    root.addHandler(_Queue(handler))


def _fallback(mountpoint: Path, *, as_json: bool) -> logging.Handler:
    path = runtime_file(mountpoint, ".log")
    try:
        make_runtime_directory(path)
    except OSError:
        return logging.NullHandler()
    return _with_time(_LogFile(path, LIMIT), as_json=as_json)


def _with_time(handler: logging.Handler, *, as_json: bool) -> logging.Handler:
    handler.setFormatter(line_format("%(asctime)s ", as_json=as_json))
    return handler


class _LogFile(CountsLost, logging.FileHandler):
    """Goes on in a new file when somebody (logrotate) has moved the old one away; a stat(2) for each line."""

    def __init__(self, path: Path, limit: int = 0) -> None:
        self.limit = limit
        """Bytes after which we move it away ourselves, for a file that the first line makes; 0 for never."""
        super().__init__(path, encoding="utf-8", errors="backslashreplace", delay=bool(limit))

    def _open(self) -> io.TextIOWrapper:
        if self.limit:
            make_runtime_directory(self.baseFilename)
        # 0600 if it is new: names of secrets are worth protecting, too.
        descriptor = open_regular(self.baseFilename, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
        return os.fdopen(descriptor, "a", encoding=self.encoding, errors=self.errors)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line: to the file of that name, or to the old one if there can be no new one."""
        with contextlib.suppress(OSError):
            self._follow()
        try:
            super().emit(record)
        except OSError:  # logging lets through what the first line meets that opens the file
            self.handleError(record)

    def _follow(self) -> None:
        old = self.stream
        if old is None:  # it is opened by the first line
            return
        held, path = os.fstat(old.fileno()), Path(self.baseFilename)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(path.lstat(), held):
                if not self.limit or held.st_size < self.limit:
                    return
                path.replace(f"{path}.1")
        self.stream = self._open()
        old.close()


class _Syslog(CountsLost, logging.handlers.SysLogHandler):
    """Never waits: a line may be lost when syslog hangs, but no reader of a secret hangs with it."""

    socket: socket.socket

    def _connect_unixsocket(self, address: str) -> None:
        super()._connect_unixsocket(address)  # type: ignore[misc]
        self.socket.settimeout(0)


class _Queue(logging.handlers.QueueHandler):
    """Hands lines to a thread, which writes them with another handler."""

    def __init__(self, handler: logging.Handler) -> None:
        self._lines = queue.Queue[logging.LogRecord | None](QUEUE)
        super().__init__(self._lines)
        self._lost = 0
        self._thread = threading.Thread(target=self._write, args=(handler,), name="log", daemon=True)
        self._thread.start()

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Make text of all that belongs to a line: another thread must not keep the frames of a traceback alive."""
        record = copy.copy(record)
        record.msg, record.args = record.getMessage(), None
        if record.exc_info:
            record.exc_text, record.exc_info = logging.Formatter().formatException(record.exc_info), None
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        """Put a line into the queue, or count it as lost."""
        record.lost = self._lost
        try:
            self._lines.put_nowait(record)
        except queue.Full:
            self._lost += 1
        else:
            self._lost = 0

    def close(self) -> None:
        """Wait a moment for what is in the queue to be written."""
        if self._thread.is_alive():
            with contextlib.suppress(queue.Full):
                self._lines.put(None, timeout=PATIENCE)
            self._thread.join(PATIENCE)
        super().close()

    def _write(self, handler: logging.Handler) -> None:
        if isinstance(handler, StandardError):
            handler.stream.patience = PATIENCE
        while (record := self._lines.get()) is not None:
            handler.handle(record)
        handler.close()
