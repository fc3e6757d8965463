"""The log: to standard error, one line a message; `secretfs.linux.log_destinations` has the others.

A line says for people what happened. What it is about follows as ``key=value``: see `CONTEXT`. As JSON
(`secretfs.linux.json_lines`) a line is an object with the same in it.

Logging never blocks. A line that cannot be written at once is lost; the next line that can be written says how many
were.
"""

import contextlib
import logging
import os
import select
import stat
import sys
from collections.abc import Iterator
from typing import Final

PATIENCE: Final = 1.0
"""Seconds that the thread waits for a pipe to take a line, and that an end waits for the thread."""

AS_JSON: Final = "json:"
"""What a place to log to begins with, among the arguments of a supervisor, if lines shall be JSON."""

FORMAT = "%(levelname)s %(message)s"

CONTEXT: Final = ("mountpoint", "store", "app", "worker", "signal", "error", "operation", "values")
"""What a line may be about: keys of ``extra``. None is the name of a secret, or a value."""


def log_to_stderr(*, as_json: bool = False) -> None:
    """Log to standard error, one line each."""
    handler = StandardError() if sys.stderr else logging.NullHandler()
    handler.setFormatter(line_format(as_json=as_json))
    log_to(handler)


def line_format(prefix: str = "", *, as_json: bool = False) -> logging.Formatter:
    """Return what makes lines of messages. ``prefix`` is for text."""
    if not as_json:
        return OneLine(f"{prefix}{FORMAT}")
    from secretfs.linux.json_lines import JSONLine  # noqa: PLC0415 - a supervisor has no need of json otherwise

    return JSONLine()


def log_to(handler: logging.Handler) -> None:
    """Log to ``handler`` from now on, and nowhere else."""
    root = logging.getLogger()
    for previous in root.handlers[:]:
        root.removeHandler(previous)
        previous.close()
    root.addHandler(handler)
    root.setLevel(logging.INFO)


def say(text: str) -> None:
    """Write a last line to standard error; drop it if nobody takes it within a few seconds."""
    with contextlib.suppress(OSError), contextlib.closing(_Unblocking(patience=5 * PATIENCE)) as stream:
        stream.write(f"{text}\n")


def printable(text: str) -> str:
    """Show control characters as escapes: a name must not be able to steer a terminal, or to forge a line of a log."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class CountsLost(logging.Handler):
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
        record.lost = self.lost + getattr(record, "lost", 0)
        return super().format(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Count a line that is lost."""
        self.lost += 1


class StandardError(CountsLost, logging.StreamHandler["_Unblocking"]):
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


class OneLine(logging.Formatter):
    """One line for one message, whatever names it holds; only a traceback goes on below."""

    def format(self, record: logging.LogRecord) -> str:
        """Format it, with how many lines before it are lost."""
        text, lost = super().format(record), getattr(record, "lost", 0)
        return f"{text} [lines lost before this one: {lost}]" if lost else text

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Format what it says and what it is about, control characters as escapes."""
        return printable(" ".join((super().formatMessage(record), *map(_key_value, context_of(record)))))


def context_of(record: logging.LogRecord) -> Iterator[tuple[str, str | int]]:
    """Yield what a line is about."""
    for key in CONTEXT:
        value = record.__dict__.get(key)
        if value is not None:
            yield key, value if isinstance(value, int) else str(value)


def _key_value(item: tuple[str, str | int]) -> str:
    """Write ``key=value``; a value in which words could not be told apart is quoted."""
    key, value = item[0], str(item[1])
    plain = value and value.isprintable() and set(value).isdisjoint(' "=')
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f"{key}={value}" if plain else f'{key}="{escaped}"'
