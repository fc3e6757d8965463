"""Where the log goes: standard error, a file, or syslog; one line a message.

Logging never blocks. A line that cannot be written at once is lost; the next line that can be written says how many
were. A process that serves readers also calls `log_in_thread`: a disk that is slow then delays the log alone.
"""

import contextlib
import copy
import io
import logging
import logging.handlers
import os
import queue
import select
import socket
import stat
import sys
import threading
from pathlib import Path
from typing import Final

from secretfs.errors import ConfigurationError, Notice
from secretfs.linux.regular_file import open_regular
from secretfs.linux.runtime_directory import runtime_file

QUEUE: Final = 10_000
"""Lines that wait for the thread at most."""
LIMIT: Final = 1 << 20
"""Bytes of a log in the runtime directory, which is in memory, before it is moved to ``.1``."""
PATIENCE: Final = 1.0
"""Seconds that the thread waits for a pipe to take a line, and that an end waits for the thread."""

_SYSLOG = "/dev/log"
_FORMAT = "%(levelname)s %(message)s"


def log_to_stderr() -> None:
    """Log to standard error, one line each."""
    handler = _StandardError() if sys.stderr else logging.NullHandler()
    handler.setFormatter(_OneLine(_FORMAT))
    log_to(handler)


def open_log(log_file: Path) -> logging.Handler:
    """Open a file to log to. Raises `ConfigurationError` if it cannot be one."""
    try:
        return _with_time(_LogFile(log_file))
    except OSError as error:
        raise ConfigurationError(f"cannot log to {log_file}: {error.strerror}") from None


def open_syslog(mountpoint: Path) -> logging.Handler:
    """Open syslog; if there is none, a file of that mount in the runtime directory."""
    try:
        handler = _Syslog(_SYSLOG, logging.handlers.SysLogHandler.LOG_DAEMON)
        handler.socket.getpeername()  # logging says nothing of a socket that is not there, or that nobody listens at
    except OSError:
        return _fallback(mountpoint)
    handler.setFormatter(_OneLine(f"secretfs[%(process)d]: {_FORMAT}"))
    return handler


def describe_fallback(handler: logging.Handler) -> Notice | None:
    """Say where a log goes that was to go to syslog; None if it goes there, or to a file that was named."""
    if isinstance(handler, logging.NullHandler):
        return Notice(f"there is no syslog at {_SYSLOG}, and no runtime directory: nothing is logged; give --log-file")
    if isinstance(handler, _LogFile) and handler.limit:
        return Notice(f"there is no syslog at {_SYSLOG}: logging to {handler.baseFilename}; --log-file names another")
    return None


def log_to(handler: logging.Handler) -> None:
    """Log to ``handler`` from now on, and nowhere else."""
    root = logging.getLogger()
    for previous in root.handlers[:]:
        root.removeHandler(previous)
        previous.close()
    root.addHandler(handler)
    root.setLevel(logging.INFO)


def log_in_thread() -> None:
    """Have a thread write what is logged from now on. Call it when nothing is forked any more."""
    root = logging.getLogger()
    (handler,) = root.handlers
    root.removeHandler(handler)
    root.addHandler(_Queue(handler))


def say(text: str) -> None:
    """Write a last line to standard error; drop it if nobody takes it within a few seconds."""
    with contextlib.suppress(OSError), contextlib.closing(_Unblocking(patience=5 * PATIENCE)) as stream:
        stream.write(f"{text}\n")


def printable(text: str) -> str:
    """Show control characters as escapes: a name must not be able to steer a terminal, or to forge a line of a log."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _fallback(mountpoint: Path) -> logging.Handler:
    path = runtime_file(mountpoint, ".log")
    try:
        _make_runtime_directory(path)
    except OSError:
        return logging.NullHandler()
    return _with_time(_LogFile(path, LIMIT))


def _make_runtime_directory(file: Path | str) -> None:
    Path(file).parent.mkdir(mode=0o700, exist_ok=True)


def _with_time(handler: logging.Handler) -> logging.Handler:
    handler.setFormatter(_OneLine(f"%(asctime)s {_FORMAT}"))
    return handler


class _CountsLost(logging.Handler):
    """Counts the lines that could not be written, and says so in the next one that can be."""

    lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, or count it as lost."""
        lost = self.lost
        super().emit(record)
        if self.lost == lost:
            self.lost = 0

    def format(self, record: logging.LogRecord) -> str:
        """Add to a line how many before it are lost."""
        lost = self.lost + getattr(record, "lost", 0)
        text = super().format(record)
        return f"{text} [lines lost before this one: {lost}]" if lost else text

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Count a line that is lost."""
        self.lost += 1


class _StandardError(_CountsLost, logging.StreamHandler["_Unblocking"]):
    """Standard error, which may be a pipe that nobody reads."""

    def __init__(self) -> None:
        super().__init__(_Unblocking())

    def close(self) -> None:
        """Close our own end of it: a reader waits for the last one."""
        self.stream.close()
        super().close()


class _Unblocking:
    """Standard error as a stream; a write that would block for more than ``patience`` seconds fails."""

    def __init__(self, patience: float = 0.0) -> None:
        self.patience = patience
        self._descriptor = _reopen(2)
        self._torn = False
        """The last line was written in part."""

    def write(self, text: str) -> None:
        """Write it all, in pieces for which a pipe that is ready has room. Raises `BlockingIOError`."""
        rest = ("\n" * self._torn + text).encode("utf-8", "backslashreplace")
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        while rest:
            if not poll.poll(self.patience * 1000):
                raise BlockingIOError
            rest = rest[os.write(self._descriptor, rest[: select.PIPE_BUF]) :]
            self._torn = bool(rest)

    def flush(self) -> None:
        """Do nothing: nothing is held back."""

    def close(self) -> None:
        """Close it."""
        os.close(self._descriptor)


def _reopen(descriptor: int) -> int:
    """Return a descriptor of our own for the same pipe or terminal, which does not block.

    Others share the flags of the one that we were given. Where it cannot be opened again (a socket, or somebody else's
    terminal) it is duplicated; then `_Unblocking` relies on poll(2) alone.
    """
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        with contextlib.suppress(OSError):
            return os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    return os.dup(descriptor)


class _LogFile(_CountsLost, logging.FileHandler):
    """Goes on in a new file when somebody (logrotate) has moved the old one away; a stat(2) for each line."""

    def __init__(self, path: Path, limit: int = 0) -> None:
        self.limit = limit
        """Bytes after which we move it away ourselves, for a file that the first line makes; 0 for never."""
        super().__init__(path, encoding="utf-8", errors="backslashreplace", delay=bool(limit))

    def _open(self) -> io.TextIOWrapper:
        if self.limit:
            _make_runtime_directory(self.baseFilename)
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


class _Syslog(_CountsLost, logging.handlers.SysLogHandler):
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
        if isinstance(handler, _StandardError):
            handler.stream.patience = PATIENCE
        while (record := self._lines.get()) is not None:
            handler.handle(record)
        handler.close()


class _OneLine(logging.Formatter):
    """One line for one message, whatever names it holds; only a traceback goes on below."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        return printable(super().formatMessage(record))
