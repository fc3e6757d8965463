"""Single versions of secrets: cached as the secrets are, but never asked for in the background.

What a version holds never changes. It may be deleted, which shows when somebody looks at it again after ``ttl``.
"""

import json
import math
from collections.abc import Awaitable, Callable

import trio

from secretfs.cache.answers import given, if_secret
from secretfs.cache.client import StoreClient
from secretfs.cache.ttl_cache import AnswerMemory, CachedAnswer, TTLCache
from secretfs.errors import StoreError
from secretfs.store import Secret, VersionedStore

Answers = TTLCache[str, Secret | StoreError]


class CachedVersions:
    """The versions of the secrets of one store. ``serve`` returns an answer of a cache as `CachedStore` does."""

    def __init__(
        self,
        client: StoreClient,
        nursery: trio.Nursery,
        memory: AnswerMemory[str, Secret | StoreError],
        serve: Callable[[Answers, str], Awaitable[CachedAnswer[Secret | StoreError]]],
    ) -> None:
        self._client = client
        self._serve = serve
        self.answers = Answers(self._load, nursery, memory=memory)
        """By secret and version, as `_key` joins them."""

    @property
    def kept(self) -> bool:
        """Whether there may be any: see `secretfs.store.VersionedStore`."""
        return isinstance(self._client.store, VersionedStore) and self._client.store.keeps_versions

    async def fetch(self, name: str, version: str) -> CachedAnswer[Secret]:
        """`VersionedStore.fetch_version`, at most ttl old; older only while the store fails."""
        return given(await self._serve(self.answers, _key(name, version)))

    def peek(self, name: str, version: str) -> CachedAnswer[Secret] | None:
        """Return a version if it may be served at once."""
        return if_secret(self.answers.peek(_key(name, version)))

    def use(self, name: str, version: str, until: float = -math.inf) -> None:
        """Take note that a version is in use, or may be ``until``."""
        self.answers.use(_key(name, version), until)

    def idle_for(self, name: str, version: str) -> float:
        """Return for how many seconds nobody has asked for a version; infinity if it is not known."""
        return self.answers.idle_for(_key(name, version))

    def expire(self, concerned: Callable[[str], bool]) -> None:
        """Serve no version any more of the secrets that are ``concerned``, until it has been asked for again."""
        for key in self.answers:
            if concerned(_split(key)[0]):
                self.answers.expire(key)

    async def _load(self, key: str) -> CachedAnswer[Secret | StoreError]:
        return await self._client.fetch_version(key, *_split(key))


def _key(name: str, version: str) -> str:
    """Return the key of a version: text, as all keys of answers that the next process finds."""
    return json.dumps([name, version])


def _split(key: str) -> tuple[str, str]:
    name, version = json.loads(key)
    return name, version
