"""Where the Secrets API listens."""

import os
import socket
import stat
from pathlib import Path

import pytest

from secretfs.api.address import Listener, parse_api_address
from secretfs.errors import ConfigurationError
from secretfs.observe.address import Address


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "api.sock"


def connects(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
        return True


@pytest.mark.parametrize(
    ("text", "address", "shown"),
    [
        ("unix:/run/shop.sock", Address(path=Path("/run/shop.sock")), "unix:/run/shop.sock"),
        ("unix:/run//a/../shop.sock", Address(path=Path("/run/shop.sock")), "unix:/run/shop.sock"),
        ("127.0.0.1:3500", Address(host="127.0.0.1", port=3500), "127.0.0.1:3500"),
        ("127.1.2.3:1", Address(host="127.1.2.3", port=1), "127.1.2.3:1"),
        ("[::1]:65535", Address(host="::1", port=65535), "[::1]:65535"),
    ],
)
def test_addresses(text: str, address: Address, shown: str) -> None:
    assert parse_api_address(text) == address
    assert str(address) == shown


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("unix:", "needs a path"),
        ("/run/shop.sock", "is not unix:PATH, 127.0.0.1:PORT or"),
        ("3500", "is not unix:PATH, 127.0.0.1:PORT or"),
        ("127.0.0.1:0", "is not unix:PATH, 127.0.0.1:PORT or"),
        ("127.0.0.1:65536", "is not unix:PATH, 127.0.0.1:PORT or"),
        (":3500", "nothing is not an IP address"),
        ("localhost:3500", "localhost is not an IP address"),
        ("public:127.0.0.1:3500", "is not an IP address"),
        ("0.0.0.0:3500", "lets secrets leave this machine, and unencrypted; write 127.0.0.1:3500"),
        ("[::]:3500", "lets secrets leave this machine, and unencrypted; write 127.0.0.1:3500"),
    ],
)
def test_what_is_no_address(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_api_address(text)


class TestSocketFile:
    def test_it_is_for_its_owner_alone(self, path: Path) -> None:
        mask = os.umask(0)
        try:
            listener = Listener.open(Address(path=path))
        finally:
            assert os.umask(mask) == 0
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        listener.remove()
        assert not path.exists()

    @pytest.mark.root("to give a file to somebody else")
    def test_it_belongs_to_whom_the_files_belong_to(self, path: Path) -> None:
        listener = Listener.open(Address(path=path), 4711, 4712)
        assert (path.stat().st_uid, path.stat().st_gid) == (4711, 4712)
        listener.remove()

    def test_what_a_killed_daemon_left_is_replaced(self, path: Path) -> None:
        Listener.open(Address(path=path)).socket.close()
        assert path.exists()
        assert not connects(path)
        listener = Listener.open(Address(path=path))
        assert connects(path)
        listener.remove()

    def test_a_socket_in_use_is_left_alone(self, path: Path) -> None:
        first = Listener.open(Address(path=path))
        with pytest.raises(
            ConfigurationError, match=rf"the Secrets API cannot be served at unix:{path}: Address already in use"
        ):
            Listener.open(Address(path=path))
        assert connects(path)
        first.remove()

    def test_a_socket_whose_queue_is_full_is_in_use(self, path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as waiting:
            listening.bind(str(path))
            listening.listen(0)
            waiting.connect(str(path))
            with pytest.raises(ConfigurationError, match="Address already in use"):
                Listener.open(Address(path=path))

    def test_any_other_file_is_left_alone(self, path: Path) -> None:
        path.write_text("precious")
        with pytest.raises(ConfigurationError, match="there is a file, and it is no socket"):
            Listener.open(Address(path=path))
        assert path.read_text() == "precious"

    def test_a_path_that_is_too_long(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match="path too long"):
            Listener.open(Address(path=tmp_path / ("a" * 108)))

    def test_a_directory_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match="No such file or directory"):
            Listener.open(Address(path=tmp_path / "no/api.sock"))

    def test_the_next_worker_goes_on_with_it(self, path: Path) -> None:
        first = Listener.open(Address(path=path))
        second = Listener.inherit(os.dup(first.socket.fileno()))
        assert second.address == first.address
        first.socket.close()  # as a kill does
        assert connects(path)
        second.remove()
        assert not path.exists()

    def test_whoever_holds_a_copy_does_not_keep_clients_waiting(self, path: Path) -> None:
        listener = Listener.open(Address(path=path))
        with listener.socket.dup():
            listener.remove()
            assert not connects(path)
            assert not path.exists()

    def test_a_file_that_is_somebody_elses_by_now_stays(self, path: Path) -> None:
        first = Listener.open(Address(path=path))
        path.unlink()
        second = Listener.open(Address(path=path))
        first.remove()
        assert connects(path)
        second.remove()


def test_a_port(free_port: int) -> None:
    address = Address(host="127.0.0.1", port=free_port)
    listener = Listener.open(address)
    with pytest.raises(ConfigurationError, match=f"cannot be served at 127.0.0.1:{free_port}: Address already in use"):
        Listener.open(address)
    inherited = Listener.inherit(os.dup(listener.socket.fileno()))
    assert inherited.address == address
    inherited.socket.close()
    listener.remove()
    Listener.open(address).remove()


def test_the_next_worker_knows_an_address_that_is_written_in_another_way(free_port: int) -> None:
    """Else it would end the socket, and with it those who wait there for a worker."""
    address = parse_api_address(f"[0:0:0:0:0:0:0:1]:{free_port}")
    listener = Listener.open(address)
    inherited = Listener.inherit(os.dup(listener.socket.fileno()))
    assert inherited.address == address
    inherited.socket.close()
    listener.remove()
