"""`secretfs tree`, `cat` and `get`: what a mount shows, without a mount, from a real OpenBao."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.canary import secret
from tests.support.database_engine import Engine, database
from tests.support.manifests import component, configuration, scope
from tests.support.mounted import Mounted, mounted
from tests.support.servers.openbao import OpenBao
from tests.support.servers.postgres import Postgres
from tests.support.unmounted import Looked, look
from tests.support.vault_fixtures import Folder

__all__ = ["database"]

FOLDER = "unmounted"
PATIENT = {"secretfs/deadline": "1m"}
BINARY = "".join(map(chr, range(256)))


class Place:
    """Components, a scope, and a mount of them."""

    def __init__(self, directory: Path, server: OpenBao) -> None:
        self.server = server
        self.components = directory / "components"
        properties = {"vaultAddr": server.address, "vaultToken": server.token, "vaultKVPrefix": FOLDER}
        server.put(f"secret/{FOLDER}/db", {"username": "shop", "password": secret("old")})
        server.put(f"secret/{FOLDER}/db", {"username": "shop", "password": secret("new"), "empty": ""})
        server.put(f"secret/{FOLDER}/team/100%", {"binary": BINARY, ".bulk.json": secret("a name of ours")})
        server.put(f"secret/{FOLDER}/hidden", {"key": secret("hidden")})
        component(self.components, "vault", "hashicorp.vault", properties, annotations=PATIENT)
        component(self.components, "down", "hashicorp.vault", {**properties, "vaultAddr": "http://127.0.0.1:1"})
        down = self.components / "down.yaml"
        down.write_text(down.read_text().replace("spec:\n", "spec:\n  ignoreErrors: true\n"), encoding="utf-8")
        self.config = configuration(directory / "config", scope("vault", denied=["hidden"]))

    def look(self, command: str, *arguments: str) -> Looked:
        """Run a command with these components."""
        return look(command, "--resources-path", self.components, "--config", self.config, *arguments)


@pytest.fixture(scope="module")
def place(openbao_server: OpenBao, scratch: Path) -> Place:
    return Place(scratch, openbao_server)


@pytest.fixture(scope="module")
def mount(place: Place) -> Iterator[Mounted]:
    with mounted(place.components, config=[place.config], expect_log=["down"]) as mount:
        yield mount


READABLE = (
    "vault/db/username", "vault/db/password", "vault/db/empty", "vault/team/100%25/binary",
    "vault/team/100%25/%2Ebulk.json", "vault/db/..data/password", "vault/db/..versions/1/password",
    "vault/db/.bulk.json", "vault/db/.bulk.env", "vault/.bulk.json",
)  # fmt: skip
UNREADABLE = (
    "vault/db", "vault/team", "vault/db/nothing", "vault/nothing", "nothing", "vault/hidden", "vault/hidden/key",
    "vault/db/username/below", "vault/..versions", "vault/db/..versions/9/password", "vault/100%", "down/db",
)  # fmt: skip


@pytest.mark.mount
def test_the_bytes_of_files(place: Place, mount: Mounted) -> None:
    """look-1: `secretfs cat` prints the bytes that a mount has in the file, also in one that is not listed."""
    contents = [(mount.path / path).read_bytes() for path in READABLE]
    assert contents[3] == BINARY.encode()
    assert place.look("cat", READABLE[3]) == Looked(0, BINARY.encode(), "")
    assert place.look("cat", *READABLE) == Looked(0, b"".join(contents), "")
    assert place.look("get", "/vault/db/password/").out == secret("new").encode()
    assert place.look("get", "vault/db").out == (mount.path / "vault/db/.bulk.json").read_bytes()
    assert place.look("get", "--format", "env", "vault/db").out == (mount.path / "vault/db/.bulk.env").read_bytes()
    assert place.look("get", "vault").out == (mount.path / "vault/.bulk.json").read_bytes()


@pytest.mark.mount
def test_the_words_of_errnos(place: Place, mount: Mounted) -> None:
    """look-2: What a mount refuses, they refuse, in the words of the same errno, and they print nothing."""
    words = []
    for path in UNREADABLE:
        with pytest.raises(OSError, match=r"\[Errno") as refused:
            (mount.path / path).read_bytes()
        words.append(f"secretfs: {path}: {os.strerror(refused.value.errno or 0)}")
    done = place.look("cat", *UNREADABLE)
    told = done.err.splitlines()
    assert [line[: len(expected)] for line, expected in zip(told, words, strict=True)] == words
    assert (done.status, done.out) == (1, b"")
    assert place.look("cat", "vault/team", "vault/db/username").out == b"shop"
    for path, status in (("vault/hidden", 1), ("vault/team", 1), ("down/db", 4)):
        done = place.look("get", path)
        assert (done.status, done.out) == (status, b"")
        assert done.err.startswith(words[UNREADABLE.index(path)])


def test_a_tree_of_names(kv: Folder, tmp_path: Path) -> None:
    """look-3: `secretfs tree` shows what the scope shows, and asks a store for names, never for a value."""
    for name in ("db", "team/100%", "hidden"):
        kv.put(name, {"key": secret(name)})
    component(tmp_path / "c", "vault", "hashicorp.vault", kv.metadata(), annotations=PATIENT)
    config = configuration(tmp_path / "config", scope("vault", denied=["hidden"]))

    def tree(path: str) -> list[str]:
        done = look("tree", "--resources-path", tmp_path / "c", "--config", config, path)
        assert (done.status, done.err) == (0, "")
        return done.out.decode().splitlines()

    assert tree("vault") == ["vault", "├── db/", "└── team/", "    └── 100%25/"]
    assert tree("vault/team") == ["vault/team", "└── 100%25/"]
    assert tree("vault/db") == ["vault/db"]
    ours = [(operation, path.split("/")) for operation, path in kv.server.requests() if kv.prefix in path.split("/")]
    asked = {parts[1] for operation, parts in ours if operation not in ("create", "update")}
    assert asked == {"metadata"}


def test_what_is_not_there_for_a_tree(place: Place) -> None:
    """A name that is not there, and one that the scope hides, look the same (look-2)."""
    for path in ("vault/hidden", "vault/db/password"):
        assert place.look("tree", path) == Looked(1, b"", f"secretfs: {path}: No such file or directory\n")


def test_only_what_is_asked_for_is_opened(place: Place, scratch: Path) -> None:
    """look-4: They open the stores that their paths lead to, and what those take credentials from; no other."""
    broken = scratch / "broken"
    properties = {"vaultAddr": place.server.address, "vaultKVPrefix": FOLDER}
    (scratch / "tokens.json").write_text(f'{{"vault": "{place.server.token}"}}', encoding="utf-8")
    component(broken, "tokens", "local.file", {"secretsFile": scratch / "tokens.json"})
    token = {"secretKeyRef": {"name": "vault", "key": "vault"}}
    component(
        broken,
        "vault",
        "hashicorp.vault",
        {**properties, "vaultToken": token},
        secret_store="tokens",
        annotations=PATIENT,
    )
    component(broken, "other", "hashicorp.vault", {"vaultAddr": "http://127.0.0.1:1", "vaultToken": "x"})
    done = look("cat", "--resources-path", broken, "vault/db/username")
    assert (done.status, done.out, done.err) == (0, b"shop", "")
    done = look("cat", "--resources-path", broken, "other/db/username")
    assert (done.status, done.out) == (4, b"")
    assert "component other: " in done.err


def test_an_issued_credential_lives_on(openbao_server: OpenBao, database: Postgres, scratch: Path) -> None:
    """look-5: A credential that is issued for `cat` or `get` is not revoked when they end."""
    engine = Engine(openbao_server, database)
    components = scratch / engine.path
    component(components, "database", "hashicorp.vault", engine.login(), annotations=PATIENT)
    assert look("tree", "--resources-path", components).out.decode().splitlines() == [
        "/", "└── database/", "    └── app/",
    ]  # fmt: skip
    assert engine.made() == 0
    done = look(
        "cat", "--resources-path", components, *(f"database/app/..data/{key}" for key in ("username", "password"))
    )
    (user,) = engine.users()
    assert engine.made() == 1
    assert (done.status, done.err) == (0, "")
    assert engine.works({"username": user.encode(), "password": done.out.removeprefix(user.encode())})
