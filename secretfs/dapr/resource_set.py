"""Sets of components: what some apps see in the place of the components that ``--resources-path`` names.

In Kubernetes an app of Dapr sees the components of its own namespace. A set is that for one app or several: a directory
that the app's document names. What is opened for a set gets names that no other component has, such as
``resources://payments/shared:vault``; an app sees ``vault``.

An app names a set as its ``resources`` if the administrator answers for it, as for ``--resources-path``, or as its
``objects`` if others write it, such as whoever may write Component objects of a namespace. Of the latter nothing that
is wrong may matter to other apps: what cannot be read stays as it was, or is left out. What a component of it may do is
less: `secretfs.registry.containment`.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from secretfs.dapr.app import App
from secretfs.dapr.component import (
    DEFAULT_INIT_TIMEOUT,
    AllManifests,
    Component,
    components_before,
    components_in,
    load_manifests,
)
from secretfs.dapr.configuration import Configuration, configurations_before, configurations_in
from secretfs.dapr.documents import manifest_files
from secretfs.errors import ConfigurationError, Notice
from secretfs.settings import nearest

T = TypeVar("T", bound=Collection[object])


@dataclass(frozen=True, slots=True)
class ResourceSet:
    """Components, and the Configurations that go with them."""

    manifests: AllManifests
    configurations: Mapping[str, Configuration] = field(default_factory=dict)
    """By name."""
    directories: tuple[Path, ...] = ()
    """Where its rendered files are declared."""
    prefix: str = ""
    """What the names of its components begin with when they are opened; empty for those of everybody.

    It has ``//``, and no name of another component has that; its first ``:`` after that ends it."""


class ResourceSets:
    """The sets that apps name, each read once."""

    def __init__(
        self,
        everybody: ResourceSet,
        resources: Path | None = None,
        objects: Path | None = None,
        taken: Collection[str] = (),
    ) -> None:
        """``everybody`` is what an app sees that names no set.

        ``resources`` is where the trusted sets are, ``objects`` where the others are. Of the latter no component has a
        name that is ``taken``: that of a directory of rendered files.
        """
        self._everybody = everybody
        self._taken = taken
        self._resources = resources
        self._objects = objects
        self._trusted: dict[str, ResourceSet] = {}
        self._contained: dict[str, ResourceSet] = {}

    def of(self, app: App) -> ResourceSet:
        """Return what an app sees, before scopes. Raises `ConfigurationError`."""
        if app.objects:
            if self._objects is None:
                raise ConfigurationError("spec.objects takes --app-objects, which says where the set is", app.source)
            if app.objects not in self._contained:
                self._contained[app.objects] = _load_contained(self._objects, app.objects, self._taken)
            return self._contained[app.objects]
        if not app.resources:
            return self._everybody
        if self._resources is None:
            raise ConfigurationError("spec.resources takes --app-resources, which says where the set is", app.source)
        if app.resources not in self._trusted:
            self._trusted[app.resources] = _load(self._resources, app)
        return self._trusted[app.resources]


def _load(where: Path, app: App) -> ResourceSet:
    directory = where / app.resources
    if not directory.is_dir():
        hint = nearest(app.resources, _neighbours(where, directory.parent))
        raise ConfigurationError(f"spec.resources: there is no directory {directory}{hint}", app.source)
    manifests = load_manifests((directory,), namespace="")
    configurations: dict[str, Configuration] = {}
    for path in manifest_files((directory,), []):
        for name, configuration in configurations_in(path).items():
            if name in configurations:
                raise ConfigurationError(f"{path}: Configuration {name} is in another file, too")
            configurations[name] = configuration
    return ResourceSet(manifests, configurations, (directory,), f"resources://{app.resources}:")


def _neighbours(where: Path, directory: Path) -> Sequence[str]:
    """Name the sets beside one that is not there."""
    try:
        return [str(path.relative_to(where)) for path in directory.iterdir() if path.is_dir()]
    except OSError:
        return []


def _load_contained(where: Path, name: str, taken: Collection[str]) -> ResourceSet:
    """Read a set of objects. Whatever is wrong in it is a notice."""
    notices: list[Notice] = []
    components: dict[str, tuple[Component, tuple[Notice, ...]]] = {}
    configurations: dict[str, Configuration] = {}
    for path in _files_of(where / name, notices):
        declared, remarks = _readable_part(path, components_in, components_before, notices) or ((), ())
        for component, own in declared:
            if component.name in taken:
                text = f"{component.name} is a directory of rendered files; it is left out"
                notices.append(Notice(text, component.source))
            else:
                components.setdefault(component.name, (_contained(component, name), own))
        # None of them is about what somebody may miss who is trusted.
        notices += (remark._replace(unread=False) for remark in remarks)
        of_file = _readable_part(path, configurations_in, configurations_before, notices) or {}
        configurations = {**of_file, **configurations}
    manifests = AllManifests(tuple(components.values()), tuple(notices))
    return ResourceSet(manifests, configurations, prefix=f"objects://{name}:")


def _files_of(directory: Path, notices: list[Notice]) -> tuple[Path, ...]:
    """Return the files of a set. One that is not there has none."""
    try:
        return tuple(manifest_files((directory,), notices)) if directory.is_dir() else ()
    except ConfigurationError as error:
        notices.append(Notice(error.args[0], error.source))
        return ()


def _readable_part(
    path: Path, read: Callable[[Path], T], before: Callable[[Path], T | None], notices: list[Notice]
) -> T | None:
    """Return what a file says, or has said before somebody broke it; None if nothing. A mistake is noted."""
    try:
        return read(path)
    except ConfigurationError as error:
        last = before(path)
        outcome = "it stays as it was" if last is not None and any(last) else "it is left out"
        notices.append(Notice(f"{error.args[0]}; {outcome}", error.source))
        return last


def _contained(component: Component, name: str) -> Component:
    """Return a component of a set of objects as it counts: nobody waits for it, or misses it."""
    return replace(
        component,
        namespace=name,
        ignore_errors=True,
        init_timeout=min(component.init_timeout, DEFAULT_INIT_TIMEOUT),
        rules=(),
        contained_in=name,
    )
