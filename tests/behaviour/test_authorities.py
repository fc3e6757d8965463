"""The certificate authority of a server is rotated under a mount."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from ssl import PROTOCOL_TLS_SERVER, SSLContext

import pytest
import trustme

from tests.support.canary import secret
from tests.support.manifests import component
from tests.support.mounted import mounted
from tests.support.servers.keep_alive import Answer, KeepAlive
from tests.support.shell import wait_until

pytestmark = pytest.mark.mount

QUICK = {"secretfs/ttl": "100ms"}


class Authority:
    """An authority whose certificate is in a file, and the server certificate that it has issued."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def rotate(self) -> SSLContext:
        """Replace the authority. Returns what its server shows."""
        authority = trustme.CA()
        self._publish(authority.cert_pem.bytes().decode())
        context = SSLContext(PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        return context

    def _publish(self, pem: str) -> None:
        new = self._file.parent.with_suffix(".new")
        new.write_text(json.dumps({"ca": pem}) if self._file.suffix == ".json" else pem, encoding="ascii")
        new.replace(self._file)


@contextmanager
def vault(values: list[str]) -> Iterator[KeepAlive]:
    """Run a Vault whose secret ``db`` has the last of the values."""

    def answer(target: str) -> Answer:
        if "/ui/mounts/" in target:
            return 200, b'{"data": {"path": "secret/", "type": "kv", "options": {"version": "2"}}}'
        if "/metadata/" in target:
            return 200, b'{"data": {"keys": ["db"]}}'
        return 200, json.dumps({"data": {"data": {"key": values[-1]}, "metadata": {"version": len(values)}}}).encode()

    with KeepAlive(answer) as server:
        yield server


@pytest.mark.parametrize("field", ["caCert", "caPath", "caPem"])
def test_a_rotated_authority(tmp_path: Path, field: str) -> None:
    """vault-15: When the server's CA is rotated, `caCert`, `caPath` or a referenced `caPem` is read again."""
    folder, manifests = tmp_path / "authorities", tmp_path / "res"
    folder.mkdir()
    file = folder / ("ca.json" if field == "caPem" else "ca.pem")
    authority, values = Authority(file), [secret("old")]
    with vault(values) as server:
        server.tls = authority.rotate()
        value: object = {"caCert": file, "caPath": folder, "caPem": {"secretKeyRef": {"name": "ca", "key": "ca"}}}[
            field
        ]
        properties = {"vaultAddr": server.address, "vaultToken": secret("token"), field: value}
        component(manifests, "authorities", "local.file", {"secretsFile": file})
        component(manifests, "vault", "hashicorp.vault", properties, annotations=QUICK, secret_store="authorities")
        if field != "caPem":
            (manifests / "authorities.yaml").unlink()
        with mounted(manifests, expect_log=[r"vault: .*TLS"]) as mount:
            path = mount.path / "vault/db/key"
            for generation in ("new", "newer"):
                assert path.read_text("utf-8") == values[-1]
                server.tls = authority.rotate()
                server.close_idle()
                values.append(secret(generation))
                wait_until(lambda: path.read_text("utf-8") == values[-1])
