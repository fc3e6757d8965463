"""The bulk files: Dapr's JSON, and shell text that any sh reads back exactly."""

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secretfs.errors import AmbiguousNames, NotRepresentable
from secretfs.fs.bulk import render_env, render_json, shell_name
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
    assert render_env(secrets(db={"user": b"joe", "pass-word": b"it's"}), multi_valued=True) == (
        b"db_pass_word='it'\\''s'\ndb_user='joe'\n"
    )


def test_env_of_a_single_valued_store() -> None:
    assert render_env({"api.key": Secret({"api.key": b"x"})}, multi_valued=False) == b"api_key='x'\n"


@pytest.mark.parametrize(
    ("name", "expected"), [("a", "a"), ("1a", "_1a"), ("", "_"), ("team/db", "team_db"), ("ü", "_"), ("A_1", "A_1")]
)
def test_shell_names(name: str, expected: str) -> None:
    assert shell_name(name) == expected


def test_two_secrets_of_one_variable_fail_the_file_and_are_both_named() -> None:
    both = {"a-b": Secret({"a-b": canary().encode()}), "a.b": Secret({"a.b": canary().encode()})}
    with pytest.raises(AmbiguousNames, match=r"a-b and a\.b are both a_b"):
        render_env(both, multi_valued=False)


def test_a_nul_byte_fails_the_file() -> None:
    with pytest.raises(NotRepresentable, match="db/key"):
        render_env(secrets(db={"key": canary().encode() + b"\0"}), multi_valued=True)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=80).map(lambda value: value.replace(b"\0", b"")))
def test_sh_reads_back_exactly_what_the_secret_holds(value: bytes) -> None:
    text = render_env(secrets(s={"k": value}), multi_valued=True)
    script = b"PATH=\n" + text + b'printf "%s." "$s_k"'
    assert subprocess.run(["/bin/sh"], input=script, capture_output=True, check=True).stdout == value + b"."


@pytest.mark.parametrize("value", [b"$(touch pwned)", b"`touch pwned`", b"'; touch pwned; '", b"\\", b"a\nb=c", b"!!"])
def test_no_value_is_ever_executed(tmp_path: Path, value: bytes) -> None:
    text = render_env(secrets(s={"k": value}), multi_valued=True)
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
