"""How long an answer of a store is good, and how long a request waits for one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Freshness:
    """How long an answer of one store is good, and how long to wait for one. Seconds."""

    ttl: float = 60.0
    """Age up to which an answer is served without a question."""
    negative_ttl: float = 5.0
    """Age up to which a listing says that a name is not there, if that is less than ``ttl``."""
    max_stale: float = 3600.0
    """Age up to which it is served while the store fails."""
    deadline: float = 5.0
    """Longest wait for an answer."""
    bulk_deadline: float = 0.0
    """Longest wait for all the answers that a bulk file or a refresh takes, if that is longer than ``deadline``."""
    idle: float = 600.0
    """Time without a reader after which a value is dropped from memory."""


FRESHNESS_HELP: Final[Mapping[str, str]] = {
    "ttl": "maximum age of a value that is served without asking the store",
    "negative_ttl": "maximum age of a listing that says a name is not there; never longer than ttl",
    "max_stale": "maximum age of a value that is served while its store fails",
    "deadline": "maximum time that a reader waits for a store",
    "bulk_deadline": "maximum time for a whole bulk file or refresh, if that is longer than deadline",
    "idle": "time after its last use for which a value stays in memory",
}
"""What users are told about each, in ``--help`` and manual pages."""
