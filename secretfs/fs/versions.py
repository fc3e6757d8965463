"""Versions of secrets as one app sees them: those of the secrets that its scope shows."""

import math

from secretfs.cache.ttl_cache import CachedAnswer
from secretfs.cache.turns import asking_for
from secretfs.errors import NoSuchEntry
from secretfs.fs.shown_store import ShownStore
from secretfs.scopes import SecretScope
from secretfs.store import Secret


class VersionsView:
    """The versions in a store. ``app`` is who waits for them."""

    def __init__(self, store: ShownStore, scope: SecretScope, app: str) -> None:
        self._versions = store.versions
        self._scope = scope
        self._app = app

    def exist_of(self, name: str) -> bool:
        """Whether there may be versions of a secret. Asks nobody."""
        return self._scope.allows(name) and self._versions.kept

    async def get(self, name: str, version: str) -> CachedAnswer[Secret]:
        """Return a version. Raises `NoSuchEntry` if the scope hides the secret, `SecretNotFound` if there is none."""
        self._require(name)
        with asking_for(self._app):
            return await self._versions.fetch(name, version)

    def peek(self, name: str, version: str) -> CachedAnswer[Secret] | None:
        """Return a version that may be served without waiting, if there is one. Raises as `get` does."""
        self._require(name)
        return self._versions.peek(name, version)

    def use(self, name: str, version: str, until: float = -math.inf) -> None:
        """Count a version as used, or as one that may be ``until``."""
        self._versions.use(name, version, until)

    def idle_for(self, name: str, version: str) -> float:
        """Return for how many seconds nobody has asked for a version; infinity if it is not known."""
        return self._versions.idle_for(name, version)

    def _require(self, name: str) -> None:
        if not self._scope.allows(name):
            raise NoSuchEntry(name)
