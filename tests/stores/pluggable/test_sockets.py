"""The sockets of plug-ins: which one a type means, and which of them may be trusted."""

import os
import re
import socket
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from secretfs.errors import ConfigurationError, StoreUnavailable
from secretfs.settings import Property, decode, unknown_properties
from secretfs.store import SecretStore, StoreContext
from secretfs.stores import StoreModule, load_store_type, local_env
from secretfs.stores import _sockets as sockets
from secretfs.stores.pluggable.store import PluggableType, Properties
from tests.support.canary import secret
from tests.support.pluggable import socket_folder

NOBODY = 65534


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return socket_folder(tmp_path, monkeypatch)


@pytest.fixture
def example(folder: Path) -> Iterator[Path]:
    path = folder / "example.sock"
    with bound(path):
        path.chmod(0o700)
        yield path


def bound(path: Path) -> socket.socket:
    bound = socket.socket(socket.AF_UNIX)
    bound.bind(str(path))
    return bound


@pytest.mark.parametrize(
    ("file", "type_"),
    [
        ("my-store.sock", "secretstores.my-store"),
        ("a.b.sock", "secretstores.a.b"),
        ("plain", "secretstores.plain"),
        ("MyStore.SOCK", "secretstores.mystore"),
        ("mystore.socket", "secretstores.MYSTORE"),
    ],
)
def test_a_type_is_the_name_of_a_socket_without_its_suffix(folder: Path, file: str, type_: str) -> None:
    with bound(folder / file):
        module: StoreModule = load_store_type(type_, "v1")  # for mypy
        assert module == PluggableType(str(folder / file))


@pytest.mark.parametrize("type_", ["secretstores.example.sock", "secretstores.exam", "secretstores."])
def test_another_name_is_not_it(example: Path, type_: str) -> None:
    with bound(example.with_name(".sock")), pytest.raises(StoreUnavailable, match="no socket of this name"):
        load_store_type(type_)


def test_what_is_no_socket_is_no_store(folder: Path, tmp_path: Path) -> None:
    """Nor is a link to one, as in Dapr."""
    (folder / "file.sock").write_text("")
    (folder / "directory.sock").mkdir()
    with bound(tmp_path / "elsewhere.sock"):
        (folder / "link.sock").symlink_to(tmp_path / "elsewhere.sock")
        for name in ("file", "directory", "link"):
            with pytest.raises(StoreUnavailable, match=f"couldn't find secret store secretstores.{name}/v1"):
                load_store_type(f"secretstores.{name}", "v1")


def test_one_that_goes_while_the_folder_is_listed_is_none(folder: Path) -> None:
    """A plug-in that is started again removes its socket; the others are there all the same."""
    with bound(folder / "going.sock"), os.scandir(folder) as entries:
        (entry,) = entries
        (folder / "going.sock").unlink()
        assert not sockets.is_socket(entry)


def test_two_sockets_of_one_name_are_none(folder: Path) -> None:
    with bound(folder / "x.sock"), bound(folder / "X.socket"), pytest.raises(ConfigurationError) as caught:
        load_store_type("secretstores.x")
    assert str(caught.value) == f"secretstores.x is offered twice: by {folder}/X.socket and {folder}/x.sock"


def test_a_builtin_type_cannot_be_replaced(folder: Path) -> None:
    with bound(folder / "local.env.sock"):
        assert load_store_type("secretstores.local.env") is local_env


def test_one_that_is_not_there_yet_may_come(folder: Path) -> None:
    """A service that is started before its plug-in has to be started again: that is no mistake in a manifest."""
    with pytest.raises(StoreUnavailable) as caught:
        load_store_type("secretstores.local-file", "v1")
    assert str(caught.value) == (
        "couldn't find secret store secretstores.local-file/v1 (did you mean secretstores.local.file?)"
        f": no socket of this name is in {folder}"
    )
    folder.rmdir()
    with pytest.raises(StoreUnavailable, match=f"{folder}: No such file or directory"):
        load_store_type("secretstores.example")


def test_the_nearest_name_may_be_a_sockets(folder: Path) -> None:
    with (
        bound(folder / "my-store.sock"),
        pytest.raises(StoreUnavailable, match=r"did you mean secretstores.my-store\?"),
    ):
        load_store_type("secretstores.my-stroe")


def test_a_folder_of_no_name_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(sockets.FOLDER, "")
    with pytest.raises(ConfigurationError):
        load_store_type("secretstores.example")


