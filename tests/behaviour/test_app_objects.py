"""Sets of components whose authors are not trusted with the host."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.app_host import BILLING, ORDERS, SECRETS, Host, host, read_as
from tests.support.canary import secret
from tests.support.command import secretfs
from tests.support.manifests import component
from tests.support.mounted import Mounted, mounted
from tests.support.secrets_file import file
from tests.support.servers.cuttable import Cuttable, address_of_this_machine
from tests.support.shell import errno_of, wait_until
from tests.support.vault_fixtures import Folder, kv, openbao_server

__all__ = ["file", "host", "kv", "openbao_server"]

pytestmark = [pytest.mark.mount, pytest.mark.root("needs to mount for other users, which only root can")]

WRONG = {"apiVersion": "dapr.io/v1alpha1", "kind": "Component", "metadata": {"name": "wrong"}}
WRONG_SPEC = {"spec": {"type": "secretstores.hashicorp.vault", "metadata": "wrong"}}


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))  # noqa: PTH208 - names are what counts


def status_of(mount: Mounted, store: str) -> dict[str, Any]:
    status = json.loads((mount.path / ".secretfs/status.json").read_text(encoding="utf-8"))
    return dict(status["stores"][store])


@pytest.fixture
def shop(host: Host, kv: Folder, tmp_path: Path) -> Iterator[Path]:
    """Give the app ``orders`` a set of objects, with a component that leads to OpenBao."""
    kv.put("db", {"password": secret("shop")})
    address = address_of_this_machine()
    with Cuttable(int(kv.server.address.rpartition(":")[2]), address) as way:
        shop = tmp_path / "objects/shop"
        component(shop, "vault", "hashicorp.vault", kv.metadata(vaultAddr=f"http://{address}:{way.port}"))
        host.add("orders", {"owner": str(ORDERS), "objects": "shop"})
        yield shop


def flags_of(host: Host, shop: Path) -> list[str]:
    return [*host.options, "--app-objects", str(shop.parent)]


def test_an_app_sees_the_objects_that_it_names(host: Host, shop: Path, kv: Folder) -> None:
    """app-26: An app that names a set as its `objects` sees the stores of that set, and no other."""
    told = ["more.yaml.*token not set"]
    flags = flags_of(host, shop)
    with mounted(host.components, options=flags, mountpoint=host.mountpoint, expect_log=told) as mount:
        assert names(mount.path / "orders") == ["vault"]
        assert names(mount.path / "billing") == ["file"]
        assert read_as(ORDERS, mount.path / "orders/vault/db/password") == secret("shop")
        component(shop, "more", "hashicorp.vault", {**kv.metadata(), "vaultAddr": "http://192.0.2.1", "vaultToken": ""})
        wait_until(lambda: names(mount.path / "orders") == ["more", "vault"])
        (shop / "more.yaml").unlink()
        wait_until(lambda: names(mount.path / "orders") == ["vault"])
        assert status_of(mount, "objects://shop:vault")["state"] == "ok"


def test_what_is_wrong_in_a_set_of_objects(host: Host, shop: Path, tmp_path: Path) -> None:
    """app-27: A mistake in a set of `--app-objects` stops neither the start, nor a reload, nor another app."""
    (shop / "wrong.yaml").write_text(json.dumps(WRONG | WRONG_SPEC), encoding="utf-8")
    component(shop, "circle", "hashicorp.vault", {"vaultToken": {"secretKeyRef": {"name": "a"}}}, secret_store="circle")
    told = ["wrong.yaml.*it is left out", "circle", "vault.yaml.*it stays as it was"]
    flags = flags_of(host, shop)
    with mounted(host.components, options=flags, mountpoint=host.mountpoint, expect_log=told) as mount:
        assert names(mount.path / "orders") == ["circle", "vault"]
        assert errno_of((mount.path / "orders/circle/a").stat) == "EIO"
        assert read_as(ORDERS, mount.path / "orders/vault/db/password") == secret("shop")
        (shop / "vault.yaml").write_text(json.dumps(WRONG | WRONG_SPEC), encoding="utf-8")
        (tmp_path / "new.json").write_text(json.dumps({"new": secret("new")}), encoding="utf-8")
        component(host.components, "new", "local.file", {"secretsFile": tmp_path / "new.json"})
        wait_until((mount.path / "billing/new/new").exists)
        assert read_as(ORDERS, mount.path / "orders/vault/db/password") == secret("shop")
        assert read_as(BILLING, mount.path / "billing/new/new") == secret("new")


def test_what_the_host_has_is_out_of_reach(host: Host, shop: Path, kv: Folder, tmp_path: Path) -> None:
    """app-28: Components of a set of objects read no file, variable, credential or loopback address of the host."""
    kv.put("db", {"password": secret("shop")})
    component(shop, "files", "local.file", {"secretsFile": tmp_path / "secrets.json"})
    component(shop, "variables", "local.env")
    component(shop, "loopback", "hashicorp.vault", kv.metadata())
    component(
        shop, "token", "hashicorp.vault", {"vaultAddr": "http://192.0.2.1", "vaultTokenMountPath": "/etc/hostname"}
    )
    component(shop, "machine", "azure.keyvault", {"vaultName": "shop"})
    refused = ["files", "loopback", "machine", "token", "variables"]
    flags = flags_of(host, shop)
    with mounted(host.components, options=flags, mountpoint=host.mountpoint, expect_log=["(?s).*"]) as mount:
        assert names(mount.path / "orders") == sorted([*refused, "vault"])
        for name in refused:
            assert errno_of((mount.path / "orders" / name / "db").stat) == "EIO"
            assert status_of(mount, f"objects://shop:{name}")["state"] != "ok"
        assert "127.0.0.1 is 127.0.0.1: loopback" in mount.log
        assert "secretstores.local.env is refused in a component that others write" in mount.log
        assert read_as(ORDERS, mount.path / "orders/vault/db/password") == secret("shop")


def test_a_takeover_with_objects(host: Host, shop: Path) -> None:
    """A daemon that is killed is replaced for such apps, too; what was refused is refused (app-26, app-28)."""
    component(shop, "files", "local.file", {"secretsFile": "/etc/hostname"})
    told = ["killed by SIGKILL", "local.file is refused"]
    flags = flags_of(host, shop)
    with mounted(host.components, options=flags, mountpoint=host.mountpoint, expect_log=told) as mount:
        path = mount.path / "orders/vault/db/password"
        with path.open("rb") as held:
            inode = path.stat().st_ino
            os.kill(mount.worker, signal.SIGKILL)
            assert held.read().decode() == secret("shop")
            assert (path.read_text(), path.stat().st_ino) == (secret("shop"), inode)
            assert errno_of((mount.path / "orders/files/x").stat) == "EIO"
            assert (mount.path / "billing/file/db/password").read_text() == SECRETS["db"]["password"]


def test_check_shows_what_is_refused(host: Host, shop: Path) -> None:
    """`check` says which components are refused, and why (app-28)."""
    component(shop, "files", "local.file", {"secretsFile": "/etc/hostname"})
    done = secretfs("check", "--resources-path", host.components, *host.options[:2], "--app-objects", shop.parent)
    assert "secretstores.local.file is refused in a component that others write" in " ".join(
        (done.out + done.err).split()
    )
