"""What errors of Secret Manager mean: the status of HTTP and that in the answer decide. Texts are never shown."""

from collections.abc import Mapping
from typing import Any, Final

from secretfs.errors import (
    AccessDenied,
    DeadlineExceeded,
    MalformedAnswer,
    SecretNotFound,
    StoreError,
    StoreUnavailable,
)
from secretfs.stores._http.failures import LacksRight, NotKnown

Meaning = tuple[type[StoreError], str]

_MEANINGS: Final[Mapping[tuple[int, str], Meaning]] = {
    (400, "INVALID_ARGUMENT"): (SecretNotFound, "no name that Secret Manager takes"),
    (401, ""): (NotKnown, "the token is refused"),
    (404, "NOT_FOUND"): (SecretNotFound, "not found, or it has no version"),
    (429, ""): (StoreUnavailable, "too many requests"),
    (504, ""): (DeadlineExceeded, "no answer in time"),
}
_STATES: Final[tuple[tuple[str, Meaning], ...]] = (
    # It is there, and somebody has switched it off: no value is served, also no older one.
    ("is in DISABLED state", (AccessDenied, "its latest version is disabled; enable it, or add a version")),
    ("is in DESTROYED state", (SecretNotFound, "its latest version is destroyed; add a version")),
    ("", (AccessDenied, "the state of the secret, or of its key, forbids it")),
)
_FORBIDDEN: Final = {
    "SERVICE_DISABLED": "the Secret Manager API is not enabled in the project",
    "BILLING_DISABLED": "the project has no billing account",
}


def refusal(where: str, status: int, answer: Any) -> StoreError:
    """Turn an error of Secret Manager into one of ours. ``answer`` is its parsed body, whatever that is."""
    error = answer.get("error") if isinstance(answer, Mapping) else None
    kind, reason = _meaning(status, error if isinstance(error, Mapping) else {})
    return kind(f"{where}: {reason} ({status})")


def _meaning(status: int, error: Mapping[str, Any]) -> Meaning:
    code = str(error.get("status", ""))
    known = _MEANINGS.get((status, code)) or _MEANINGS.get((status, ""))
    if known is not None:
        return known
    if (status, code) == (400, "FAILED_PRECONDITION"):
        return next(meaning for state, meaning in _STATES if state in str(error.get("message", "")))
    if status == 403:
        return LacksRight, _forbidden(error.get("details"))
    if 300 <= status < 400:
        return StoreUnavailable, "it sends us elsewhere, and a token does not follow redirects"
    return (StoreUnavailable, "server error") if status >= 500 else (MalformedAnswer, "unexpected status")


def _forbidden(details: Any) -> str:
    for detail in details if isinstance(details, list) else []:
        if isinstance(detail, Mapping) and str(detail.get("reason")) in _FORBIDDEN:
            return _FORBIDDEN[str(detail["reason"])]
    return "no role lets this identity do that, or it does not exist"
