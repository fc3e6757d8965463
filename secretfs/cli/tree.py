"""``secretfs tree``: the names in the tree, without a mount. Values are never read."""

import os
import sys
from contextlib import suppress
from typing import Any, NoReturn

import click
import trio

from secretfs.cli.check import Report, placed, print_found
from secretfs.cli.name_tree import Branch, draw, names_below
from secretfs.cli.options import sources, take_sources
from secretfs.cli.unmounted import looking, shown_path, tell
from secretfs.daemon.files import shown_files
from secretfs.daemon.unmounted import Path, UnmountedTree, narrow, path_of, place_of
from secretfs.dapr.declaration import Declaration
from secretfs.dapr.load import load_declaration
from secretfs.errors import AccessDenied, NoSuchEntry, Notice, StoreError
from secretfs.fs.keys import FolderKey
from secretfs.fs.names import decode
from secretfs.fs.view import StoreView
from secretfs.registry.opening import OpenFailure, Registry


@click.command("tree")
@sources
@click.argument("path", default="")
def tree_command(path: str, **flags: Any) -> NoReturn:
    """Print the names that a mount would show, from PATH down; without PATH, those of all stores. It takes no mount.

    Values are never read. So the keys of a secret, which come with its value, are not shown: see `secretfs get`.

    \b
    Exit codes:
      0  all is shown
      1  there is no such path, or not for this app; or there are warnings
      2  a mistake in flags, manifests or configuration
      4  a store does not answer, or refuses
    """  # noqa: D301
    declaration = load_declaration(take_sources(flags))
    report, code = trio.run(_look, declaration, path_of(path))
    print_found(report)
    sys.exit(code or report.exit_code(strict=False))


async def _look(declaration: Declaration, path: Path) -> tuple[Report, int]:
    """Return what there is to see, and the exit code if there is no such path."""
    shown = narrow(declaration, [path])
    async with looking(declaration, [path]) as (tree, registry):
        look = _Look(shown, tree, registry)
        try:
            names = (*shown.stores, *(file.directory for file in shown_files(shown)))
            around = [name for name in names if place_of(name) == path[: len(place_of(name))]]
            if around:
                await look.into_store(around[0], path)
            elif path and not shown.stores:
                return look.report, await tell(tree, path, NoSuchEntry(shown_path(path)))
            else:
                await look.into_all(path)
        except (NoSuchEntry, AccessDenied) as error:
            return look.report, await tell(tree, path, error)
    return look.report, 0


class _Look:
    """Fills a report with the names below a path."""

    def __init__(self, declaration: Declaration, tree: UnmountedTree, registry: Registry) -> None:
        self.report = Report(failures=list(registry.failures))
        self._declaration = declaration
        self._views = tree.views
        self._components = {component.name: component for component in declaration.components}
        self._failed = {failure.component.name for failure in registry.failures}

    async def into_all(self, path: Path) -> None:
        """Look into every store: those of an app if the path leads to one."""
        stores: dict[str, Branch | None] = dict.fromkeys(self._declaration.stores)
        async with trio.open_nursery() as nursery:
            for name, store in self._declaration.stores.items():
                if store.component not in self._failed:
                    nursery.start_soon(self._list, stores, name)
        failed = {failure.component.name for failure in self.report.failures}
        marked = frozenset(name for name, store in self._declaration.stores.items() if store.component in failed)
        branch, place = placed(stores, self._declaration), ""
        if path:
            app = next(iter(stores)).partition("/")[0]
            branch, place = branch[app] or {}, f"{app}/"
        self.report.tree = [shown_path(path), *draw(branch, marked, place)]

    async def into_store(self, name: str, path: Path) -> None:
        """Look into a store, or rendered files, from a folder down.

        Raises `NoSuchEntry`, and `AccessDenied` for that folder.
        """
        store = self._declaration.stores.get(name)
        if store is not None and store.component in self._failed:
            return
        view = self._views[name]
        try:
            folder = await _folder(view, path[len(place_of(name)) :])
            branch = {} if folder is None else await self._names(view, folder)
        except (NoSuchEntry, AccessDenied):
            raise
        except StoreError as error:
            self._note(name, error)
        else:
            self.report.tree = [shown_path(path), *draw(branch)]

    async def _list(self, stores: dict[str, Branch | None], name: str) -> None:
        try:
            stores[name] = await self._names(self._views[name], ())
        except StoreError as error:
            self._note(name, error)

    async def _names(self, view: StoreView, folder: tuple[str, ...]) -> Branch:
        unlistable = list[str]()
        branch = await names_below(view, folder, unlistable)
        for one in unlistable:
            message = f"the names in {one} may not be listed; a secret can still be read by its name"
            self.report.notices.append(Notice(message))
        return branch

    def _note(self, name: str, error: StoreError) -> None:
        component = self._components[self._declaration.stores[name].component]
        self.report.failures.append(OpenFailure(component, error))


async def _folder(view: StoreView, path: Path) -> tuple[str, ...] | None:
    """Return the folder at a path; None for a secret. By listings alone: no value is asked for."""
    folder: tuple[str, ...] = ()
    for segment in path:  # what is above a folder need not be listed: the store may refuse that
        name = decode(segment)
        if name is None:
            break
        folder = (*folder, name)
    if len(folder) == len(path):
        with suppress(NoSuchEntry):  # it may be a secret
            await view.entries(folder)
            return folder
    folder = folder[: len(path) - 1]
    for segment in path[len(folder) :]:
        entry = (await view.entries(folder))[0].get(segment)
        if isinstance(entry, FolderKey):
            folder = entry.segments
        elif entry is not None and segment is path[-1]:
            return None
        else:
            raise NoSuchEntry(os.fsdecode(segment))
    return folder
