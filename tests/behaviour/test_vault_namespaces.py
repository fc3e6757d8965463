"""Namespaces of Vault on a real mount, of a real OpenBao."""

import os
from pathlib import Path

import pytest

from tests.support.canary import secret
from tests.support.manifests import component
from tests.support.mounted import mounted
from tests.support.servers.openbao import OpenBao
from tests.support.shell import errno_of, lines, output, refused_mount, wait_until

pytestmark = pytest.mark.mount


def test_namespaces(openbao_server: OpenBao, tmp_path: Path) -> None:
    """vault-16: With `vaultNamespace` a store is that of a namespace; one that does not exist is no empty store."""
    openbao_server.call("POST", "sys/namespaces/tenants")
    openbao_server.call("POST", "tenants/sys/namespaces/orders")
    engine = openbao_server.mount("apps/web/kv", namespace="tenants/orders")
    openbao_server.call("POST", f"tenants/orders/{engine}/data/dapr/db", {"data": {"password": secret("orders")}})
    properties = {"vaultAddr": openbao_server.address, "vaultToken": openbao_server.token, "enginePath": engine}
    annotations = {"secretfs/ttl": "100ms"}
    there, wrong = ({**properties, "vaultNamespace": f"tenants/{name}"} for name in ("orders", "nope"))
    component(tmp_path / "m", "vault", "hashicorp.vault", there, annotations=annotations)
    component(tmp_path / "wrong", "vault", "hashicorp.vault", wrong)
    code, reason = refused_mount(tmp_path / "wrong")
    assert (code, "there is no such namespace (404)" in reason) == (4, True)
    with mounted(tmp_path / "m", expect_log=[r"there is no such namespace \(404\)"]) as mount:
        assert lines("ls", mount.path / "vault") == ["db"]
        assert output("cat", mount.path / "vault/db/password").decode() == secret("orders")
        openbao_server.call("DELETE", "tenants/sys/namespaces/orders")
        wait_until(lambda: errno_of(os.listdir, mount.path / "vault") == "EACCES")
