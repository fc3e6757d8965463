"""Freshness and outages: what is known of a store, how fresh it is kept, and what is served while the store is down.

A `CachedStore` stands between the file system and a `SecretStore`. Loads are single flight, and no request waits longer
than the store's deadline.

* An answer younger than ``ttl`` is served. "No such secret" and "forbidden" are answers, and take effect at once.
* A secret in use is renewed in the background before it expires, so readers do not wait; so are the listings that lead
  to it. Only an open is a use. An answer that nobody asked for within ``idle`` is dropped from memory.
* A store whose reads have effects is asked for a secret when a reader needs it, and never in the background.
* While a store fails, cached answers are served up to ``max_stale`` old, marked as stale. Anything else fails within
  the deadline, and at once while the circuit breaker is open; `StoreClient` probes the store in the background.

Belongs to one trio thread; nothing here is thread-safe.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Final, TypeVar

import trio

from secretfs.cache.answers import given, if_secret
from secretfs.cache.change import Announce, Change, discard
from secretfs.cache.client import StoreClient
from secretfs.cache.deadlines import request_limit
from secretfs.cache.eviction import evict
from secretfs.cache.forgotten import changed_keys, is_refusal, keys_of
from secretfs.cache.freshness import Freshness
from secretfs.cache.health import Kind, Statistics
from secretfs.cache.listing_budget import ListingBudget
from secretfs.cache.measures import LISTING, VALUE, ReaderStats, ValueCounts, count_names, count_values, listed
from secretfs.cache.parallel import in_parallel
from secretfs.cache.ttl_cache import CachedAnswer, TTLCache
from secretfs.cache.turns import NO_APP, asking_for
from secretfs.cache.versions import CachedVersions
from secretfs.cache.warm_restart import NOTHING_KEPT, StoreMemory
from secretfs.cache.withheld import WithheldNames
from secretfs.errors import StoreError
from secretfs.store import CachedRead, Names, RevalidatingStore, Secret
from secretfs.store import reads_have_effects as has_effects

T = TypeVar("T")
NamesAnswer = CachedAnswer[Names | StoreError]
SecretAnswer = CachedAnswer[Secret | StoreError]

BACKGROUND: Final = 4
"""How many of the `CONCURRENCY` calls of a store at once may be for nobody in particular."""
STALE_TTL: Final = 1.0
"""Seconds that a stale answer is served before its age is looked at again."""


class CachedStore:
    """A secret store as the file system sees it.

    ``nursery`` runs the questions; cancel it to stop. `keep_fresh` has to run beside it. ``memory`` has what the
    process before knew, and keeps what we know for the next one.
    """

    def __init__(
        self,
        client: StoreClient,
        freshness: Freshness,
        nursery: trio.Nursery,
        announce: Announce = discard,
        memory: StoreMemory | None = None,
    ) -> None:
        self.component = client.component
        self._client = client
        self._freshness = freshness
        self._announce = announce
        memory = memory or NOTHING_KEPT.store(client.component, "")
        kept = None if has_effects(client.store) else memory.secrets  # such a store keeps what it was lent
        self._names = TTLCache(self._load_names, nursery, self._names_loaded, memory.names)
        self._secrets = TTLCache[str, Secret | StoreError](client.fetch, nursery, self._secret_loaded, kept)
        self.versions = CachedVersions(client, nursery, memory.versions, self._serve)
        client.go_on(memory.failures, memory.note_failures)
        self.readers = ReaderStats()
        self._withheld = WithheldNames()
        self.limits = client.limits
        self._listings = ListingBudget(client.component, client.limits)
        self._nursery = nursery
        self._ended = False
        self._token = trio.lowlevel.current_trio_token()
        client.watch(self._changed_upstream)

    @property
    def multi_valued(self) -> bool:
        """Whether a secret of this store is a map of keys or one value, as the store says."""
        return self._client.store.multi_valued

    @property
    def reads_have_effects(self) -> bool:
        """Whether a fetch may issue a credential: see `secretfs.store.IssuingStore`."""
        return has_effects(self._client.store)

    @property
    def largest_batch(self) -> int:
        """How many secrets one call reads at most."""
        return self._client.largest_batch

    @property
    def idle(self) -> float:
        """Seconds after which what nobody uses is dropped."""
        return self._freshness.idle

    @property
    def negative_ttl(self) -> float:
        """Seconds for which a listing says that a name is not there."""
        return min(self._freshness.negative_ttl, self._freshness.ttl)

    async def names(self, folder: str, *, max_age: float = math.inf) -> CachedAnswer[Names]:
        """`SecretStore.names`, at most ttl old; older only while the store fails.

        A listing that is older than ``max_age`` seconds is loaded again, if the store is not failing.
        """
        answer = self._names.access(folder)
        if answer is None:
            return given(await self._serve(self._names, folder))
        if trio.current_time() > answer.fetched + max_age and not self._client.in_doubt:
            with contextlib.suppress(StoreError):  # logged where it happened; the listing that we have still counts
                answer = await self._wait_for(self._names, folder)
        return given(answer)

    def recall_names(self, folder: str) -> CachedAnswer[Names] | None:
        """`names`, if that takes no waiting; else None. Raises a refusal that is known."""
        answer = self._names.access(folder)
        return None if answer is None else given(answer)

    async def fetch(self, name: str) -> CachedAnswer[Secret]:
        """`SecretStore.fetch`, at most ttl old; older only while the store fails."""
        return given(await self._serve(self._secrets, name))

    def peek(self, name: str) -> CachedAnswer[Secret] | None:
        """Return the secret if it may be served at once."""
        return if_secret(self._secrets.peek(name))

    def recall(self, name: str) -> CachedAnswer[Secret] | None:
        """`fetch`, if that takes no waiting; else None. Raises a refusal that is known."""
        answer = self._secrets.access(name)
        return None if answer is None else given(answer)

    def use(self, name: str, until: float = -math.inf) -> None:
        """Take note that a secret which is known is in use: somebody opens it, has it open, or may open it ``until``.

        Nothing else is a use. What is in use is kept fresh in the background, and the listings that lead to it are.
        """
        self._secrets.use(name, until)
        while name:
            name = name.rpartition("/")[0]
            self._names.use(name, until)

    def idle_for(self, name: str) -> float:
        """Return for how many seconds nobody has asked for a secret; infinity if it is not known."""
        return self._secrets.idle_for(name)

    def prefetch(self, names: Iterable[str]) -> None:
        """Ask for secrets that somebody is about to want, if they are not known and the store is in no doubt."""
        if not self._client.in_doubt and not self.reads_have_effects:
            for name in names:
                self._nursery.start_soon(self._prefetch, name)

    async def _prefetch(self, name: str) -> None:
        if self._secrets.peek(name) is None:  # nobody was faster
            await self._load_all(self._secrets, [name])

    async def refresh(self, concerned: Callable[[str], bool] = lambda _: True) -> None:
        """Ask again, now, for what is known of the secrets and folders that are ``concerned``, if only the names.

        Returns when all is answered. Raises the first failure at once. A refusal is an answer.
        """
        if self.reads_have_effects:
            for name in filter(concerned, self._secrets):
                self._secrets.expire(name)  # its next user asks
        self.versions.expire(concerned)
        caches = (self._names,) if self.reads_have_effects else (self._names, self._secrets)
        known = [(cache, key) for cache in caches for key in cache if concerned(key)]
        await self._reload(known or [(self._names, "")])

    async def list_anew(self, folders: frozenset[str]) -> None:
        """`refresh` the names of folders."""
        known = [(self._names, folder) for folder in self._names if folder in folders]
        await self._reload(known or [(self._names, "")])

    async def fetch_anew(self, name: str) -> CachedAnswer[Secret]:
        """`fetch`, and never what is known already. Not for a store whose reads have effects: see `refresh`."""
        await self._reload([(self._secrets, name)])
        return await self.fetch(name)

    def statistics(self, visible: Callable[[str], bool] | None = None) -> Statistics:
        """Return the health of the store, and how much is known of the secrets that are ``visible``; None is all."""
        cached = stale = 0
        for name, answer in self._secrets.answers():
            if isinstance(answer.value, Secret) and (visible is None or visible(name)):
                cached += len(answer.value.values)
                if answer.stale or (self._client.in_doubt and not answer.remaining):
                    stale += len(answer.value.values)
        statistics = self._client.statistics(names=count_names(self._names, visible), cached=cached, stale=stale)
        return replace(statistics, readers=self.readers.now(self._secrets.hits))

    @property
    def hits(self) -> Mapping[str, tuple[int, int]]:
        """How often readers did not have to wait, and how often of that for an answer that had expired, by what for."""
        names, secrets = self._names, self._secrets
        return {VALUE: (secrets.hits, secrets.stale_hits), LISTING: (names.hits, names.stale_hits)}

    async def count_values(self) -> ValueCounts:
        """Count the values in memory, without keeping other tasks waiting."""
        return await count_values(self._secrets, self._freshness.idle, lambda: self._client.in_doubt)

    async def _reload(self, asked: list[tuple[TTLCache[str, Any], str]]) -> None:
        if self._client.down:
            await self._client.check()
        for cache, key in asked:
            cache.expire(key)
        waiting = iter(asked)

        async def load() -> None:
            for cache, key in waiting:
                await self._load(cache, key)

        await in_parallel(load, BACKGROUND * self.largest_batch)

    def known_names(self) -> frozenset[str]:
        """Return the names of all secrets that have been listed or asked for."""
        return listed(self._names).union(self._secrets)

    def inherit(self, before: "CachedStore") -> None:
        """Ask again for what another store knew, and tell how it differs here. Nothing of it is ever served."""
        self._withheld.update(before._withheld)  # noqa: SLF001 - one class
        self._inherit(self._names, before._names)  # noqa: SLF001 - one class
        if self.reads_have_effects:
            self._notify(before._all_values(before._secrets))  # noqa: SLF001 - one class
        else:
            self._inherit(self._secrets, before._secrets)  # noqa: SLF001 - one class

    def _inherit(self, own: TTLCache[str, Any], other: TTLCache[str, Any]) -> None:
        keys = list(other)
        for key in keys:
            known = other.known(key)
            if known is not None:
                own.keep(key, replace(known, fetched=-math.inf, expires=-math.inf), other.used(key))
        self._nursery.start_soon(self._load_quietly, own, keys)

    async def keep_fresh(self) -> None:
        """Ask again for what is in use before it expires, drop what is not, try a store that failed. Runs forever."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._client.keep_probing)
                nursery.start_soon(self._keep_renewing)
        finally:
            self._ended = True  # changes that the store tells of are of no interest any more

    async def _keep_renewing(self) -> None:
        while True:
            await trio.sleep(min(5.0, self._freshness.ttl / 16))
            evict(self._names, self._freshness, lambda folder: folder not in self._withheld)
            evict(self._secrets, self._freshness, lambda _: True)
            evict(self.versions.answers, self._freshness, lambda _: True)
            self._withheld.retain(lambda folder: self._names.known(folder) is not None)
            if not self._client.in_doubt:
                await self._renew(self._names)
                await self._renew(self._secrets)

    async def _serve(self, cache: TTLCache[str, T | StoreError], key: str) -> CachedAnswer[T | StoreError]:
        answer = cache.access(key)
        if answer is None and self._client.in_doubt:
            answer = self._stale(cache, key)
        if answer is not None:
            return answer
        try:
            return await self._wait_for(cache, key)
        except StoreError:
            answer = self._stale(cache, key)
            if answer is None:
                raise
            return answer

    async def _wait_for(self, cache: TTLCache[str, T], key: str) -> CachedAnswer[T]:
        with self.readers.wait(LISTING if cache is self._names else VALUE):
            return await self._load(cache, key)

    def _stale(self, cache: TTLCache[str, T | StoreError], key: str) -> CachedAnswer[T | StoreError] | None:
        """Extend an answer that has expired, if it may be served while the store fails."""
        known = cache.known(key)
        now = trio.current_time()
        if known is None or isinstance(known.value, StoreError) or now >= known.fetched + self._freshness.max_stale:
            return None
        cache.keep(key, stale := replace(known, expires=now + STALE_TTL, stale=True))
        return stale

    async def _renew(self, cache: TTLCache[str, Any]) -> None:
        """Load again what is due. A refusal is not kept fresh: the next reader asks whether it still stands."""
        due = [key for key in cache.due(self.idle) if (known := cache.known(key)) and not is_refusal(known.value)]
        if cache is self._secrets and self.reads_have_effects:
            return
        if due and cache is self._secrets and isinstance(self._client.store, RevalidatingStore):
            await self._revalidate()
        waiting = filter(cache.is_due, due)  # when its turn comes: a reader may have been faster, or `_revalidate`
        async with trio.open_nursery() as nursery:
            for _ in range(min(BACKGROUND, len(due))):
                nursery.start_soon(self._load_quietly, cache, waiting)

    async def _revalidate(self) -> None:
        """Have the store say what has not changed of all that is known: that is as fresh as if it had been read."""
        answers = dict(self._secrets.answers())
        known = {
            name: CachedRead(answer.value, answer.fetched_at)
            for name, answer in answers.items()
            if isinstance(answer.value, Secret) and answer.fetched > -math.inf  # what was inherited is not from here
        }
        with contextlib.suppress(StoreError):  # logged where it happened; what is due will be read
            with asking_for(NO_APP):
                said = await self._client.unchanged(known)
            for name in said.value if isinstance(said.value, frozenset) else ():
                before = answers.get(name)
                if before is not None and self._secrets.known(name) is before:  # else somebody was faster
                    self._secrets.keep(name, said.revalidated(before))

    async def _load_quietly(self, cache: TTLCache[str, Any], keys: Iterable[str]) -> None:
        waiting = iter(keys)
        with asking_for(NO_APP):
            async with trio.open_nursery() as nursery:
                for _ in range(self.largest_batch if cache is self._secrets else 1):
                    nursery.start_soon(self._load_all, cache, waiting)

    async def _load_all(self, cache: TTLCache[str, Any], keys: Iterable[str]) -> None:
        for key in keys:
            if self._client.down:
                return
            with contextlib.suppress(StoreError):  # logged where it happened; readers are served what is known
                await self._load(cache, key)

    async def _load(self, cache: TTLCache[str, T], key: str) -> CachedAnswer[T]:
        """Load within one deadline, also what changes again and again while it is asked for."""
        self._client.share(Kind.NAMES if cache is self._names else Kind.FETCH, key)
        with request_limit(self._freshness):
            return await cache.load(key)

    async def _load_names(self, folder: str) -> NamesAnswer:
        """Ask for names. While they stay the same it is the same object: what was made of it need not be made again."""
        answer = await self._client.names(folder)
        known = self._names.known(folder)
        return replace(answer, value=known.value) if known and known.value == answer.value else answer

    def _names_loaded(self, folder: str, known: NamesAnswer | None, answer: NamesAnswer) -> None:
        """Announce how a listing differs from the last one."""
        before = known.value if known else None
        self._notify(Change(self.component, names=self._withheld.changed(folder, before, answer.value)))
        self._listings.loaded(self._names, folder)

    def _secret_loaded(self, name: str, known: SecretAnswer | None, answer: SecretAnswer) -> None:
        """Announce which keys of a secret have other values than before."""
        if known is not None:
            keys = changed_keys(known.value, answer.value)
            self.readers.rotation(len(keys), time.time())
            self._notify(Change(self.component, values=frozenset((name, key) for key in keys)))

    def _notify(self, change: Change) -> None:
        if change:
            self._announce(change)

    def _changed_upstream(self, names: frozenset[str]) -> None:
        """Take a change from a thread of the store."""
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._expire, names)

    def _expire(self, names: frozenset[str]) -> None:
        """Ask again for what is known and may have changed."""
        if self._ended:
            return
        if self.reads_have_effects:
            change = self._all_values(names)
            for name in names:
                self._secrets.expire(name)
                self._secrets.drop(name)  # its next user loads it, which is no further change
            self._notify(change)
            names = frozenset()
        for cache, keys in ((self._names, list(self._names)), (self._secrets, list(names))):
            known = [key for key in keys if cache.known(key)]
            for key in keys:
                cache.expire(key)
            with contextlib.suppress(RuntimeError):  # everything has ended: nobody wants to know any more
                self._nursery.start_soon(self._load_expired, cache, known)

    async def _load_expired(self, cache: TTLCache[str, Any], keys: list[str]) -> None:
        """Load what may have changed, without what the store can say has not."""
        if cache is self._secrets and len(keys) > BACKGROUND and isinstance(self._client.store, RevalidatingStore):
            await self._revalidate()
        await self._load_quietly(cache, (key for key in keys if cache.peek(key) is None))

    def _all_values(self, names: Iterable[str]) -> Change:
        """Return all known values of these secrets as changed."""
        known = ((name, answer) for name in names if (answer := self._secrets.known(name)) is not None)
        return Change(
            self.component, values=frozenset((name, key) for name, answer in known for key in keys_of(answer.value))
        )
