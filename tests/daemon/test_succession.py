"""How one supervisor follows another, apart from what supervisors do."""

import os
import select
import socket
from pathlib import Path

import pytest

from secretfs.daemon.succession import Succession
from secretfs.errors import MountError

LONGEST = 107
"""Bytes of the path of a socket (unix(7))."""


@pytest.fixture
def before(tmp_path: Path) -> socket.socket:
    """Return the socket of a supervisor whose path is as long as it can be."""
    path = str(tmp_path / "s").ljust(LONGEST, "s")
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listening.bind(path)
    listening.listen()
    listening.settimeout(0)
    return listening


def test_one_that_cannot_listen_does_not_end_the_one_before(before: socket.socket) -> None:
    """What that one keeps would be lost, and with it the mount of each pod on the node (csi-16)."""
    with before:
        path = Path(before.getsockname())
        with pytest.raises(MountError, match=f"a supervisor cannot listen at {path}: AF_UNIX path too long"):
            Succession(path)
        assert select.select([before], [], [], 0)[0] == []
        assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_what_one_has_left_that_was_killed_is_in_nobodys_way(tmp_path: Path) -> None:
    """In a container that has no processes of the host each has the same id."""
    path = tmp_path / "socket"
    left = tmp_path / f"socket.{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as killed:
        killed.bind(str(left))
    succession = Succession(path)
    assert succession._listening is not None
    succession._listening.close()
    assert (succession.inherited, path.is_socket(), left.exists()) == ({}, True, False)
