"""Sets of components: what some apps see in the place of the components that ``--resources-path`` names.

In Kubernetes an app of Dapr sees the components of its own namespace. A set is that for one app or several: a directory
that the app's document names, with Component, Configuration and File documents. What is opened for a set gets names
that no other component has, such as ``resources://payments/shared:vault``; an app sees ``vault``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from secretfs.dapr.app import App
from secretfs.dapr.component import AllManifests, load_manifests
from secretfs.dapr.configuration import Configuration, configurations_in
from secretfs.dapr.documents import manifest_files
from secretfs.errors import ConfigurationError
from secretfs.settings import nearest


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

    def __init__(self, everybody: ResourceSet, resources: Path | None = None) -> None:
        """``everybody`` is what an app sees that names no set; ``resources`` is where the trusted sets are."""
        self._everybody = everybody
        self._resources = resources
        self._trusted: dict[str, ResourceSet] = {}

    def of(self, app: App) -> ResourceSet:
        """Return what an app sees, before scopes. Raises `ConfigurationError`."""
        if app.objects:
            raise ConfigurationError("spec.objects takes --app-objects, which says where the set is", app.source)
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
