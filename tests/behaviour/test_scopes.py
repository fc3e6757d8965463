"""Dapr's secret scopes and component scopes, as an app sees them."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.canary import secret
from tests.support.command import secretfs
from tests.support.manifests import component, configuration, scope
from tests.support.mounted import Mounted, mounted
from tests.support.servers.openbao import OpenBao
from tests.support.shell import lines, run, ways_to_ask
from tests.support.vault_fixtures import Folder

pytestmark = pytest.mark.mount

ALL = {"s1", "s2", "s3"}
# Dapr's documentation, secrets-scopes.md, and pkg/config/configuration_test.go
TRUTH: dict[str, tuple[dict[str, object] | None, set[str]]] = {
    "no-scope": (None, ALL),
    "empty": (scope("empty"), ALL),
    "deny": (scope("deny", default="deny"), set()),
    "deny-in-capitals": (scope("deny-in-capitals", default="DENY"), set()),
    "deny-but-one": (scope("deny-but-one", default="deny", allowed=["s1"]), {"s1"}),
    "allow-but-one": (scope("allow-but-one", default="allow", denied=["s1"]), ALL - {"s1"}),
    "no-default-but-one": (scope("no-default-but-one", denied=["s1"]), ALL - {"s1"}),
    "allow-only-one": (scope("allow-only-one", default="allow", allowed=["s1"]), {"s1"}),
    "deny-twice": (scope("deny-twice", default="deny", denied=["s1"]), set()),
    "both-lists": (scope("both-lists", default="allow", allowed=["s1"], denied=["s2"]), {"s1"}),
    "in-both-lists": (scope("in-both-lists", default="deny", allowed=["s1"], denied=["s1"]), {"s1"}),
    "other-case": (scope("other-case", default="deny", allowed=["S1"]), set()),
    "no-patterns": (scope("no-patterns", default="deny", allowed=["s*", "s"]), set()),
    "not-there": (scope("not-there", default="deny", allowed=["s1", "s9"]), {"s1"}),
}


@pytest.fixture(scope="module")
def truth(scratch: Path) -> Iterator[Path]:
    """Mount the same secrets once for each row of the truth table, each behind its scope."""
    (scratch / "secrets.json").write_text(json.dumps({name: secret(name) for name in ALL}))
    for row in TRUTH:
        component(scratch / "truth", row, "local.file", {"secretsFile": scratch / "secrets.json"})
    config = configuration(scratch, *(entry for entry, _ in TRUTH.values() if entry))
    with mounted(scratch / "truth", config=[config]) as mount:
        yield mount.path


@pytest.mark.parametrize("row", TRUTH)
def test_the_truth_table(truth: Path, row: str) -> None:
    """scope-1: An app sees the secrets that its scope allows by Dapr's rule, in every program and in the bulk files."""
    allowed = TRUTH[row][1]
    directory = truth / row
    assert set(lines("ls", directory)) == allowed
    assert set(lines("find", directory, "-type", "f", "-printf", "%f\n")) == allowed
    assert {name for name in ALL if run("cat", directory / name).stdout == secret(name).encode()} == allowed
    assert {name for name in ALL if run("stat", directory / name).returncode == 0} == allowed
    assert set(json.loads((directory / ".bulk.json").read_text())) == allowed
    names = {line.partition("=")[0] for line in (directory / ".bulk.env").read_text().splitlines()}
    assert names == allowed


@pytest.mark.parametrize("row", TRUTH)
def test_hidden_is_missing(truth: Path, row: str) -> None:
    """scope-2: A hidden secret looks like one that does not exist: every call returns the same errno."""
    missing = ways_to_ask(truth / row / "s9")
    assert set(missing) == {"ENOENT"}
    for name in ALL - TRUTH[row][1]:
        assert ways_to_ask(truth / row / name) == missing


# --- a store with folders ---


@pytest.fixture(scope="module")
def folders(scratch: Path, openbao_server: OpenBao) -> Iterator[tuple[Mounted, Folder]]:
    folder = Folder(openbao_server, "scopes")
    for name in ("open", "closed", "team/open", "team/closed", "dark/one", "dark/deep/two", "half/dark/x", "half/y"):
        folder.put(name, {"key": secret(name)})
    for store in ("denying", "allowing"):
        component(scratch / "folders", store, "hashicorp.vault", folder.metadata())
    config = configuration(
        scratch,
        scope("denying", denied=["closed", "team/closed", "dark/one", "dark/deep/two", "half/dark/x"]),
        scope("allowing", default="deny", allowed=["open", "team/open", "half/y"]),
        name="folders",
    )
    with mounted(scratch / "folders", config=[config]) as mount:
        yield mount, folder


