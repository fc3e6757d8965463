"""A secret store in memory with knobs: the verified fake behind which the core is tested; it passes `StoreContract`."""

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from secretfs.errors import SecretNotFound, StoreError
from secretfs.fs.names import split
from secretfs.store import Names, Secret
from tests.support.waiting import PATIENCE


class MemoryStore:
    """Secrets in a dict. ``folders`` makes it list one level at a time, as Vault does."""

    def __init__(
        self,
        secrets: Mapping[str, Mapping[str, bytes]] | None = None,
        *,
        multi_valued: bool = True,
        folders: bool = False,
    ) -> None:
        self.multi_valued = multi_valued
        self.folders = folders
        self.secrets: dict[str, Secret] = {}
        self.calls: Counter[str] = Counter()
        """How often each question was asked: ``names:team``, ``fetch:team/db``, ``check``."""
        self.fail_with: StoreError | None = None
        """Raised by every call while set."""
        self.refused: dict[str, StoreError] = {}
        """Raised by one call, by the same key as in `calls`."""
        self.gate = threading.Event()
        """Cleared, it holds every call until it is set: a store that hangs."""
        self.gate.set()
        self.entered = threading.Semaphore(0)
        """Released by every call as it begins: acquire it to know that one has."""
        self.running = 0
        self.most_running = 0
        self.closed = False
        self._lock = threading.Lock()
        for name, values in (secrets or {}).items():
            self.put(name, values)

    @classmethod
    def single(cls, **secrets: bytes) -> "MemoryStore":
        """Make a single-valued store."""
        return cls({name: {name: value} for name, value in secrets.items()}, multi_valued=False)

    def put(self, name: str, values: Mapping[str, bytes], modified: float | None = None) -> None:
        """Write a new version."""
        known = self.secrets.get(name)
        version = str(int(known.version) + 1 if known else 1)
        self.secrets[name] = Secret(dict(values), version, modified)

    def delete(self, name: str) -> None:
        """Delete a secret."""
        del self.secrets[name]

    def check(self) -> None:
        """Answer."""
        self._called("check")

    def names(self, folder: str) -> Names:
        """List everything, or one folder."""
        self._called(f"names:{folder}")
        if not self.folders:
            return Names(frozenset(self.secrets))
        above = split(folder) if folder else ()
        secrets, folders = set(), set()
        for name in self.secrets:
            path = split(name)
            if path[: len(above)] == above and len(path) == len(above) + 1:
                secrets.add(name)
            elif path[: len(above)] == above and len(path) > len(above) + 1:
                folders.add("/".join(path[: len(above) + 1]))
        return Names(frozenset(secrets), frozenset(folders))

    def fetch(self, name: str) -> Secret:
        """Read a secret."""
        self._called(f"fetch:{name}")
        try:
            return self.secrets[name]
        except KeyError:
            raise SecretNotFound(f"secret {name} not found") from None

    def close(self) -> None:
        """Close."""
        self.closed = True

    def _called(self, call: str) -> None:
        with self._lock:
            self.calls[call] += 1
            self.running += 1
            self.most_running = max(self.most_running, self.running)
        self.entered.release()
        try:
            self.gate.wait(PATIENCE)
            if self.fail_with is not None:
                raise self.fail_with
            if call in self.refused:
                raise self.refused[call]
        finally:
            with self._lock:
                self.running -= 1


class WatchingMemoryStore(MemoryStore):
    """A `MemoryStore` that is a `WatchingStore`."""

    _changed: Callable[[frozenset[str]], None]

    def watch(self, changed: Callable[[frozenset[str]], None]) -> None:
        """Remember whom to tell."""
        self._changed = changed

    def tell(self, *names: str) -> None:
        """Say that these secrets have changed, from a thread of the store. Raises what the listener raises."""
        with ThreadPoolExecutor(1) as thread:
            thread.submit(self._changed, frozenset(names)).result()


class VersionedMemoryStore(MemoryStore):
    """A `MemoryStore` that is a `VersionedStore`: it keeps all versions, until one is destroyed."""

    keeps_versions = True

    def __init__(self, secrets: Mapping[str, Mapping[str, bytes]] | None = None, *, multi_valued: bool = True) -> None:
        self.versions: dict[tuple[str, str], Secret] = {}
        super().__init__(secrets, multi_valued=multi_valued)

    def put(self, name: str, values: Mapping[str, bytes], modified: float | None = None) -> None:
        """Write a new version."""
        super().put(name, values, modified)
        self.versions[name, self.secrets[name].version] = self.secrets[name]

    def fetch_version(self, name: str, version: str) -> Secret:
        """Read a version."""
        self._called(f"fetch:{name}, version {version}")
        try:
            return self.versions[name, version]
        except KeyError:
            raise SecretNotFound(f"secret {name}, version {version} not found") from None


class IssuingMemoryStore(WatchingMemoryStore):
    """A `MemoryStore` that is an `IssuingStore`: each fetch counts as a credential that it issues."""

    reads_have_effects = True

    @property
    def issued(self) -> int:
        """How many credentials have been issued."""
        return sum(count for call, count in self.calls.items() if call.startswith("fetch:"))


class BatchingMemoryStore(MemoryStore):
    """A `MemoryStore` that is a `BatchingStore`."""

    largest_batch = 20

    def __init__(self, secrets: Mapping[str, Mapping[str, bytes]] | None = None, *, multi_valued: bool = True) -> None:
        super().__init__(secrets, multi_valued=multi_valued)
        self.batches: list[tuple[str, ...]] = []
        self.outcomes: dict[str, StoreError | None] = {}
        """What a batch has for a secret instead of its value; None leaves it out."""

    def fetch_many(self, names: tuple[str, ...]) -> Mapping[str, Secret | StoreError]:
        """Read secrets."""
        self.batches.append(names)
        self._called("fetch_many")
        found: dict[str, Secret | StoreError] = {}
        for name in names:
            outcome = self.outcomes.get(name, self.secrets.get(name) or SecretNotFound(f"secret {name} not found"))
            if outcome is not None:
                found[name] = outcome
        return found
