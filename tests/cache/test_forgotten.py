"""What is kept of values that have left memory."""

from secretfs.cache.forgotten import Forgotten, changed_keys, is_refusal, keys_of
from secretfs.errors import AccessDenied
from secretfs.store import Secret
from tests.support.canary import leaked, secret

BEFORE = Secret({"same": secret("a").encode(), "other": secret("b").encode(), "gone": b""})
NOW = Secret({"same": secret("a").encode(), "other": secret("c").encode(), "new": b""})


def test_the_same_keys_have_changed_as_if_the_values_were_there() -> None:
    assert changed_keys(BEFORE, NOW) == changed_keys(Forgotten(BEFORE), NOW) == {"other", "gone", "new"}
    assert changed_keys(Forgotten(BEFORE), BEFORE) == frozenset()


def test_after_a_refusal_every_key_is_new_and_before_one_every_key_goes() -> None:
    refusal = AccessDenied("no")
    assert changed_keys(refusal, NOW) == changed_keys(NOW, refusal) == keys_of(NOW)
    assert changed_keys(Forgotten(NOW), refusal) == keys_of(Forgotten(NOW)) == keys_of(NOW)


def test_a_secret_whose_values_have_left_memory_is_not_refused() -> None:
    assert is_refusal(AccessDenied("no"))
    assert not is_refusal(Forgotten(BEFORE))
    assert not is_refusal(BEFORE)


def test_nothing_of_a_value_is_left() -> None:
    assert not leaked(repr(Forgotten(BEFORE).digests))
    assert not any(value in repr(vars(Forgotten(BEFORE))).encode() for value in BEFORE.values.values() if value)
