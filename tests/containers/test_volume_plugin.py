"""The volume plug-in, called as engines call it, on a real mount of several apps."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.support.app_host import NOBODY, ORDERS, SECRETS, Host, read_as
from tests.support.canary import secret
from tests.support.command import in_namespace, secretfs
from tests.support.manifests import component, configuration, scope
from tests.support.mounted import Mounted, mounted
from tests.support.secrets_file import SecretsFile
from tests.support.shell import output, wait_until
from tests.support.volume_plugin import Plugin, volume_plugin

pytestmark = [pytest.mark.mount, pytest.mark.root("needs to mount for other users, which only root can")]


class Place:
    """What is declared for a mount with two configurations and a directory for what programs declare."""

    def __init__(self, root: Path) -> None:
        for directory in (root, *root.parents):
            directory.chmod(directory.stat().st_mode | 0o011)  # every user reaches the mount
        self.host, self.volumes = Host(root), root / "volumes"
        self.volumes.mkdir()
        file = SecretsFile(root / "secrets.json")
        file.write(SECRETS)
        properties = {"secretsFile": file.path, "nestedSeparator": "/"}
        component(self.host.components, "file", "local.file", properties, scopes=["orders", "billing", "payment"])
        component(self.host.components, "own", "local.env", {"prefix": "VOLUME_"}, scopes=["payment"])
        strict = scope("file", default="deny", allowed=["tls/key"])
        self.configurations = [
            configuration(self.host.configs, strict, name="strict"), configuration(self.host.configs, name="wide"),
        ]  # fmt: skip
        for app, user in {"orders": ORDERS, "billing": NOBODY}.items():
            self.host.add(app, {"owner": str(user), "configuration": "wide"})

    def mounted(self) -> AbstractContextManager[Mounted]:
        return mounted(
            self.host.components,
            config=self.configurations,
            options=[*self.host.options, "--apps", str(self.volumes)],
            mountpoint=self.host.mountpoint,
            expect_log=[r"(ERROR|WARNING) "],
        )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("volumes"))


@pytest.fixture(scope="module")
def mount(place: Place) -> Iterator[Mounted]:
    with place.mounted() as mount:
        yield mount


@pytest.fixture(scope="module")
def shared(mount: Mounted, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plugin]:
    with volume_plugin(mount.path, tmp_path_factory.mktemp("plugin") / "made/secretfs.sock") as plugin:
        yield plugin


@pytest.fixture
def plugin(shared: Plugin, place: Place) -> Iterator[Plugin]:
    """Give a plug-in, and remove what a test has created."""
    yield shared
    for document in place.volumes.iterdir():
        shared.driver("Remove", document.stem)


def wide(**options: str) -> dict[str, object]:
    given = {"configuration": "wide", "app_id": "orders"} | options
    return {"Opts": {name.replace("_", "-"): text for name, text in given.items()}}


def test_what_it_is(plugin: Plugin) -> None:
    """It is a driver of volumes on this host, for root alone (volume-1)."""
    assert plugin.call("Plugin.Activate") == {"Implements": ["VolumeDriver"], "Err": ""}
    assert plugin.driver("Capabilities") == {"Capabilities": {"Scope": "local"}}
    assert plugin.path.stat().st_mode & 0o777 == 0o600


def test_a_volume_is_an_app_view(plugin: Plugin, mount: Mounted) -> None:
    """volume-1: A volume is the view of an app; its options are app-id, configuration, uid, gid and mode."""
    plugin.driver("Create", "shop_pay", **wide(app_id="payment", uid=str(NOBODY), gid="4003", mode="0440"))
    path = Path(plugin.driver("Path", "shop_pay")["Mountpoint"])
    assert path == mount.path / "shop_pay"
    assert sorted(os.listdir(path)) == ["file", "own"]  # noqa: PTH208 - names are what counts
    status = (path / "file/tls/key").stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (NOBODY, 4003, 0o440)
    assert read_as(NOBODY, path / "file/tls/key") == secret("key")
    assert read_as(ORDERS, path / "file/tls/key") == "Permission denied"
    plugin.driver("Create", "narrow", Opts={"configuration": "strict", "app-id": "orders"})
    assert sorted(os.listdir(mount.path / "narrow/file")) == ["tls"]  # noqa: PTH208 - likewise
    volume = plugin.driver("Get", "shop_pay")["Volume"]
    assert volume["Mountpoint"] == str(path)
    assert volume["Status"] == {
        "app-id": "payment", "configuration": "wide", "uid": str(NOBODY), "gid": "4003", "mode": "0440", "mounts": 0,
    }  # fmt: skip
    assert volume["CreatedAt"].endswith("+00:00")


def test_what_is_there(plugin: Plugin) -> None:
    """volume-2: Every app of the mount is a volume of its name, however it was declared."""
    assert [volume["Name"] for volume in plugin.driver("List")["Volumes"]] == ["billing", "orders"]
    plugin.driver("Create", "orders")
    assert plugin.driver("Get", "orders")["Volume"]["Status"] == {"mounts": 0}
    said = plugin.refused("Remove", "orders")
    assert said == "orders is an app that was declared by other means: remove its document"
    said = plugin.refused("Create", "orders", **wide())
    assert said == "orders is an app that was declared by other means: give no options"
    plugin.driver("Create", "third", **wide())
    assert [volume["Name"] for volume in plugin.driver("List")["Volumes"]] == ["billing", "orders", "third"]


WRONG: list[tuple[dict[str, str], str]] = [
    ({"appid": "x"}, "unknown option appid (did you mean app-id?)"),
    ({"size": "1"}, "unknown option size (there are app-id, configuration, uid, gid, mode)"),
    ({"app-id": "../x"}, "option app-id: '../x' cannot be an app id here: it has a slash, or begins with a dot"),
    ({"uid": "nobdy"}, "option uid: there is no user 'nobdy' on this host (did you mean nobody?)"),
    ({"gid": "4294967295"}, "option gid: 4294967295 is not the id of a group: ids end at 4294967294"),
    ({"mode": "0777"}, "option mode: '0777': a file here can be read and nothing else (0400, 0440, 0444)"),
    ({"configuration": "wid"}, "there is no Configuration named wid (did you mean wide?)"),
    ({}, "app wrong has to say which configuration is its own: strict, wide"),
]


def test_wrong_options(plugin: Plugin, mount: Mounted, place: Place) -> None:
    """volume-3: An option that is wrong is refused with what would be right, and nothing is changed."""
    for options, said in WRONG:
        assert plugin.refused("Create", "wrong", Opts=options) == said
        assert sorted(os.listdir(mount.path)) == ["billing", "orders"]  # noqa: PTH208 - likewise
        assert list(place.volumes.iterdir()) == []


def test_an_app_id_that_sees_nothing(plugin: Plugin, mount: Mounted) -> None:
    """A volume with nothing in it is refused: its app id is no app's (volume-3)."""
    said = "sees no secret store; compare it with the scopes of the components"
    assert plugin.refused("Create", "v", **wide(app_id="ordres")) == f"app id ordres {said}"
    assert plugin.refused("Create", "v", Opts={"configuration": "wide"}) == f"app id v {said}"
    assert sorted(os.listdir(mount.path)) == ["billing", "orders"]  # noqa: PTH208 - likewise


