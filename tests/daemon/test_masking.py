"""Masking of streams: what is shown does not depend on how it was cut."""

from hypothesis import given
from hypothesis import strategies as st

from secretfs.daemon.masking import MASK, Masker, Secrets
from tests.support.canary import secret

few = st.text("ab\n", max_size=12).map(str.encode)


def masker(*values: bytes) -> tuple[Secrets, Masker]:
    secrets = Secrets()
    secrets.replace(values)
    return secrets, Masker(secrets)


@given(st.lists(few, max_size=4), st.lists(few, max_size=8))
def test_it_is_as_if_all_came_at_once(values: list[bytes], parts: list[bytes]) -> None:
    _, stream = masker(*values)
    shown = b"".join(map(stream.feed, parts)) + stream.end()
    assert shown == masked(b"".join(parts), {value.rstrip(b"\r\n") for value in values} - {b""})


def masked(whole: bytes, values: set[bytes]) -> bytes:
    """Mask all that is part of a value anywhere: byte by byte, without haste."""
    starts = [[value for value in values if whole.startswith(value, place)] for place in range(len(whole))]
    shown, end = b"", 0
    for place, found in enumerate(starts):
        if found and place >= end:
            shown += MASK
        end = max([end, *(place + len(value) for value in found)])
        if place >= end:
            shown += whole[place : place + 1]
    return shown


def test_only_what_may_be_a_secret_is_held_back() -> None:
    value = secret().encode()
    _, stream = masker(value, b"\xff\0\xfe")
    assert stream.feed(b"name: ") == b"name: "
    assert stream.feed(value[:5]) == b""
    assert stream.feed(value[5:-1]) == b""
    assert stream.feed(value[-1:]) == MASK
    assert stream.feed(b"a\xff\0") == b"a"
    assert stream.feed(b"\0\xfe") == b"\xff\0\0\xfe"
    assert stream.feed(value[:5] + b"x") == value[:5] + b"x"


def test_secrets_that_overlap_are_one_mask() -> None:
    for cut in range(7):
        _, stream = masker(b"abc", b"cxyz")
        whole = b".abcxyz."
        assert stream.feed(whole[:cut]) + stream.feed(whole[cut:]) + stream.end() == b"." + MASK + b"."


def test_what_overlaps_itself_for_ever_takes_no_memory() -> None:
    _, stream = masker(b"aaaa")
    shown = b"".join(stream.feed(b"aaa") for _ in range(1000))
    assert shown == MASK
    assert len(stream._held) < 4


def test_values_of_before_stay_masked() -> None:
    secrets, stream = masker(b"first\n")
    secrets.replace([b"second"])
    assert stream.feed(b"first\nsecond ") == MASK + b"\n" + MASK + b" "
