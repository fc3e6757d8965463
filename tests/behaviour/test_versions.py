"""``..versions``: older versions of secrets of a real OpenBao, on a real mount."""

import json
import os
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.canary import secret
from tests.support.manifests import component, configuration, scope
from tests.support.mounted import Mounted, daemons, mounted
from tests.support.servers.openbao import OpenBao
from tests.support.shell import errno_of, lines, output, wait_until
from tests.support.vault_auth import count

pytestmark = pytest.mark.mount

XATTR_VERSION = "user.secretfs.version"
METADATA = "user.secretfs.metadata."


def cat(path: Path) -> str:
    return output("cat", path).decode()


def password(number: int) -> str:
    return secret(f"version {number}")


FOLDER = "versions"


@pytest.fixture(scope="module")
def mount(openbao_server: OpenBao, scratch: Path) -> Iterator[Mounted]:
    properties = {"vaultAddr": openbao_server.address, "vaultToken": openbao_server.token, "vaultKVPrefix": FOLDER}
    openbao_server.put(f"secret/{FOLDER}/hidden", {"password": password(1)})
    component(scratch / "m", "vault", "hashicorp.vault", properties, annotations={"secretfs/ttl": "500ms"})
    component(scratch / "m", "text", "hashicorp.vault", {**properties, "vaultValueType": "text"})
    (scratch / "token.json").write_text(json.dumps({"token": openbao_server.token}), encoding="utf-8")
    component(scratch / "m", "tokens", "local.file", {"secretsFile": str(scratch / "token.json")})
    referring = {**properties, "vaultToken": {"secretKeyRef": {"name": "token", "key": "token"}}}
    component(scratch / "m", "referring", "hashicorp.vault", referring, secret_store="tokens")
    config = configuration(scratch / "config", scope("vault", denied=["hidden"]))
    expected = [r"process \d+ ended .*: another takes over"]
    with mounted(scratch / "m", options=["--config", str(config)], expect_log=expected) as mount:
        yield mount


@dataclass
class Secret:
    """A secret with three versions, for one test."""

    server: OpenBao
    name: str
    path: Path

    def put(self, number: int) -> None:
        self.server.put(f"secret/{FOLDER}/{self.name}", {"username": "joe", "password": password(number)})

    def call(self, method: str, action: str, body: Mapping[str, Any]) -> None:
        self.server.call(method, f"secret/{action}/{FOLDER}/{self.name}", body)

    def reads(self) -> int:
        """Count how often it was read since the server was told to forget."""
        return count(self.server, f"secret/data/{FOLDER}/{self.name}")


@pytest.fixture
def database(mount: Mounted, openbao_server: OpenBao, request: pytest.FixtureRequest) -> Secret:
    name = f"team/{request.node.name}"
    database = Secret(openbao_server, name, mount.path / "vault" / name)
    for number in range(1, 4):
        database.put(number)
    wait_until(database.path.exists)
    openbao_server.forget()
    return database


def test_each_version(mount: Mounted, database: Secret) -> None:
    """version-1: `..versions/3` in the directory of a secret holds its keys as version 3 has them."""
    versions = database.path / "..versions"
    assert [cat(versions / str(number) / "password") for number in (2, 1, 3)] == [password(n) for n in (2, 1, 3)]
    assert lines("ls", versions / "1") == ["password", "username"]
    assert (versions / "1/password").stat().st_size == len(password(1))
    assert errno_of(os.stat, versions / "4") == "ENOENT"
    assert errno_of(os.stat, versions / "latest") == "ENOENT"
    assert errno_of(os.stat, mount.path / "text" / database.name / "..versions") == "ENOTDIR"


def test_nothing_lists_them(database: Secret) -> None:
    """version-2: `..versions` is never listed and lists nothing: each version is found by its name."""
    assert lines("find", database.path / "..versions") == [str(database.path / "..versions")]
    assert database.reads() == 0
    assert lines("ls", "-A", database.path) == ["password", "username"]


def test_a_version_never_changes(database: Secret) -> None:
    """version-3: What is in a version never changes, no byte, no time and no inode number, whatever comes later."""
    path = database.path / "..versions/3/password"
    before = path.stat()
    assert cat(path) == password(3)
    database.put(4)
    wait_until(lambda: cat(database.path / "password") == password(4))
    assert cat(path) == password(3)
    now = path.stat()
    assert (now.st_ino, now.st_size, now.st_mtime_ns) == (before.st_ino, before.st_size, before.st_mtime_ns)


