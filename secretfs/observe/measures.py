"""What is measured of a mount, at one moment: plain numbers, no name of a secret, nothing per secret or per app.

Whoever serves fills it in (`secretfs.daemon.measuring`); `secretfs.observe.metrics` makes text of it. Times are seconds
since the epoch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from secretfs.histogram import Distribution, Labels
from secretfs.store import Expiry

Format = Literal["openmetrics", "classic"]
"""How metrics are written down: the second is what Prometheus had before, and what node_exporter reads from files."""


class StoreMeasures(NamedTuple):
    """One store. Counters begin when the process does, or when its component was edited."""

    name: str
    type: str
    state: str
    """One of `MountMeasures.states`."""
    ttl: float
    max_stale: float
    last_success: float | None
    next_probe: float | None
    """When a store that is down is called next."""
    breaker_openings: int
    exceeded: Mapping[str, int]
    """How often answers were beyond each limit (`secretfs.cache.limits.LIMITS`)."""
    calls: Mapping[Labels, Distribution]
    """How long calls took, by operation and outcome."""
    calls_waiting: int
    calls_running: int
    hits: Mapping[str, tuple[int, int]]
    """Answers for which no reader waited, and how many of them had expired; by what was asked for."""
    waits: Mapping[Labels, Distribution]
    """How long readers waited for the store, by what for and outcome."""
    readers_waiting: int
    values: int
    values_in_use: int
    values_stale: int
    value_bytes: int
    oldest_in_use: float | None
    """When the oldest value that is in use was fetched."""
    rotated: int
    last_rotation: float | None
    publications: Distribution
    """Seconds from when a change of values was noticed until it was published."""
    expiry: Expiry


@dataclass(frozen=True, slots=True)
class MountMeasures:
    """A mount."""

    mountpoint: str
    version: str
    born: float
    """When it was mounted."""
    started: float
    """When this process began to serve it."""
    takeovers: int
    """How many processes have served it before this one. The journal knows."""
    by_kernel: bool
    """Whether the kernel answers warm reads."""
    inodes: int
    apps: int
    requests: int
    """Requests of the kernel that are not answered yet."""
    requests_refused: int
    """Because an app had too many."""
    messages: Mapping[str, Distribution]
    """How long they took, by kind."""
    errors: Mapping[str, int]
    """How often readers got an error, by the name of the errno."""
    reloaded: float | None
    declaration_refused: bool
    """Whether what is declared has a mistake, and is not what is served."""
    resident_bytes: int
    locked_bytes: int
    cpu_seconds: float
    open_files: int
    states: Sequence[str]
    """What a store may be: the best first."""
    stores: Sequence[StoreMeasures]
    protections: Mapping[str, bool] = field(default_factory=dict)
    """Whether each of what protects the secrets of this process does."""
    audit: Mapping[str, int] = field(default_factory=dict)
    """Audit records, by what became of them; empty without an audit."""
    audit_waiting: int = 0
    """Those that wait to be written."""
