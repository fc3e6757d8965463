"""Freshness and outages: what is known of a store, how fresh it is kept, and what is served while the store is down.

A `CachedStore` stands between the file system and a `SecretStore`. It asks each question once at a time, and waits for
no answer longer than the store's deadline.

* What is younger than ttl is served. "No such secret" and "forbidden" are answers, and take effect at once.
* What is in use is asked for again in the background before it expires, so that readers do not wait; what nobody has
  used for ``idle`` is dropped from memory.
* While a store fails, what is known is served up to ``max_stale`` old, at once and marked as stale. What is not known
  fails in time, and after a few failures at once, until the store answers again; that is found out in the background.

Belongs to one trio thread; nothing here is thread-safe.
"""

import contextlib
import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final, TypeVar, cast

import trio

from secretfs.cache.client import StoreClient, patience
from secretfs.cache.health import Statistics
from secretfs.cache.ttl_cache import CachedAnswer, TTLCache
from secretfs.errors import StoreError
from secretfs.store import CachedRead, Names, RevalidatingStore, Secret, SecretStore, WatchingStore

T = TypeVar("T")

BACKGROUND: Final = 4
"""How many of the `CONCURRENCY` calls of a store at once may be for nobody in particular."""
STALE_TTL: Final = 1.0
"""Seconds that a stale answer is served before its age is looked at again."""

_since: ContextVar[float] = ContextVar("_since")
"""When the wait began that the waits of this task are parts of."""


@dataclass(frozen=True, slots=True)
class Freshness:
    """How long an answer of one store is good, and how long to wait for one. Seconds."""

    ttl: float = 60.0
    """Age up to which an answer is served without a question."""
    max_stale: float = 3600.0
    """Age up to which it is served while the store fails."""
    deadline: float = 5.0
    """Longest wait for an answer."""
    idle: float = 600.0
    """Time without a reader after which a value is dropped from memory."""


@dataclass(frozen=True, slots=True)
class Change:
    """What turned out to be different from what was known."""

    names: frozenset[str] = frozenset()
    """Secrets and folders that are new or gone, by full name."""
    values: frozenset[tuple[str, str]] = frozenset()
    """Values that are new, different or gone, by name of the secret and key."""


