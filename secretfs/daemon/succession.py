"""How one supervisor follows another: all that it keeps goes from the old one to the new one, through a Unix socket.

A worker is replaced by its supervisor; a supervisor that runs from the image of a container has to be replaced with it.
The new one connects to the socket of the old one, which ends its worker as at an upgrade, sends the descriptors by
name, and ends without unmounting. Readers wait meanwhile, as at any takeover.

Part of the supervisor, which imports nothing late and needs no library.
"""

import contextlib
import os
import select
import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from secretfs.errors import MountError

PATIENCE: Final = 60.0
"""Seconds that the supervisor before has to end its worker and to send what it keeps."""

_LIMIT: Final = 8192
"""Bytes of the names."""
_MOST: Final = 253  # SCM_MAX_FD of linux/net/scm.h
_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred: process, user, group
_BACKLOG: Final = 4


class Succession:
    """The socket of one supervisor, where the next one connects; without a path, nobody does.

    To make one is to follow: the supervisor that listens there ends, and what it kept is `inherited`. Raises
    `MountError` if it does not do its part in time, or nobody can listen there.
    """

    def __init__(self, path: Path | None) -> None:
        self.inherited: dict[str, int] = {}
        """The descriptors that the supervisor before has kept, by name; none if there was none."""
        self._listening: socket.socket | None = None
        self._heir: socket.socket | None = None
        if path is not None:
            self._listening, new = _listen(path)  # first: once the other one ends, nothing else keeps the mount
            try:
                self.inherited = _inherit(path)
                new.replace(path)
            except (MountError, OSError) as error:
                self._listening.close()
                new.unlink(missing_ok=True)
                raise error if isinstance(error, MountError) else _not_listening(path, error) from None

    @property
    def has_heir(self) -> bool:
        """Whether another supervisor waits to go on."""
        return self._heir is not None

    def watch(self, poll: "select.poll") -> bool:
        """Have a poll tell when somebody connects. Returns whether somebody has, and waits already."""
        if self._listening is not None and self._heir is None:
            poll.register(self._listening, select.POLLIN)
        return self.has_heir

    def accept(self, poll: "select.poll") -> bool:
        """Accept the next supervisor, if it has just connected. Returns whether it has."""
        if self._listening is None or self._heir is not None:
            return False
        try:
            connection, _ = self._listening.accept()
        except OSError:
            return False
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        if _CREDENTIALS.unpack(credentials)[1] not in (0, os.geteuid()) or _has_gone(connection):
            connection.close()
            return False
        poll.unregister(self._listening)
        self._heir = connection
        return True

    def hand_over(self, stored: Mapping[str, int]) -> bool:
        """Send all that is kept. Returns whether the next supervisor has it; else this one has to go on."""
        heir, self._heir = self._heir, None
        if heir is None:
            return False
        with contextlib.closing(heir):
            try:
                socket.send_fds(heir, [":".join(stored).encode() + b"\n"], list(stored.values()))
            except OSError:
                return False
        return True


def _inherit(path: Path) -> dict[str, int]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(PATIENCE)
        try:
            connection.connect(os.fsencode(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return {}
        try:
            names, descriptors, _, _ = socket.recv_fds(connection, _LIMIT, _MOST)
        except OSError as error:
            raise MountError(f"the supervisor at {path} does not hand over: {error.strerror or error}") from None
    if not names:
        raise MountError(f"the supervisor at {path} ended before it handed over", "try again")
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)  # noqa: FBT003 - positional only
    return dict(zip(filter(None, names.decode().rstrip("\n").split(":")), descriptors, strict=True))


def _listen(path: Path) -> tuple[socket.socket, Path]:
    """Listen for this user alone. Returns where, which is to take the place of ``path``."""
    new = path.with_name(f"{path.name}.{os.getpid()}")
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        os.fchmod(listening.fileno(), 0o600)  # before it has a name: the file gets this mode
        new.unlink(missing_ok=True)  # of one that was killed meanwhile; without hostPID each has the same id
        listening.bind(os.fsencode(new))
        listening.listen(_BACKLOG)
        listening.settimeout(0)
    except OSError as error:
        listening.close()
        raise _not_listening(path, error) from None
    return listening, new


def _not_listening(path: Path, error: OSError) -> MountError:
    return MountError(f"a supervisor cannot listen at {path}: {error.strerror or error}")


def _has_gone(connection: socket.socket) -> bool:
    """Whether a supervisor has ended that waited for its turn: it never sends anything."""
    try:
        return not connection.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True
