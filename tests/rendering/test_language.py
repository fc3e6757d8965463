"""The template language: what it can do, what it cannot, and that what it says of a mistake quotes no value."""

import base64

import pytest

from secretfs.rendering.job import Checked
from secretfs.rendering.language import TemplateFault, check, environment, render
from secretfs.rendering.values import shown
from tests.support.canary import leaked, secret

PASSWORD = secret("p w'")
DB = shown({"username": b"joe", "password": PASSWORD.encode(), "items": b"a key", "raw": b"\xff"}, "db")
NAMES = {"db": DB, "token": shown({"token": b"t1"}, "token")}


def rendered(source: str) -> str:
    return render(environment(), source, NAMES)


def fault(source: str) -> str:
    with pytest.raises(TemplateFault) as caught:
        rendered(source)
    assert not leaked(str(caught.value))
    return str(caught.value)


def test_keys_come_before_methods_and_a_single_value_is_text() -> None:
    assert rendered("{{ db.username }}:{{ db['password'] }}:{{ db.items }}:{{ token }}\n") == (
        f"joe:{PASSWORD}:a key:t1\n"
    )
    assert rendered("{% for key in db %}{{ key }} {% endfor %}") == "username password items raw "


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ 'a b/ä' | url }}", "a%20b%2F%C3%A4"),
        ('{{ "it\'s" | shell }}', "'it'\"'\"'s'"),
        ("{{ 'a\"b' | json }}", '"a\\"b"'),
        ("{{ 'x: #y' | yaml }}", '"x: #y"'),
        ("{{ ' ä' | properties }}", "\\ \\u00e4"),
        ("{{ 'joe' | b64encode }}", "am9l"),
        ("{{ 'am9l' | b64decode }}", "joe"),
        ("{{ db.raw | b64encode }}", base64.b64encode(b"\xff").decode()),
        ("{{ {'user': db.username} | json }}", '{"user": "joe"}'),
    ],
)
def test_filters(source: str, expected: str) -> None:
    assert rendered(source) == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("\n{{ db.pasword }}", "line 2 of the template: 'pasword' is not there"),
        ("{{ db[db.password] }}", "line 1 of the template: something that it uses is not there"),
        ("{{ missing }}", "line 1 of the template: 'missing' is not there"),
        ("{{ db }}", "line 1 of the template: a secret with several keys is used as text"),
        ("{{ db.raw }}", "line 1 of the template: a value is not UTF-8 text; use the filter b64encode"),
        ("{{ db.password | b64decode }}", "line 1 of the template: b64decode: the value is not base64"),
        ("{{ db.password.index('nowhere') }}", "line 1 of the template: it fails with ValueError"),
        ("{{ db.password + 1 }}", "line 1 of the template: it fails with TypeError"),
        ("{{ ''.__class__.__mro__ }}", "line 1 of the template: it does what the sandbox forbids"),
        ("{{ db.password.__class__ }}", "line 1 of the template: it does what the sandbox forbids"),
        ("{{ db.password.format.__globals__ }}", "line 1 of the template: it does what the sandbox forbids"),
        ("{{ db._values }}", "line 1 of the template: it does what the sandbox forbids"),
        ("{{ db.raw.data }}", "line 1 of the template: it does what the sandbox forbids"),
        ("{{ '{0.__class__}'.format(db.username) }}", "line 1 of the template: it does what the sandbox forbids"),
        ("{{ range(10**9) }}", "line 1 of the template: a number or a range in it is too large"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "line 1 of the template: it is nested too deeply"),
    ],
)
def test_what_is_wrong_is_said_without_a_value(source: str, expected: str) -> None:
    assert fault(source).startswith(expected)


@pytest.mark.parametrize("source", ["{{ lipsum() }}", "{{ cycler }}", "{{ [1, 2] | random }}", "{% include 'x' %}"])
def test_nothing_is_random_and_nothing_is_a_file(source: str) -> None:
    fault(source)


@pytest.mark.parametrize(
    ("source", "message", "line"),
    [
        ("a\n{{ b ", "unexpected end of template", 2),
        ("{% nothing %}", "Encountered unknown tag 'nothing'.", 1),
        ("\n\n{{ 1 | nofilter }}", "No filter named 'nofilter'.", 3),
    ],
)
def test_syntax_is_checked_before_anything_is_rendered(source: str, message: str, line: int) -> None:
    found = check(source).fault
    assert found is not None
    assert (found.message[: len(message)], found.line) == (message, line)
    assert check("{{ secret('a', 'b').c }}").fault is None


NOT_COMPILED = {
    "a number of many digits": ("{{ " + "1" * 5000 + " }}", "a number in it has too many digits"),
    "an argument twice": ("{{ f(a=1, a=2) }}", "Python refuses it: keyword argument repeated: a"),
    "a parameter twice": (
        "{% macro m(a, a) %}{% endmacro %}", "Python refuses it: duplicate argument 'a' in function definition",
    ),
    "nested loops": ("{% for a in [1] %}" * 30 + "{% endfor %}" * 30, "it is nested too deeply"),
    "nested conditions": ("{% if 1 %}" * 120 + "{% endif %}" * 120, "it is nested too deeply"),
    "nested signs": ("{{ " + "-" * 250 + "x }}", "it is nested too deeply"),
    "nested lists": ("{{ " + "[" * 5000 + "]" * 5000 + " }}", "it is nested too deeply"),
}  # fmt: skip


@pytest.mark.parametrize(("source", "message"), NOT_COMPILED.values(), ids=NOT_COMPILED)
def test_what_python_cannot_compile_is_a_fault(source: str, message: str) -> None:
    found = check(source).fault
    assert found is not None
    assert found.message == message


@pytest.mark.parametrize(
    ("source", "stores", "asks_others"),
    [
        ("{{ secret('a', 'b').c }}{% for n in secrets(store='c') %}{{ n }}{% endfor %}", ("a", "c"), False),
        ("{{ secret(which, 'b') }}", (), True),
        ("{% set f = secret %}{{ f('a', 'b') }}", (), True),
        ("secret('a', 'b')", (), False),
    ],
)
def test_the_stores_that_a_template_asks(source: str, stores: tuple[str, ...], *, asks_others: bool) -> None:
    assert check(source) == Checked(stores, asks_others)
