"""The contract between secretfs and a secret store. No I/O here.

A store is a module with two names: ``Settings``, a dataclass whose fields are declared with
`secretfs.settings.setting`, and ``open_store(settings, context)``, which returns a `SecretStore`. `secretfs.stores`
says how modules are found; docs/writing-a-store.md shows one from start to end.

Stores are synchronous, because the SDKs are: secretfs calls every method in worker threads, several at once, and never
in the thread that serves the kernel. A store holds no cache and retries nothing: freshness, single flight, deadlines
and bounded concurrency are the business of `secretfs.cache.store_cache`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol, runtime_checkable

from secretfs.errors import StoreError

LARGEST_LISTING: Final = 1_000_000
"""Names: no store lists more. One that is listed page by page stops there, as pages may lead to pages without end."""


@dataclass(frozen=True, slots=True)
class Secret:
    """One version of one secret, as the store gave it. Immutable, and silent about its values in ``repr``."""

    values: Mapping[str, bytes] = field(repr=False)
    """Key to value. A store that is not multi-valued answers with one pair: the name asked for and its value."""
    version: str = ""
    """What the store calls this version; empty where it has no versions."""
    modified: float | None = None
    """When this version was written upstream, in seconds since the epoch; None if the store does not report it."""
    stages: tuple[str, ...] = ()
    """The labels that the store has on this version, such as AWSCURRENT."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """What people have written down about the secret beside its values. Not confidential: everybody sees it who may
    see the secret."""


@dataclass(frozen=True, slots=True)
class Names:
    """What a folder of a store holds, by full name. Names are never values and never need one to be read."""

    secrets: frozenset[str] = frozenset()
    """Full names, ``team/db`` and not ``db``. Names with further "/" imply the folders on the way."""
    folders: frozenset[str] = frozenset()
    """Full names, without a trailing "/", of folders the store has not looked into; `SecretStore.names` will."""


def ignore_loan(event: str, name: str, loan: str) -> None:
    """Ignore what a backend has lent."""


@dataclass(frozen=True, slots=True)
class StoreContext:
    """What a store may know of its surroundings when it is opened."""

    component: str
    """``metadata.name`` of the component, for messages."""
    namespace: str = ""
    """``metadata.namespace`` of the component; empty when it has none."""
    deadline: float = 5.0
    """Seconds. No single network wait may be longer: a thread that outlives the reader's patience holds a place."""
    annotations: Mapping[str, str] = field(default_factory=dict)
    """Those of the component that the store's module names in ``ANNOTATIONS``, a frozenset; templates are filled in."""
    tell_loan: Callable[[str, str, str], None] = ignore_loan
    """Told that a credential was ``issued`` or ``revoked``, the secret if that is known, and the id of the lease.

    It may be called from any thread."""


class SecretStore(Protocol):
    """An opened secret store.

    Every method may raise any `secretfs.errors.StoreError` and nothing else on account of the backend. Messages name
    the secret and the reason; they never carry a value or the body of an answer.
    """

    @property
    def multi_valued(self) -> bool:
        """Whether a secret of this store is a map of keys (a directory) or one value (a file).

        Declared, never discovered from data (Dapr's feature MULTIPLE_KEY_VALUES_PER_SECRET). Whoever has to ask for it
        does so when it is read for the first time, which is in a worker thread, and may raise a `StoreError`.
        """

    def check(self) -> None:
        """Make the cheapest round trip which shows that the store answers and accepts our credentials.

        The text of its errors is shown in the status of the mount.
        """

    def names(self, folder: str) -> Names:
        """Say what is in ``folder`` ("" is the whole store, or its root where it has folders). Reads no values.

        A store without folders of its own is only ever asked for "" and answers with all its names. A folder that is
        gone answers with empty `Names`.
        """

    def fetch(self, name: str) -> Secret:
        """Read the newest version of one secret. Raises `SecretNotFound` when the store says there is none."""

    def close(self) -> None:
        """Release connections. Called once; only a call that outlived its deadline can still be under way."""


@runtime_checkable
class WatchingStore(SecretStore, Protocol):
    """A store that reports changes by itself, so that they show before ttl is over."""

    def watch(self, changed: Callable[[frozenset[str]], None]) -> None:
        """Call ``changed`` with the names of secrets that were added, changed or deleted, from now until `close`.

        What is there at first is reported as well: a process before this one may have read something else.

        Called once, before any question is asked; returns at once. ``changed`` may be called from any thread, after
        the store itself would answer with the new state.
        """


