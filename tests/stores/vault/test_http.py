"""The parts of the Vault store's HTTP that need no server."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secretfs.errors import MalformedAnswer
from secretfs.stores.vault.http import Response
from tests.support.canary import CANARY, secret

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def test_an_answer_does_not_show_itself() -> None:
    assert CANARY not in repr(Response.parse(json.dumps({"data": {"a": secret()}}).encode()))


@settings(max_examples=60, deadline=None)
@given(before=st.dictionaries(st.text(), JSON), value=JSON, indent=st.none() | st.integers(0, 2))
def test_raw_is_the_text_of_the_member(before: Any, value: Any, indent: Any) -> None:
    text = json.dumps({**before, "data": {**before, "data": value, "after": before}}, indent=indent)
    raw = Response.parse(text.encode()).raw("data", "data")
    assert raw in text
    assert json.loads(raw) == value
    assert raw == raw.strip()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"data":{"data":{"a": 1.50}}}', '{"a": 1.50}'),
        ('{"data":{"data":1,"data":{"b":"\\u003c"}}}', '{"b":"\\u003c"}'),
        ('{"data":{},"x":"}","data":\r\n{"data"\t: {} } }', "{}"),
    ],
)
def test_raw_keeps_every_character(text: str, expected: str) -> None:
    assert Response.parse(text.encode()).raw("data", "data") == expected


def test_raw_of_what_is_not_there() -> None:
    with pytest.raises(MalformedAnswer, match="the answer has no data"):
        Response.parse(b'{"data":{}}').raw("data", "data")


def test_a_surrogate_pair_is_a_character() -> None:
    assert Response.parse(b'{"data":{"a":"\\ud83d\\ude00"}}').data == {"a": "\N{GRINNING FACE}"}
