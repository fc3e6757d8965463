"""Random interleavings of everything, on a virtual clock, against a model of what a reader may see.

A script of operations is drawn; `World` carries it out with `SecretVFS`, `Publisher` and caches on stores in memory, as
a kernel would ask. The model is the history of each store: a reader that asked from ``begin`` to ``end`` must have got
what was true upstream at some moment that is not too long ago, and that is not before what somebody saw earlier.
"""

import logging
import math
import os
import random
from bisect import bisect_right
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest
import trio
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from secretfs.cache.change import Change
from secretfs.cache.client import SHORTEST_TTL, StoreClient
from secretfs.cache.freshness import Freshness
from secretfs.cache.health import LONGEST
from secretfs.cache.store_cache import STALE_TTL
from secretfs.cache.turns import Turn
from secretfs.errors import (
    AccessDenied,
    DeadlineExceeded,
    MalformedAnswer,
    NoSuchEntry,
    SecretFSError,
    SecretNotFound,
    StoreError,
    StoreUnavailable,
    Superseded,
)
from secretfs.fs.attributes import Attributes, PermissionPolicy
from secretfs.fs.publish import Publisher
from secretfs.fs.vfs import SecretVFS
from secretfs.fs.view import StoreView
from secretfs.linux.syscall_helper import SyscallHelper
from secretfs.scopes import Access, SecretScope
from secretfs.store import Names, Secret
from tests.support.cached import Cached

FRESHNESS = Freshness(ttl=10.0, max_stale=40.0, deadline=2.0, idle=30.0)
LATENCY = 0.3
"""The longest time on each half of the way to a store that is well."""
MORE = int(os.environ.get("SECRETFS_TEST_EXAMPLES", "0"))
"""Scripts to try, other ones at each run; if not set, it is always the same few."""
EXAMPLES = MORE or 150
TICK = FRESHNESS.ttl / 16
RECOVERY = LONGEST * 1.25 + 2 * FRESHNESS.deadline + STALE_TTL + 2 * TICK
"""Seconds within which a store that is well again is known to be."""
EPSILON = 1e-6
NAMES = ("a", "b", "team/c")
KEYS = ("k", "l")
GONE, DENIED = b"gone", b"denied"

T = TypeVar("T")


class Upstream:
    """A store whose whole history is known. It answers what was true in the middle of the way to it and back."""

    def __init__(self, *, multi_valued: bool, seed: int) -> None:
        self.multi_valued = multi_valued
        self.random = random.Random(seed)
        self.failure: StoreError | None = None
        self.hangs = trio.Event()
        self.hangs.set()
        self.unwell: list[tuple[float, float]] = []
        """From when to when it did not answer; the last may be going on."""
        self.history: dict[str, list[tuple[float, bytes]]] = {}
        self.calls = 0
        for name in NAMES:
            self.write(name, self.value(name, 0))

    def value(self, name: str, number: int) -> bytes:
        """Make a value that can be told from all others, and of another size than most."""
        return f"{name} {number} ".encode() + b"x" * (number * 37 % 101)

    def write(self, name: str, state: bytes) -> None:
        """Write, delete or refuse a secret."""
        self.history.setdefault(name, [(-1.0, GONE)]).append((trio.current_time(), state))

    def rotate(self, name: str) -> None:
        """Write another version."""
        self.write(name, self.value(name, len(self.history[name])))

    def well(self, *, failure: StoreError | None = None, hangs: bool = False) -> None:
        """Let it answer, fail or hang from now on."""
        now = trio.current_time()
        if self.is_unwell:
            self.unwell[-1] = (self.unwell[-1][0], now)
        self.failure = failure
        if hangs and self.hangs.is_set():
            self.hangs = trio.Event()
        elif not hangs:
            self.hangs.set()
        if failure or hangs:
            self.unwell.append((now, float("inf")))

    @property
    def is_unwell(self) -> bool:
        return bool(self.unwell) and self.unwell[-1][1] == float("inf")

    def was_unwell(self, begin: float, end: float) -> bool:
        """Whether it did not answer at any moment of a time."""
        return any(a <= end and b >= begin for a, b in self.unwell)

    def states(self, name: str, begin: float, end: float) -> dict[int, bytes]:
        """Return what was true at any moment of a time, by number."""
        history = self.history[name]
        first = bisect_right(history, begin, key=lambda change: change[0]) - 1
        # What was true until the very moment of a change counts, too.
        while first > 0 and history[first][0] >= begin - EPSILON:
            first -= 1
        return {
            number: state
            for number, (at, state) in enumerate(history)
            if number >= max(first, 0) and at <= end + EPSILON
        }

    def listings(self, begin: float, end: float) -> list[frozenset[str]]:
        """Return what was listed at any moment of a time."""
        moments = {begin, end} | {
            moment
            for history in self.history.values()
            for at, _ in history
            for moment in (at - EPSILON, at)
            if begin - EPSILON <= moment <= end + EPSILON
        }
        return [frozenset(name for name in self.history if self._at(name, moment) != GONE) for moment in moments]

    def _at(self, name: str, moment: float) -> bytes:
        history = self.history[name]
        return history[bisect_right(history, moment, key=lambda change: change[0]) - 1][1]

    # --- what a `SecretStore` does ---

    def check(self) -> None:
        self._answer()

    def names(self, folder: str) -> Names:
        self._answer()
        return Names(frozenset(name for name, history in self.history.items() if history[-1][1] != GONE))

    def fetch(self, name: str) -> Secret:
        self._answer()
        state = self.history.get(name, [(0.0, GONE)])[-1][1]
        if state == GONE:
            raise SecretNotFound(f"secret {name} not found")
        if state == DENIED:
            raise AccessDenied(f"secret {name}: no")
        return Secret({key: key.encode() + b" " + state for key in KEYS} if self.multi_valued else {name: state})

    def close(self) -> None:
        pass

    def _answer(self) -> None:
        self.calls += 1
        if self.failure is not None:
            raise self.failure


