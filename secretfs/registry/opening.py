"""The component registry: opens the stores that manifests declare, each after those it takes its credentials from.

Dapr parks a component whose store is missing and says so in a warning; here a reference that leads nowhere, or in a
circle, is an error that names the whole chain. Secret scopes do not apply to references, as in Dapr (dapr/dapr 8176).
"""

import hashlib
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import trio

from secretfs.cache.client import StoreClient
from secretfs.cache.freshness import Freshness
from secretfs.dapr.component import Component
from secretfs.dapr.references import ReadSecret, TemplateContext, component_references
from secretfs.durations import show_duration
from secretfs.errors import (
    ConfigurationError,
    DeadlineExceeded,
    Notice,
    SecretFSError,
    StoreError,
    StoreUnavailable,
    as_store_error,
    log_defect,
)
from secretfs.registry.annotations import freshness, limits, own_annotations
from secretfs.registry.containment import require_type
from secretfs.registry.following import UnopenedStore
from secretfs.registry.lease_file import LeaseFile, TellLoan, ignore_loan_of
from secretfs.registry.open_store import open_store
from secretfs.store import LeasingStore, Secret, SecretStore

_CLOSING_TIME = 2.0  # seconds in all; a store that does not close in time is left to the end of the process
_AT_ONCE = 8  # stores of a set of objects that are opened at once

log = logging.getLogger(__name__)


class OpenedStore(NamedTuple):
    """A store that is open, and how fresh its answers have to be."""

    component: Component
    client: StoreClient
    freshness: Freshness
    source: "OpenedStore | None" = None
    """The store it takes its credentials from, now and whenever they are rotated."""

    @classmethod
    def of(
        cls, component: Component, store: SecretStore, freshness: Freshness, source: "OpenedStore | None" = None
    ) -> "OpenedStore":
        """Give a store its client."""
        own = limits(component)
        client = StoreClient(component.name, store, freshness.ttl, freshness.deadline, component.type, own)
        return cls(component, client, freshness, source)

    @property
    def was_never_open(self) -> bool:
        """Whether nothing is known of the store, because it could not be opened yet."""
        return isinstance(self.store, UnopenedStore) and self.store.is_new

    @property
    def declaration(self) -> str:
        """A digest of what decides which secrets a store has, here and where it takes its credentials from."""
        own = self.component
        items = [(item.name, item.value, item.env_ref, item.secret_key_ref) for item in own.items]
        source = self.source.declaration if self.source else ""
        who = (own.app_id, own.tokens) if own.tokens else (own.app_id,)
        notes = own_annotations(own)
        text = repr((own.type.lower(), own.version, own.namespace, own.secret_store, *who, items, *notes, source))
        return hashlib.blake2b(text.encode(errors="surrogatepass")).hexdigest()

    @property
    def store(self) -> SecretStore:
        """The store itself. What may be asked for again is asked through the client."""
        return self.client.store


class KnownStore(NamedTuple):
    """A store that another process has served until a moment ago."""

    multi_valued: bool
    edited: bool = False
    """Its component has been edited since: it may be multi-valued or not by now."""
    reads_have_effects: bool = False


class OpenFailure(NamedTuple):
    """A component that could not be opened or does not answer."""

    component: Component
    error: SecretFSError

    def __str__(self) -> str:
        reason = str(self.error)
        if isinstance(self.error, ConfigurationError):
            return f"{reason} (component {self.component.name})"
        return f"{self.component.source}: component {self.component.name}: {reason}"


class ComponentsFailed(SecretFSError):
    """Components that are needed could not be opened. Exits like the first of their errors."""

    def __init__(self, failures: Sequence[OpenFailure]) -> None:
        super().__init__("\n".join(map(str, failures)))
        self.exit_code = failures[0].error.exit_code


@dataclass(slots=True)
class Registry:
    """What came of opening every component. ``notices`` are remarks on properties that nothing reads."""

    stores: dict[str, OpenedStore] = field(default_factory=dict)
    failures: list[OpenFailure] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    sources: list[OpenedStore] = field(default_factory=list)
    """No longer among the stores, and open all the same: others take their credentials from them."""
    leases: LeaseFile | None = None
    """Where stores keep what their backends have lent them; None if nobody takes over."""
    hands_over: bool = False
    """Whether another process goes on with that when we end; else it is given back."""
    tell_loan: TellLoan = ignore_loan_of
    """Told what backends lend and take back, by component: see `secretfs.store.StoreContext`."""

    @property
    def open(self) -> list[OpenedStore]:
        """All that has to be closed."""
        return [*self.stores.values(), *self.sources]

    def require(self) -> None:
        """Raise `ComponentsFailed` unless only components with ``ignoreErrors`` failed."""
        fatal = [failure for failure in self.failures if not failure.component.ignore_errors]
        if fatal:
            raise ComponentsFailed(fatal)


