"""Where something is served: a Unix socket or a loopback address; any other only where that is written out."""

import contextlib
import errno
import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from secretfs.errors import ConfigurationError

PUBLIC: Final = "public:"
_BACKLOG: Final = 16
_LOOPBACK6: Final = bytes(15) + b"\1"


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen: at a path, or at the port of an address."""

    path: Path | None = None
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """Read ``unix:PATH``, ``127.0.0.1:PORT``, ``[::1]:PORT``, or ``public:`` and any address. Raises ValueError."""
    if text.startswith("unix:"):
        if not text.removeprefix("unix:"):
            raise ValueError("unix: needs a path")
        return Address(Path(os.path.abspath(text.removeprefix("unix:"))))  # noqa: PTH100 - follows no links
    public = text.startswith(PUBLIC)
    host, colon, port = text.removeprefix(PUBLIC).rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not port.isdecimal() or not 0 <= int(port) < 65536:
        raise ValueError("is not unix:PATH, 127.0.0.1:PORT or [::1]:PORT")
    try:
        address = socket.inet_pton(_family(host), host)
    except OSError:
        raise ValueError(f"{host or 'nothing'} is not an IP address such as 127.0.0.1") from None
    is_loopback = address == _LOOPBACK6 or (len(address) == 4 and address[0] == 127)
    if not is_loopback and not public:
        raise ValueError(f"lets other machines in; if they shall read metrics, write {PUBLIC}{text}")
    return Address(host=socket.inet_ntop(_family(host), address), port=int(port))  # as the kernel will say it


def listen(address: Address, what: str = "metrics") -> socket.socket:
    """Return a socket that listens, for those who want ``what``. Raises `ConfigurationError`.

    A path is for this user only. A socket that nobody serves any more, there before us, is replaced.
    """
    try:
        return _listen_at_path(address.path) if address.path else _listen_at_port(address)
    except OSError as error:
        raise ConfigurationError(f"{what} cannot be served at {address}: {error.strerror or error}") from None


def _listen_at_port(address: Address) -> socket.socket:
    opened = socket.socket(_family(address.host), socket.SOCK_STREAM)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((address.host, address.port))
        opened.listen(_BACKLOG)
    except OSError:
        opened.close()
        raise
    return opened


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _listen_at_path(path: Path) -> socket.socket:
    remove_dead(path)
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(opened.fileno(), 0o600)  # before it has a name: the file gets this mode
        opened.bind(os.fsencode(path))
        opened.listen(_BACKLOG)
    except OSError:
        opened.close()
        raise
    return opened


def remove_dead(path: Path) -> None:
    """Remove a socket that nobody listens at. Raises OSError if somebody does, or if it is no socket."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise OSError(errno.EEXIST, "there is a file, and it is no socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(0)
            try:
                probe.connect(os.fsencode(path))
            except ConnectionRefusedError:
                path.unlink()
                return
            except BlockingIOError:  # more clients wait there than may
                pass
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
