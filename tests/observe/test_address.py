"""Where metrics are served: nobody from elsewhere gets in by mistake, and nothing that lives is replaced."""

import socket
import stat
from pathlib import Path

import pytest

from secretfs.errors import ConfigurationError
from secretfs.observe.address import Address, listen, parse_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("unix:/run/metrics", Address(Path("/run/metrics"))),
        ("127.0.0.1:9464", Address(host="127.0.0.1", port=9464)),
        ("127.9.9.9:0", Address(host="127.9.9.9")),
        ("[::1]:9464", Address(host="::1", port=9464)),
        ("public:0.0.0.0:9464", Address(host="0.0.0.0", port=9464)),
        ("public:[::]:9464", Address(host="::", port=9464)),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert str(address) == text.removeprefix("public:")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("0.0.0.0:9464", "write public:0.0.0.0:9464"),
        ("192.168.0.1:9464", "lets other machines in"),
        ("[::]:9464", "lets other machines in"),
        ("[::ffff:192.168.0.1]:9464", "lets other machines in"),
        ("localhost:9464", "localhost is not an IP address"),
        (":9464", "nothing is not an IP address"),
        ("public::9464", "nothing is not an IP address"),
        ("9464", "is not unix:PATH, 127.0.0.1:PORT"),
        ("127.0.0.1:65536", "is not unix:PATH, 127.0.0.1:PORT"),
        ("127.0.0.1:", "is not unix:PATH, 127.0.0.1:PORT"),
        ("/run/metrics", "is not unix:PATH, 127.0.0.1:PORT"),
        ("unix:", "needs a path"),
    ],
)
def test_what_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason.replace("[", r"\[")):
        parse_address(text)


def test_a_socket_is_for_its_user(tmp_path: Path) -> None:
    with listen(Address(tmp_path / "s")):
        assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o600
        with pytest.raises(ConfigurationError, match="Address already in use"):
            listen(Address(tmp_path / "s"))
    with listen(Address(tmp_path / "s")):  # it is there, and nobody listens
        pass


def test_a_file_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("precious", encoding="ascii")
    with pytest.raises(ConfigurationError, match="it is no socket"):
        listen(Address(tmp_path / "s"))
    assert (tmp_path / "s").read_text(encoding="ascii") == "precious"


def test_a_port_that_is_taken() -> None:
    with listen(Address(host="127.0.0.1")) as taken:
        _, port = taken.getsockname()
        with pytest.raises(ConfigurationError, match=f"127.0.0.1:{port}: Address already in use"):
            listen(Address(host="127.0.0.1", port=port))


def test_a_path_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        listen(Address(tmp_path / "none" / "s"))
    with pytest.raises(ConfigurationError, match="too long"):
        listen(Address(tmp_path / ("x" * 200)))


def test_an_ipv6_port() -> None:
    if not socket.has_ipv6:
        pytest.fail("there is no IPv6 here")
    with listen(Address(host="::1")) as opened:
        assert opened.family is socket.AF_INET6
