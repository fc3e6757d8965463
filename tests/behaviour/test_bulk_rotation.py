"""Bulk files in other formats, and programs that watch bulk files."""

import json
import os
import select
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.support.canary import secret
from tests.support.manifests import component
from tests.support.mounted import mounted
from tests.support.secrets_file import SecretsFile, file
from tests.support.servers.openbao import OpenBao
from tests.support.shell import errno_of, output
from tests.support.vault_fixtures import Folder
from tests.support.waiting import PATIENCE, wait_until
from tests.support.watching import watching

__all__ = ["file"]

pytestmark = pytest.mark.mount

OLD, NEW = secret("old"), secret("new, and longer")


@pytest.fixture
def server(openbao_server: OpenBao) -> Folder:
    folder = Folder(openbao_server, "bulk-rotation")
    folder.put("team/db", {"user": "joe", "pass-word": OLD})
    folder.put("api", {"key": secret("grün: x")})
    return folder


@pytest.fixture
def store(tmp_path: Path, server: Folder) -> Iterator[Path]:
    """Mount a store of which changes are found out by asking again."""
    component(
        tmp_path / "manifests", "vault", "hashicorp.vault", server.metadata(), annotations={"secretfs/ttl": "200ms"}
    )
    with mounted(tmp_path / "manifests") as mount:
        yield mount.path / "vault"


def test_export(store: Path) -> None:
    """bulk-13: `.bulk.export.env` is `.bulk.env` with `export` before each line, for programs that the shell starts."""
    told = output("sh", "-c", '. "$0" && exec sh -c \'printf %s "$team_db_pass_word"\'', store / ".bulk.export.env")
    assert told.decode() == OLD
    assert (store / "api/.bulk.export.env").read_text() == f"export key='{secret('grün: x')}'\n"


def test_yaml(store: Path) -> None:
    """bulk-14: `.bulk.yaml` is what `.bulk.json` is, in YAML; a value that is not UTF-8 is `!!binary`."""
    assert yaml.safe_load((store / ".bulk.yaml").read_bytes()) == json.loads((store / ".bulk.json").read_bytes())
    assert yaml.safe_load((store / "team/db/.bulk.yaml").read_bytes()) == {"user": "joe", "pass-word": OLD}


def test_properties(store: Path) -> None:
    """bulk-15: `.bulk.properties` is for Java: `SECRET.KEY=value`, a "/" in a name is a ".", all of it is ASCII."""
    shown = (store / ".bulk.properties").read_text("ascii")
    assert shown == f"api.key={secret('gr')}\\u00fcn: x\nteam.db.pass-word={OLD}\nteam.db.user=joe\n"
    assert (store / "api/.bulk.properties").read_text("ascii") == f"key={secret('gr')}\\u00fcn: x\n"


def test_properties_are_text(file: SecretsFile, tmp_path: Path) -> None:
    """Two names that are one fail the file (bulk-7, bulk-15)."""
    file.write({"a/b": OLD, "a.b": OLD})
    component(tmp_path / "manifests", "file", "local.file", {"secretsFile": file.path})
    expected = [r"a\.b and a/b are both a\.b in \.bulk\.properties"]
    with mounted(tmp_path / "manifests", expect_log=expected) as mount:
        assert errno_of((mount.path / "file/.bulk.properties").read_bytes) == "ENOTUNIQ"


def test_watchers_hear_of_it(store: Path, server: Folder, tmp_path: Path) -> None:
    """bulk-16: Programs that watch or poll a bulk file are told of another version of it, as of any other file."""
    bulk, of_one = store / ".bulk.json", store / "team/db/.bulk.env"
    bulk.read_bytes()
    of_one.read_bytes()
    with bulk.open("rb") as opened, watching(tmp_path / "log", store, store / "team/db") as watch:
        poller = select.poll()
        poller.register(opened, select.POLLPRI)
        server.put("team/db", {"user": "joe", "pass-word": NEW})
        watch.wait_for(f".bulk.json MOVED_TO {store}/", f".bulk.env MOVED_TO {store}/team/db/")
        assert poller.poll(PATIENCE * 1000)
        assert json.loads(opened.read())["team/db"]["pass-word"] == OLD
        assert os.fstat(opened.fileno()).st_nlink == 0
    assert json.loads(bulk.read_bytes())["team/db"]["pass-word"] == NEW
    assert NEW in of_one.read_text()


def test_all_of_it_is_kept_fresh(store: Path, server: Folder, tmp_path: Path) -> None:
    """bulk-17: Who opens the bulk file of a store uses every secret in it, up to 1,000: all are kept fresh."""
    bulk = store / ".bulk.env"
    bulk.read_bytes()
    with watching(tmp_path / "log", store) as watch:
        for value in (secret("1"), secret("2")):
            server.put("api", {"key": value})  # which no program has opened
            wait_until(lambda expected=value: expected in bulk.read_text())  # type: ignore[misc]
        watch.wait_for(f".bulk.env MOVED_TO {store}/")
