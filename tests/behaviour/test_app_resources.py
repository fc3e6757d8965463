"""Sets of components that apps name, in the place of those that everybody sees."""

import json
import os
import signal
from pathlib import Path

import pytest

from tests.support.app_host import BILLING, ORDERS, SECRETS, Host, host, read_as
from tests.support.canary import secret
from tests.support.command import secretfs
from tests.support.manifests import component, configuration, scope
from tests.support.mounted import Mounted, mounted
from tests.support.secrets_file import file
from tests.support.shell import errno_of, wait_until

__all__ = ["file", "host"]

pytestmark = [pytest.mark.mount, pytest.mark.root("needs to mount for other users, which only root can")]


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))  # noqa: PTH208 - names are what counts


def statistics(mount: Mounted) -> dict[str, int]:
    """Return how many secrets each store has been asked for."""
    status = json.loads((mount.path / ".secretfs/status.json").read_text(encoding="utf-8"))
    return {name: store["calls"]["fetch"]["made"] for name, store in status["stores"].items()}


@pytest.fixture
def sets(host: Host, tmp_path: Path) -> Path:
    """Give a set to the app ``orders``, with another file."""
    (tmp_path / "team.json").write_text(json.dumps({"db": secret("team"), "key": secret("key")}), encoding="utf-8")
    component(tmp_path / "sets/team/shared", "file", "local.file", {"secretsFile": tmp_path / "team.json"})
    host.add("orders", {"owner": str(ORDERS), "resources": "team/shared"})
    return tmp_path / "sets"


def options(host: Host, sets: Path) -> list[str]:
    return [*host.options, "--app-resources", str(sets)]


def test_an_app_sees_the_set_that_it_names(host: Host, sets: Path) -> None:
    """app-22: An app that names a set as its `resources` sees the stores of that set, and no other."""
    component(host.components, "env", "local.env")
    with mounted(host.components, options=options(host, sets), mountpoint=host.mountpoint) as mount:
        assert names(mount.path / "orders") == ["file"]
        assert names(mount.path / "billing") == ["env", "file"]
        assert read_as(ORDERS, mount.path / "orders/file/db") == secret("team")
        assert read_as(BILLING, mount.path / "billing/file/db/password") == secret("db")
        assert errno_of((mount.path / "orders/file/tls").stat) == "ENOENT"
        assert {"file", "resources://team/shared:file"} <= statistics(mount).keys()


def test_a_store_of_a_set_is_opened_once(host: Host, sets: Path) -> None:
    """app-23: A store of a set is opened once for all apps that name the set; each app has its own scopes."""
    team = sets / "team/shared"
    configuration(team, scope("file", default="deny", allowed=["db"]), name="strict")
    configuration(team, name="wide")
    host.add("orders", {"owner": str(ORDERS), "resources": "team/shared", "configuration": "strict"})
    host.add("billing", {"owner": str(BILLING), "resources": "team/shared", "configuration": "wide"})
    with mounted(host.components, options=options(host, sets), mountpoint=host.mountpoint) as mount:
        assert names(mount.path / "orders/file") == ["db"]
        assert names(mount.path / "billing/file") == ["db", "key"]
        assert read_as(ORDERS, mount.path / "orders/file/db") == secret("team")
        before = statistics(mount)
        assert read_as(BILLING, mount.path / "billing/file/db") == secret("team")
        assert statistics(mount) == before
        assert list(before) == ["resources://team/shared:file"]


def test_sets_come_and_go(host: Host, sets: Path, tmp_path: Path) -> None:
    """app-24: An edit in a set, and of an app's choice of a set, is shown as an edit of other manifests is."""
    with mounted(host.components, options=options(host, sets), mountpoint=host.mountpoint) as mount:
        path = mount.path / "orders/file/db"
        with (mount.path / "billing/file/db/password").open("rb") as held:
            (tmp_path / "more.json").write_text(json.dumps({"more": secret("more")}), encoding="utf-8")
            component(sets / "team/shared", "more", "local.file", {"secretsFile": tmp_path / "more.json"})
            wait_until((mount.path / "orders/more/more").exists)
            (sets / "team/shared/more.yaml").unlink()
            wait_until(lambda: names(mount.path / "orders") == ["file"])
            host.add("orders", {"owner": str(ORDERS)})
            wait_until((mount.path / "orders/file/tls/key").exists)
            assert errno_of(path.read_bytes) == "EISDIR"
            component(sets / "other", "own", "local.file", {"secretsFile": tmp_path / "team.json"})
            host.add("orders", {"owner": str(ORDERS), "resources": "other"})
            wait_until(lambda: names(mount.path / "orders") == ["own"])
            assert read_as(ORDERS, mount.path / "orders/own/db") == secret("team")
            assert held.read().decode() == secret("db")
        assert "resources://team/shared:file" not in statistics(mount)


def test_a_takeover_with_sets(host: Host, sets: Path) -> None:
    """A daemon that is killed is replaced for apps with sets, too; open files stay open (app-10, app-22)."""
    told = ["killed by SIGKILL"]
    flags = options(host, sets)
    with mounted(host.components, options=flags, mountpoint=host.mountpoint, expect_log=told) as mount:
        paths = [mount.path / "orders/file/db", mount.path / "billing/file/db/password"]
        with paths[0].open("rb") as held:
            inodes = [path.stat().st_ino for path in paths]
            os.kill(mount.worker, signal.SIGKILL)
            assert held.read().decode() == secret("team")
            assert [path.read_text() for path in paths] == [secret("team"), SECRETS["db"]["password"]]
            assert [path.stat().st_ino for path in paths] == inodes


def test_a_mistake_in_a_set_is_one_of_the_administrator(host: Host, sets: Path) -> None:
    """app-25: A mistake in a set of `--app-resources` stops the start with file and line; later it changes nothing."""
    told = ["no-such-set.*; nothing is changed"]
    flags = options(host, sets)
    with mounted(host.components, options=flags, mountpoint=host.mountpoint, expect_log=told) as mount:
        host.add("orders", {"owner": str(ORDERS), "resources": "no-such-set"})
        mount.said("nothing is changed")
        assert read_as(ORDERS, mount.path / "orders/file/db") == secret("team")
    refused = secretfs("mount", "--foreground", "--resources-path", host.components, *flags, host.mountpoint)
    assert refused.status == 2
    assert f"{host.apps}/orders.yaml:1: spec.resources: there is no directory {sets}/no-such-set" in refused.err


def test_the_flag_is_for_apps(host: Host, sets: Path) -> None:
    """A mount for a single app has no use for sets (app-25)."""
    done = secretfs("check", "--resources-path", host.components, "--app-resources", sets)
    assert done.status == 2
    assert "--app-resources is for the apps of a mount" in done.err


def test_check_shows_sets(host: Host, sets: Path) -> None:
    """`check` shows what apps see of their sets (app-22)."""
    done = secretfs(
        "check", "--connect", "--resources-path", host.components, *options(host, sets)[:2], "--app-resources", sets
    )
    assert done.status == 0
    assert "key" in done.out
