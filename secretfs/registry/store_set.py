"""The stores that are being served, and how they are replaced while they are.

Each store has a task of its own for its cache. A reload keeps every store whose component is unchanged, with its cache;
opens new and changed stores beside the running ones; and then replaces the set in one step. A store that cannot be
opened leaves its predecessor running. A replaced store is closed when its deadline has passed: until then a caller may
be waiting for it.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import trio

from secretfs.cache.change import Announce, Change, discard
from secretfs.cache.freshness import Freshness
from secretfs.cache.store_cache import CachedStore
from secretfs.cache.warm_restart import NOTHING_KEPT, StoreMemory, WarmMemory
from secretfs.dapr.component import Component
from secretfs.dapr.declaration import Declaration, DeclaredStore
from secretfs.dapr.references import component_references
from secretfs.errors import ConfigurationError, StoreError, log_defect
from secretfs.registry.following import REFRESH_PAUSE, FollowingStore, UnopenedStore
from secretfs.registry.opening import (
    OpenedStore,
    OpenFailure,
    Registry,
    check_references,
    close_stores,
    note_failure,
    open_components,
)
from secretfs.scopes import SecretScope
from secretfs.store import LeasingStore

log = logging.getLogger(__name__)


class RunningStore(NamedTuple):
    """A store, its cache, the task that keeps it fresh, and what is kept of it for the next process."""

    opened: OpenedStore
    cached: CachedStore
    task: trio.CancelScope
    memory: StoreMemory


class ScopedStore(NamedTuple):
    """A store, and what of it the app may see."""

    store: CachedStore
    scope: SecretScope


class ReloadResult(NamedTuple):
    """What `StoreSet.replace` put in place."""

    stores: Mapping[str, ScopedStore]
    """What is shown: by component name, and with apps by ``APP/COMPONENT``."""
    changes: Sequence[Change]
    """What no longer shows, or shows now, because of another scope."""
    replaced: frozenset[str]
    """What is another kind of store now, of which nothing known before tells anything."""


class StoreSet:
    """All stores that are shown. ``nursery`` runs their tasks.

    ``announce`` hears what changes, by what is shown: a change of a store that three apps see is three changes.
    """

    def __init__(
        self,
        registry: Registry,
        default: Freshness,
        nursery: trio.Nursery,
        announce: Announce = discard,
        memory: WarmMemory = NOTHING_KEPT,
    ) -> None:
        self._announce = announce
        self._memory = memory
        self._registry = registry
        self._default = default
        self._nursery = nursery
        self._running: dict[str, RunningStore] = {}
        self._shown: dict[str, DeclaredStore] = {}
        self._shown_as: dict[str, list[str]] = {}
        """What shows a component."""
        self._logged: frozenset[str] = frozenset()
        """The failures of the last replacement."""
        self.incomplete = False
        """Whether there is a component of the last declaration that is not served as declared, and may be later."""

    @property
    def shown(self) -> Mapping[str, RunningStore]:
        """What is shown: by component name, and with apps by ``APP/COMPONENT``."""
        return {name: self._running[store.component] for name, store in self._shown.items()}

    @property
    def running(self) -> Mapping[str, RunningStore]:
        """All stores that are served, by component name: each once, however many apps see it."""
        return self._running

    async def start(self, declaration: Declaration) -> dict[str, ScopedStore]:
        """Begin to serve what the registry has opened."""
        for name, opened in self._registry.stores.items():
            self._running[name] = await self._start(opened)
        self.incomplete = any(isinstance(opened.store, UnopenedStore) for opened in self._registry.stores.values())
        self._logged = frozenset(map(str, self._registry.failures))
        return self._scoped(declaration)

    async def replace(self, declaration: Declaration, *, again: bool = False) -> ReloadResult:
        """Serve another declaration. Raises `ConfigurationError` for a mistake in it: then all stays as it is.

        ``again`` is another attempt with stores that failed: what the log has already is not logged once more.
        """
        self._refuse_loss(declaration)
        mistakes = check_references(declaration.components)
        fatal = [mistake for mistake in mistakes if not mistake.component.ignore_errors]
        for mistake in fatal[1:]:
            log.error("%s; nothing is changed", mistake)
        if fatal:
            raise ConfigurationError(str(fatal[0]))
        kept = self._unchanged(declaration)
        opened = {name: self._running[name].opened for name in kept}
        registry = Registry(opened, tell_loan=self._registry.tell_loan)
        for mistake in mistakes:
            note_failure(registry, mistake, self._default)
        done = kept | {mistake.component.name for mistake in mistakes}
        fresh = [component for component in declaration.components if component.name not in done]
        await open_components(registry, fresh, declaration.context, self._default)
        for notice in registry.notices if not again else ():
            notice.log_to(log)
        for failure in registry.failures:
            if not (again and str(failure) in self._logged):
                self._log_failure(failure, registry)
        self._logged = frozenset(map(str, registry.failures))
        self.incomplete = any(opened.was_never_open for opened in registry.stores.values()) or any(
            isinstance(failure.error, StoreError)
            for failure in registry.failures
            if not (failure.component.ignore_errors and failure.component.name in registry.stores)
        )
        return await self._install(declaration, registry, again=again)

    def _refuse_loss(self, declaration: Declaration) -> None:
        """Raise `ConfigurationError` if a store would go because the file that declared it cannot be read any more."""
        there = {component.name for component in declaration.components}
        declared_in = {
            served.opened.component.source.path: name
            for name, served in self._running.items()
            if name not in there and served.opened.component.source
        }
        for notice in declaration.notices:
            if notice.unread and notice.source and notice.source.path in declared_in:
                reason = notice.message.removesuffix("; passed over")
                raise ConfigurationError(f"{reason} (it declared {declared_in[notice.source.path]})", notice.source)

    def _log_failure(self, failure: OpenFailure, registry: Registry) -> None:
        """Log what failed, and what becomes of it."""
        name = failure.component.name
        opened, running = registry.stores.get(name), self._running.get(name)
        if opened is not None and failure.component.ignore_errors and self._replaces(opened, running):
            log.warning("%s; it is served when it answers (ignoreErrors)", failure)
        else:
            log.error("%s; %s", failure, "it goes on as it was" if name in self._running else "it is not served")

    @staticmethod
    def _replaces(opened: OpenedStore, running: RunningStore | None) -> bool:
        """Whether a store takes the place of the one that is served. One that could not be opened replaces no other."""
        if running is None or running.opened is opened:
            return running is None
        return not opened.was_never_open or running.opened.was_never_open

    async def _install(self, declaration: Declaration, registry: Registry, *, again: bool) -> ReloadResult:
        refused = {failure.component.name for failure in registry.failures if not failure.component.ignore_errors}
        before, shown = self._running, self._shown
        now: dict[str, RunningStore] = {}
        for component in declaration.components:
            old, opened = before.get(component.name), registry.stores.get(component.name)
            if opened is not None and component.name not in refused and self._replaces(opened, old):
                now[component.name] = await self._start(opened)
            elif old is not None:
                now[component.name] = old
        # No await from here on: what a new store announces must reach the views that show it.
        self._running = now
        gone = [served for name, served in before.items() if now.get(name) is not served]
        self._nursery.start_soon(self._close_later, gone, self._unneeded(registry))
        stores = self._scoped(declaration)
        changes = [change for name in stores if name in shown if (change := self._rescoped(name, shown[name].scope))]
        replaced = frozenset(served.opened.component.name for served in gone if not self._is_same_kind(served))
        for served in gone:
            served.memory.end()
            name = served.opened.component.name
            if name in now and name not in replaced:
                now[name].cached.inherit(served.cached)
        fresh = [served for name, served in now.items() if before.get(name) is not served]
        if not again or not all(served.opened.was_never_open for served in fresh):
            log.info("serving %s", ", ".join(now))
        others = frozenset(name for name, store in self._shown.items() if store.component in replaced)
        return ReloadResult(stores, changes, others)

    def _is_same_kind(self, before: RunningStore) -> bool:
        """Whether there is a store now under the name of this one, of the same kind."""
        now = self._running.get(before.opened.component.name)
        return (
            now is not None
            and now.cached.multi_valued == before.cached.multi_valued
            and now.opened.component.type.lower() == before.opened.component.type.lower()
        )

    def _unneeded(self, registry: Registry) -> list[OpenedStore]:
        """Return what is open and not needed: neither served, nor where a store that is takes its credentials from."""
        served = {id(one.opened): one.opened for one in self._running.values()}
        needed = dict(served)
        for opened in served.values():
            while (opened := opened.source) is not None:  # type: ignore[assignment]
                needed[id(opened)] = opened
        everything = {id(opened): opened for opened in (*self._registry.open, *registry.open)}
        self._registry.stores = {opened.component.name: opened for opened in served.values()}
        self._registry.sources = [opened for key, opened in needed.items() if key not in served]
        return [opened for key, opened in everything.items() if key not in needed]

    def _scoped(self, declaration: Declaration) -> dict[str, ScopedStore]:
        running = self._running
        self._shown = {name: store for name, store in declaration.stores.items() if store.component in running}
        self._shown_as = {}
        for name, store in self._shown.items():
            self._shown_as.setdefault(store.component, []).append(name)
        return {name: ScopedStore(running[store.component].cached, store.scope) for name, store in self._shown.items()}

    def _announce_shown(self, change: Change) -> None:
        """Announce a change of a component for each store that shows it."""
        for name in self._shown_as.get(change.component, ()):
            self._announce(replace(change, component=name))

    def _rescoped(self, name: str, before: SecretScope) -> Change:
        """Return the names that one scope shows and the other does not."""
        now = self._shown[name].scope
        if now == before:  # a store may have many names, and many apps may see it
            return Change(name)
        cached = self._running[self._shown[name].component].cached
        known = cached.known_names().union(before.allowed_names or (), now.allowed_names or ())
        return Change(name, names=frozenset(one for one in known if before.allows(one) != now.allows(one)))

    def _unchanged(self, declaration: Declaration) -> set[str]:
        """Name the running stores that a declaration leaves as they are, and that take nothing from one it changes."""
        same = {c.name for c in declaration.components if self._runs(c)}
        while dropped := {
            c.name for c in declaration.components if c.name in same and not component_references(c) <= same
        }:
            same -= dropped
        return same

    def _runs(self, component: Component) -> bool:
        served = self._running.get(component.name)
        if served is None or isinstance(served.opened.store, UnopenedStore):
            return False
        return served.opened.component == component

    async def _start(self, opened: OpenedStore) -> RunningStore:
        self._resume(opened)
        served: RunningStore = await self._nursery.start(self._run, opened)
        return served

    def _resume(self, opened: OpenedStore) -> None:
        """Let a store go on with what the process before was lent. A defect in it costs that, and not the mount."""
        leases, store = self._registry.leases, opened.store
        if leases is None or not isinstance(store, LeasingStore):
            return
        slot = leases.slot(opened.component.name)
        try:
            store.resume(slot.state, slot.save)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - see above
            log_defect(log, error)

    async def _run(self, opened: OpenedStore, *, task_status: trio.TaskStatus[RunningStore]) -> None:
        with trio.CancelScope() as task:
            memory = self._memory.store(opened.component.name, opened.declaration)
            cached = CachedStore(opened.client, opened.freshness, self._nursery, self._announce_shown, memory)
            task_status.started(RunningStore(opened, cached, task, memory))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cached.keep_fresh)
                nursery.start_soon(_refresh_references, opened)

    async def _close_later(self, gone: list[RunningStore], unneeded: list[OpenedStore]) -> None:
        try:
            await trio.sleep(max((served.opened.freshness.deadline for served in gone), default=0.0))
        finally:
            for served in gone:
                served.task.cancel()
            await close_stores(unneeded)


async def _refresh_references(opened: OpenedStore) -> None:
    """Have a store read its references again after each ttl of the store that they lead to. Runs forever.

    Credentials that were rotated are refused, and found out at once; old ones that go on to be good are not.
    """
    if opened.source is None or not isinstance(opened.store, FollowingStore):
        return
    while True:
        await trio.sleep(max(opened.source.freshness.ttl, REFRESH_PAUSE))
        try:
            await trio.to_thread.run_sync(opened.store.refresh_references, abandon_on_cancel=True)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a defect in one store must not cost everybody the mount
            log_defect(log, error)
