"""What a store answered: whether it is what the contract says, and whether it is an answer at all.

`checked` and `fetched` run in worker threads.
"""

import copy
from collections.abc import Mapping
from typing import Any, Final, TypeGuard, TypeVar, cast

from secretfs.cache.health import Kind
from secretfs.cache.limits import StoreLimits
from secretfs.cache.ttl_cache import CachedAnswer
from secretfs.errors import AccessDenied, MalformedAnswer, SecretNotFound, StoreError
from secretfs.store import BatchingStore, Names, Secret

T = TypeVar("T")

Outcome = Secret | StoreError

_ANSWERS: Final = {Kind.NAMES: Names, Kind.FETCH: Secret, Kind.COMPARE: frozenset}


def checked(kind: Kind, answer: T, limits: StoreLimits) -> T:
    """Return what a store answered, within limits. Raises `MalformedAnswer` if that is not what the contract says."""
    wanted = _ANSWERS.get(kind)
    if wanted is not None and not isinstance(answer, wanted):
        raise MalformedAnswer(f"the store answered {kind.value} with a {type(answer).__name__}, not {wanted.__name__}")
    if isinstance(answer, Names):
        return cast("T", limits.names(answer))
    if isinstance(answer, Secret):
        if not all(isinstance(value, bytes) for value in answer.values.values()):
            raise MalformedAnswer("the store answered with a value that is not bytes")
        if not all(isinstance(key, str) for key in answer.values):
            raise MalformedAnswer("the store answered with a key that is no text")
        return cast("T", limits.secret(answer))
    return answer


def fetched(store: BatchingStore, names: tuple[str, ...], limits: StoreLimits) -> Mapping[str, Outcome]:
    """Read secrets, with one call. What is raised about the store concerns all of them."""
    if len(names) == 1:
        try:
            return {names[0]: checked(Kind.FETCH, store.fetch(names[0]), limits)}
        except StoreError as error:
            return {names[0]: error}
    try:
        found = store.fetch_many(names)
    except StoreError as error:
        return dict.fromkeys(names, error)
    if not isinstance(found, Mapping):
        raise MalformedAnswer(f"the store answered fetch_many with a {type(found).__name__}, not a mapping")
    return {name: _checked_outcome(found[name], limits) for name in names if name in found}


def _checked_outcome(answer: Outcome, limits: StoreLimits) -> Outcome:
    try:
        return answer if isinstance(answer, StoreError) else checked(Kind.FETCH, answer, limits)
    except MalformedAnswer as error:
        return error


def is_failure(answer: Outcome) -> TypeGuard[StoreError]:
    """Whether there is no answer: a refusal is one."""
    return isinstance(answer, StoreError) and not isinstance(answer, SecretNotFound | AccessDenied)


def if_secret(answer: CachedAnswer[Any] | None) -> CachedAnswer[Secret] | None:
    """Return an answer that is a secret; None for any other, and for none."""
    return answer if answer and isinstance(answer.value, Secret) else None


def given(answer: CachedAnswer[T | StoreError]) -> CachedAnswer[T]:
    """Return an answer that is not a refusal; raise one that is."""
    if isinstance(answer.value, StoreError):
        raise copy.copy(answer.value)
    return cast("CachedAnswer[T]", answer)
