"""How a call of a store ended, for those who count calls. Pure."""

from collections.abc import Mapping
from enum import Enum

from secretfs.errors import AccessDenied, DeadlineExceeded, SecretNotFound


class Outcome(Enum):
    """How a call ended, the best first."""

    OK = "ok"
    MISSING = "missing"
    """The store says that there is no such secret."""
    REFUSED = "refused"
    """It says that we may not have it."""
    TIMEOUT = "timeout"
    """It did not answer within the deadline."""
    FAILED = "failed"


_ERRORS = ((SecretNotFound, Outcome.MISSING), (AccessDenied, Outcome.REFUSED), (DeadlineExceeded, Outcome.TIMEOUT))
_ORDER = list(Outcome)


def outcome_of(answer: object) -> Outcome:
    """Return how a call ended that returned or raised ``answer``; of a batch, what became of the best of it."""
    if isinstance(answer, Mapping) and answer:
        return min(map(outcome_of, answer.values()), key=_ORDER.index)
    if isinstance(answer, BaseException):
        return next((outcome for kind, outcome in _ERRORS if isinstance(answer, kind)), Outcome.FAILED)
    return Outcome.OK
