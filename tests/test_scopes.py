import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secretfs.scopes import ALLOW_ALL, Access, SecretScope


def scope(default: str = "allow", allowed: tuple[str, ...] = (), denied: tuple[str, ...] = ()) -> SecretScope:
    return SecretScope("store", Access(default), frozenset(allowed), frozenset(denied))


DOCUMENTED = [
    # The table of Dapr's "secrets scopes" page: for s1, for s2.
    ("deny", (), (), False, False),
    ("deny", ("s1",), (), True, False),
    ("allow", (), ("s1",), False, True),
    ("allow", ("s1",), (), True, False),
    ("deny", (), ("s1",), False, False),
    ("allow", ("s1",), ("s2",), True, False),
    ("deny", ("s1",), ("s2",), True, False),
    # and what the code decides beyond it: a name in both lists is allowed
    ("deny", ("s1",), ("s1",), True, False),
    ("allow", ("s1",), ("s1",), True, False),
    ("allow", (), (), True, True),
]


@pytest.mark.parametrize(("default", "allowed", "denied", "s1", "s2"), DOCUMENTED)
def test_decides_as_the_documentation_says(
    default: str, allowed: tuple[str, ...], denied: tuple[str, ...], *, s1: bool, s2: bool
) -> None:
    decides = scope(default, allowed, denied)
    assert (decides.allows("s1"), decides.allows("s2")) == (s1, s2)


@pytest.mark.parametrize(
    ("decides", "name", "allowed"),
    [
        (SecretScope(), "random", True),
        (SecretScope(), "", True),
        (scope("deny"), "", False),
        (scope("allow"), "", True),
        (scope("deny"), "random", False),
        (scope("deny", ("key1",)), "key1", True),
        (scope("allow", ("key1",)), "key2", False),
        (scope("allow", (), ("key1",)), "key1", False),
    ],
)
def test_decides_as_daprs_own_test(decides: SecretScope, name: str, *, allowed: bool) -> None:
    """Dapr ``pkg/config/configuration_test.go`` TestIsSecretAllowed."""
    assert decides.allows(name) is allowed


@pytest.mark.parametrize("name", ["Key1", "KEY1", "key", "key11", "*", "key*", "key1 ", "ke\u0301y1"])
def test_names_are_compared_exactly(name: str) -> None:
    assert not scope(allowed=("key1",)).allows(name)
    assert scope(denied=("key1",)).allows(name)


def test_a_pattern_is_a_name_like_any_other() -> None:
    assert scope(allowed=("*",)).allows("*")
    assert not scope(allowed=("*",)).allows("key1")


def test_an_empty_name_in_a_list_counts() -> None:
    assert scope(allowed=("",)).allows("")
    assert not scope(allowed=("",)).allows("key1")


@pytest.mark.parametrize(
    ("decides", "names"),
    [
        (ALLOW_ALL, None),
        (scope(denied=("a",)), None),
        (scope("deny"), frozenset()),
        (scope("deny", (), ("a",)), frozenset()),
        (scope("allow", ("a", "b")), {"a", "b"}),
        (scope("deny", ("a",), ("a",)), {"a"}),
    ],
)
def test_knows_the_only_names_it_can_allow(decides: SecretScope, names: frozenset[str] | None) -> None:
    assert decides.allowed_names == names


@pytest.mark.parametrize(
    ("decides", "unrestricted"),
    [(ALLOW_ALL, True), (scope(denied=("a",)), False), (scope("deny"), False), (scope(allowed=("a",)), False)],
)
def test_knows_whether_it_restricts(decides: SecretScope, *, unrestricted: bool) -> None:
    assert decides.unrestricted is unrestricted


NAMES = st.frozensets(st.sampled_from("abcd"))


@settings(deadline=None)
@given(st.sampled_from(Access), NAMES, NAMES, st.sampled_from("abcde"))
def test_the_sets_agree_with_the_decision(
    access: Access, allowed: frozenset[str], denied: frozenset[str], name: str
) -> None:
    decides = SecretScope("store", access, allowed, denied)
    if decides.allowed_names is not None:
        assert decides.allows(name) == (name in decides.allowed_names)
    else:
        assert decides.allows(name) == (name not in decides.denied)
    assert not any(decides.allows(refused) for refused in decides.denied)
