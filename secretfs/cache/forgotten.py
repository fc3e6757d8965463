"""Values that are too old to be served have left memory: digests of them tell what has changed since. Pure."""

from collections.abc import Mapping
from hashlib import blake2b
from secrets import token_bytes
from typing import Final

from secretfs.errors import StoreError
from secretfs.store import Secret

_DIGEST_KEY: Final = token_bytes(32)


class Forgotten(StoreError):
    """What is known of a secret whose values have left memory."""

    def __init__(self, secret: Secret) -> None:
        super().__init__("too old to be served")
        self.digests = _digests(secret.values)


def is_refusal(answer: object) -> bool:
    """Whether a store has refused. It has not where values have left memory."""
    return isinstance(answer, StoreError) and not isinstance(answer, Forgotten)


def keys_of(answer: Secret | StoreError) -> frozenset[str]:
    """Return the keys that a secret has, or had before its values left memory; none for a refusal."""
    return frozenset(_values(answer))


def changed_keys(before: Secret | StoreError, now: Secret | StoreError) -> frozenset[str]:
    """Return the keys whose values are new, different or gone."""
    old, new = _values(before), _values(now)
    if isinstance(before, Forgotten):
        new = _digests(new)
    return frozenset(key for key in {*old, *new} if old.get(key) != new.get(key))


def _values(answer: Secret | StoreError) -> Mapping[str, bytes]:
    if isinstance(answer, Forgotten):
        return answer.digests
    return answer.values if isinstance(answer, Secret) else {}


def _digests(values: Mapping[str, bytes]) -> Mapping[str, bytes]:
    return {key: blake2b(value, key=_DIGEST_KEY, digest_size=16).digest() for key, value in values.items()}
