import math
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from secretfs.dapr import component_yaml, goyaml
from secretfs.dapr.component_yaml import Field, float32_text
from secretfs.dapr.goyaml import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_NODES,
    Node,
    ScalarNode,
    SequenceNode,
    parse,
    read_text,
    resolve,
    split_documents,
)
from secretfs.errors import ConfigurationError, Source
from secretfs.gojson import float_text
from tests.support.canary import CANARY, secret


@pytest.fixture(params=["libyaml", "pure"])
def _parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Try what PyYAML has on every machine as well as what it has on most."""
    monkeypatch.setattr(yaml, "__with_libyaml__", request.param == "libyaml")


def root(text: str) -> Field:
    node = parse(text, "x.yaml")
    assert node is not None
    return Field("", node.source, node)


def dapr_string(value: str) -> str | None:
    """What Dapr makes of ``value: <value>``."""
    return root(f"value: {value}\n").members()["value"].property_text()


TABLE = [
    # dapr-contract, value conversion
    *((word, "true") for word in ("y", "Y", "yes", "Yes", "YES", "on", "On", "ON", "true", "True", "TRUE")),
    *((word, "false") for word in ("n", "N", "no", "No", "NO", "off", "Off", "OFF", "false", "False", "FALSE")),
    *((word, word) for word in ("yEs", "tRue", "oN", "nO", "t", "f", "o", "Nul", "~~")),
    *((word, None) for word in ("", "~", "null", "Null", "NULL")),
    ("0123", "83"),
    ("08", "8"),
    ("09.5", "9.5"),
    ("0o17", "15"),
    ("0O17", "15"),
    ("-0o17", "-15"),
    ("0x1F", "31"),
    ("0X1f", "31"),
    ("-0x1F", "-31"),
    ("+0x1F", "31"),
    ("0b101", "5"),
    ("-0b101", "-5"),
    ("0b-11", "-3"),
    ("0b+11", "3"),
    ("0x", "0x"),
    ("0b2", "0b2"),
    ("1_000", "1000"),
    ("1__0_", "10"),
    ("_1", "_1"),
    ("0", "0"),
    ("-0", "0"),
    ("+7", "7"),
    ("00", "0"),
    ("12:30", "12:30"),
    ("12:30:45", "12:30:45"),
    ("2001-01-01", "2001-01-01"),
    ("2001-12-14t21:59:43.10-05:00", "2001-12-14t21:59:43.10-05:00"),
    ("2001-12-14 21:59:43", "2001-12-14 21:59:43"),
    ("1e3", "1000"),
    ("1E5", "100000"),
    ("0.1e2", "10"),
    ("1.10", "1.1"),
    ("4.0", "4"),
    ("1.", "1"),
    ("-1.5", "-1.5"),
    (".5", "0.5"),
    ("-.5", "-0.5"),
    (".5_0", "0.5"),
    ("._5", "._5"),
    (".", "."),
    ("..", ".."),
    ("-0.0", "-0"),
    ("1_0.5_0", "10.5"),
    ("=", "="),
    ("<<", "<<"),
    ("1e+21", "1e+21"),
    ("1e20", "100000000000000000000"),
    ("1e-6", "0.000001"),
    ("1e-7", "1e-7"),
    ("1.5e-10", "1.5e-10"),
    ("1e999", "1e999"),
    ("1e-999", "0"),
    ("9223372036854775807", "9223372036854775807"),
    ("9223372036854775808", "9223372036854775808"),
    ("18446744073709551615", "18446744073709551615"),
    ("18446744073709551616", "18446744073709552000"),
    ("+18446744073709551615", "18446744073709552000"),
    ("-9223372036854775808", "-9223372036854775808"),
    ("-9223372036854775809", "-9223372036854776000"),
    ("123456789012345678901234567890", "1.2345678901234568e+29"),
    ("0x1FFFFFFFFFFFFFFFF", "0x1FFFFFFFFFFFFFFFF"),
    # strings
    ("hello", "hello"),
    ("'y'", "y"),
    ('"0123"', "0123"),
    ("'null'", "null"),
    ("''", ""),
    ("'\"quoted\"'", '"quoted"'),
    ('"a\\nb\\u00e9\\0"', "a\nbé\0"),
    ("a<b>&c", "a<b>&c"),
    # tags
    ("!!str 5", "5"),
    ("!!str yes", "yes"),
    ("!!str", ""),
    ("!!int '5'", "5"),
    ("!!float 5", "5"),
    ("!!bool 'y'", "true"),
    ("!!null ''", None),
    ("!!binary aGVsbG8=", "hello"),
    ("!!binary 4oI=", "\ufffd\ufffd"),
    ("!!timestamp 2001-01-01", "2001-01-01"),
    ("!own 5", "5"),
    ("! 5", "5"),
    # lists and maps
    ("[vault_address]", '["vault_address"]'),
    ("[1, 0x10, yes, ~, 'a', 1.50]", '[1,16,true,null,"a",1.5]'),
    ("{b: 1, a: [x], B: {}}", '{"B":{},"a":["x"],"b":1}'),
    (
        '{a: <>&, b: "\\u2028\\u2029\\x7f\\b\\f\\x01"}',
        '{"a":"\\u003c\\u003e\\u0026","b":"\\u2028\\u2029\x7f\\b\\f\\u0001"}',
    ),
    ("{1: a, yes: b, 1.5: c, .inf: d, é: e}", '{".inf":"d","1":"a","1.5":"c","true":"b","é":"e"}'),
    ("{a: 1, a: 2}", '{"a":2}'),
    ("[]", "[]"),
    ("{}", "{}"),
    ("{1: a, '1': b}", '{"1":"b"}'),
]


@pytest.mark.usefixtures("_parser")
@pytest.mark.parametrize(("written", "expected"), TABLE)
def test_a_value_is_the_string_dapr_makes_of_it(written: str, expected: str | None) -> None:
    assert dapr_string(written) == expected


@pytest.mark.usefixtures("_parser")
@pytest.mark.parametrize(
    "written",
    [
        *(".inf", "-.inf", "+.INF", ".nan", "[.nan]", "{a: {b: .inf}}", "{~: a}", "{18446744073709551615: a}"),
        *("!!int x", "!!int 1.5", "!!int 2001-01-01", "!!bool 5", "!!null x", "!!float x", "!!timestamp x"),
        *("!!timestamp 5", "!!float 18446744073709551615", "!!binary '*'", "!!binary abc", "{[a]: b}", "{{a: b}: c}"),
        *("{<<: 5}", "{<<: [5]}", "{<<: }"),
    ],
)
def test_a_value_that_cannot_be_json_is_an_error_with_its_line(written: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        root(f"first: line\nvalue: {written}\n").json()
    assert str(caught.value).startswith("x.yaml:2: ")


@pytest.mark.parametrize(
    ("written", "text"),
    [
        *(("123", "123"), ("0x1F", "31"), ("yes", "true"), ("off", "false"), ("'08'", "08"), ("~", ""), ("", "")),
        *(("1.10", "1.1"), ("1e5", "100000"), ("1e6", "1e+06"), ("1234567.0", "1.234567e+06"), ("0.0001", "0.0001")),
        *(("0.00001", "1e-05"), ("16777217.0", "1.6777216e+07"), ("1e39", "+Inf"), ("-.inf", "-Inf"), (".nan", "NaN")),
        *(("18446744073709551615", "18446744073709551615"), ("12:30", "12:30"), ("2001-01-01", "2001-01-01")),
    ],
)
def test_numbers_and_booleans_become_text_where_a_string_is_wanted(written: str, text: str) -> None:
    assert root(f"name: {written}").members()["name"].string() == text


@pytest.mark.parametrize(
    ("reader", "written", "message"),
    [
        (Field.string, "[a]", "f must be a string, not a list"),
        (Field.string, "{a: b}", "f must be a string, not a map"),
        (Field.strict_string, "5", "f must be a string, not a number"),
        (Field.strict_string, "yes", "f must be a string, not a boolean"),
        (Field.boolean, "'true'", "f must be a boolean, not a string"),
        (Field.boolean, "1", "f must be a boolean, not a number"),
        (Field.elements, "{a: b}", "f must be a list, not a map"),
        (Field.elements, "a", "f must be a list, not a string"),
        (Field.members, "[]", "f must be a map, not a list"),
        (Field.members, "5", "f must be a map, not a number"),
    ],
)
def test_a_wrong_type_is_named_with_field_and_line(
    reader: Callable[[Field], object], written: str, message: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        reader(root(f"\nf: {written}").members()["f"])
    assert str(caught.value) == f"x.yaml:2: {message}"


def test_a_field_that_is_missing_is_a_field_that_is_null() -> None:
    for document in (root("a: b"), root("f: ~"), root("f:")):
        missing = document.members()["f"]
        assert missing.is_null()
        assert (missing.string(), missing.strict_string(), missing.boolean(), missing.elements()) == ("", "", False, ())
        assert missing.members()["deeper"].string() == ""
        assert missing.property_text() is None
        assert missing.json() == "null"


def test_field_names_match_without_regard_to_case() -> None:
    for spelling in ("secretStore", "secretstore", "SECRETSTORE", "SecretStore"):
        assert root(f"{spelling}: a").members()["secretStore"].string() == "a"


def test_of_a_key_given_twice_the_last_counts() -> None:
    assert root("a: 1\na: 2").members()["a"].string() == "2"


def test_two_spellings_of_a_field_are_refused_with_both_lines() -> None:
    with pytest.raises(ConfigurationError) as caught:
        root("x: 1\nName: b\nname: a").members()["name"]
    assert str(caught.value) == "x.yaml:3: name is the same field as Name at line 2: leave one of them out"


def test_a_null_is_no_second_spelling() -> None:
    assert root("Name: b\nname: ~").members()["name"].string() == "b"


@pytest.mark.parametrize(
    "text", ["! yes", "!  yes", "&a ! yes", "! &a yes", "!<!> yes", "!\n  yes", '! "yes"', "! 'yes' # comment"]
)
def test_a_bare_tag_makes_a_string_of_a_word(text: str) -> None:
    assert root(f"f: {text}").members()["f"].property_text() == "yes"


@pytest.mark.parametrize(("text", "value"), [("! 0x10", "0x10"), ("!", ""), ("! ~", "~"), ("! # comment", "")])
def test_a_bare_tag_makes_a_string_of_anything(text: str, value: str) -> None:
    """Not a number, and not null."""
    assert root(f"é: 1\n😀: [{{a: b}}]\nf: {text}").members()["f"].property_text() == value


def test_what_only_looks_like_a_bare_tag() -> None:
    fields = root('a: "! yes"\nb: !local yes\nc: "!"\nd: a ! b\n').members()
    assert [fields[name].property_text() for name in "abcd"] == ["! yes", "yes", "!", "a ! b"]


def test_a_bare_tag_means_nothing_to_yaml_v3() -> None:
    node = parse("[! yes, !, ! 'no']", "x.yaml", bare_tag=None)
    assert isinstance(node, SequenceNode)
    assert [resolve(item) for item in node.items if isinstance(item, ScalarNode)] == [True, None, "no"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("d: &d {a: 1, b: 1}\nv: {<<: *d, a: 2}", '{"a":2,"b":1}'),
        # go-yaml v2 merges where the key stands, so a merge at the end wins.
        ("d: &d {a: 1, b: 1}\nv: {a: 2, <<: *d}", '{"a":1,"b":1}'),
        ("d: &d {a: 1, b: 1}\ne: &e {b: 2, c: 2}\nv: {<<: [*d, *e]}", '{"a":1,"b":1,"c":2}'),
        ("d: &d {a: 1}\ne: &e {<<: *d, b: 2}\nv: {<<: *e, c: 3}", '{"a":1,"b":2,"c":3}'),
        ("v: {<<: {a: 1}}", '{"a":1}'),
        ("v: {<<: []}", "{}"),
        ("v: {'<<': 1}", '{"\\u003c\\u003c":1}'),
        ("v: {!!merge '<<': {a: 1}}", '{"a":1}'),
        ("d: &d [1, 2]\nv: [*d, *d]", "[[1,2],[1,2]]"),
        ("d: &d one\ne: &d two\nv: *d", '"two"'),
    ],
)
def test_anchors_and_merge_keys(text: str, expected: str) -> None:
    assert root(text).members()["v"].json() == expected


# --- documents ---


@pytest.mark.parametrize(
    ("text", "documents"),
    [
        ("", []),
        ("a", [(1, "a")]),
        ("a\n---\nb\n", [(1, "a"), (3, "b\n")]),
        ("---\na\n---\nb", [(1, "---\na"), (4, "b")]),
        ("a\n--- # x\nb", [(1, "a"), (3, "b")]),
        ("a\n--- {thrown: away}\nb", [(1, "a"), (3, "b")]),
        ("a\n-----BEGIN\nb", [(1, "a"), (3, "b")]),
        ("a\n---", [(1, "a")]),
        ("a\n--- # end", [(1, "a")]),
        ("a\n---\n", [(1, "a")]),
        ("a\n---\n---\nb", [(1, "a"), (3, "---\nb")]),
        ("a\r\n---\r\nb", [(1, "a\r"), (3, "b")]),
        ("a\n\n\n---\n\nb", [(1, "a\n\n"), (5, "\nb")]),
        ("a\n ---\nb", [(1, "a\n ---\nb")]),
    ],
)
def test_documents_are_split_as_text(text: str, documents: list[tuple[int, str]]) -> None:
    assert list(split_documents(text)) == documents


@settings(deadline=None, max_examples=200)
@given(st.lists(st.sampled_from(["a", "", "---", "--- # x", " ---", "b: c"]), max_size=12))
def test_every_document_knows_its_first_line(lines: list[str]) -> None:
    for first, text in split_documents("\n".join(lines)):
        count = text.count("\n") + 1
        assert "\n".join(lines[first - 1 : first - 1 + count]).startswith(text.rstrip("\n"))


def test_only_the_first_yaml_document_of_a_text_is_read() -> None:
    assert root("a: 1\n...\n[[[ not yaml").json() == '{"a":1}'
    assert parse("", "x.yaml") is None
    assert parse("# only a comment\n", "x.yaml") is None


def test_nodes_know_their_line() -> None:
    document = root("a: 1\nb:\n  - x\n  - c: y\n")
    assert document.members()["b"].source.line == 2
    second = document.members()["b"].elements()[1]
    assert (second.path, second.source.line) == ("b[1]", 4)
    shifted = parse("a:\n  - 1\n", "x.yaml", 10)
    assert shifted is not None
    assert Field("", shifted.source, shifted).members()["a"].elements()[0].source.line == 11


# --- bounds and bad input ---


def laughs(levels: int = 12) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]" for level in range(1, levels)]
    return "\n".join(lines)


def merges(levels: int = 30) -> str:
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}], k{n}: 1}}" for n in range(1, levels)]
    return "\n".join(lines)


HOSTILE = {
    "billion laughs": laughs(),
    "billion merges": merges(),
    "flow lists": "[" * 50_000,
    "flow lists, one a line": "[\n" * 50_000,
    "flow maps": "{a: " * 50_000,
    "block lists": "- " * 5_000 + "x",
    "complex keys": "? " * 5_000 + "x",
    "deep by aliases": "\n".join(
        ["- &a0 " + "[" * 90 + "]" * 90, *(f"- &a{n} [*a{n - 1}]" for n in range(1, 200))],
    ),
    "itself": "a: &a [*a]",
    "itself in a map": "&a {b: {c: *a}}",
    "itself merged": "&a {<<: *a}",
    "unknown anchor": f"value: *{secret()}",
    "many values": "[" + "a," * (MAX_NODES + 1) + "]",
    "unknown tag handle": f"value: !{secret()}!x y",
    "bad escape": f'value: "{secret()}\\q"',
    "not a character": f'value: "{secret()}\\UFFFFFFFF"',
    "surrogate": f'value: "{secret()}\\ud800"',
    "control character": f"value: {secret()}\x01",
    "directive": f"%YAML 1.{'9' * 5_000}\n---\n{secret()}",
    "open quote": f"value: '{secret()}",
    "two colons": f"value: {secret()}: x",
    "percent": f"value: %{secret()}",
    "at": f"value: @{secret()}",
    "tab": f"a:\n\t{secret()}: 1",
    "dedent": f"a:\n    b: c\n  {secret()}",
    "kubernetes docs": "spec:\n  version: v1\n  metadata:[]\n",
}


@pytest.mark.usefixtures("_parser")
@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_text_is_a_quick_and_clear_error(text: str) -> None:
    started = time.process_time()
    with pytest.raises(ConfigurationError) as caught:
        parse(text, "x.yaml")
    assert time.process_time() - started < 20  # seconds; some would take for ever
    assert str(caught.value).startswith("x.yaml:")
    assert caught.value.source is not None
    assert caught.value.source.line >= 1
    assert CANARY not in str(caught.value)


@pytest.mark.usefixtures("_parser")
def test_what_stays_within_the_bounds_is_read() -> None:
    assert root("[" * MAX_DEPTH + "]" * MAX_DEPTH).json() == "[" * MAX_DEPTH + "]" * MAX_DEPTH
    with pytest.raises(ConfigurationError, match="deeper than 100"):
        parse("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "x.yaml")
    assert root(laughs(4)).json().count("x") == 11_110
    huge = "1" * 100_000
    assert dapr_string(huge) == huge
    assert dapr_string(f"0x{huge}") == f"0x{huge}"
    assert dapr_string(f"1e{huge}") == f"1e{huge}"


def test_the_line_of_a_syntax_error_is_the_line_in_the_file() -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse("a: 1\nb: c: d\n", "dir/x.yaml", 20)
    assert str(caught.value) == "dir/x.yaml:21: not valid YAML: mapping values are not allowed in this context"


def test_reading_a_file(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: \xc3\xa9\n")
    assert read_text(path) == "a: é\n"

    path.write_bytes(b"a: 1\nb: " + secret().encode() + b"\xff\n")
    with pytest.raises(ConfigurationError, match=r"x.yaml:2: not UTF-8 text"):
        parse(read_text(path), str(path))

    path.write_bytes(b"#" * MAX_BYTES)
    assert len(read_text(path)) == MAX_BYTES
    path.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(ConfigurationError, match="larger than"):
        read_text(path)

    with pytest.raises(ConfigurationError, match=r"none.yaml: cannot be read: No such file"):
        read_text(tmp_path / "none.yaml")
    with pytest.raises(ConfigurationError, match="not a regular file"):
        read_text(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_a_file_in_utf_16_with_a_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    """What PowerShell's ``>`` writes."""
    path = tmp_path / "x.yaml"
    path.write_bytes("\ufeff".encode(encoding) * (encoding != "utf-16") + "a: é\r\n---\r\nb: 😀\r\n".encode(encoding))
    assert read_text(path) == "a: é\r\n---\r\nb: 😀\r\n"


