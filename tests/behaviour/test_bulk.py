"""A whole store in one file."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.canary import secret
from tests.support.manifests import component
from tests.support.mounted import Mounted, mounted
from tests.support.servers.openbao import OpenBao
from tests.support.shell import errno_of, output, run, wait_until
from tests.support.vault_fixtures import Folder

pytestmark = pytest.mark.mount

AWKWARD = {
    "quote": secret("it's"),
    "double": secret('say "x"'),
    "dollar": secret("$HOME ${PATH} $(id) `id`"),
    "lines": secret("one\ntwo\n\nfour\n"),
    "backslash": secret("a\\nb\\"),
    "spaces": secret("  x  "),
    "hash": secret("# no comment; rm -rf /nowhere & true | cat"),
    "unicode": secret("grüße 😀"),
    "html": secret("<&>\u2028"),
    "empty": "",
    "bang": secret("!! !x"),
    "equals": secret("a=b=c"),
    "controls": secret("\t\r\x01\x7f"),
}


@pytest.fixture(scope="module")
def server(openbao_server: OpenBao) -> Folder:
    folder = Folder(openbao_server, "bulk")
    folder.put("awkward", AWKWARD)
    folder.put("team/db", {"user": "joe", "pass-word": secret("db")})
    folder.put("team/deep/er/api", {"key": secret("api")})
    folder.put("empty", {})
    return folder


@pytest.fixture(scope="module")
def mount(scratch: Path, server: Folder) -> Iterator[Mounted]:
    changing = scratch / "changing.json"
    changing.write_text(json.dumps({"a": secret("1"), "b": secret("1")}))
    (scratch / "clash.json").write_text(json.dumps({"api-key": secret("1"), "api.key": secret("2"), "other": "x"}))
    (scratch / "nul.json").write_text(json.dumps({"nul": secret("a\0b"), "other": "x"}))
    component(scratch / "manifests", "vault", "hashicorp.vault", server.metadata())
    component(scratch / "manifests", "clash", "local.file", {"secretsFile": scratch / "clash.json"})
    component(scratch / "manifests", "nul", "local.file", {"secretsFile": scratch / "nul.json"})
    component(scratch / "manifests", "env", "local.env", {"prefix": "BULK_"})
    component(
        scratch / "manifests",
        "changing",
        "local.file",
        {"secretsFile": changing},
        annotations={"secretfs/ttl": "100ms"},
    )
    environment = {"BULK_BINARY": os.fsdecode(b"\xff\xfe" + secret("binary").encode()), "BULK_TEXT": secret("text")}
    expected = ["clash: .*api-key and api.key are both api_key", "nul: .*nul holds a NUL byte"]
    with mounted(scratch / "manifests", env=environment, expect_log=expected) as mounted_here:
        yield mounted_here


def test_json(mount: Mounted) -> None:
    """bulk-1: `.bulk.json` in the directory of a store is Dapr's bulk response: secrets by full name, sorted."""
    text = (mount.path / "vault/.bulk.json").read_text()
    assert json.loads(text) == {
        "awkward": AWKWARD,
        "empty": {},
        "team/db": {"user": "joe", "pass-word": secret("db")},
        "team/deep/er/api": {"key": secret("api")},
    }
    assert list(json.loads(text)) == ["awkward", "empty", "team/db", "team/deep/er/api"]
    assert json.loads((mount.path / "clash/.bulk.json").read_text())["other"] == {"other": "x"}


def test_binary(mount: Mounted) -> None:
    """bulk-2: In `.bulk.json` a value that is not UTF-8 is an object `{"base64": "..."}`."""
    bulk = json.loads((mount.path / "env/.bulk.json").read_text())
    assert bulk["TEXT"] == {"TEXT": secret("text")}
    assert list(bulk["BINARY"]["BINARY"]) == ["base64"]


SHOW = """. "$0" && for name in awkward_{} team_db_user team_db_pass_word team_deep_er_api_key; do
    eval "value=\\$$name"; printf '%s=%s\\0' "$name" "$value"; done"""


@pytest.mark.parametrize("shell", ["sh", "bash", "bash --posix"])
def test_env(mount: Mounted, shell: str) -> None:
    """bulk-3: Any shell can source `.bulk.env`, whatever the values contain; a value's variable is `SECRET_KEY`."""
    names = [f"awkward_{key}" for key in AWKWARD]
    script = SHOW.replace("awkward_{}", " ".join(names))
    told = output(*shell.split(), "-c", script, mount.path / "vault/.bulk.env")
    expected = dict(zip(names, AWKWARD.values(), strict=True)) | {
        "team_db_user": "joe",
        "team_db_pass_word": secret("db"),
        "team_deep_er_api_key": secret("api"),
    }
    assert dict(line.split("=", 1) for line in told.decode().split("\0")[:-1]) == expected


