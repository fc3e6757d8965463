"""The bulk files: Dapr's JSON, and shell text that any sh reads back exactly."""

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from secretfs.errors import AmbiguousNames, NotRepresentable
from secretfs.fs.bulk import render, render_json, render_lines, render_secret, render_yaml
from secretfs.fs.keys import Bulk
from secretfs.quoting import shell_name
from secretfs.store import Secret
from tests.support.canary import secret as canary


def secrets(**values: Mapping[str, bytes]) -> dict[str, Secret]:
    return {name: Secret(keys) for name, keys in values.items()}


def test_json_is_what_dapr_answers() -> None:
    given_ = secrets(b={"b": "<&> grün\u2028\n".encode()}, a={"y": b"2", "x": b"1"})
    assert render_json(given_) == (
        '{"a":{"x":"1","y":"2"},"b":{"b":"\\u003c\\u0026\\u003e grün\\u2028\\n"}}\n'.encode()
    )


def test_json_of_nothing() -> None:
    assert render_json({}) == b"{}\n"


def test_json_keeps_bytes_that_are_no_text() -> None:
    assert json.loads(render_json(secrets(a={"k": b"\xff\x00"}))) == {"a": {"k": {"base64": "/wA="}}}


def test_json_takes_names_that_are_no_text() -> None:
    assert json.loads(render_json({"A\udcff": Secret({"A\udcff": b"1"})})) == {"A\udcff": {"A\udcff": "1"}}


def test_env_of_a_multi_valued_store() -> None:
    assert render_lines(secrets(db={"user": b"joe", "pass-word": b"it's"}), Bulk.ENV, multi_valued=True) == (
        b"db_pass_word='it'\\''s'\ndb_user='joe'\n"
    )


def test_env_of_a_single_valued_store() -> None:
    assert render_lines({"api.key": Secret({"api.key": b"x"})}, Bulk.ENV, multi_valued=False) == b"api_key='x'\n"


@pytest.mark.parametrize(
    ("name", "expected"), [("a", "a"), ("1a", "_1a"), ("", "_"), ("team/db", "team_db"), ("ü", "_"), ("A_1", "A_1")]
)
def test_shell_names(name: str, expected: str) -> None:
    assert shell_name(name) == expected


def test_two_secrets_of_one_variable_fail_the_file_and_are_both_named() -> None:
    both = {"a-b": Secret({"a-b": canary().encode()}), "a.b": Secret({"a.b": canary().encode()})}
    with pytest.raises(AmbiguousNames, match=r"a-b and a\.b are both a_b"):
        render_lines(both, Bulk.ENV, multi_valued=False)


def test_a_nul_byte_fails_the_file() -> None:
    with pytest.raises(NotRepresentable, match="db/key"):
        render_lines(secrets(db={"key": canary().encode() + b"\0"}), Bulk.ENV, multi_valued=True)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=80).map(lambda value: value.replace(b"\0", b"")))
def test_sh_reads_back_exactly_what_the_secret_holds(value: bytes) -> None:
    text = render_lines(secrets(s={"k": value}), Bulk.ENV, multi_valued=True)
    script = b"PATH=\n" + text + b'printf "%s." "$s_k"'
    assert subprocess.run(["/bin/sh"], input=script, capture_output=True, check=True).stdout == value + b"."


@pytest.mark.parametrize("value", [b"$(touch pwned)", b"`touch pwned`", b"'; touch pwned; '", b"\\", b"a\nb=c", b"!!"])
def test_no_value_is_ever_executed(tmp_path: Path, value: bytes) -> None:
    text = render_lines(secrets(s={"k": value}), Bulk.ENV, multi_valued=True)
    done = subprocess.run(
        ["/bin/sh", "-c", '. ./env && printf "%s" "$s_k"'],
        cwd=_written(tmp_path, text),
        capture_output=True,
        check=True,
    )
    assert done.stdout == value
    assert [path.name for path in tmp_path.iterdir()] == ["env"]


def _written(directory: Path, text: bytes) -> Path:
    (directory / "env").write_bytes(text)
    return directory


@given(st.dictionaries(st.text(max_size=5), st.dictionaries(st.text(max_size=5), st.binary(max_size=9)), max_size=5))
def test_json_carries_everything(values: dict[str, dict[str, bytes]]) -> None:
    parsed = json.loads(render_json({name: Secret(keys) for name, keys in values.items()}))
    assert parsed.keys() == values.keys()
    for name, keys in values.items():
        assert parsed[name].keys() == keys.keys()


TEXTS = st.text(st.characters(codec="utf-8"), max_size=12)


@given(st.dictionaries(TEXTS, st.dictionaries(TEXTS, st.binary(max_size=9) | TEXTS.map(str.encode)), max_size=5))
def test_yaml_carries_everything(values: dict[str, dict[str, bytes]]) -> None:
    parsed = yaml.safe_load(render_yaml({name: Secret(keys) for name, keys in values.items()}))
    read_back = {
        name: {key: value if isinstance(value, bytes) else value.encode() for key, value in keys.items()}
        for name, keys in parsed.items()
    }
    assert read_back == values


def test_yaml_of_a_secret_with_keys_longer_than_yaml_likes() -> None:
    keys = {"k" * 2000: b"1", "short": b"2"}
    assert yaml.safe_load(render_secret(Secret(keys), Bulk.YAML)) == {"k" * 2000: "1", "short": "2"}
    assert yaml.safe_load(render_yaml({"n" * 2000: Secret(keys)})) == {"n" * 2000: {"k" * 2000: "1", "short": "2"}}
    assert yaml.safe_load(render_secret(Secret({}), Bulk.YAML)) == yaml.safe_load(render_yaml({})) == {}


def test_properties_are_those_of_java() -> None:
    given_ = secrets(**{"team/db": {"user name": b" a=b\\ ", "url": "jdbc:x#ü😀\n".encode()}})
    assert render(given_, Bulk.PROPERTIES, multi_valued=True) == (
        b"team.db.url=jdbc:x#\\u00fc\\ud83d\\ude00\\n\nteam.db.user\\ name=\\ a=b\\\\ \n"
    )
    assert render_secret(Secret({"k": b"v"}), Bulk.PROPERTIES) == b"k=v\n"


def test_properties_cannot_hold_bytes_and_fail_where_two_names_are_one() -> None:
    with pytest.raises(NotRepresentable, match=r"\.bulk\.properties: db/key is not UTF-8"):
        render_lines(secrets(db={"key": b"\xff"}), Bulk.PROPERTIES, multi_valued=True)
    with pytest.raises(AmbiguousNames, match=r"a/b\.c and a\.b/c are both a\.b\.c in \.bulk\.properties"):
        render_lines(secrets(**{"a": {"b.c": b""}, "a.b": {"c": b""}}), Bulk.PROPERTIES, multi_valued=True)


def test_a_program_gets_what_is_exported(tmp_path: Path) -> None:
    text = render_lines(secrets(db={"key": canary("it's").encode()}), Bulk.EXPORT, multi_valued=True)
    command = ["/bin/sh", "-c", '. ./env && exec sh -c \'printf "%s" "$db_key"\'']
    done = subprocess.run(command, cwd=_written(tmp_path, text), capture_output=True, check=True)
    assert done.stdout == canary("it's").encode()