def test_utf_16_that_is_broken_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes("a: 1\nb: ".encode("utf-16") + b"\x00\xd8\x0a")
    with pytest.raises(ConfigurationError, match=r"x.yaml: not UTF-16 text, as it begins"):
        read_text(path)


def test_a_node_does_not_show_its_text() -> None:
    document = root(f"[{secret()}, {{a: {secret()}}}]")
    assert CANARY not in repr(document) + repr(document.node) + repr(document.elements())


# --- floats, and everything at once ---


@settings(deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_float_text_is_json_and_loses_nothing(value: float) -> None:
    text = float_text(value)
    assert float(text) == value
    assert ("e" in text) == (value != 0 and not 1e-6 <= abs(value) < 1e21)
    assert not text.endswith(".0")


@settings(deadline=None)
@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_float32_text_finds_its_way_back(value: float) -> None:
    assert component_yaml._float32(float(float32_text(value))) == value


@settings(deadline=None, max_examples=300)
@given(st.from_regex(r"[-+0-9._xobeEyn:~]{1,12}", fullmatch=True))
def test_any_plain_scalar_resolves(text: str) -> None:
    value = goyaml.resolve(goyaml.ScalarNode(text, Source("x.yaml", 1)))
    assert isinstance(value, str | int | float | None)
    if isinstance(value, str):
        assert value == text
    if isinstance(value, float) and not math.isnan(value):
        assert value == float(text.replace("_", "").replace(".inf", "inf").replace(".Inf", "inf"))


YAML_PIECES = st.text(alphabet="ab:-[]{}&*!|>'\"%@#,?<~ \n\t\\y01.", max_size=60)


@settings(deadline=None, max_examples=400)
@given(YAML_PIECES | st.text(max_size=40), st.sampled_from([True, False]))
def test_any_text_is_nodes_or_a_configuration_error(text: str, libyaml: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yaml, "__with_libyaml__", libyaml)
        errors = [error for line, document in split_documents(text) if (error := convert(document, line))]
    assert all(error.source and error.source.line >= 1 for error in errors)


def convert(text: str, line: int) -> ConfigurationError | None:
    try:
        node: Node | None = parse(text, "x.yaml", line)
        if node:
            Field("", node.source, node).json()
    except ConfigurationError as error:
        return error
    return None


def test_both_parsers_are_there_to_be_tested() -> None:
    assert yaml.__with_libyaml__
