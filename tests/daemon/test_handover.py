"""What one worker leaves to the next: here the socket of the Secrets API, through a supervisor's channel."""

import os
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from secretfs.daemon.handover import Handover
from secretfs.daemon.request import MountOptions
from secretfs.daemon.stored import API, CONNECTION
from secretfs.errors import ConfigurationError
from secretfs.linux.sd_notify import ServiceManager
from secretfs.observe.address import Address
from tests.conftest import ExpectLog


class Supervisor:
    """Our end of a worker's channel."""

    def __init__(self, end: socket.socket, workers: socket.socket) -> None:
        self._end = end
        self._manager = ServiceManager(workers.fileno())

    def start(self, **stored: int) -> Handover:
        """Begin a worker, with copies of descriptors."""
        return Handover(self._manager, {name: os.dup(descriptor) for name, descriptor in stored.items()})

    def told(self) -> list[str]:
        """Return what it was told since the last call."""
        messages: list[str] = []
        while True:
            try:
                message, descriptors, _, _ = socket.recv_fds(self._end, 4096, 8)
            except BlockingIOError:
                return messages
            messages.append(message.decode().replace("\n", " "))
            for descriptor in descriptors:
                os.close(descriptor)


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours.settimeout(0)
    with closing(ours), closing(theirs):
        yield Supervisor(ours, theirs)


def options(path: Path | None) -> MountOptions:
    return MountOptions(Path("/mnt"), api=Address(path=path) if path else None)


def connects(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


def test_the_supervisor_keeps_the_socket(supervisor: Supervisor, tmp_path: Path) -> None:
    path = tmp_path / "s"
    first = supervisor.start()
    first.listen(options(path))
    assert supervisor.told() == [f"FDSTORE=1 FDNAME={API} FDPOLL=0"]
    assert first.api is not None
    second = supervisor.start(**{API: first.api.socket.fileno()})
    first.api.socket.close()  # as a kill does
    second.listen(options(path))
    assert supervisor.told() == []
    assert connects(path)
    second.stop_listening()
    assert supervisor.told() == [f"FDSTOREREMOVE=1 FDNAME={API}"]
    assert not path.exists()


@pytest.mark.parametrize("name", ["other", None])
def test_a_worker_that_is_to_listen_elsewhere(supervisor: Supervisor, tmp_path: Path, name: str | None) -> None:
    first = supervisor.start()
    first.listen(options(tmp_path / "s"))
    assert first.api is not None
    second = supervisor.start(**{API: first.api.socket.fileno()})
    first.api.socket.close()
    supervisor.told()
    second.listen(options(tmp_path / name if name else None))
    assert not (tmp_path / "s").exists()
    assert supervisor.told()[0] == f"FDSTOREREMOVE=1 FDNAME={API}"
    assert (second.api is not None) == (name is not None)
    second.stop_listening()


def test_where_nobody_can_listen(supervisor: Supervisor, tmp_path: Path, expect_log: ExpectLog) -> None:
    """That keeps a mount from being made, and not from being taken over."""
    first = supervisor.start()
    with pytest.raises(ConfigurationError, match="the Secrets API cannot be served at unix:"):
        first.listen(options(tmp_path / "no" / "s"))
    expect_log("the Secrets API cannot be served at unix:.*; the Secrets API is not served")
    with (tmp_path / "connection").open("w") as connection:
        second = supervisor.start(**{CONNECTION: connection.fileno()})
    second.listen(options(tmp_path / "no" / "s"))
    assert second.api is None
    assert supervisor.told() == []
    for descriptor in second._stored.values():
        os.close(descriptor)
