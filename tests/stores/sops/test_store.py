"""``secretstores.secretfs.sops``: with the real tool, and keys of age."""

import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from secretfs.errors import (
    AccessDenied,
    ConfigurationError,
    DeadlineExceeded,
    MalformedAnswer,
    SecretNotFound,
    StoreError,
    StoreUnavailable,
)
from secretfs.store import SecretStore
from secretfs.stores import sops
from tests.support.canary import CANARY, leaked, secret
from tests.support.opened import DEADLINE, opened
from tests.support.secrets_file import FileContract
from tests.support.sops import SOPS, TYPE, Encrypted, new_key
from tests.support.waiting import wait_until


@pytest.fixture
def file(tmp_path: Path) -> Encrypted:
    return Encrypted.make(tmp_path)


@pytest.fixture(autouse=True)
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the test to a home without keys, and to the program itself: a script in Python stands before it."""
    monkeypatch.setenv("PATH", f"{SOPS.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GNUPGHOME", str(tmp_path / "gnupg"))
    for name in [name for name in os.environ if name.startswith("SOPS_")]:
        monkeypatch.delenv(name)


class TestContract(FileContract):
    deadline = DEADLINE


def everything(store: SecretStore) -> dict[str, dict[str, str]]:
    return {name: {k: v.decode() for k, v in store.fetch(name).values.items()} for name in store.names("").secrets}


@pytest.mark.parametrize(
    ("name", "text", "values"),
    [
        ("s.json", '{"a": {"b": "x", "n": 5432}}', {"a:b": "x", "a:n": "5432"}),
        ("s.yaml", "a:\n  t: true\nlist: [1, '0.10']\n", {"a:t": "true", "list:0": "1", "list:1": "0.10"}),
        ("s.yml", "text: |\n  two\n  lines\n", {"text": "two\nlines\n"}),
        ("s.env", "A=1\nB=two words\n", {"A": "1", "B": "two words"}),
        (".env", "A=1\n", {"A": "1"}),
        ("s.ini", "[db]\nuser=me\n", {"db:user": "me"}),
    ],
)  # fmt: skip
def test_each_format_of_sops_that_has_names(tmp_path: Path, name: str, text: str, values: dict[str, str]) -> None:
    file = Encrypted.make(tmp_path, "first.json")
    file = Encrypted(tmp_path / name, file.key_file, file.recipient)
    file.write_text(text.encode())
    with file.store() as store:
        assert everything(store) == {key: {key: value} for key, value in values.items()}


def test_entries_of_the_top_level_may_be_secrets(file: Encrypted) -> None:
    file.write({"db": {"user": "app", "password": secret()}, "token": secret("token")})
    with file.store(multiValued="true") as store:
        assert everything(store) == {"db": {"user": "app", "password": secret()}, "token": {"token": secret("token")}}


def test_a_change_is_reported(file: Encrypted) -> None:
    file.write({"a": secret("old"), "b": "x"})
    heard: list[frozenset[str]] = []
    with file.store() as store:
        store.watch(heard.append)  # type: ignore[attr-defined]
        wait_until(lambda: heard == [{"a", "b"}])  # a process before this one may have read something else
        file.write({"a": secret("new"), "b": "x"})
        wait_until(lambda: frozenset({"a"}) in heard)
        assert store.fetch("a").values == {"a": secret("new").encode()}


def recorder(directory: Path, then: str) -> Path:
    """Put a program ``sops`` into a directory. It notes its arguments and its environment, and goes on as told."""
    directory.mkdir()
    tool = directory / "sops"
    note = shlex.quote(str(directory / "noted"))
    tool.write_text(f'#!/bin/sh\n{{ echo "$0 $@"; env; }} >> {note}\n{then}\n')
    tool.chmod(0o755)
    return directory / "noted"


def test_no_value_and_no_key_is_anywhere_but_in_pipes(
    file: Encrypted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write({"a": secret("a")})
    noted = recorder(tmp_path / "bin", f'exec {shlex.quote(str(SOPS))} "$@"')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with file.store() as store:
        assert store.fetch("a").values == {"a": secret("a").encode()}
    text = noted.read_text()
    assert f"{tmp_path / 'bin'}/sops decrypt --input-type json --output-type json /dev/stdin\n" in text
    assert not leaked(text)
    identity = re.findall(r"AGE-SECRET-KEY-\w+", file.key_file.read_text())
    assert len(identity) == 1
    assert identity[0] not in text
    changed = [path for path in tmp_path.rglob("*") if before.get(path) != path.stat().st_mtime_ns]
    assert {path.name for path in changed} <= {"noted", "bin"}


def failed(store: SecretStore) -> StoreError:
    with pytest.raises(StoreError) as caught:
        store.fetch("db")
    assert CANARY not in str(caught.value)
    assert caught.value.__cause__ is None
    return caught.value


@pytest.fixture
def store(file: Encrypted) -> Iterator[SecretStore]:
    """Open a store with a secret ``db`` that has been read."""
    file.write({"db": secret("db")})
    with file.store() as store:
        assert store.fetch("db").values == {"db": secret("db").encode()}
        yield store


def test_a_file_for_somebody_else_is_refused(file: Encrypted, store: SecretStore, tmp_path: Path) -> None:
    """Also for who had it: whoever took our key out of the file wants us to have it no more."""
    (tmp_path / "other").mkdir()
    file.write_text(b'{"db": "x"}', new_key(tmp_path / "other/key"))
    error = failed(store)
    assert type(error) is AccessDenied
    assert str(error) == f"{file.path}: no key that sops finds decrypts it (128)"


def altered(data: bytes) -> bytes:
    """Let two values change places, which only the MAC of the file can tell."""
    first, second = re.findall(rb'"ENC\[AES256_GCM,data:[^"]*type:str\]"', data)[:2]
    return data.replace(first, b"@").replace(second, first).replace(b"@", second)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is it encrypted? ("),
        (f'{{"db": "{secret()}"}}'.encode(), "is it encrypted? ("),
        (f'["{secret()}"'.encode(), "is it encrypted? ("),
    ],
)
def test_a_file_that_is_not_encrypted(file: Encrypted, store: SecretStore, data: bytes, reason: str) -> None:
    file.replace(data)
    error = failed(store)
    assert type(error) is MalformedAnswer
    assert reason in str(error)


def test_a_file_that_was_edited_without_its_key(file: Encrypted, store: SecretStore) -> None:
    file.write({"a": secret("1"), "b": secret("2")})
    file.replace(altered(file.path.read_bytes()))
    error = failed(store)
    assert type(error) is MalformedAnswer
    assert "it was altered without its key (" in str(error)
    file.write({"db": secret("new")})
    assert store.fetch("db").values == {"db": secret("new").encode()}


def test_what_cannot_be_decrypted_is_not_tried_at_every_read(
    file: Encrypted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = recorder(tmp_path / "bin", f'exec {shlex.quote(str(SOPS))} "$@"')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    now = 1000.0
    with file.store() as store:
        monkeypatch.setattr(sops, "time", type("Clock", (), {"monotonic": staticmethod(lambda: now)}))
        file.replace(b"{}")

        def attempts() -> int:
            return noted.read_text().count(" decrypt ")

        before = attempts()
        assert [type(failed(store)) for _ in range(3)] == [MalformedAnswer] * 3
        assert attempts() == before + 1
        now += sops._PAUSE
        failed(store)
        assert attempts() == before + 2


@pytest.mark.parametrize(
    ("then", "kind", "reason"),
    [
        ("exec sleep 600", DeadlineExceeded, "sops does not end in time"),
        ("kill -9 $$", StoreUnavailable, "sops was ended by signal 9"),
        (f"echo {secret()} >&2; exit 1", MalformedAnswer, "is it encrypted? (1)"),
    ],
)
def test_a_tool_in_trouble(tmp_path: Path, then: str, kind: type[StoreError], reason: str) -> None:
    recorder(tmp_path / "bin", then)
    path = tmp_path / "s.json"
    path.write_text("{}")
    deadline = 0.5 if kind is DeadlineExceeded else DEADLINE
    with pytest.raises(StoreError, match=re.escape(reason)) as caught:
        sops.Decrypter(path, [str(tmp_path / "bin/sops")], {}, deadline).read()
    assert type(caught.value) is kind
    assert CANARY not in str(caught.value)


def test_a_tool_that_is_removed(file: Encrypted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder(tmp_path / "bin", f'exec {shlex.quote(str(SOPS))} "$@"')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    with file.store() as store:
        (tmp_path / "bin/sops").unlink()
        file.write({"db": secret("new")})
        assert "bin/sops: No such file or directory" in str(failed(store))


def refused(properties: Mapping[str, str]) -> str:
    with pytest.raises(ConfigurationError) as caught, opened(TYPE, properties):
        pass
    return str(caught.value)


def test_what_can_never_work_stops_the_mount(file: Encrypted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = refused(file.properties(secretsFile="/nowhere/s.yaml"))
    assert said == "store: secretsFile: /nowhere/s.yaml: No such file or directory"
    said = refused(file.properties(secretsFile="/etc/hostname"))
    assert said == "store: secretsFile: its name ends with none of .yaml, .yml, .json, .env, .ini"
    said = refused(file.properties(ageKeyFile="/nowhere/key"))
    assert said == "store: ageKeyFile: /nowhere/key is not there, or cannot be read"
    new_key(tmp_path / "other.key")
    said = refused(file.properties(ageKeyFile=str(tmp_path / "other.key")))
    assert said == f"store: secretsFile: {file.path}: no key that sops finds decrypts it (128)"
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert refused(file.properties()).startswith("store: it needs the program sops, which is not in PATH")


HEADS = [b"---\n", b"# who looks after it\n---\n", b"\r\n---\r\n", b"%YAML 1.1\n# yes\n--- # or no\n"]


@pytest.mark.parametrize("head", HEADS)
def test_one_document_may_begin_with_its_mark(tmp_path: Path, file: Encrypted, head: bytes) -> None:
    """As linters of YAML want it."""
    marked = Encrypted(tmp_path / "marked.yaml", file.key_file, file.recipient)
    marked.write({"a": secret("one")})
    marked.replace(head + marked.path.read_bytes())
    with marked.store() as store:
        assert store.fetch("a").values == {"a": secret("one").encode()}


@pytest.mark.parametrize("head", [b"", *HEADS])
def test_several_documents_are_refused(tmp_path: Path, file: Encrypted, head: bytes) -> None:
    """The tool would hand out the first, and no word of the others."""
    several = Encrypted(tmp_path / "several.yaml", file.key_file, file.recipient)
    several.write_text(b"a: 1\n---\nb: 2\n")
    several.replace(head + several.path.read_bytes())
    assert "several YAML documents" in refused(several.properties())


@pytest.mark.parametrize("head", HEADS)
def test_an_empty_document_is_one(tmp_path: Path, file: Encrypted, head: bytes) -> None:
    several = Encrypted(tmp_path / "several.yaml", file.key_file, file.recipient)
    several.write({"a": secret("one")})
    several.replace(head + b"---\n" + several.path.read_bytes())
    assert "several YAML documents" in refused(several.properties())


def test_keys_that_the_tool_finds_by_itself(file: Encrypted, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write({"db": secret("db")})
    monkeypatch.setenv("SOPS_AGE_KEY_FILE", str(file.key_file))
    with opened(TYPE, {"secretsFile": str(file.path)}) as store:
        assert store.fetch("db").values == {"db": secret("db").encode()}
        with pytest.raises(SecretNotFound):
            store.fetch("other")
