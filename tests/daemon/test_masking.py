"""Masking of streams: what is shown does not depend on how it was cut."""

import re

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
    known = sorted({v for v in (value.rstrip(b"\r\n") for value in values) if v}, key=len, reverse=True)
    whole = b"".join(parts)
    assert shown == (re.sub(b"|".join(map(re.escape, known)), lambda _: MASK, whole) if known else whole)


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


def test_values_of_before_stay_masked() -> None:
    secrets, stream = masker(b"first\n")
    secrets.replace([b"second"])
    assert stream.feed(b"first\nsecond ") == MASK + b"\n" + MASK + b" "
