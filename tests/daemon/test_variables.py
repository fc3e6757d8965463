"""Environment variables from files: names, paths, one version of each secret, and what no variable can hold."""

import os
from pathlib import Path

import pytest

from secretfs.daemon.variables import LONGEST, Variable, Variables, is_path
from secretfs.errors import ConfigurationError, NotRepresentable
from tests.support.canary import secret
from tests.support.command import secretfs


@pytest.fixture
def mountpoint(tmp_path: Path) -> Path:
    """A secret whose ..data has another version than the names beside it, which are being published."""
    data = tmp_path / "vault/db/..data"
    data.mkdir(parents=True)
    for name in ("user", "password"):
        (data / name).write_text(secret(f"new {name}"))
        (data.parent / name).write_text(secret(f"old {name}"))
    (data.parent / ".bulk.json").write_text("{}")
    return tmp_path


def test_keys_of_one_secret_are_of_one_version(mountpoint: Path) -> None:
    wanted = Variables((Variable("USER", "vault/db/user"),), ("vault/db",), "DB_")
    assert wanted.read(mountpoint) == {
        b"USER": secret("new user").encode(),
        b"DB_user": secret("new user").encode(),
        b"DB_password": secret("new password").encode(),
    }


def test_what_is_beside_the_keys_can_be_had(mountpoint: Path) -> None:
    assert Variables((Variable("ALL", "vault/db/.bulk.json"),)).read(mountpoint) == {b"ALL": b"{}"}


def test_nothing_stays_open(mountpoint: Path) -> None:
    before = os.listdir("/proc/self/fd")  # noqa: PTH208
    Variables((), ("vault/db",)).read(mountpoint)
    with pytest.raises(ConfigurationError):
        Variables((Variable("USER", "vault/db/user"), Variable("B", "vault/no")), ("vault/db",)).read(mountpoint)
    assert os.listdir("/proc/self/fd") == before  # noqa: PTH208


def test_a_variable_that_two_flags_set(mountpoint: Path) -> None:
    for twice in (
        Variables((Variable("user", "vault/db/user"),), ("vault/db",)),
        Variables((Variable("A", "vault/db/user"), Variable("A", "vault/db/password"))),
        Variables((), ("vault/db", "vault/db")),
        Variables((Variable("SECRETFS", "vault/db/user"),)),
    ):
        with pytest.raises(ConfigurationError, match="is already set by"):
            twice.read(mountpoint)


def test_a_value_that_is_as_long_as_it_may_be_and_one_byte_longer(mountpoint: Path) -> None:
    wanted = Variables((Variable("A", "long"),))
    longest = LONGEST - len("A=") - 1
    (mountpoint / "long").write_bytes(b"x" * longest)
    values = wanted.read(mountpoint)
    pid = os.posix_spawn("/bin/true", ["true"], values)  # the kernel takes it
    assert os.waitpid(pid, 0) == (pid, 0)
    (mountpoint / "long").write_bytes(b"x" * (longest + 1))
    with pytest.raises(NotRepresentable, match="128 KiB"):
        wanted.read(mountpoint)


@pytest.mark.parametrize("path", ["", "/vault/db", "../x", "vault/../x", "vault//db", "vault/", "./vault"])
def test_what_is_no_path_below_the_mount_point(path: str) -> None:
    assert not is_path(path)
    assert is_path("vault/db/..data/user")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--env", "NAME"], "'NAME' is not NAME=STORE/SECRET or NAME=STORE/SECRET/KEY"),
        (["--env", "A-B=vault/db"], "'A-B' cannot be the name of a variable: it takes letters, digits and _"),
        (["--env", "1A=vault/db"], "'1A' cannot be the name of a variable"),
        (["--env", "A=/vault/db"], "'/vault/db' is not STORE/SECRET or STORE/SECRET/KEY"),
        (["--env-from", "../x"], "'../x' is not STORE/SECRET"),
        (["--env-from", "vault/db", "--env-prefix", "D-"], "'D-' cannot be the name of a variable"),
        (["--env-prefix", "DB_"], "--env-prefix is for --env-from"),
    ],
)
def test_flags_that_are_refused(flags: list[str], message: str) -> None:
    done = secretfs("run", *flags, "--", "true")
    assert done.status == 2
    assert message in " ".join(done.err.split())
