"""Stores whose credentials come from other stores, three levels deep, while the credentials are rotated."""

import threading
import time
from pathlib import Path

import pytest

from tests.support.canary import secret
from tests.support.kube_fixtures import Namespace, kube, namespace, outside
from tests.support.manifests import component
from tests.support.mounted import mounted
from tests.support.secrets_file import SecretsFile, file
from tests.support.servers.openbao import OpenBao
from tests.support.shell import wait_until
from tests.support.vault_fixtures import Folder

__all__ = ["file", "kube", "namespace", "outside"]

pytestmark = pytest.mark.mount

LOOK_AGAIN = 1.1
"""Seconds: a store looks at its references once a second at most."""


def reference(name: str, key: str) -> dict[str, object]:
    return {"secretKeyRef": {"name": name, "key": key}}


def test_rotation_upstream(own_server: OpenBao, namespace: Namespace, tmp_path: Path) -> None:
    """ref-1: When the credentials of a store are rotated in the store that they come from, no read fails."""
    server, rights = own_server, {"secret/data/*": "read", "secret/metadata/*": "list"}
    tokens = [server.limited_token(**rights) for _ in range(2)]
    namespace.put("outer", {"token": tokens[0].encode()})
    server.put("secret/outer/inner", {"token": tokens[1]})
    server.put("secret/inner/db", {"password": secret("inner")})
    vault = {"vaultAddr": server.address}
    quick = {"secretfs/ttl": "50ms"}
    manifests = tmp_path / "components"
    component(manifests, "kube", "kubernetes", namespace.properties())
    outer = {**vault, "vaultKVPrefix": "outer", "vaultToken": reference("outer", "token")}
    component(manifests, "outer", "hashicorp.vault", outer, annotations=quick, secret_store="kube")
    inner = {**vault, "vaultKVPrefix": "inner", "vaultToken": reference("inner", "token")}
    component(manifests, "inner", "hashicorp.vault", inner, annotations=quick, secret_store="outer")
    with mounted(manifests) as mount:
        path = mount.path / "inner/db/password"
        reads, failed, over = 0, list[OSError](), threading.Event()

        def read_on() -> None:
            nonlocal reads
            while not over.is_set():
                try:
                    assert path.read_text() == secret("inner")
                    reads += 1
                except OSError as error:
                    failed.append(error)

        reader = threading.Thread(target=read_on)
        reader.start()
        try:
            for times in (1, 2):
                time.sleep(LOOK_AGAIN)
                before, tokens = tokens, [server.limited_token(**rights) for _ in range(2)]
                namespace.put("outer", {"token": tokens[0].encode()})
                server.put("secret/outer/inner", {"token": tokens[1]})
                for token in before:
                    server.call("POST", "auth/token/revoke", {"token": token})
                for name in ("outer", "inner"):
                    mount.said(f"{name}: opened with new credentials", times)
        finally:
            over.set()
            reader.join()
        assert failed == []
        assert reads > 100


def test_what_is_no_credential(own_server: OpenBao, file: SecretsFile, tmp_path: Path) -> None:
    """ref-2: A store adopts a new version of a secret it refers to within that secret's `ttl`, even if not refused."""
    file.write({"prefix": "here"})
    for place in ("here", "there"):
        own_server.put(f"secret/{place}/db", {"password": secret(place)})
    quick = {"secretfs/ttl": "1s"}
    component(tmp_path / "components", "file", "local.file", {"secretsFile": file.path}, annotations=quick)
    folder = {**Folder(own_server, "here").metadata(), "vaultKVPrefix": reference("prefix", "prefix")}
    component(tmp_path / "components", "vault", "hashicorp.vault", folder, annotations=quick, secret_store="file")
    with mounted(tmp_path / "components") as mount:
        path = mount.path / "vault/db/password"
        assert path.read_text() == secret("here")
        file.write({"prefix": "there"})
        wait_until(lambda: path.read_text() == secret("there"))