def check_references(components: Sequence[Component]) -> list[OpenFailure]:
    """Return the components whose references lead to no store, or back to themselves."""
    by_name = {component.name: component for component in components}
    return [OpenFailure(c, error) for c in components if (error := _broken_chain(c, by_name)) is not None]


@asynccontextmanager
async def open_registry(
    components: Sequence[Component],
    templates: TemplateContext,
    default: Freshness,
    opened: Callable[[Component], None] = lambda _: None,
    known: Mapping[str, KnownStore] = MappingProxyType({}),
    leases: LeaseFile | None = None,
    tell_loan: TellLoan = ignore_loan_of,
) -> AsyncIterator[Registry]:
    """Open all components side by side, call ``opened`` as each is done, and close them all at the end.

    Each store must also answer and accept our credentials. One with ``ignoreErrors`` that does not stays open: it may
    answer later. What cannot be opened of those, and of those that are ``known`` by name, because another process has
    served them until a moment ago, stays as a store that answers with the reason.
    """
    registry = Registry(leases=leases, tell_loan=tell_loan)
    mistakes = check_references(components)
    broken = {failure.component.name for failure in mistakes}
    for failure in mistakes:
        note_failure(registry, failure, default, known)
        opened(failure.component)
    sound = [component for component in components if component.name not in broken]
    try:
        await open_components(registry, sound, templates, default, opened, known)
        order = {component.name: place for place, component in enumerate(components)}
        registry.failures.sort(key=lambda failure: order[failure.component.name])
        yield registry
    finally:
        await close_stores(registry.open, hand_over=registry.hands_over)


async def open_components(
    registry: Registry,
    components: Sequence[Component],
    templates: TemplateContext,
    default: Freshness,
    opened: Callable[[Component], None] = lambda _: None,
    known: Mapping[str, KnownStore] = MappingProxyType({}),
) -> None:
    """Open components into a registry, each after those it refers to, which are among them or in there already."""
    opening = _Opening(registry, templates, default, known)
    async with trio.open_nursery() as nursery:
        done = {component.name: trio.Event() for component in components}
        for component in components:
            nursery.start_soon(_open_in_turn, opening, component, done, opened)
    order = {component.name: place for place, component in enumerate(components)}
    registry.stores = dict(sorted(registry.stores.items(), key=lambda item: order.get(item[0], -1)))
    registry.notices = [notice for component in components for notice in opening.remarks.get(component.name, ())]


async def _open_in_turn(
    opening: "_Opening", component: Component, done: Mapping[str, trio.Event], opened: Callable[[Component], None]
) -> None:
    for needed in component_references(component):
        if needed in done:
            await done[needed].wait()
    try:
        await opening.open(component)
    finally:
        done[component.name].set()
        opened(component)