def test_names(plugin: Plugin) -> None:
    """A name is looked for among those that are there, and one that an engine made up is not an app id (volume-3)."""
    assert plugin.refused("Get", "ordrs") == "no such volume: ordrs (did you mean orders?)"
    assert plugin.refused("Mount", "x" * 20, ID="1") == f"no such volume: {'x' * 20}"
    assert plugin.refused("Create", "../x", **wide()) == "'../x' cannot be the name of a directory here"
    said = plugin.refused("Create", "ab" * 32, Opts={"configuration": "wide"})
    assert said == "a volume without a name has to say which app it shows: app-id=ID"
    plugin.driver("Create", "ab" * 32, **wide())


def test_a_volume_again(plugin: Plugin) -> None:
    """The same volume may be created twice; with other options it is another one (volume-3)."""
    for _ in range(2):
        plugin.driver("Create", "v", **wide(mode="0440"))
    assert (
        plugin.refused("Create", "v", **wide())
        == "volume v exists with app-id=orders, configuration=wide, mode=0440; remove it first"
    )
    plugin.driver("Remove", "v")
    assert plugin.refused("Remove", "v") == "no such volume: v"
    plugin.driver("Create", "v", **wide())


def test_a_file_that_is_not_ours(plugin: Plugin, place: Place) -> None:
    """A document that somebody else wrote is not replaced, whatever its name (volume-3)."""
    document = place.volumes / "theirs.yaml"
    document.write_text("# nothing yet\n", encoding="utf-8")
    said = plugin.refused("Create", "theirs", **wide())
    assert said == f"{document} is there, and declares something else; choose another name"
    assert document.read_text(encoding="utf-8") == "# nothing yet\n"
    document.unlink()
    assert "File name too long" in plugin.refused("Create", "v" * 254, **wide())


def test_a_directory_that_the_mount_does_not_read(mount: Mounted, place: Place, tmp_path: Path) -> None:
    """A mistake in ``--dir`` is named, and leaves no document behind (volume-3)."""
    documents = tmp_path / "documents"
    documents.mkdir()
    with volume_plugin(mount.path, tmp_path / "s.sock", "--dir", str(documents)) as plugin:
        said = plugin.refused("Create", "v", **wide())
    assert said.startswith(f"the mount reads no apps from --dir {documents}, but from ")
    assert said.endswith(f", {place.volumes}")
    assert list(documents.iterdir()) == []


def test_what_is_no_request(plugin: Plugin) -> None:
    """What makes no sense is refused in the same form (volume-3)."""
    assert plugin.call("VolumeDriver.Snapshot")["Err"] == "this volume plug-in has no such call"
    assert plugin.call("VolumeDriver.Get", body=b"{")["Err"] == "the request is not JSON"
    assert plugin.call("VolumeDriver.Get", body=b"[]")["Err"] == "the request is no JSON object"
    assert plugin.call("VolumeDriver.Get")["Err"] == "the request names no volume"
    for options in (["mode"], {"mode": 400}):
        assert plugin.refused("Create", "v", Opts=options) == "the options of the request are not texts"
    assert plugin.call("VolumeDriver.Get", body=b" " * (1 << 20) + b"{}")["Err"] == "a request may have 1048576 bytes"


