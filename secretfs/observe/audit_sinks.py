"""Where audit records go: a file, systemd's journal, syslog or standard output. Used by one thread.

A sink waits for a reader that is slow no longer than it is told to, and buffers nothing: a record that has been written
outlives a kill of this process.
"""

import contextlib
import errno
import os
import select
import socket
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from secretfs.linux.regular_file import open_regular

JOURNAL: Final = "/run/systemd/journal/socket"
SYSLOG: Final = "/dev/log"

_AUTHPRIV: Final = 10  # syslog(3): messages that are not for everybody
_INFO: Final = 6
_SEND_BUFFER: Final = 8 << 20  # bytes, as sd_journal_send(3) asks for


class Sink(ABC):
    """A place for records. ``name`` is for messages."""

    name: str

    @abstractmethod
    def open(self) -> None:
        """Open it, if it is not open. Raises OSError."""

    @abstractmethod
    def write(self, record: Mapping[str, object], line: bytes, patience: float) -> None:
        """Write a record, as one line or by its fields.

        Raises `BlockingIOError` if nobody takes it within ``patience`` seconds, any other OSError if it cannot be
        written.
        """

    @abstractmethod
    def close(self) -> None:
        """Close it, if it is open."""


def sink_for(to: str, journal: str = JOURNAL, syslog: str = SYSLOG) -> Sink:
    """Return the sink of that name; it opens nothing yet."""
    match to:
        case "-":
            return StandardOutput()
        case "journal":
            return Journal(journal)
        case "syslog":
            return Syslog(syslog)
    return File(os.path.abspath(to))  # noqa: PTH100 - follows no links: that could hang


class _Lines:
    """Writes whole lines to a descriptor, in pieces of so many bytes. One that is torn is ended before the next."""

    def __init__(self, piece: int | None = None) -> None:
        self._piece = piece
        self._torn = False

    def write(self, descriptor: int, line: bytes, patience: float) -> None:
        rest = b"\n" * self._torn + line
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        while rest:
            if not poll.poll(patience * 1000):
                raise BlockingIOError(errno.EAGAIN, "nobody reads")
            written = os.write(descriptor, rest[: self._piece])
            rest = rest[written:]
            self._torn = bool(rest)


class File(Sink):
    """A file, made with mode 0600. When somebody has moved or deleted it, the next record makes another one."""

    def __init__(self, path: str) -> None:
        self.name = path
        self._descriptor = -1
        self._lines = _Lines()

    def open(self) -> None:
        """Open it. Raises OSError, also if it is no regular file."""
        if self._descriptor >= 0 and not self._is_there():
            self.close()
        if self._descriptor < 0:
            self._descriptor = open_regular(self.name, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
            self._lines = _Lines()

    def write(self, record: Mapping[str, object], line: bytes, patience: float) -> None:
        """Append a line; a stat(2) says whether the file is still that of its name."""
        self.open()
        self._lines.write(self._descriptor, line, patience)

    def _is_there(self) -> bool:
        try:
            return os.path.samestat(Path(self.name).stat(), os.fstat(self._descriptor))
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Close it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class StandardOutput(Sink):
    """Standard output, which may be a pipe that nobody reads, or a file on a disk that is full."""

    name = "standard output"

    def __init__(self) -> None:
        self._lines = _Lines(select.PIPE_BUF)

    def open(self) -> None:
        """Raise OSError if it is closed."""
        os.fstat(1)

    def write(self, record: Mapping[str, object], line: bytes, patience: float) -> None:
        """Write a line, in pieces for which a pipe that is ready has room."""
        self._lines.write(1, line, patience)

    def close(self) -> None:
        """Leave it open: it is not ours."""


class _Datagrams(Sink):
    """A socket of which each datagram is a record. It is connected anew when its reader was restarted."""

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self._address = address
        self._socket: socket.socket | None = None

    def open(self) -> None:
        """Connect. Raises OSError if nobody listens."""
        self._connected()

    def _connected(self) -> socket.socket:
        if self._socket is None:
            connected = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            try:
                connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
                connected.connect(self._address)
            except OSError:
                connected.close()
                raise
            self._socket = connected
        return self._socket

    def write(self, record: Mapping[str, object], line: bytes, patience: float) -> None:
        """Send a record."""
        datagram = self.datagram(record, line)
        try:
            self._send(datagram, patience)
        except (ConnectionError, FileNotFoundError):
            self.close()
            self._send(datagram, patience)

    def _send(self, datagram: bytes, patience: float) -> None:
        connected, poll = self._connected(), select.poll()
        with contextlib.suppress(BlockingIOError):
            connected.send(datagram)
            return
        poll.register(connected, select.POLLOUT)
        if not poll.poll(patience * 1000):
            raise BlockingIOError(errno.EAGAIN, "nobody reads")
        connected.send(datagram)

    @abstractmethod
    def datagram(self, record: Mapping[str, object], line: bytes) -> bytes:
        """Return what stands for a record."""

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class Syslog(_Datagrams):
    """Syslog: a record is a message of facility ``authpriv`` with the JSON line as its text."""

    def __init__(self, address: str) -> None:
        super().__init__("syslog", address)

    def datagram(self, record: Mapping[str, object], line: bytes) -> bytes:
        """Return a message as syslog(3) sends it, without a time: the reader knows that."""
        return b"<%d>secretfs[%d]: %s" % (_AUTHPRIV << 3 | _INFO, os.getpid(), line.rstrip(b"\n"))


class Journal(_Datagrams):
    """The journal of systemd, by its native protocol: each field of a record is a field of an entry.

    ``OBJECT_PID`` has the journal add what it knows of the process itself, so that ``journalctl -u UNIT`` shows the
    secrets that a unit has opened.
    """

    def __init__(self, address: str) -> None:
        super().__init__("the journal", address)

    def datagram(self, record: Mapping[str, object], line: bytes) -> bytes:
        """Return an entry: https://systemd.io/JOURNAL_NATIVE_PROTOCOL/."""
        return b"".join(_journal_field(name, value) for name, value in _entry(record))


def _entry(record: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    yield "MESSAGE", describe(record)
    yield "PRIORITY", str(_INFO)
    yield "SYSLOG_FACILITY", str(_AUTHPRIV)
    yield "SYSLOG_IDENTIFIER", "secretfs"
    if "pid" in record:
        yield "OBJECT_PID", str(record["pid"])
    for name, value in record.items():
        text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
        yield f"SECRETFS_{name.upper()}", text


def describe(record: Mapping[str, object]) -> str:
    """Say what a record is about, for those who read a journal."""
    where = "/".join(str(record[name]) for name in ("component", "secret", "key", "path", "file") if name in record)
    by = ", ".join(f"{name} {record[name]}" for name in ("result", "uid", "pid", "executable") if name in record)
    text = f"{record['event']} {where}".rstrip()
    return f"{text}: {by}" if by else text


def _journal_field(name: str, value: str) -> bytes:
    content = value.encode("utf-8", "backslashreplace")
    if b"\n" not in content:
        return b"%s=%s\n" % (name.encode("ascii"), content)
    return b"%s\n%s%s\n" % (name.encode("ascii"), struct.pack("<Q", len(content)), content)
