"""The protocol of service managers, with a real socket at the other end and real descriptors."""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from secretfs.errors import ConfigurationError
from secretfs.linux.sd_notify import ServiceManager, service_manager, stored_descriptors
from tests.support.command import environment


@pytest.fixture(params=["path", "abstract"])
def listening(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, ServiceManager]]:
    """A service manager's socket, and what a service finds of it in its environment."""
    with tempfile.TemporaryDirectory() as directory, closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as end:
        end.settimeout(5)
        if request.param == "path":
            end.bind(f"{directory}/notify")
            told = f"{directory}/notify"
        else:
            end.bind("")  # the kernel chooses an abstract name
            told = f"@{end.getsockname()[1:].decode()}"
        manager = service_manager({"NOTIFY_SOCKET": told})
        assert manager is not None
        yield end, manager


def test_it_hears_one_assignment_a_line(listening: tuple[socket.socket, ServiceManager]) -> None:
    end, manager = listening
    manager.notify(READY=1, STATUS="mounted, 2 stores")
    assert end.recv(4096) == b"READY=1\nSTATUS=mounted, 2 stores"


def test_a_text_stays_one_assignment(listening: tuple[socket.socket, ServiceManager]) -> None:
    end, manager = listening
    manager.notify(STATUS="vault is down:\nREADY=1\r\nMAINPID=1")
    assert end.recv(4096) == b"STATUS=vault is down: READY=1 MAINPID=1"


def test_a_descriptor_is_kept_under_its_name(listening: tuple[socket.socket, ServiceManager]) -> None:
    end, manager = listening
    with tempfile.TemporaryFile() as file:
        manager.store("journal", file.fileno())
        message, (copy,), _, _ = socket.recv_fds(end, 4096, 8)
        assert message == b"FDSTORE=1\nFDNAME=journal\nFDPOLL=0"
        assert os.path.sameopenfile(file.fileno(), copy)
        os.close(copy)
    manager.remove("journal")
    assert end.recv(4096) == b"FDSTOREREMOVE=1\nFDNAME=journal"


def test_a_manager_that_does_not_listen_holds_nobody_up(listening: tuple[socket.socket, ServiceManager]) -> None:
    def talk(manager: ServiceManager) -> None:
        for _ in range(1000):  # more than a queue holds (net.unix.max_dgram_qlen)
            manager.notify(WATCHDOG=1)

    with pytest.raises(BlockingIOError):
        talk(listening[1])


def test_a_manager_that_is_gone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ServiceManager(str(tmp_path / "notify")).notify(READY=1)


def test_without_a_service_manager_there_is_none() -> None:
    assert service_manager({}) is None
    assert service_manager({"NOTIFY_SOCKET": "", "WATCHDOG_USEC": "1"}) is None


@pytest.mark.parametrize("address", ["vsock:2:1234", "@", "notify"])
def test_what_is_no_address_is_said(address: str) -> None:
    with pytest.raises(ConfigurationError, match=f"NOTIFY_SOCKET is '{address}', which is neither"):
        service_manager({"NOTIFY_SOCKET": address})


@pytest.mark.parametrize(
    ("pid", "seconds"),
    [({}, 1.5), ({"WATCHDOG_PID": str(os.getpid())}, 1.5), ({"WATCHDOG_PID": "1"}, None)],
    ids=["everybody", "us", "somebody else"],
)
def test_the_watchdog_counts_if_it_is_ours(pid: dict[str, str], seconds: float | None) -> None:
    environ = {"NOTIFY_SOCKET": "/run/systemd/notify", "WATCHDOG_USEC": "1500000"} | pid
    assert service_manager(environ) == ServiceManager("/run/systemd/notify", seconds)
    assert environ == {}


def test_descriptors_for_somebody_else_are_left_alone() -> None:
    environ = {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "connection", "HOME": "/"}
    assert stored_descriptors(environ) == {}
    assert environ == {"HOME": "/"}


def _received(names: str | None, count: int) -> str:
    """Start a process as systemd does, with ``count`` pipes from 3 on; returns what it makes of them."""
    program = f"""
import fcntl, os
pipes = [os.pipe() for _ in range(8)]
for number in range({count}):
    os.dup2(pipes[number][1], 100 + number)
os.closerange(3, 100)
for number in range({count}):
    os.dup2(100 + number, 3 + number)
os.closerange(100, 200)
os.environ |= {{"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "{count}"}}
if (names := {names!r}) is not None:
    os.environ["LISTEN_FDNAMES"] = names
from secretfs.linux.sd_notify import stored_descriptors
kept = stored_descriptors()
inherited = [number for number in kept.values() if not fcntl.fcntl(number, fcntl.F_GETFD) & fcntl.FD_CLOEXEC]
listed = sorted(int(name) for name in os.listdir("/proc/self/fd") if int(name) > 2)[:-1]  # one is of listdir
print(kept, inherited, listed, [name for name in os.environ if name.startswith("LISTEN_")])
"""
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, check=True).stdout.strip()


def test_descriptors_come_back_by_name_and_no_child_inherits_them() -> None:
    assert _received("connection:journal", 2) == "{'connection': 3, 'journal': 4} [] [3, 4] []"


def test_of_two_with_one_name_the_newest_is_taken_and_the_other_closed() -> None:
    assert _received("connection:journal:connection", 3) == "{'connection': 3, 'journal': 4} [] [3, 4] []"


def test_descriptors_without_names_have_the_name_that_systemd_gives_them() -> None:
    assert _received(None, 1) == "{'unknown': 3} [] [3] []"


def test_a_channel_is_used_instead_of_an_address() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        environ = {"WATCHDOG_USEC": "2000000"}
        manager = service_manager(environ, theirs.fileno())
        assert manager is not None
        assert (manager.watchdog, environ) == (2.0, {})
        manager.notify(READY=1)
        assert ours.recv(99) == b"READY=1"
        ours.close()
        with pytest.raises(OSError, match="refused"):
            manager.notify(WATCHDOG=1)
