"""What a view shows: a store as the file system sees it, whether its secrets are fetched or rendered."""

from collections.abc import Callable, Iterable
from typing import Protocol

from secretfs.cache.health import Statistics
from secretfs.cache.limits import StoreLimits
from secretfs.cache.ttl_cache import CachedAnswer
from secretfs.store import Names, Secret

Issues = Callable[[str], bool]
"""Whether reading the secret of a name may issue a credential."""


class ShownVersions(Protocol):
    """Single versions of secrets: see `secretfs.cache.versions.CachedVersions`."""

    @property
    def kept(self) -> bool:
        """Whether there may be any."""

    async def fetch(self, name: str, version: str) -> CachedAnswer[Secret]:
        """Return a version."""

    def peek(self, name: str, version: str) -> CachedAnswer[Secret] | None:
        """Return a version if it may be served at once."""

    def use(self, name: str, version: str, until: float = ...) -> None:
        """Take note that a version is in use, or may be ``until``."""

    def idle_for(self, name: str, version: str) -> float:
        """Return for how many seconds nobody has asked for a version."""

    def expire(self, concerned: Callable[[str], bool]) -> None:
        """Serve no version any more of some secrets, until it has been asked for again."""


class ShownStore(Protocol):
    """A store: see `secretfs.cache.store_cache.CachedStore`, and `secretfs.fs.rendered_files.RenderedFiles`."""

    component: str

    @property
    def versions(self) -> ShownVersions:
        """The versions of its secrets."""

    @property
    def limits(self) -> StoreLimits:
        """What it may have at most."""

    @property
    def multi_valued(self) -> bool:
        """Whether a secret is a map of keys."""

    @property
    def reads_have_effects(self) -> bool:
        """Whether reading some secret may issue a credential."""

    @property
    def largest_batch(self) -> int:
        """How many secrets one call reads at most."""

    @property
    def idle(self) -> float:
        """Seconds after which what nobody uses is dropped."""

    @property
    def negative_ttl(self) -> float:
        """Seconds for which a listing says that a name is not there."""

    async def names(self, folder: str, *, max_age: float = ...) -> CachedAnswer[Names]:
        """Return the names in a folder."""

    def recall_names(self, folder: str) -> CachedAnswer[Names] | None:
        """Return `names`, if that takes no waiting."""

    async def fetch(self, name: str) -> CachedAnswer[Secret]:
        """Return a secret."""

    def peek(self, name: str) -> CachedAnswer[Secret] | None:
        """Return a secret if it may be served at once."""

    def recall(self, name: str) -> CachedAnswer[Secret] | None:
        """Return `fetch`, if that takes no waiting."""

    def use(self, name: str, until: float = ...) -> None:
        """Take note that a secret is in use, or may be ``until``."""

    def idle_for(self, name: str) -> float:
        """Return for how many seconds nobody has asked for a secret."""

    def prefetch(self, names: Iterable[str]) -> None:
        """Ask for secrets that somebody is about to want."""

    async def refresh(self, concerned: Callable[[str], bool] = ...) -> None:
        """Ask again, now, for what is known."""

    async def list_anew(self, folders: frozenset[str]) -> None:
        """Ask again for the names in folders."""

    async def fetch_anew(self, name: str) -> CachedAnswer[Secret]:
        """Return a secret, and never what is known already."""

    def statistics(self, visible: Callable[[str], bool] | None = None) -> Statistics:
        """Return its health."""