@pytest.mark.parametrize("store", ["denying", "allowing"])
def test_folders(folders: tuple[Mounted, Folder], store: str) -> None:
    """scope-3: A folder with nothing but hidden secrets in it does not exist."""
    top = folders[0].path / store
    assert set(lines("find", top, "-type", "f", "-printf", "%P\n")) == {"half/y/key", "open/key", "team/open/key"}
    assert lines("ls", top) == ["half", "open", "team"]
    assert lines("ls", top / "half") == ["y"]
    missing = ways_to_ask(top / "nope")
    for hidden in ("closed", "team/closed", "dark", "dark/one", "dark/deep", "half/dark", "half/dark/x"):
        assert ways_to_ask(top / hidden) == missing
    assert set(json.loads((top / ".bulk.json").read_text())) == {"half/y", "open", "team/open"}


@pytest.mark.parametrize("store", ["denying", "allowing"])
def test_refused_before_the_store_is_asked(folders: tuple[Mounted, Folder], store: str) -> None:
    """scope-4: The store is never asked for a hidden secret."""
    mount, folder = folders
    folder.server.forget()
    for hidden in ("closed", "team/closed", "dark/one", "half/dark/x"):
        ways_to_ask(mount.path / store / hidden)
        ways_to_ask(mount.path / store / hidden / "key")
    (mount.path / store / ".bulk.json").read_bytes()
    read = {path for operation, path in folder.requests() if operation == "read"}
    assert read <= {f"data/{name}" for name in ("open", "team/open", "half/y")}


def test_a_name_in_a_scope_is_the_whole_name(scratch: Path) -> None:
    """scope-5: A scope names secrets as Dapr's API does, not keys: `team/db`, or `db:password` in a local file."""
    (scratch / "nested.json").write_text(json.dumps({"db": {"user": secret("user"), "password": secret("password")}}))
    component(scratch / "whole", "file", "local.file", {"secretsFile": scratch / "nested.json"})
    properties = {"secretsFile": scratch / "nested.json", "multiValued": "true"}
    component(scratch / "whole", "multi", "local.file", properties)
    config = configuration(
        scratch, scope("file", denied=["db", "db:user"]), scope("multi", denied=["db:user", "user"]), name="whole"
    )
    with mounted(scratch / "whole", config=[config]) as mount:
        assert lines("ls", mount.path / "file") == ["db:password"]
        assert lines("ls", mount.path / "multi/db") == ["password", "user"]


# --- component scopes ---


@pytest.mark.parametrize(
    ("app_id", "stores"),
    [("shop", ["everybody", "shop-and-till", "shop-only"]), ("till", ["everybody", "shop-and-till"])],
)
def test_component_scopes(scratch: Path, app_id: str, stores: list[str]) -> None:
    """scope-6: A component that is scoped to other app ids does not exist, and is never opened."""
    manifests = scratch / f"components-{app_id}"
    component(manifests, "everybody", "local.env", {"prefix": "NOTHING_"})
    component(manifests, "shop-only", "local.env", {"prefix": "NOTHING_"}, scopes=["shop"])
    component(manifests, "shop-and-till", "local.env", {"prefix": "NOTHING_"}, scopes=["shop", "till"])
    nowhere = {"vaultAddr": "http://127.0.0.1:1", "vaultToken": secret("token")}
    component(manifests, "unreachable", "hashicorp.vault", nowhere, scopes=["office"])
    with mounted(manifests, app_id=app_id) as mount:
        assert lines("ls", mount.path) == stores
        missing = ways_to_ask(mount.path / "nope")
        for name in {"shop-only", "unreachable"} - set(stores):
            assert ways_to_ask(mount.path / name) == missing


def test_check_shows_what_the_mount_shows(scratch: Path, truth: Path) -> None:
    """scope-7: `secretfs check --connect` shows the names that the app would see, and no others."""
    done = secretfs("check", "--connect", "--resources-path", scratch / "truth", "--config", scratch / "appconfig.yaml")
    assert done.status == 1  # names in the scopes that no secret has are a warning
    assert all(" it has no secret " in line for line in done.lines)
    shown = sum(any(name in line for name in ALL) for line in done.out.splitlines())
    assert shown == sum(len(os.listdir(truth / row)) for row in TRUTH)  # noqa: PTH208
