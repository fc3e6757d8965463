"""``secretfs check``: what a mount would do, without mounting. Shows names, never values."""

import logging
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Any, NoReturn

import click
import trio

from secretfs.cache.freshness import Freshness
from secretfs.cache.store_cache import CachedStore
from secretfs.cli.file_check import needs, places
from secretfs.cli.name_tree import Branch, draw, names_below
from secretfs.cli.options import sources, take_sources
from secretfs.cli.output import progress, warn
from secretfs.cli.reporting import wrap
from secretfs.cli.rule_check import RuleCheck
from secretfs.cli.scope_check import unmatched
from secretfs.dapr.component import Component
from secretfs.dapr.declaration import Declaration
from secretfs.dapr.load import load_declaration
from secretfs.dapr.references import component_references
from secretfs.errors import ConfigurationError, Notice, StoreError, as_store_error
from secretfs.fs.view import StoreView
from secretfs.linux.log import printable
from secretfs.registry.annotations import freshness
from secretfs.registry.containment import require_type
from secretfs.registry.open_store import open_store
from secretfs.registry.opening import (
    OpenedStore,
    OpenFailure,
    check_references,
    open_registry,
)
from secretfs.scopes import SecretScope
from secretfs.settings import unknown_properties
from secretfs.store import Names
from secretfs.stores import load_store_type

log = logging.getLogger(__name__)

EXIT_WARNINGS = 1


@click.command("check")
@sources
@click.option("--strict", is_flag=True, help="Treat warnings as errors.")
@click.option("--connect", is_flag=True, help="Open every store and list the names in it.")
def check_command(
    *,
    strict: bool,
    connect: bool,
    **flags: Any,
) -> NoReturn:
    """Load everything as `mount` would, and show the tree that the app would see: names, never values.

    Without --connect nothing leaves this machine: manifests, configuration, settings and references are checked, and
    the stores shown. With it, each store has to answer, and its names are listed. Of each rendered file a line says
    which values it needs.

    \b
    Exit codes:
      0  all is well
      1  there are warnings
      2  a mistake in flags, manifests or configuration; with --strict, a warning
      4  a store does not answer, or refuses
    """  # noqa: D301
    declaration = load_declaration(take_sources(flags))
    with progress(2 * len(declaration.components), shown=connect) as step:
        found = trio.run(partial(examine, declaration, Freshness(), connect=connect, step=step))
    print_found(found)
    sys.exit(found.exit_code(strict=strict))


@dataclass(slots=True)
class Report:
    """What there is to see, to warn of and to mend."""

    notices: list[Notice] = field(default_factory=list)
    failures: list[OpenFailure] = field(default_factory=list)
    tree: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    """What each rendered file needs."""

    def exit_code(self, *, strict: bool) -> int:
        """0 for ok, 1 for warnings, else that of the first error; ``strict`` makes a warning an error."""
        fatal = [failure for failure in self.failures if not failure.component.ignore_errors]
        if fatal:
            return fatal[0].error.exit_code
        if self.notices or self.failures:
            return ConfigurationError.exit_code if strict else EXIT_WARNINGS
        return 0


async def examine(declaration: Declaration, default: Freshness, *, connect: bool, step: Callable[[], None]) -> Report:
    """Check what is declared; with ``connect``, also whether the stores answer, and what is in them.

    ``step`` is called twice for each component, as the work goes on.
    """
    report = Report(notices=list(declaration.notices))
    stores: dict[str, Branch | None] = dict.fromkeys(declaration.stores)
    if connect:
        stores = await _connect(declaration, default, report, step)
    else:
        report.failures += check_references(declaration.components)
        for component in declaration.components:
            _inspect(component, declaration, default, report)
            step()
            step()
    failed = {failure.component.name for failure in report.failures}
    marked = frozenset(name for name, store in declaration.stores.items() if store.component in failed)
    report.tree = ["/", *draw(placed(stores, declaration), marked)]
    report.files = await needs(declaration, report.notices)
    return report