class _Opening:
    """Opens one component after the other into a registry."""

    def __init__(
        self, registry: Registry, templates: TemplateContext, default: Freshness, known: Mapping[str, KnownStore]
    ) -> None:
        self._registry = registry
        self._known = known
        self._templates = templates
        self._default = default
        self._limiters: dict[str, trio.CapacityLimiter] = {}
        self.remarks: dict[str, list[Notice]] = {}

    async def open(self, component: Component) -> None:
        """Open a component within its initTimeout, or note why not."""
        try:
            with trio.fail_after(component.init_timeout):
                await self._open(component)
        except trio.TooSlowError:
            within = f"no answer within {show_duration(component.init_timeout)} (initTimeout)"
            self._fail(component, DeadlineExceeded(f"init timeout for component {component.log_name}: {within}"))
        except SecretFSError as error:
            self._fail(component, error)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a defect of one store must not keep others from opening
            self._fail(component, as_store_error(log, error))

    def _fail(self, component: Component, error: SecretFSError) -> None:
        note_failure(self._registry, OpenFailure(component, error), self._default, self._known)

    async def _open(self, component: Component) -> None:
        require_type(component)
        chosen = freshness(component, self._default)
        source, known = self._source(component), self._known.get(component.name)
        read = None if source is None else _reader(source, component.namespace)
        multi_valued = None if known is None or known.edited else known.multi_valued
        effects = known is not None and known.reads_have_effects
        opening = partial(
            open_store,
            component,
            self._templates,
            chosen,
            read,
            multi_valued=multi_valued,
            reads_have_effects=effects,
            tell_loan=self._registry.tell_loan,
        )
        in_thread = partial(trio.to_thread.run_sync, abandon_on_cancel=True, limiter=self._limiter(component))
        store, remarks = await in_thread(opening)
        self.remarks[component.name] = remarks
        await in_thread(_require_kind, store)
        self._registry.stores[component.name] = OpenedStore.of(component, store, chosen, source)
        if known is None:
            await in_thread(store.check)

    def _limiter(self, component: Component) -> trio.CapacityLimiter | None:
        """Return what limits the threads of a set of objects, whose servers may all hang; None for all other stores."""
        if not component.contained_in:
            return None
        return self._limiters.setdefault(component.contained_in, trio.CapacityLimiter(_AT_ONCE))

    def _source(self, component: Component) -> OpenedStore | None:
        refused = {failure.component.name for failure in self._registry.failures if not failure.component.ignore_errors}
        for name in component_references(component):
            opened = self._registry.stores.get(name)
            if opened is None or name in refused or opened.was_never_open:
                raise StoreError(f"it takes its credentials from {name}, which could not be opened")
            return opened
        return None


def note_failure(
    registry: Registry, failure: OpenFailure, default: Freshness, known: Mapping[str, KnownStore] = MappingProxyType({})
) -> None:
    """Note that a component could not be opened, or does not answer.

    What is to be shown all the same, with ``ignoreErrors`` or because it is ``known``, becomes an `UnopenedStore`: a
    store that is not there would look like one without secrets. Nobody has asked for the store of every pod: it is not
    missed.
    """
    component, error = failure.component, as_store_error(None, failure.error)
    registry.failures.append(failure)
    if component.name in registry.stores:
        if not component.builtin:
            registry.stores[component.name].client.begin_with(error)
        return
    before = known.get(component.name)
    if before is None and (component.builtin or not component.ignore_errors):
        return
    store = (
        UnopenedStore(error)
        if before is None
        else UnopenedStore(error, multi_valued=before.multi_valued, reads_have_effects=before.reads_have_effects)
    )
    opened = OpenedStore.of(component, store, default)
    opened.client.refuse_all(error)
    registry.stores[component.name] = opened


def _require_kind(store: SecretStore) -> None:
    """Raise `StoreError` unless a store says whether it is multi-valued. One in another process is asked for it."""
    if not isinstance(store.multi_valued, bool):
        raise StoreError("the store does not say whether it is multi-valued")


def _reader(source: OpenedStore, namespace: str) -> ReadSecret:
    """Return a function for worker threads that reads from a store as everybody does: with its deadline and breaker."""
    token = trio.lowlevel.current_trio_token()

    def read(name: str) -> Secret:
        try:
            return trio.from_thread.run(source.client.fetch_reference, name, namespace, trio_token=token)
        except trio.RunFinishedError:
            raise StoreUnavailable("nothing is served any more") from None

    return read


def _broken_chain(component: Component, by_name: Mapping[str, Component]) -> ConfigurationError | None:
    chain = [component.name]
    while references := component_references(by_name[chain[-1]]):
        (needed,) = references
        chain.append(needed)
        path = " -> ".join(chain)
        if needed not in by_name:
            return ConfigurationError(
                f"{path}: there is no secret store {needed} for this app id to take a secret from", component.source
            )
        if needed in chain[:-1]:
            return ConfigurationError(f"{path}: these stores wait for each other's secrets", component.source)
    return None


async def close_stores(stores: Iterable[OpenedStore], *, hand_over: bool = False) -> None:
    """Close stores side by side, or have them hand over. One that takes too long is left to the end of the process."""

    async def close(store: SecretStore) -> None:
        try:
            end = store.hand_over if hand_over and isinstance(store, LeasingStore) else store.close
            await trio.to_thread.run_sync(end, abandon_on_cancel=True)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the others must be closed too
            log_defect(log, error)

    with trio.move_on_after(_CLOSING_TIME, shield=True):
        async with trio.open_nursery() as nursery:
            for opened in stores:
                opened.client.end()
                nursery.start_soon(close, opened.store)
