"""Names to paths: injective, reversible where it fits, never a path that Linux or we cannot carry."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secretfs.fs.names import NAME_MAX, decode, encode, is_reserved, split

awkward = st.text(alphabet=st.sampled_from("a./%\0 \n~é💥2EF\udc80"), max_size=12)
any_name = st.one_of(awkward, st.text(max_size=300))


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("db", ["db"]),
        ("team/db", ["team", "db"]),
        ("a//b", ["a", "%2Fb"]),
        ("/a", ["%2Fa"]),
        ("a/", ["a%2F"]),
        ("/", ["%2F"]),
        ("//", ["%2F%2F"]),
        ("", ["%"]),
        (".", ["%2E"]),
        ("..", ["%2E%2E"]),
        ("...", ["..."]),
        ("a/../b", ["a", "%2E%2E", "b"]),
        (".hidden", [".hidden"]),
        ("100%", ["100%25"]),
        ("%2E", ["%252E"]),
        (".bulk.json", ["%2Ebulk.json"]),
        (".bulk.env", ["%2Ebulk.env"]),
        (".secretfs", ["%2Esecretfs"]),
        (".secretfs-pending", ["%2Esecretfs-pending"]),
        ("nul\0", ["nul%00"]),
        ("line\nbreak", ["line\nbreak"]),
        ("grün/💥", ["grün", "💥"]),
    ],
)
def test_documented_names(name: str, path: list[str]) -> None:
    assert [encode(segment).decode() for segment in split(name)] == path


def test_half_a_surrogate_pair_from_json_is_still_a_path() -> None:
    assert encode("a\ud800") == b"a\xed\xa0\x80"


@given(any_name)
def test_split_loses_nothing_and_leaves_no_empty_segment(name: str) -> None:
    segments = split(name)
    assert "/".join(segments) == name
    assert all(segments) or name == ""


@given(awkward)
def test_a_segment_comes_back(segment: str) -> None:
    assert decode(encode(segment)) == segment


@given(any_name)
def test_every_path_segment_can_be_carried(name: str) -> None:
    for segment in split(name):
        encoded = encode(segment)
        assert 0 < len(encoded) <= NAME_MAX
        assert b"/" not in encoded
        assert b"\0" not in encoded
        assert encoded not in (b".", b"..")
        assert not is_reserved(encoded)


@given(any_name, any_name)
def test_two_names_never_share_a_path(one: str, other: str) -> None:
    if one != other:
        assert [encode(s) for s in split(one)] != [encode(s) for s in split(other)]


@given(st.text(alphabet="ä%a💥", min_size=100, max_size=600))
def test_a_long_segment_is_cut_between_characters_and_escapes(segment: str) -> None:
    encoded = encode(segment)
    encoded.decode()
    if b"%~" in encoded:
        assert decode(encoded) is None
        assert len(encoded) > 200


def test_long_segments_that_differ_at_the_end_stay_apart() -> None:
    assert encode("x" * 400 + "a") != encode("x" * 400 + "b")


@pytest.mark.parametrize("path", [b"%41", b"%2e", b"%zz", b"a%", b"%2Fx%2", b"%25~", b".bulk.json"])
def test_only_the_one_right_spelling_of_a_path_is_a_name(path: bytes) -> None:
    name = decode(path)
    assert name is None or encode(name) == path