class CachedStore:
    """A secret store as the file system sees it.

    ``nursery`` runs the questions; cancel it to stop. `keep_fresh` has to run beside it.
    """

    calls: ClassVar[type[StoreClient]] = StoreClient

    def __init__(
        self, component: str, store: SecretStore, freshness: Freshness, nursery: trio.Nursery, store_type: str = ""
    ) -> None:
        self.component = component
        self._store_type = store_type
        self.multi_valued = store.multi_valued
        self._freshness = freshness
        self._calls = self.calls(component, store, freshness.ttl, freshness.deadline, nursery)
        self._names = TTLCache[str, Names | StoreError](self._load_names, nursery)
        self._secrets = TTLCache[str, Secret | StoreError](self._load_secret, nursery)
        self._withheld: dict[str, Names] = {}
        """The last listings of folders whose listing is refused by now."""
        self._changed: Callable[[Change], None] = lambda _: None
        self._nursery = nursery
        self._compares = isinstance(store, RevalidatingStore)
        if isinstance(store, WatchingStore):
            self._token = trio.lowlevel.current_trio_token()
            store.watch(self._heard)

    @property
    def idle(self) -> float:
        """Seconds after which what nobody uses is dropped."""
        return self._freshness.idle

    async def names(self, folder: str) -> CachedAnswer[Names]:
        """`SecretStore.names`, at most ttl old; older only while the store fails."""
        return _given(await self._serve(self._names, folder))

    async def fetch(self, name: str) -> CachedAnswer[Secret]:
        """`SecretStore.fetch`, at most ttl old; older only while the store fails."""
        return _given(await self._serve(self._secrets, name))

    def peek(self, name: str) -> CachedAnswer[Secret] | None:
        """Return the secret if it may be served at once."""
        answer = self._secrets.peek(name)
        return None if answer is None or isinstance(answer.value, StoreError) else _given(answer)

    def use(self, name: str) -> CachedAnswer[Secret] | None:
        """`fetch`, if that takes no waiting; else None. Raises a refusal that is known."""
        answer = self._secrets.use(name)
        return None if answer is None else _given(answer)

    def touch(self, name: str) -> None:
        """Let a secret that is known count as used."""
        self._secrets.use(name)

    def prefetch(self, names: Iterable[str]) -> None:
        """Ask for secrets that somebody is about to want, if they are not known and the store is in no doubt."""
        if not self._calls.in_doubt:
            for name in names:
                self._nursery.start_soon(self._prefetch, name)

    async def _prefetch(self, name: str) -> None:
        if self._secrets.peek(name) is None:  # nobody was faster
            await self._load_quietly(self._secrets, [name])

    def on_change(self, changed: Callable[[Change], None]) -> None:
        """Call ``changed`` whenever a load finds something else than was known."""
        self._changed = changed

    async def refresh(self, concerned: Callable[[str], bool] = lambda _: True) -> None:
        """Ask again, now, for what is known of the secrets and folders that are ``concerned``, if only the names.

        Returns when all is answered. Raises the first failure, and asks for no more then. A refusal is an answer.
        """
        known = [(shelf, key) for shelf in (self._names, self._secrets) for key in shelf if concerned(key)]
        await self._ask_again(known or [(self._names, "")])

    async def list_again(self, folders: frozenset[str]) -> None:
        """`refresh` the names of folders."""
        known = [(self._names, folder) for folder in self._names if folder in folders]
        await self._ask_again(known or [(self._names, "")])

    async def fetch_anew(self, name: str) -> CachedAnswer[Secret]:
        """`fetch`, and never what is known already."""
        await self._ask_again([(self._secrets, name)])
        return await self.fetch(name)

    def statistics(self, visible: Callable[[str], bool] = lambda _: True) -> Statistics:
        """Say how the store does, and how much is known of the secrets that are ``visible``."""
        doubted, tally = self._calls.in_doubt, self._calls.tally
        cached = stale = 0
        for name in filter(visible, self._secrets):
            answer = self._secrets.known(name)
            if answer is not None and isinstance(answer.value, Secret):
                cached += len(answer.value.values)
                if answer.stale or (doubted and not answer.remaining):
                    stale += len(answer.value.values)
        return Statistics(
            self._store_type,
            self._calls.state,
            tally.last_success,
            tally.last_error,
            self._calls.next_try,
            sum(map(visible, self._listed())),
            cached,
            stale,
            dict(tally.asked),
            dict(tally.gone_wrong),
        )

    async def _ask_again(self, asked: list[tuple[TTLCache[str, Any], str]]) -> None:
        if self._calls.down:
            await self._calls.check()
        for shelf, key in asked:
            shelf.expire(key)
        waiting = iter(asked)
        failures: list[StoreError] = []

        async def load() -> None:
            for shelf, key in waiting:
                try:
                    await self._load(shelf, key)
                except StoreError as error:
                    failures.append(error)
                if failures:
                    return

        async with trio.open_nursery() as nursery:
            for _ in range(min(BACKGROUND, len(asked))):
                nursery.start_soon(load)
        if failures:
            raise failures[0]

    def known_names(self) -> frozenset[str]:
        """Return the names of all secrets that have been listed or asked for."""
        return self._listed().union(self._secrets)

    def _listed(self) -> frozenset[str]:
        known = (self._names.known(folder) for folder in self._names)
        return frozenset[str]().union(*(each.value.secrets for each in known if each and isinstance(each.value, Names)))

    def inherit(self, before: "CachedStore") -> None:
        """Ask again for what another store knew, and tell how it differs here. Nothing of it is ever served."""
        self._withheld.update(before._withheld)  # noqa: SLF001 - one class
        for own, other in ((self._names, before._names), (self._secrets, before._secrets)):  # noqa: SLF001 - one class
            self._inherit(own, other)

    def _inherit(self, own: TTLCache[str, Any], other: TTLCache[str, Any]) -> None:
        keys = list(other)
        for key in keys:
            known = other.known(key)
            if known is not None:
                own.keep(key, replace(known, fetched=-math.inf, expires=-math.inf))
        self._nursery.start_soon(self._load_quietly, own, keys)

    async def keep_fresh(self) -> None:
        """Ask again for what is in use before it expires, drop what is not, try a store that failed. Runs forever.

        When it is cancelled the store is asked no more: it may be closed.
        """
        try:
            while True:
                await trio.sleep(min(5.0, self._freshness.ttl / 16))
                if self._calls.in_doubt:
                    await self._calls.try_again()
                    if self._calls.in_doubt:
                        continue
                for shelf in (self._names, self._secrets):
                    shelf.drop_idle(self._freshness.idle)
                    await self._renew(shelf)
                self._withheld = {key: names for key, names in self._withheld.items() if self._names.known(key)}
        finally:
            self._calls.end()

    async def _serve(self, shelf: TTLCache[str, T | StoreError], key: str) -> CachedAnswer[T | StoreError]:
        answer = shelf.use(key)
        if answer is None and self._calls.in_doubt:
            answer = self._stale(shelf, key)
        if answer is not None:
            return answer
        try:
            return await self._load(shelf, key)
        except StoreError:
            answer = self._stale(shelf, key)
            if answer is None:
                raise
            return answer

    def _stale(self, shelf: TTLCache[str, T | StoreError], key: str) -> CachedAnswer[T | StoreError] | None:
        """Extend an answer that has expired, if it may be served while the store fails."""
        known = shelf.known(key)
        now = trio.current_time()
        if known is None or isinstance(known.value, StoreError) or now >= known.fetched + self._freshness.max_stale:
            return None
        stale = replace(known, expires=now + STALE_TTL, stale=True)
        shelf.keep(key, stale)
        return stale

    async def _renew(self, shelf: TTLCache[str, Any]) -> None:
        """Load again what is due. A refusal is not kept fresh: whoever asks next hears whether it still stands."""
        due = []
        for key in shelf.due():
            known = shelf.known(key)
            if known is not None and not isinstance(known.value, StoreError):
                due.append(key)
            elif known is not None and not known.remaining and key not in self._withheld:
                shelf.drop(key)
        if due and shelf is self._secrets and self._compares:
            await self._compare()
        waiting = filter(shelf.is_due, due)  # when its turn comes: a reader may have been faster, or `_compare`
        async with trio.open_nursery() as nursery:
            for _ in range(min(BACKGROUND, len(due))):
                nursery.start_soon(self._load_quietly, shelf, waiting)

    async def _compare(self) -> None:
        """Have the store say what has not changed of all that is known: that is as fresh as if it had been read."""
        answers = {name: answer for name in self._secrets if (answer := self._secrets.known(name)) is not None}
        known = {
            name: CachedRead(answer.value, answer.fetched_at)
            for name, answer in answers.items()
            if isinstance(answer.value, Secret) and answer.fetched > -math.inf  # what was inherited is not from here
        }
        with contextlib.suppress(StoreError):  # logged where it happened; what is due will be read
            said = await self._calls.unchanged(known)
            for name in said.value if isinstance(said.value, frozenset) else ():
                if self._secrets.known(name) is answers[name]:  # nothing has been found out meanwhile
                    self._secrets.keep(name, said.about(answers[name]))

    async def _load_quietly(self, shelf: TTLCache[str, Any], keys: Iterable[str]) -> None:
        for key in keys:
            if self._calls.down:
                return
            with contextlib.suppress(StoreError):  # logged where it happened; readers are served what is known
                await self._load(shelf, key)

    async def _load(self, shelf: TTLCache[str, T], key: str) -> CachedAnswer[T]:
        """Load within one deadline, also what changes again and again while it is asked for."""
        with patience(self._freshness.deadline, _since.get(trio.current_time())):
            return await shelf.load(key)

    async def _load_names(self, folder: str) -> CachedAnswer[Names | StoreError]:
        known = self._names.known(folder)
        before = known.value if known is not None and isinstance(known.value, Names) else self._withheld.get(folder)
        answer = await self._calls.names(folder)
        now = answer.value
        if isinstance(now, Names):
            self._withheld.pop(folder, None)
            if before is not None:
                self._tell_change(Change(names=(before.secrets ^ now.secrets) | (before.folders ^ now.folders)))
        elif before is not None:
            self._withheld[folder] = before
        return answer

    async def _load_secret(self, name: str) -> CachedAnswer[Secret | StoreError]:
        known = self._secrets.known(name)
        answer = await self._calls.fetch(name)
        if known is not None:
            before, now = _values(known), _values(answer)
            keys = (key for key in {*before, *now} if before.get(key) != now.get(key))
            self._tell_change(Change(values=frozenset((name, key) for key in keys)))
        return answer

    def _tell_change(self, change: Change) -> None:
        """Tell of a change as soon as its answer is on the shelf: when the task that loads it has ended."""
        if change != Change():
            trio.lowlevel.current_trio_token().run_sync_soon(lambda: self._changed(change))

    def _heard(self, names: frozenset[str]) -> None:
        """Take a change from a thread of the store."""
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._expire, names)

    def _expire(self, names: frozenset[str]) -> None:
        """Ask again for what is known and may have changed."""
        if self._calls.over:
            return
        for shelf, keys in ((self._names, list(self._names)), (self._secrets, list(names))):
            known = [key for key in keys if shelf.known(key)]
            for key in keys:
                shelf.expire(key)
            self._nursery.start_soon(self._load_quietly, shelf, known)


@contextlib.contextmanager
def one_wait() -> Iterator[None]:
    """Let the waits for one store within count as one: they end together, its deadline after the first began."""
    token = _since.set(trio.current_time())
    try:
        yield
    finally:
        _since.reset(token)


def _values(answer: CachedAnswer[Secret | StoreError]) -> Mapping[str, bytes]:
    return answer.value.values if isinstance(answer.value, Secret) else {}


def _given(answer: CachedAnswer[T | StoreError]) -> CachedAnswer[T]:
    """Return an answer that is not a refusal; raise one that is."""
    if isinstance(answer.value, StoreError):
        raise copy.copy(answer.value)
    return cast("CachedAnswer[T]", answer)