def placed(stores: Mapping[str, Branch | None], declaration: Declaration) -> Branch:
    """Put stores where a mount shows them: at the root, or in the directories of apps."""
    root: dict[str, Any] = {app: {} for app in declaration.apps or ()}
    for shown, entries in stores.items():
        *app, name = shown.split("/")
        (root[app[0]] if app else root)[name] = entries or {}
    for *directories, name in places(declaration):
        branch = root
        for directory in directories:
            branch = branch.setdefault(directory, {})
        branch[name] = None
    return root


def _inspect(component: Component, declaration: Declaration, default: Freshness, report: Report) -> None:
    """Check one component as far as that goes without a network: fully, unless it takes values from another store."""
    try:
        require_type(component)
        chosen = freshness(component, default)
        if component_references(component):
            module = load_store_type(component.type, component.version, component.source)
            report.notices += unknown_properties(module.Settings, component.items)
            return
        store, notices = open_store(component, replace(declaration.context, look_up=False), chosen, None)
        store.close()
        report.notices += notices
    except (ConfigurationError, StoreError) as error:
        report.failures.append(OpenFailure(component, error))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a store may be anybody's
        report.failures.append(OpenFailure(component, as_store_error(log, error)))


async def _connect(
    declaration: Declaration, default: Freshness, report: Report, step: Callable[[], None]
) -> dict[str, Branch | None]:
    stores: dict[str, Branch | None] = {}
    rules = RuleCheck(declaration)
    noted: dict[str, list[Notice]] = {component.name: [] for component in declaration.components}
    shown: dict[str, list[str]] = {component.name: [] for component in declaration.components}
    for name, store in declaration.stores.items():
        shown[store.component].append(name)

    async def look_into(opened: OpenedStore, nursery: trio.Nursery) -> None:
        component = opened.component
        cached, unlistable = CachedStore(opened.client, opened.freshness, nursery), list[str]()
        try:
            for name in shown[component.name]:
                view = StoreView(cached, declaration.scope(name), name)
                stores[name] = await names_below(view, (), unlistable)
        except StoreError as error:
            report.failures.append(OpenFailure(component, error))
        else:
            for name in shown[component.name]:
                empty = not stores[name] and not unlistable
                noted[component.name] += await _scoped(opened, name, declaration.scope(name), empty=empty)
            await rules.look_into(opened)
        for folder in unlistable:
            message = f"the names in {folder} may not be listed; a secret can still be read by its name"
            noted[component.name].append(Notice(message, component.source))
        step()

    async with open_registry(declaration.components, declaration.context, default, lambda _: step()) as registry:
        report.notices += registry.notices
        report.failures += registry.failures
        failed = {failure.component.name for failure in registry.failures}
        stores.update(dict.fromkeys(name for component in registry.stores for name in shown[component]))
        async with trio.open_nursery() as calls:
            async with trio.open_nursery() as nursery:
                for component in declaration.components:
                    if component.name in failed:
                        step()
                    else:
                        nursery.start_soon(look_into, registry.stores[component.name], calls)
            calls.cancel_scope.cancel()
    report.notices += chain.from_iterable(noted.values())  # in the order of the components, whichever answered first
    report.notices += rules.notices()
    return stores


async def _scoped(opened: OpenedStore, name: str, scope: SecretScope, *, empty: bool) -> list[Notice]:
    """Warn of a store that is empty, not only for this app, and of names in its scope that none of its secrets has."""

    def look() -> list[Notice]:
        names = opened.store.names("")
        if names == Names():
            return [Notice(f"{name} is empty", opened.component.source)]
        return unmatched(opened.store, name, scope, names)

    if scope.unrestricted and not empty:
        return []
    with trio.move_on_after(opened.freshness.deadline), suppress(StoreError):  # what it listed before is still true
        return await trio.to_thread.run_sync(look, abandon_on_cancel=True)
    return []


def print_found(found: Report) -> None:
    """Print the tree, and on standard error what to warn of and to mend."""
    for line in found.tree:
        click.echo(printable(line))
    for line in found.files:
        click.echo(printable(line))
    for notice in found.notices:
        warn(str(notice))
    for failure in found.failures:
        if failure.component.ignore_errors:
            warn(f"{failure} (ignoreErrors)")
        else:
            click.secho(wrap(f"error: {printable(str(failure))}", sys.stderr), fg="red", err=True)
