"""How properties become settings: Dapr's decoding rules, and what we say about mistakes."""

from dataclasses import dataclass

import pytest

from secretfs.errors import ConfigurationError, Source
from secretfs.settings import Property, decode, nearest, setting, specs, truthy
from tests.support.canary import leaked, secret

HERE = Source("vault.yaml", 3)


def _number(text: str) -> int:
    if not text.isdigit():
        raise ValueError("not a number")
    return int(text)


@dataclass(frozen=True)
class Settings:
    """One of each kind."""

    address: str = setting("vaultAddr", "Where the server is.", default="https://127.0.0.1:8200")
    path: str = setting("secretsFile", "The file.", aliases=("file", "secretFile"))
    flag: bool = setting("multiValued", "A boolean.", default=True, parse=truthy)
    size: int = setting("size", "A number.", default=0, parse=_number)
    not_a_setting: str = "as it is"


@dataclass(frozen=True)
class Demanding:
    token: str = setting("vaultToken", "The token to log in with.", aliases=("token",), required=True)


def given(**properties: str) -> list[Property]:
    return [
        Property(name, value, Source("vault.yaml", line)) for line, (name, value) in enumerate(properties.items(), 10)
    ]


def decoded(**properties: str) -> Settings:
    return decode(Settings, given(**properties))[0]


@pytest.mark.parametrize("text", ["y", "yes", "true", "t", "on", "1", "YES", "True", " on ", "\tT\n"])
def test_what_is_true(text: str) -> None:
    assert truthy(text) is True


@pytest.mark.parametrize("text", ["", " ", "no", "false", "0", "2", "yes please", "ja", "enabled", "TRUE!", "\0"])
def test_everything_else_is_false(text: str) -> None:
    assert truthy(text) is False


@pytest.mark.parametrize(
    ("properties", "expected"),
    [
        ({}, Settings()),
        ({"vaultAddr": "x"}, Settings(address="x")),
        ({"VAULTADDR": "x", "MultiValued": "no"}, Settings(address="x", flag=False)),
        ({"vaultAddr": ""}, Settings(address="")),
        ({"multiValued": ""}, Settings(flag=False)),
        ({"multiValued": "garbage"}, Settings(flag=False)),
        ({"file": "a"}, Settings(path="a")),
        ({"SECRETFILE": "a"}, Settings(path="a")),
        ({"secretFile": "second", "file": "first"}, Settings(path="first")),
        ({"file": "alias", "secretsFile": "canonical"}, Settings(path="canonical")),
        ({"file": "alias", "secretsFile": ""}, Settings(path="")),
        ({"size": "7"}, Settings(size=7)),
        ({"not_a_setting": "x"}, Settings()),
    ],
)
def test_decoding(properties: dict[str, str], expected: Settings) -> None:
    assert decoded(**properties) == expected


def test_of_one_name_given_twice_the_last_wins() -> None:
    twice = [*given(vaultAddr="first"), *given(vaultAddr="second")]
    assert decode(Settings, twice)[0].address == "second"


@pytest.mark.parametrize("names", [("vaultAddr", "vaultaddr"), ("nobody", "NOBODY"), ("FILE", "file")])
def test_two_spellings_of_one_name_are_an_error(names: tuple[str, str]) -> None:
    first, second = names
    with pytest.raises(ConfigurationError) as caught:
        decoded(**{first: secret("a"), second: secret("b")})
    assert str(caught.value) == f"vault.yaml:11: {second} is given twice, the other time as {first}"


def test_a_value_that_does_not_parse_names_file_line_and_field_and_not_the_value() -> None:
    with pytest.raises(ConfigurationError) as caught:
        decoded(vaultAddr="x", SIZE=secret("size"))
    assert str(caught.value) == "vault.yaml:11: size: not a number"


@pytest.mark.parametrize(
    ("properties", "place"),
    [({}, "vault.yaml:3"), ({"vaultToken": ""}, "vault.yaml:10"), ({"TOKEN": ""}, "vault.yaml:10")],
)
def test_what_is_required_must_be_there_and_not_empty(properties: dict[str, str], place: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        decode(Demanding, given(**properties), HERE)
    assert str(caught.value) == f"{place}: vaultToken is required: The token to log in with."


def test_an_alias_satisfies_a_requirement() -> None:
    assert decode(Demanding, given(Token="x"))[0].token == "x"


def test_unknown_properties_are_noted_with_the_nearest_name_in_the_order_given() -> None:
    _, notices = decode(Settings, given(vaultAdr="x", vaultAddr="x", zzz="x", secretsfil="x", not_a_setting="x"))
    assert [str(notice) for notice in notices] == [
        "vault.yaml:10: unknown property vaultAdr is ignored (did you mean vaultAddr?)",
        "vault.yaml:12: unknown property zzz is ignored",
        "vault.yaml:13: unknown property secretsfil is ignored (did you mean secretsFile?)",
        "vault.yaml:14: unknown property not_a_setting is ignored",
    ]


def test_an_ignored_alias_is_no_unknown_property() -> None:
    assert decode(Settings, given(file="a", secretsFile="b"))[1] == []


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("VAULTADR", " (did you mean vaultAddr?)"),
        ("vaultAddr", " (did you mean vaultAddr?)"),
        ("xyz", ""),
        ("", ""),
    ],
)
def test_the_nearest_name_is_spelled_as_it_should_be(word: str, hint: str) -> None:
    assert nearest(word, ["vaultAddr", "multiValued"]) == hint


def test_specs_are_those_of_the_declared_fields() -> None:
    assert [(attribute, spec.name, spec.aliases) for attribute, spec in specs(Settings).items()] == [
        ("address", "vaultAddr", ()),
        ("path", "secretsFile", ("file", "secretFile")),
        ("flag", "multiValued", ()),
        ("size", "size", ()),
    ]


def test_a_property_does_not_show_its_value() -> None:
    assert not leaked(repr(Property("vaultToken", secret())))