@pytest.mark.parametrize("part", ["", "/file/tls"])
def test_a_volume_in_use_stays(plugin: Plugin, mount: Mounted, tmp_path: Path, part: str) -> None:
    """volume-4: A volume that a container has mounted is not removed, also by a plug-in that was started later."""
    plugin.driver("Create", "v", **wide())
    script = (
        f"mount --bind {plugin.driver('Mount', 'v', ID='1')['Mountpoint']}{part} /mnt && echo && exec sleep infinity"
    )
    container = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]
    with (
        subprocess.Popen(container, stdout=subprocess.PIPE) as process,
        volume_plugin(mount.path, tmp_path / "later.sock") as later,
    ):
        assert process.stdout
        process.stdout.readline()
        for one in (plugin, later):
            assert one.driver("Get", "v")["Volume"]["Status"]["mounts"] == 1
            one.driver("Unmount", "v", ID="1")
            assert one.refused("Remove", "v") == f"volume v is mounted by 1 others (process {process.pid})"
        process.kill()
        wait_until(lambda: later.driver("Get", "v")["Volume"]["Status"]["mounts"] == 0)
        later.driver("Remove", "v")


def test_a_mount_that_is_gone(tmp_path: Path) -> None:
    """volume-5: While there is no mount, or a dead one, volumes stay known, and each attempt to mount one says so."""
    place = Place(tmp_path)
    with place.mounted() as mount, volume_plugin(mount.path, tmp_path / "s.sock") as plugin:
        plugin.driver("Create", "v", **wide())
        mount.kill()
        said = plugin.refused("Mount", "v", ID="1")
        assert said.startswith(f"the secretfs at {mount.path} was killed; mount again: secretfs mount")
        output("umount", "--lazy", mount.path)
        assert plugin.refused("Mount", "v", ID="1") == f"{mount.path} has no secretfs mounted"
        assert plugin.refused("Remove", "v") == f"{mount.path} has no secretfs mounted"
        assert plugin.driver("Get", "v")["Volume"]["Name"] == "v"
        assert [volume["Name"] for volume in plugin.driver("List")["Volumes"]] == ["v"]
    with place.mounted() as mount:  # what there was is there again
        assert (mount.path / "v/file/tls/key").read_text(encoding="utf-8") == secret("key")


def test_one_plugin_at_a_socket(plugin: Plugin, mount: Mounted, tmp_path: Path) -> None:
    """volume-6: A plug-in that serves keeps its socket; one that was killed is replaced."""
    done = secretfs("volume-plugin", "--socket", plugin.path, mount.path)
    assert (done.status, done.err) == (
        3, f"secretfs: a volume plug-in serves at {plugin.path} already; stop it, or name another socket: --socket\n",
    )  # fmt: skip
    path = tmp_path / "s.sock"
    with volume_plugin(mount.path, path) as killed:
        killed.server.kill()
        assert path.exists()
        with volume_plugin(mount.path, path) as successor:
            successor.driver("List")
    assert not path.exists()
    (tmp_path / "file").touch()
    done = secretfs("volume-plugin", "--socket", tmp_path / "file", mount.path)
    assert (done.status, done.err) == (2, f"secretfs: {tmp_path / 'file'} is there, and is no socket\n")


def test_its_socket_is_for_its_user_alone(tmp_path: Path) -> None:
    """The directories that are made for it can be entered: its user reaches it (volume-6)."""
    path = tmp_path / "made/too/s.sock"
    with volume_plugin(tmp_path, path):
        assert path.stat().st_mode & 0o777 == 0o600
        for directory in (path.parent, path.parent.parent):
            assert directory.stat().st_mode & 0o700 == 0o700  # else nobody but root reaches the socket


def test_a_mount_of_one_app_has_no_volumes(tmp_path: Path) -> None:
    """It says what kind of mount it takes (volume-5)."""
    place = Place(tmp_path)
    with (
        mounted(place.host.components, mountpoint=place.host.mountpoint, app_id="orders") as mount,
        volume_plugin(mount.path, tmp_path / "s.sock") as plugin,
    ):
        assert plugin.refused("Create", "v") == f"the mount at {mount.path} shows a single app; mount with --apps DIR"


def test_without_its_library() -> None:
    """It says what to install (volume-1)."""
    done = in_namespace("""
        cat > hide.py <<-'END'
import sys
sys.modules["hypercorn"] = sys.modules["hypercorn.config"] = None
from secretfs.cli.main import main
sys.argv = ["secretfs", "volume-plugin", "/mnt"]
main()
END
        /mnt/python/bin/python hide.py || echo $?
    """)
    assert done.out == "2\n"
    assert "pip install secretfs-fuse[containers]" in done.err
