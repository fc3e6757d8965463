"""What a store was asked and how that went, for people to look at in ``.secretfs/status.json``. Pure.

Counts questions to the backend, never reads of what is known: it costs nothing where nothing is asked.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from secretfs.errors import StoreError


class Kind(Enum):
    """The questions of `secretfs.store.SecretStore`, and of `secretfs.store.ComparingStore`."""

    CHECK = "check"
    NAMES = "names"
    FETCH = "fetch"
    COMPARE = "compare"


class State(Enum):
    """What is to be thought of a store, the best first."""

    OK = "ok"
    REFUSED = "refused"
    """It answers; its last answer was that we may not."""
    IN_DOUBT = "in doubt"
    """Its last call failed: what is known is served."""
    DOWN = "down"
    """Several in a row did: nobody asks until it has been tried again."""


class Trouble(NamedTuple):
    """A failure or a refusal. Times here are seconds since the epoch."""

    at: float
    error: str
    """Name of the error's class."""
    message: str
    """That of a `StoreError` carries no value."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """A store at one moment: no names and no values, only how many."""

    store_type: str
    state: State
    last_success: float | None
    last_error: Trouble | None
    next_try: float | None
    """When a store that is down is tried again."""
    names: int
    cached: int
    stale: int
    """Values that are served although they have expired."""
    asked: Mapping[Kind, int]
    failed: Mapping[Kind, int]


class Tally:
    """Takes note of every call to one store."""

    def __init__(self) -> None:
        self.asked: Counter[Kind] = Counter()
        self.gone_wrong: Counter[Kind] = Counter()
        self.last_success: float | None = None
        self.last_error: Trouble | None = None
        self.last_refused = False
        """The last answer was a refusal."""

    def answered(self, kind: Kind, at: float) -> None:
        """Take note of an answer, also of "no such secret"."""
        self.asked[kind] += 1
        self.last_success, self.last_refused = at, False

    def refused(self, kind: Kind, at: float, error: StoreError) -> None:
        """Take note of an answer that says no."""
        self.failed(kind, at, error)
        self.last_refused = True

    def failed(self, kind: Kind, at: float, error: StoreError) -> None:
        """Take note of a failure."""
        self.asked[kind] += 1
        self.gone_wrong[kind] += 1
        self.last_error = Trouble(at, type(error).__name__, str(error))