def test_deleted_versions(database: Secret) -> None:
    """version-4: A version that is deleted or destroyed is ENOENT within `ttl`, until it is undeleted."""
    versions = database.path / "..versions"
    assert (cat(versions / "1/password"), cat(versions / "2/password")) == (password(1), password(2))
    database.call("POST", "delete", {"versions": [1]})
    database.call("PUT", "destroy", {"versions": [2]})
    for number in (1, 2):
        wait_until(lambda number=number: errno_of((versions / f"{number}/password").read_bytes) == "ENOENT")  # type: ignore[misc]
    assert cat(versions / "3/password") == password(3)
    database.call("POST", "undelete", {"versions": [1]})
    wait_until(lambda: errno_of((versions / "1/password").read_bytes) == "")
    assert cat(versions / "1/password") == password(1)


def test_a_secret_that_is_deleted_for_good_and_made_anew(database: Secret) -> None:
    """Its versions go with it, and those of the new one are its own (version-4)."""
    path = database.path / "..versions/1/password"
    assert cat(path) == password(1)
    assert cat(database.path / "password") == password(3)
    database.server.delete(f"secret/{FOLDER}/{database.name}")
    wait_until(lambda: not database.path.exists())
    assert errno_of(path.read_bytes) == "ENOENT"
    database.put(5)
    wait_until(lambda: errno_of(path.read_bytes) == "" and cat(path) == password(5))


def test_who_may_read_them(mount: Mounted, database: Secret) -> None:
    """version-5: Versions have the owner, group and mode of the secret and its keys; scopes hold."""
    for path, like in (("..versions", "."), ("..versions/1", "."), ("..versions/1/password", "password")):
        one, other = (database.path / path).stat(), (database.path / like).stat()
        assert (one.st_uid, one.st_gid, one.st_mode) == (other.st_uid, other.st_gid, other.st_mode)
    assert errno_of(os.stat, mount.path / "vault/hidden/..versions/1") == "ENOENT"


def test_the_name_of_a_version(database: Secret) -> None:
    """version-6: `user.secretfs.version` of a version, and of what is in it, is its name."""
    for path in ("..versions/2", "..versions/2/password"):
        assert os.getxattr(database.path / path, XATTR_VERSION) == b"2"
        assert os.listxattr(database.path / path) == [XATTR_VERSION]


def test_kills(mount: Mounted, database: Secret) -> None:
    """version-7: What holds a version, by a file or as a directory, survives a daemon that is killed."""
    version = database.path / "..versions/1"
    directory = os.open(version, os.O_PATH | os.O_DIRECTORY)
    file = os.open(version / "password", os.O_RDONLY)
    database.put(4)
    try:
        worker = mount.worker
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: daemons(mount.path) not in ([], [worker]))
        assert os.pread(file, 100, 0).decode() == password(1)
        assert Path(f"/proc/self/fd/{directory}/username").read_text(encoding="utf-8") == "joe"
        assert cat(version / "password") == password(1)
    finally:
        os.close(file)
        os.close(directory)


def test_a_kill_hides_none(mount: Mounted, database: Secret) -> None:
    """Also of a store that refers to another one, which is opened when it is asked (version-1)."""
    path = mount.path / "referring" / database.name
    assert cat(path / "password") == password(3)
    worker = mount.worker
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: daemons(mount.path) not in ([], [worker]))
    assert cat(path / "..versions/1/password") == password(1)


def test_metadata(database: Secret) -> None:
    """xattr-5: `user.secretfs.metadata.NAME` is what Vault's custom metadata has under NAME; a list fetches nothing."""
    written = {"owner": "payments", "on call": "ünïcode"}
    database.call("POST", "metadata", {"custom_metadata": written})
    assert [name for name in os.listxattr(database.path) if name.startswith(METADATA)] == []
    assert database.reads() == 0
    assert os.getxattr(database.path, f"{METADATA}owner") == b"payments"
    for path in (database.path, database.path / "password"):
        listed = {name: os.getxattr(path, name).decode() for name in os.listxattr(path) if name.startswith(METADATA)}
        assert listed == {METADATA + name: text for name, text in written.items()}
    assert errno_of(os.getxattr, database.path, f"{METADATA}other") == "ENODATA"
