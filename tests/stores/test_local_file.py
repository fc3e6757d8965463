"""``secretstores.local.file``."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secretfs.errors import ConfigurationError, MalformedAnswer, SecretNotFound
from secretfs.store import SecretStore, StoreContext
from secretfs.stores._http.body import LARGEST_ANSWER
from secretfs.stores.local_file import Settings, open_store
from tests.support.canary import CANARY, secret
from tests.support.opened import opened
from tests.support.secrets_file import FileContract, SecretsFile, file

__all__ = ["file"]

TYPE = "secretstores.local.file"

# The example of Dapr's file-secret-store.md.
REDIS = {
    "redisPassword": "your redis password",
    "connectionStrings": {"sql": "your sql connection string", "mysql": "your mysql connection string"},
}


class TestContract(FileContract):
    pass


class TestMultiValuedContract(TestContract):
    multi_valued = True


def everything(store: SecretStore) -> dict[str, dict[str, str]]:
    return {name: {k: v.decode() for k, v in store.fetch(name).values.items()} for name in store.names("").secrets}


# --- Dapr's own cases ---


def test_daprs_conformance_test(file: SecretsFile) -> None:
    file.write({"conftestsecret": "abcd", "secondsecret": "efgh"})
    with file.store() as store:
        assert everything(store) == {
            "conftestsecret": {"conftestsecret": "abcd"},
            "secondsecret": {"secondsecret": "efgh"},
        }


def test_daprs_example(file: SecretsFile) -> None:
    file.write(REDIS)
    with file.store(nestedSeparator=":") as store:
        assert everything(store) == {
            "redisPassword": {"redisPassword": "your redis password"},
            "connectionStrings:sql": {"connectionStrings:sql": "your sql connection string"},
            "connectionStrings:mysql": {"connectionStrings:mysql": "your mysql connection string"},
        }


def test_daprs_example_multi_valued(file: SecretsFile) -> None:
    file.write(REDIS)
    with file.store(multiValued="true") as store:
        assert store.multi_valued
        assert everything(store) == {
            "redisPassword": {"redisPassword": "your redis password"},
            "connectionStrings": {"sql": "your sql connection string", "mysql": "your mysql connection string"},
        }


def test_daprs_example_multi_valued_deeper(file: SecretsFile) -> None:
    file.write({"parent": {"child1": "12345", "child2": {"child3": "67890", "child4": "00000"}}, "key": "value"})
    with file.store(multiValued="true") as store:
        assert everything(store) == {
            "parent": {"child1": "12345", "child2:child3": "67890", "child2:child4": "00000"},
            "key": {"key": "value"},
        }
        for name in ("parent:child1", "parent:child2:child3"):
            with pytest.raises(SecretNotFound):
                store.fetch(name)


@pytest.mark.parametrize(("separator", "name"), [("", "root:key1"), ("::", "root::key1"), ("/", "root/key1")])
def test_separators(file: SecretsFile, separator: str, name: str) -> None:
    file.write({"root": {"key1": "value"}})
    with file.store(nestedSeparator=separator) as store:
        assert store.fetch(name).values == {name: b"value"}


def test_not_found(file: SecretsFile) -> None:
    with file.store() as store, pytest.raises(SecretNotFound, match="secret missing not found"):
        store.fetch("missing")


@pytest.mark.parametrize(("text", "expected"), [("true", True), ("1", True), ("Y", True), ("no", False), ("?", False)])
def test_multi_valued_is_a_truthy_boolean(file: SecretsFile, text: str, expected: Any) -> None:
    with file.store(multiValued=text) as store:
        assert store.multi_valued is expected


# --- shapes ---


@pytest.mark.parametrize(
    ("document", "names"),
    [
        ({"arr": ["a", "b"]}, {"arr:0": "a", "arr:1": "b"}),
        ({"a": [{"b": "c"}]}, {"a:0:b": "c"}),
        ({"empty": {}, "none": [], "": "x"}, {"": "x"}),
        ({"a": {"": "x"}}, {"a:": "x"}),
        ({"n": 42, "big": 12345678901234567890, "t": True, "f": False, "z": None},
         {"n": "42", "big": "12345678901234567890", "t": "true", "f": "false", "z": "null"}),
        (None, {}),
    ],
)  # fmt: skip
def test_flattening(file: SecretsFile, document: Any, names: Any) -> None:
    file.write(document)
    with file.store() as store:
        assert {name: values[name] for name, values in everything(store).items()} == names


def test_numbers_are_as_written(file: SecretsFile) -> None:
    file.write_text(b'{"a": 1.50, "b": 1e400, "c": -0, "d": 1234567, "e": ' + b"9" * 5000 + b"}")
    with file.store() as store:
        texts = {name: values[name] for name, values in everything(store).items()}
    assert texts == {"a": "1.50", "b": "1e400", "c": "-0", "d": "1234567", "e": "9" * 5000}


def test_an_intermediate_node_is_no_secret(file: SecretsFile) -> None:
    file.write({"a": {"b": {"c": "d"}}})
    with file.store() as store, pytest.raises(SecretNotFound):
        store.fetch("a:b")


def test_multi_valued_drops_what_dapr_drops(file: SecretsFile) -> None:
    file.write({"number": 1, "true": True, "null": None, "array": ["a"], "object": {}, "string": "s"})
    with file.store(multiValued="yes") as store:
        assert everything(store) == {"object": {}, "string": {"string": "s"}}


def test_multi_valued_members_that_are_no_strings(file: SecretsFile) -> None:
    file.write({"s": {"number": 1, "null": None, "list": [True, {"x": "y"}]}})
    with file.store(multiValued="yes") as store:
        assert everything(store) == {"s": {"number": "1", "null": "null", "list:0": "true", "list:1:x": "y"}}


def test_of_one_name_twice_the_last_wins(file: SecretsFile) -> None:
    file.write_text(b'{"a": "first", "a": "last", "b": {"c": "gone"}, "b": {"d": "stays"}}')
    with file.store() as store:
        assert everything(store) == {"a": {"a": "last"}, "b:d": {"b:d": "stays"}}


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b'"\xff"', "\ufffd"),
        (b'"\xe2\x82"', "\ufffd\ufffd"),  # Go: one for each byte
        (b'"\xed\xa0\x80"', "\ufffd\ufffd\ufffd"),
        (b'"\\ud800"', "\ufffd"),
        (b'"\\ud800A"', "\ufffdA"),
        (b'"\\udc00\\ud800"', "\ufffd\ufffd"),
        (b'"\\ud83d\\ude00"', "\N{GRINNING FACE}"),
        (b'"\\u0000"', "\0"),
    ],
)
def test_text_that_is_not_unicode(file: SecretsFile, raw: bytes, expected: str) -> None:
    file.write_text(b'{"a": ' + raw + b"}")
    for multi_valued in ("true", "false"):
        with file.store(multiValued=multi_valued) as store:
            assert store.fetch("a").values == {"a": expected.encode()}


def test_names_that_are_not_unicode(file: SecretsFile) -> None:
    file.write_text(b'{"\\ud800": "first", "\\ud801": "last", "x\xff": {"\xff": "y"}}')
    with file.store() as store:
        assert everything(store) == {"\ufffd": {"\ufffd": "last"}, "x\ufffd:\ufffd": {"x\ufffd:\ufffd": "y"}}


# --- files that are not what they should be ---

BROKEN = {
    b"": "not JSON",
    b"{": "not JSON",
    b'{"a": "' + CANARY.encode(): "not JSON: Unterminated string starting at, line 1 column 7",
    b'{"a": "x"} trailing': "not JSON: Extra data",
    b'{"a": "x"}{}': "not JSON: Extra data",
    b'\xef\xbb\xbf{"a": "x"}': "it begins with a byte order mark: save it as UTF-8 without one (it is UTF-8 now)",
    '{"a": "x"}'.encode("utf-16"): "it begins with a byte order mark: save it as UTF-8 without one (it is UTF-16 now)",
    b'{"a": NaN}': "not JSON: NaN is no JSON number",
    b'{"a": -Infinity}': "not JSON: -Infinity is no JSON number",
    b'{"a": "\n"}': "not JSON: Invalid control character",
    b"[" * 100_000: "nested too deeply",
    b"[]": "top level is not a JSON object",
    b'"' + CANARY.encode() + b'"': "top level is not a JSON object",
    b"1": "top level is not a JSON object",
    b'{"a:b": "x", "a": {"b": "y"}}': "two entries have the name a:b once nested names are joined with ':'",
}


@pytest.mark.parametrize(("raw", "reason"), BROKEN.items())
def test_a_broken_file_is_not_opened(file: SecretsFile, raw: bytes, reason: str) -> None:
    file.write_text(raw)
    with pytest.raises(ConfigurationError) as caught:
        open_store(Settings(str(file.path)), StoreContext("my-store"))
    assert f"my-store: secretsFile: {file.path}: " in str(caught.value)
    assert reason in str(caught.value)


@pytest.mark.parametrize(("raw", "reason"), BROKEN.items())
def test_a_file_that_breaks_later_is_a_malformed_answer_until_it_is_mended(
    file: SecretsFile, raw: bytes, reason: str
) -> None:
    file.write({"a": secret()})
    with file.store() as store:
        file.write_text(raw)
        for call in (lambda: store.fetch("a"), lambda: store.names(""), store.check):
            with pytest.raises(MalformedAnswer) as caught:
                call()
            assert reason in str(caught.value)
        file.write({"a": secret("new")})
        assert store.fetch("a").values == {"a": secret("new").encode()}


def test_a_file_has_a_limit(file: SecretsFile) -> None:
    value = "x" * (LARGEST_ANSWER + 1)
    file.write({"a": value})
    with file.store() as store:
        assert len(store.fetch("a").values["a"]) == len(value)
        os.truncate(file.path, (256 << 20) + 1)
        with pytest.raises(MalformedAnswer) as later:
            store.fetch("a")
    with pytest.raises(ConfigurationError) as first:
        open_store(Settings(str(file.path)), StoreContext("my-store"))
    assert str(later.value) == f"{file.path}: larger than 256 MiB"
    assert str(first.value) == f"my-store: secretsFile: {file.path}: larger than 256 MiB"


def test_colliding_names_matter_only_where_they_collide(file: SecretsFile) -> None:
    file.write({"a:b": "x", "a": {"b": "y"}})
    with file.store(nestedSeparator="/") as store:
        assert store.names("").secrets == {"a:b", "a/b"}
    with file.store(multiValued="true") as store:
        assert everything(store) == {"a:b": {"a:b": "x"}, "a": {"b": "y"}}


def test_a_missing_file_is_not_opened(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"my-store: secretsFile: .*/none: No such file or directory"):
        open_store(Settings(str(tmp_path / "none")), StoreContext("my-store"))


def test_a_directory_is_not_opened(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="Is a directory"):
        open_store(Settings(str(tmp_path)), StoreContext("my-store"))


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ConfigurationError, match="not a regular file"):
        open_store(Settings(str(tmp_path / "fifo")), StoreContext("my-store"))


def test_the_file_is_required() -> None:
    with pytest.raises(ConfigurationError, match="secretsFile is required"), opened(TYPE, {}):
        pass


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@settings(max_examples=50, deadline=None)
@given(document=st.dictionaries(st.text(), JSON))
def test_whatever_json_it_is_it_opens_or_says_why(tmp_path_factory: pytest.TempPathFactory, document: Any) -> None:
    file = SecretsFile(tmp_path_factory.mktemp("any") / "secrets.json")
    file.write_text(json.dumps(document).encode())
    for multi_valued in ("true", "false"):
        try:
            with file.store(multiValued=multi_valued) as store:
                assert all(store.fetch(name).values is not None for name in store.names("").secrets)
        except ConfigurationError as error:
            assert "two entries have the name" in str(error)  # noqa: PT017