def test_the_default_folder_is_daprs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(sockets.FOLDER, raising=False)
    assert sockets.DEFAULT_FOLDER == "/tmp/dapr-components-sockets"
    monkeypatch.setattr(sockets, "DEFAULT_FOLDER", str(tmp_path))
    with bound(tmp_path / "example.sock"):
        assert load_store_type("secretstores.example") == PluggableType(f"{tmp_path}/example.sock")
    monkeypatch.setattr(sockets, "DEFAULT_FOLDER", str(tmp_path / "none"))
    with pytest.raises(ConfigurationError):
        load_store_type("secretstores.example")


def test_a_relative_folder_starts_at_the_working_directory(
    example: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(sockets.FOLDER, example.parent.name)
    assert load_store_type("secretstores.example") == PluggableType(str(example))


@pytest.mark.parametrize(
    ("folder_mode", "socket_mode"),
    [(0o700, 0o777), (0o750, 0o777), (0o755, 0o755), (0o775, 0o775), (0o770, 0o777), (0o1777, 0o755)],
)
def test_modes_that_are_trusted(example: Path, folder_mode: int, socket_mode: int) -> None:
    example.chmod(socket_mode)
    example.parent.chmod(folder_mode)
    status = example.stat()
    assert sockets.inspect(str(example)) == (status.st_dev, status.st_ino, status.st_ctime_ns)


@pytest.mark.parametrize(
    ("folder_mode", "socket_mode", "reason"),
    [
        (0o777, 0o700, "everybody may write {folder}, and could put any socket there: chmod o-w {folder}"),
        (0o702, 0o700, "everybody may write {folder}, and could put any socket there: chmod o-w {folder}"),
        (0o755, 0o777, "everybody may connect to {socket} and read its secrets: chmod o-x {folder}"),
        (0o1777, 0o722, "everybody may connect to {socket} and read its secrets: chmod o-x {folder}"),
    ],
)
def test_modes_that_are_not_trusted(example: Path, folder_mode: int, socket_mode: int, reason: str) -> None:
    example.chmod(socket_mode)
    example.parent.chmod(folder_mode)
    with pytest.raises(StoreUnavailable, match=re.escape(reason.format(folder=example.parent, socket=example)) + "$"):
        opened_example()


@pytest.mark.root("other users")
def test_owners(example: Path) -> None:
    folder = example.parent
    os.chown(example, NOBODY, NOBODY)
    opened_example()  # whoever it is, root has let them in
    folder.chmod(0o1777)
    with pytest.raises(StoreUnavailable, match=f"{example} belongs to user 65534, and everybody may write {folder}"):
        opened_example()
    folder.chmod(0o700)
    os.chown(folder, NOBODY, -1)
    with pytest.raises(StoreUnavailable, match=f"{folder} belongs to user 65534, who could put any socket there"):
        opened_example()


def test_a_socket_that_becomes_untrusted_is_not_asked_any_more(example: Path) -> None:
    store = opened_example()
    example.parent.chmod(0o777)
    with pytest.raises(StoreUnavailable, match="everybody may write"):
        store.fetch("a")
    example.parent.chmod(0o700)
    example.unlink()
    with pytest.raises(StoreUnavailable, match=f"{example}: No such file or directory"):
        store.fetch("a")
    example.write_text("")
    assert not stat.S_ISSOCK(example.stat().st_mode)
    with pytest.raises(StoreUnavailable, match="is no socket"):
        store.fetch("a")


def opened_example() -> SecretStore:
    return load_store_type("secretstores.example").open_store(Properties(), StoreContext("store"))


def test_all_properties_are_known_and_as_written() -> None:
    given = [Property("A", "1"), Property("a", secret("a")), Property("b", "2"), Property("b", "3")]
    settings, notices = decode(Properties, given)
    assert (dict(settings.properties), notices) == ({"A": "1", "a": secret("a"), "b": "3"}, [])
    assert unknown_properties(Properties, given) == []


def test_a_missing_library_says_what_to_install(example: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("secretfs.stores.pluggable.")]:
        if not name.endswith(".messages"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "grpc", None)
    with pytest.raises(
        ConfigurationError, match=r"example needs the package grpc: pip install secretfs-fuse\[pluggable\]"
    ):
        load_store_type("secretstores.example")


@pytest.mark.parametrize("component", ["ünïcödé", "new\nline"])
def test_a_name_that_no_plug_in_can_be_told(example: Path, component: str) -> None:
    with pytest.raises(ConfigurationError, match="must be printable ASCII"):
        load_store_type("secretstores.example").open_store(Properties(), StoreContext(component))


def test_an_annotation_that_is_neither(example: Path) -> None:
    context = StoreContext("store", annotations={"secretfs/multi-valued": "ja"})
    with pytest.raises(ConfigurationError, match="secretfs/multi-valued: must be true or false"):
        load_store_type("secretstores.example").open_store(Properties(), context)