def test_env_of_a_single_valued_store(mount: Mounted) -> None:
    """bulk-4: In a single-valued store, the name of the variable is that of the secret alone."""
    show = '. "$0" && printf "%s|%s" "$TEXT" "$BINARY"'
    told = output("sh", "-c", show, mount.path / "env/.bulk.env")
    assert told == secret("text").encode() + b"|\xff\xfe" + secret("binary").encode()


def test_not_listed(mount: Mounted) -> None:
    """bulk-5: Bulk files are never listed: a program has to know the name, so none reads a whole store by accident."""
    for store in ("vault", "clash", "env"):
        assert not [name for name in os.listdir(mount.path / store) if name.startswith(".bulk")]  # noqa: PTH208
        assert (mount.path / store / ".bulk.json").is_file()


def test_true_size(mount: Mounted) -> None:
    """bulk-6: A bulk file has its true size, like every other file."""
    for name in (".bulk.json", ".bulk.env"):
        path = mount.path / "vault" / name
        assert path.stat().st_size == len(path.read_bytes()) > 0
        assert output("cp", path, "/dev/stdout") == path.read_bytes()


def test_clash(mount: Mounted) -> None:
    """bulk-7: If two values have the same variable name, `.bulk.env` fails with ENOTUNIQ, and the log names both."""
    path = mount.path / "clash/.bulk.env"
    assert errno_of(path.read_bytes) == "ENOTUNIQ"
    assert errno_of(path.stat) == "ENOTUNIQ"
    mount.said("api-key and api.key are both api_key in .bulk.env")
    assert (mount.path / "clash/.bulk.json").stat().st_size > 0


def test_nul(mount: Mounted) -> None:
    """bulk-8: A value with a NUL byte, which no shell can hold, makes `.bulk.env` fail: EILSEQ; the log names it."""
    assert errno_of((mount.path / "nul/.bulk.env").read_bytes) == "EILSEQ"
    mount.said("nul holds a NUL byte")
    assert json.loads((mount.path / "nul/.bulk.json").read_text())["nul"] == {"nul": secret("a\0b")}


def test_one_snapshot(mount: Mounted, scratch: Path) -> None:
    """bulk-9: An open bulk file keeps the content it had when it was opened; the next open gets the current content."""
    path = mount.path / "changing/.bulk.json"
    with path.open("rb", buffering=0) as file:
        first = file.read(10)
        (scratch / "new.json").write_text(json.dumps({"a": secret("22"), "c": secret("22")}))
        (scratch / "new.json").replace(scratch / "changing.json")
        wait_until(lambda: set(json.loads(path.read_text())) == {"a", "c"})
        assert json.loads(first + file.read()) == {"a": {"a": secret("1")}, "b": {"b": secret("1")}}


def test_left_out(scratch: Path, server: Folder) -> None:
    """bulk-10: A secret that the store refuses is left out, and the log names it; any other failure fails the file."""
    token = server.server.limited_token(
        **{"secret/metadata/bulk": "list", "secret/metadata/bulk/*": "list", "secret/data/bulk/team/*": "read"}
    )
    component(scratch / "limited", "vault", "hashicorp.vault", server.metadata(vaultToken=token))
    with mounted(scratch / "limited", expect_log=[r"permission denied \(403\)"]) as limited:
        bulk = json.loads((limited.path / "vault/.bulk.json").read_text())
        assert set(bulk) == {"team/db", "team/deep/er/api"}
        limited.said("left out of the bulk file: secret awkward")


def test_run_with(mount: Mounted) -> None:
    """`set -a` exports all of it to a program (bulk-3)."""
    script = 'set -a && . "$0" && exec env'
    told = run("sh", "-c", script, mount.path / "vault/.bulk.env").stdout.decode()
    assert f"team_db_pass_word={secret('db')}" in told


def test_of_one_secret(mount: Mounted) -> None:
    """bulk-11: In the directory of a multi-valued secret, the bulk files hold its keys, all of one version."""
    directory = mount.path / "vault/team/db"
    assert json.loads((directory / ".bulk.json").read_bytes()) == {"pass-word": secret("db"), "user": "joe"}
    assert (directory / ".bulk.env").read_text() == f"pass_word='{secret('db')}'\nuser='joe'\n"
    assert sorted(path.name for path in directory.iterdir()) == ["pass-word", "user"]