@dataclass(frozen=True, slots=True)
class CachedRead:
    """A secret as it was read."""

    secret: Secret
    read_at: float
    """When it was asked for, in seconds since the epoch."""


@runtime_checkable
class RevalidatingStore(SecretStore, Protocol):
    """A store that can say of many secrets at once what has not changed, for less than it costs to read them."""

    def unchanged(self, known: Mapping[str, CachedRead]) -> frozenset[str]:
        """Name the secrets that are now what they were when they were read, for certain. The others will be read.

        Names none where to find out would cost more than to read them all.
        """


@runtime_checkable
class BatchingStore(SecretStore, Protocol):
    """A store that reads many secrets with one request, for less than it costs to read each of them."""

    @property
    def largest_batch(self) -> int:
        """How many secrets `fetch_many` takes at once; 1 while it is of no use, as where the backend forbids it."""

    def fetch_many(self, names: tuple[str, ...]) -> Mapping[str, Secret | StoreError]:
        """Read the newest version of some secrets, two at least: for each what `fetch` would return or raise.

        A secret that is left out is read with `fetch`: one that this request cannot speak of, or all of them when
        the request is refused and `fetch` may not be. Raises what `fetch` would raise for each of them.
        """


@runtime_checkable
class VersionedStore(SecretStore, Protocol):
    """A store that keeps older versions of a secret, and gives each of them by its name."""

    @property
    def keeps_versions(self) -> bool:
        """Whether there may be older versions, with the settings of this store. False means that it is like any other.

        Asks nobody. A store that is multi-valued shows them; a file has no place for them.
        """

    def fetch_version(self, name: str, version: str) -> Secret:
        """Read one version of a secret, by what `Secret.version` calls it: what it holds never changes.

        Raises `SecretNotFound` for a version that there never was, or is not any more: deleted or destroyed.
        """


@runtime_checkable
class NamespacedStore(SecretStore, Protocol):
    """A store whose secrets have namespaces of their own, which references mean and paths need not show."""

    def fetch_in(self, namespace: str, name: str) -> Secret:
        """Read a secret as a reference to it in a component of ``namespace`` means it."""


@runtime_checkable
class IssuingStore(SecretStore, Protocol):
    """A store that may issue a credential when it is read: a database user, a certificate, a one-time password.

    `fetch` returns the credential that is valid, and issues one only where there is none. secretfs calls it for those
    who open a value, or ask for its size, by name. It does not call it to prefetch, to refresh, to list, to render a
    whole store or to find out whether something has changed: values of such a store are not listed.
    """

    @property
    def reads_have_effects(self) -> bool:
        """Whether this store issues credentials, with its settings. False means that it is like any other."""


@runtime_checkable
class LeasingStore(SecretStore, Protocol):
    """A store that its backend lends something: a token that it has logged in for, leases of credentials.

    What is lent outlives a process. A process that is replaced passes it on; only the last one gives it back.
    """

    def resume(self, state: bytes, save: Callable[[bytes], None]) -> None:
        """Go on with what a store of this component had saved (empty: nothing), and `save` whenever that changes.

        Called once, before anybody uses a secret, and contacts nobody. ``save`` may be called from any thread. The
        component may have been edited meanwhile: a state for another backend, or for another role there, is ignored.
        The state is kept in memory that only root and this mount's processes can read.
        """

    def hand_over(self) -> None:
        """Release connections, and give nothing back: the next process resumes. Called instead of `close`."""


@dataclass(frozen=True, slots=True)
class Expiry:
    """When what a backend has lent ends unless it is renewed. Times are seconds since the epoch."""

    token: float | None = None
    """Our token; None for one that never ends, that is not known to end, or that is not there."""
    leases: int = 0
    """How many leases of credentials there are."""
    next_lease: float | None = None
    """When the first of them ends."""


@runtime_checkable
class ExpiringStore(SecretStore, Protocol):
    """A store that knows when what its backend has lent it ends."""

    def expiry(self) -> Expiry:
        """Return when that is. Asks nobody, and waits for nobody."""


@runtime_checkable
class ClockedStore(SecretStore, Protocol):
    """A store whose backend reports its time with its answers: tokens and certificates depend on both clocks."""

    def clock_skew(self) -> float | None:
        """Return by how many seconds the backend's clock is ahead of ours; None if it has not reported its time yet.

        Asks nobody: the latest answer counts.
        """


def reads_have_effects(store: SecretStore) -> bool:
    """Say whether a store may issue a credential when it is read."""
    return bool(getattr(store, "reads_have_effects", False))  # asked at each look-up: isinstance takes 20 us
