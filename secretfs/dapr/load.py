"""Everything a user declared, read and checked against each other: manifests, configuration and the environment."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from stat import S_ISDIR

from secretfs.dapr.component import Component, load_components
from secretfs.dapr.configuration import Configuration, load_configuration
from secretfs.dapr.references import TemplateContext
from secretfs.errors import ConfigurationError, Notice, Source
from secretfs.scopes import ALLOW_ALL, SecretScope

_KUBERNETES = Component(
    "kubernetes", "secretstores.kubernetes", "v1", ignore_errors=True, source=Source("the store of every pod")
)
_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")


DEFAULT_RESOURCES = Path("~/.dapr/components")
DEFAULT_CONFIG = Path("~/.dapr/config.yaml")

Fingerprint = tuple[tuple[object, ...], ...]


@dataclass(frozen=True, slots=True)
class Declaration:
    """The stores one app may see, and what it may see of them."""

    components: tuple[Component, ...]
    configuration: Configuration
    context: TemplateContext
    notices: tuple[Notice, ...]

    def scope(self, component: str) -> SecretScope:
        """Return the secret scope of a store."""
        return self.configuration.scopes.get(component, ALLOW_ALL)


def load(
    resources: Sequence[Path], configs: Sequence[Path], app_id: str, environ: Mapping[str, str], *, builtin: bool = True
) -> Declaration:
    """Read all files. Raises `ConfigurationError` for the first thing that is wrong.

    ``builtin`` lets a pod have its store named ``kubernetes`` without declaring it.
    """
    manifests = load_components(resources, app_id=app_id, namespace=environ.get("NAMESPACE", ""))
    configuration = load_configuration(configs, environ)
    components = tuple(c for c in manifests.components if not configuration.denies(c))
    if builtin and environ.get("KUBERNETES_SERVICE_HOST") and _SERVICE_ACCOUNT.exists():
        components = _with_kubernetes(components)
    names = {component.name for component in components}
    ownerless = [
        Notice(
            f"Secrets configuration added for '{name}', but no matching secret store was found",
            configuration.scope_sources.get(name),
        )
        for name in configuration.scopes
        if name not in names
    ]
    notices = (*manifests.notices, *configuration.notices, *ownerless)
    return Declaration(components, configuration, TemplateContext(environ, app_id), notices)


def _with_kubernetes(components: tuple[Component, ...]) -> tuple[Component, ...]:
    """Add the store ``kubernetes``, first, and let references that name no store mean it. Deny lists do not matter."""
    declared = [component for component in components if component.name == _KUBERNETES.name]
    for component in declared:
        if component.type.lower() != _KUBERNETES.type or component.items:
            raise ConfigurationError(
                "component kubernetes already exists in every pod, unless --disable-builtin-k8s-secret-store is given",
                component.source,
            )
    everything = components if declared else (_KUBERNETES, *components)
    return tuple(c if c.secret_store else replace(c, secret_store=_KUBERNETES.name) for c in everything)


@dataclass(frozen=True, slots=True)
class ConfigSource:
    """Where the declaration came from, and how to read it again."""

    read: Callable[[], Declaration]
    paths: Sequence[Path]
    """Directories of manifests, and configuration files; absolute."""
    loaded: Fingerprint
    """What `fingerprint` returned before everything was read for the first time."""
    directory: Path | None = None
    """Where relative paths in manifests start; None leaves the working directory as it is."""

    def fingerprint(self) -> Fingerprint:
        """Return something that differs when what `read` would read may differ."""
        return fingerprint(self.paths)


def named_paths(resources: tuple[Path, ...], configs: tuple[Path, ...]) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Return the paths that the flags name, or those of the Dapr command line when they name no resources."""
    if resources:
        return resources, configs
    resources = (_default(DEFAULT_RESOURCES),)
    if not os.path.lexists(resources[0]):
        raise ConfigurationError(f"{resources[0]} does not exist; --resources-path names another directory")
    config = _default(DEFAULT_CONFIG)
    return resources, configs or ((config,) if os.path.lexists(config) else ())


def declare(
    resources: tuple[Path, ...], configs: tuple[Path, ...], app_id: str, *, builtin: bool
) -> tuple[Declaration, ConfigSource]:
    """Read what is declared for an app, and say how to read it again. Raises `ConfigurationError`."""
    resources, configs = named_paths(resources, configs)
    # Absolute, because a process in the background leaves the working directory.
    paths = tuple(Path.absolute(path) for path in (*resources, *configs))
    loaded = fingerprint(paths)
    declaration = load_declaration(resources, configs, app_id, builtin=builtin)
    absolute = paths[: len(resources)], paths[len(resources) :]
    origin = ConfigSource(
        lambda: load_declaration(*absolute, app_id, builtin=builtin), paths, loaded, working_directory()
    )
    return declaration, origin


def load_declaration(
    resources: tuple[Path, ...], configs: tuple[Path, ...], app_id: str, *, builtin: bool
) -> Declaration:
    """Read what is declared for an app. Raises `ConfigurationError`, also if that is no store at all."""
    declaration = load(resources, configs, app_id, dict(os.environ), builtin=builtin)
    if not declaration.components:
        told = ", ".join(map(str, resources))
        whom = f"app id {app_id}" if app_id else "an app without an id (--app-id)"
        raise ConfigurationError(f"no secret store for {whom} in {told}: nothing to show")
    return declaration


def _default(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:
        raise ConfigurationError(f"there is no home directory for the default {path}; use --resources-path") from None


def working_directory() -> Path | None:
    """Return the working directory, if it is still there."""
    try:
        return Path.cwd()
    except OSError:
        return None


def fingerprint(paths: Iterable[Path]) -> Fingerprint:
    """Return something that differs when manifests in these directories, or these files, may differ."""
    return tuple(part for path in paths for part in _fingerprint(path))


def _fingerprint(path: Path) -> list[tuple[object, ...]]:
    try:
        status = path.stat()
        if not S_ISDIR(status.st_mode):
            return [(str(path), status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size)]
        names = sorted(os.listdir(path))  # noqa: PTH208 - names are all it takes
    except OSError as error:
        return [(str(path), error.errno)]
    # Not the directory's own times: they change with every file that comes and goes in it, such as a log.
    manifests = (path / name for name in names if name.lower().endswith((".yaml", ".yml")))
    return [(str(path),), *(part for manifest in manifests for part in _fingerprint(manifest))]