class DirectCalls(StoreClient):
    """Calls without a thread, so that the virtual clock decides what happens when."""

    async def _in_thread(self, question: Callable[[], T], _turn: Turn) -> T:
        store = cast("Upstream", self.store)
        try:
            with trio.fail_after(self._deadline):
                await trio.sleep(store.random.uniform(0, LATENCY))
                await store.hangs.wait()
                try:
                    return question()
                finally:
                    await trio.sleep(store.random.uniform(0, LATENCY))
                    await store.hangs.wait()
        except trio.TooSlowError:
            raise DeadlineExceeded("no answer") from None


class Direct(Cached):
    """A cache that calls its store like that."""

    client_type = DirectCalls


@dataclass
class Held:
    """An open file."""

    number: int
    content: bytes


@dataclass
class World:
    """What a script is carried out on."""

    nursery: trio.Nursery
    readers: trio.Nursery
    stores: dict[str, Upstream]
    caches: dict[str, Direct]
    announced: trio.MemoryReceiveChannel[Change]
    vfs: SecretVFS = field(init=False)
    publisher: Publisher = field(init=False)
    random: random.Random
    refs: list[int] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)
    open: Counter[int] = field(default_factory=Counter)
    scopes: list[tuple[float, SecretScope]] = field(default_factory=list)
    seen: dict[tuple[str, ...], list[tuple[float, int]]] = field(default_factory=dict)
    refreshed: list[float] = field(default_factory=list)
    replaced: list[float] = field(default_factory=list)
    dentries: dict[tuple[str, ...], tuple[int, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.vfs = SecretVFS(self._views(SecretScope()), PermissionPolicy(), self.nursery)
        self.publisher = Publisher(self.vfs, Path("/mnt"), cast("SyscallHelper", FakeHand(self)), self.announced)
        self.nursery.start_soon(self.publisher.run)
        self.nursery.start_soon(self.publisher.evict_idle)

    def _views(self, scope: SecretScope) -> Mapping[str, StoreView]:
        self.scopes.append((trio.current_time(), scope))
        return {name: StoreView(cache, scope) for name, cache in self.caches.items()}

    # --- what happens upstream, and to us ---

    def rescope(self, *denied: str) -> None:
        """Show something else from now on."""
        self.replaced.append(trio.current_time())
        self.vfs.replace(self._views(SecretScope(default_access=Access.ALLOW, denied_secrets=frozenset(denied))))

    def rotate_everything(self) -> None:
        """Write another version of each secret that is there."""
        for store in self.stores.values():
            for name, history in store.history.items():
                if history[-1][1] not in (GONE, DENIED):
                    store.rotate(name)

    async def refresh(self, component: str) -> None:
        """Ask for everything again."""
        begin = trio.current_time()
        self.refreshed.append(begin)
        now = {name: len(history) - 1 for name, history in self.stores[component].history.items()}
        try:
            await self.caches[component].refresh()
        except StoreError as error:
            self._unwell(component, begin, error)
        else:
            await self.publisher.caught_up()
            for name, number in now.items():
                for key in KEYS:
                    path = self._path(component, name, key)
                    self.seen.setdefault(path, []).append((trio.current_time(), number))
        self.refreshed.append(trio.current_time())

    def forget(self, part: int) -> None:
        """Let the kernel forget some of what it knows, and nothing that is open."""
        known, self.refs = self.refs, []
        for place, number in enumerate(known):
            if (part and place % part == 0) or self._is_open(number):
                self.refs.append(number)
            else:
                self.vfs.forget(number, 1)

    def evict(self, number: int) -> None:
        """Let the kernel forget an inode that nobody holds."""
        if not self._is_open(number):
            known, self.refs = self.refs, [other for other in self.refs if other != number]
            for _ in range(len(known) - len(self.refs)):
                self.vfs.forget(number, 1)

    def _is_open(self, number: int) -> bool:
        return self.open[number] > 0

    # --- what the kernel does ---

    async def lookup(self, path: tuple[str, ...]) -> int:
        """Walk to a path."""
        number = 1
        for segment in path:
            number = self._takes(await self._asks(self.vfs.lookup(number, segment.encode())))
        return number

    def _takes(self, attributes: Attributes) -> int:
        self.refs.append(attributes.inode)
        return attributes.inode

    async def _asks(self, question: Awaitable[T]) -> T:
        """Ask for something; no wait for one store is longer than its deadline."""
        begin = trio.current_time()
        try:
            return await question
        finally:
            waited = trio.current_time() - begin
            assert waited <= FRESHNESS.deadline + EPSILON, f"a wait of {waited} s"

    async def again(self, path: tuple[str, ...], ask: Callable[[int], Awaitable[T]]) -> T:
        """Do something with a path; what is superseded on the way is looked up once more, as by the kernel.

        Its references stay from the look-up to the answer: `forget` must not take them away in between.
        """
        for last in (False, True):
            taken: list[int] = []
            try:
                number, until = self.dentries.get(path, (0, 0.0))
                if number in self.refs and trio.current_time() < until and not last and self.random.random() < 0.8:
                    self.refs.remove(number)
                    taken.append(number)
                else:
                    number = await self._walk(path, taken)
                return await self._asks(ask(number))
            except Superseded:
                if last:
                    raise
            finally:
                self.refs += taken
        raise AssertionError

    async def _walk(self, path: tuple[str, ...], taken: list[int]) -> int:
        number, until = 1, float("inf")
        for segment in path:
            attributes = await self._asks(self.vfs.lookup(number, segment.encode()))
            taken.append(attributes.inode)
            number, until = attributes.inode, min(until, trio.current_time() + attributes.entry_timeout)
        self.dentries[path] = (number, until)
        return number

    # --- what programs do ---

    async def read(self, component: str, name: str, key: str, *, hold: bool = False) -> None:
        """Open, fstat, read, close; or keep it open."""
        begin = trio.current_time()
        try:
            handle = await self.again(self._path(component, name, key), self.vfs.open)
        except SecretFSError as error:
            self._failed(component, name, key, begin, error)
            return
        self.open[handle] += 1
        content = await self.vfs.read(handle, 0, 1 << 20)
        self._saw(component, name, key, begin, content)
        if hold:
            self.held.append(Held(handle, content))
            return
        try:
            attributes = await self._asks(self.vfs.getattr(handle))
            assert attributes.size == len(content)
            assert await self.vfs.read(handle, 0, 1 << 20) == content
        finally:
            self.open[handle] -= 1

    async def stat(self, component: str, name: str, key: str) -> None:
        """Ask for the size."""
        begin = trio.current_time()
        try:
            attributes = await self.again(self._path(component, name, key), self.vfs.getattr)
        except SecretFSError as error:
            self._failed(component, name, key, begin, error)
            return
        sizes = {
            len(state) + (2 if self.stores[component].multi_valued else 0)
            for state in self._possible(component, name, begin).values()
            if state not in (GONE, DENIED)
        }
        assert attributes.size in sizes

    async def walk(self, component: str) -> None:
        """List a store and its folder."""
        store = self.stores[component]
        for folder in ((), ("team",)):
            begin = trio.current_time()
            found: set[str] = set()
            try:
                handle = await self.again((component, *folder), self.vfs.open_directory)
            except SecretFSError as error:
                if folder and isinstance(error, NoSuchEntry):
                    found = set()
                else:
                    self._unwell(component, begin, error)
                    continue
            else:
                for _, segment, attributes in await self.vfs.read_directory(handle, 0):
                    self._takes(attributes)
                    found.add("/".join((*folder, segment.decode())))
                self.vfs.close_directory(handle)
            possible = store.listings(begin - self._limit(component, begin), trio.current_time())
            prefix = "".join(f"{segment}/" for segment in folder)
            wanted = [
                {
                    prefix + name.removeprefix(prefix).partition("/")[0]
                    for name in names
                    if name.startswith(prefix) and name not in scope.denied_secrets
                }
                for names in possible
                for scope in self._scopes_since(begin)
            ]
            assert found in wanted, f"listed {found}, and not one of {wanted}"

    async def look_at_held(self) -> None:
        """An open file is what it was."""
        for held in list(self.held):
            assert await self.vfs.read(held.number, 0, 1 << 20) == held.content
            version = self.vfs._tree.inode(held.number)
            assert getattr(version, "size", None) == len(held.content)

    async def close(self) -> None:
        """Close the file that was opened first."""
        if self.held:
            held = self.held.pop(0)
            assert await self.vfs.read(held.number, 0, 1 << 20) == held.content
            self.open[held.number] -= 1

    # --- what may be ---

    def _path(self, component: str, name: str, key: str) -> tuple[str, ...]:
        tail = (key,) if self.stores[component].multi_valued else ()
        return (component, *name.split("/"), *tail)

    def _limit(self, component: str, begin: float) -> float:
        """Return how old an answer may be."""
        healthy = not self.stores[component].was_unwell(begin - FRESHNESS.ttl - RECOVERY, trio.current_time())
        if healthy:
            return max(FRESHNESS.ttl, SHORTEST_TTL) + EPSILON
        return FRESHNESS.max_stale + STALE_TTL + EPSILON

    def _possible(self, component: str, name: str, begin: float) -> dict[int, bytes]:
        return self.stores[component].states(name, begin - self._limit(component, begin), trio.current_time())

    def _scopes_since(self, begin: float) -> list[SecretScope]:
        first = max(place for place, (at, _) in enumerate(self.scopes) if at <= begin)
        return [scope for _, scope in self.scopes[first:]]

    def _saw(self, component: str, name: str, key: str, begin: float, content: bytes) -> None:
        now = trio.current_time()
        if self.stores[component].multi_valued:
            own, _, content = content.partition(b" ")
            assert own == key.encode(), "another key's value"
        assert any(scope.allows(name) for scope in self._scopes_since(begin)), f"{name} is hidden"
        states = self._possible(component, name, begin)
        matching = [number for number, state in states.items() if state == content]
        assert matching, f"{component}/{name}: {content!r} is none of {states}"
        seen = self.seen.setdefault(self._path(component, name, key), [])
        newest = max((number for at, number in seen if at <= begin - EPSILON), default=0)
        assert matching[-1] >= newest, f"{component}/{name}: version {matching} after {newest}"
        seen.append((now, matching[0]))

    def _failed(self, component: str, name: str, key: str, begin: float, error: SecretFSError) -> None:
        now = trio.current_time()
        states = self._possible(component, name, begin)
        match error:
            case Superseded():
                # Only somebody who replaces the stores twice within one call can be in the way.
                assert sum(begin - EPSILON <= at for at in self.replaced) > 1
            case AccessDenied():
                assert DENIED in states.values()
                seen = self.seen.setdefault(self._path(component, name, key), [])
                last = max(number for number, state in states.items() if state == DENIED)
                assert last >= max((number for at, number in seen if at <= begin - EPSILON), default=0)
                seen.append((now, min(number for number, state in states.items() if state == DENIED)))
            case NoSuchEntry() | SecretNotFound():
                hidden = any(not scope.allows(name) for scope in self._scopes_since(begin))
                assert hidden or GONE in states.values(), f"{component}/{name}: ENOENT, and never gone in {states}"
            case _:
                self._unwell(component, begin, error)

    def _unwell(self, component: str, begin: float, error: SecretFSError) -> None:
        assert isinstance(error, StoreUnavailable | DeadlineExceeded | MalformedAnswer), repr(error)
        store = self.stores[component]
        assert store.was_unwell(begin - RECOVERY, trio.current_time()), f"{error!r} from a store that is well"


class FakeHand:
    """The kernel, when a system call of ours arrives: it looks names up, and lets go of what it replaced."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.pid = 0

    async def call(self, name: str, *_: bytes, **__: object) -> None:
        publisher, world = self.world.publisher, self.world
        grant = publisher.grant
        assert grant is not None
        assert grant.call.value == name
        await trio.lowlevel.checkpoint()
        taken: list[int] = []  # the kernel forgets nothing that a call of it is about
        try:
            if name == "rename":
                pending = publisher.lookup(grant.parent, grant.pending)
                assert pending is not None
                taken.append(pending.inode)
                with suppress(NoSuchEntry, StoreError):
                    found = publisher.lookup(grant.parent, grant.segment)
                    found = found or await world.vfs.lookup(grant.parent, grant.segment)
                    taken.append(found.inode)
                publisher.rename(grant.parent, grant.pending, grant.parent, grant.segment)
            elif name == "lstat":
                with suppress(NoSuchEntry):
                    publisher.lookup(grant.parent, grant.segment)
                world.evict(grant.inode.number)
            elif name == "mkdir":
                with suppress(NoSuchEntry):
                    publisher.lookup(grant.parent, grant.segment)
                taken.append(publisher.mkdir(grant.parent, grant.segment).inode)
            else:
                found = publisher.lookup(grant.parent, grant.segment)
                assert found is not None
                taken.append(found.inode)
                publisher.remove(grant.call, grant.parent, grant.segment)
        except SecretFSError as error:
            raise OSError(error.errno, str(error)) from None
        finally:
            world.refs += taken
            world.dentries.clear()  # the name leads elsewhere now


# --- scripts ---

components = st.sampled_from(("single", "multi"))
names = st.sampled_from(NAMES)
keys = st.sampled_from(KEYS)
failures = st.sampled_from((StoreUnavailable("down"), MalformedAnswer("what?"), DeadlineExceeded("slow")))
peaceful = st.one_of(
    st.tuples(st.just("read"), components, names, keys),
    st.tuples(st.just("hold"), components, names, keys),
    st.tuples(st.just("stat"), components, names, keys),
    st.tuples(st.just("crowd"), components, names, keys),
    st.tuples(st.just("everybody")),
    st.tuples(st.just("everybody")),
    st.tuples(st.just("list"), components),
    st.tuples(st.just("rotate"), components, names),
    st.tuples(st.just("delete"), components, names),
    st.tuples(st.just("refuse"), components, names),
    st.tuples(st.just("refresh"), components),
    st.tuples(st.just("rescope"), st.sets(names)),
    st.tuples(st.just("forget"), st.integers(0, 3)),
    st.tuples(st.just("close")),
    st.tuples(st.just("pass"), st.sampled_from((0.0, 0.05, 0.2, 0.5, 2.0))),
    st.tuples(st.just("busy"), st.sampled_from((2.0, 7.0, 8.5, 9.5, 11.0))),
    st.tuples(st.just("busy"), st.sampled_from((11.0, 25.0, 45.0, 130.0))),
)
operations = st.one_of(
    peaceful,
    st.tuples(st.just("fail"), components, failures),
    st.tuples(st.just("hang"), components),
    st.tuples(st.just("resume"), components),
)
scripts = st.one_of(*(st.lists(each, min_size=20, max_size=80) for each in (peaceful, operations)))


async def carry_out(world: World, operation: tuple[Any, ...]) -> None:  # noqa: C901, PLR0912 - a list of what there is
    """Do one thing of a script. Programs run side by side with what comes after them."""
    match operation:
        case ("read", component, name, key):
            world.readers.start_soon(world.read, component, name, key)
        case ("crowd", component, name, key):
            for _ in range(5):
                world.readers.start_soon(world.read, component, name, key)
        case ("everybody",):
            for component in world.stores:
                for name in NAMES:
                    world.readers.start_soon(world.read, component, name, KEYS[0])
        case ("hold", component, name, key):
            world.readers.start_soon(lambda: world.read(component, name, key, hold=True))
        case ("stat", component, name, key):
            world.readers.start_soon(world.stat, component, name, key)
        case ("list", component):
            world.readers.start_soon(world.walk, component)
        case ("rotate", component, name):
            world.stores[component].rotate(name)
        case ("delete", component, name):
            world.stores[component].write(name, GONE)
        case ("refuse", component, name):
            world.stores[component].write(name, DENIED)
        case ("fail", component, failure):
            world.stores[component].well(failure=failure)
        case ("hang", component):
            world.stores[component].well(hangs=True)
        case ("resume", component):
            world.stores[component].well()
        case ("refresh", component):
            world.readers.start_soon(world.refresh, component)
        case ("rescope", denied):
            world.rescope(*denied)
        case ("forget", part):
            world.forget(part)
        case ("close",):
            await world.close()
        case ("pass", seconds):
            await trio.sleep(seconds)
        case ("busy", seconds):  # what is true after it was not true before
            world.rotate_everything()
            await trio.sleep(seconds)
            world.rotate_everything()
    await world.look_at_held()


async def play(script: list[tuple[Any, ...]], seed: int) -> None:
    """Carry out a script, and then look at what is left."""
    stores = {
        "single": Upstream(multi_valued=False, seed=seed),
        "multi": Upstream(multi_valued=True, seed=seed + 1),
    }
    async with trio.open_nursery() as nursery:
        changes, announced = trio.open_memory_channel[Change](math.inf)
        announce = changes.send_nowait
        caches = {name: Direct(name, store, FRESHNESS, nursery, announce=announce) for name, store in stores.items()}
        for cache in caches.values():
            nursery.start_soon(cache.keep_fresh)
        async with trio.open_nursery() as readers:
            world = World(nursery, readers, stores, caches, announced, random.Random(seed))
            idle = len(nursery.child_tasks)
            for operation in script:
                await carry_out(world, operation)
            for store in stores.values():
                store.well()
        # All is well, and everybody has gone.
        await trio.sleep(RECOVERY + FRESHNESS.ttl)
        while world.held:
            await world.close()
        await everything_can_be_read(world)
        await trio.sleep(2 * FRESHNESS.idle)
        world.forget(0)
        assert len(world.vfs._tree) == 1
        assert len(nursery.child_tasks) == idle
        for cache in caches.values():
            assert not len(cache._secrets)
            assert not len(cache._names)
            assert not cache._secrets._pending
            assert not cache._names._pending
        assert world.publisher.grant is None
        assert not world.vfs._directories._handles
        assert not world.vfs._polls
        nursery.cancel_scope.cancel()


async def everything_can_be_read(world: World) -> None:
    """When all has been well for long enough, all that a program sees is what is true upstream."""
    world.rescope()
    for component, store in world.stores.items():
        for name, history in store.history.items():
            for key in KEYS:
                path = world._path(component, name, key)
                count = len(world.seen.get(path, []))
                await world.read(component, name, key)
                seen = len(world.seen.get(path, [])) > count
                assert seen == (history[-1][1] != GONE)  # a refusal is seen, too


@pytest.fixture
def only_defects() -> None:
    """Log no outage: there are too many. `tests.conftest.no_leaks` takes it back."""
    logging.getLogger("secretfs").setLevel(logging.ERROR)


@pytest.mark.usefixtures("only_defects")
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=not MORE,
    database=None,
    phases=[Phase.generate, *([Phase.shrink] if MORE else [])],  # to find the shortest script takes minutes
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(script=scripts, seed=st.integers(0, 1 << 16))
def test_whatever_happens_a_reader_sees_what_may_be_seen(script: list[tuple[Any, ...]], seed: int) -> None:
    random.seed(seed)
    trio.run(play, script, seed, clock=MockClock(autojump_threshold=0))
