"""What is declared for an app: the stores that it sees, and what it may see of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from secretfs.dapr.app import App
from secretfs.dapr.component import AllManifests, Component, load_manifests
from secretfs.dapr.configuration import Configuration, load_configuration
from secretfs.dapr.file_views import DeclaredFile, load_file_views
from secretfs.dapr.references import TemplateContext
from secretfs.errors import ConfigurationError, Notice, Source
from secretfs.permissions import PermissionRule
from secretfs.scopes import ALLOW_ALL, SecretScope

_KUBERNETES = Component(
    "kubernetes",
    "secretstores.kubernetes",
    "v1",
    ignore_errors=True,
    builtin=True,
    source=Source("the store of every pod"),
)
_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")


class DeclaredStore(NamedTuple):
    """A store as one app may see it."""

    component: str
    """Name of the component that is opened for it. Several apps may share one."""
    scope: SecretScope = ALLOW_ALL


@dataclass(frozen=True, slots=True)
class Declaration:
    """The stores that are opened, and which app sees what of them."""

    components: tuple[Component, ...]
    stores: Mapping[str, DeclaredStore]
    """What is shown: by component name, and with apps by ``APP/COMPONENT``."""
    context: TemplateContext
    notices: tuple[Notice, ...]
    apps: Mapping[str, App] | None = None
    """By app id; None for the view of a single app, whose stores are at the root."""
    files: Mapping[str, DeclaredFile] = field(default_factory=dict)
    """The rendered files: by path, and with apps by ``APP/PATH``."""

    def rules(self) -> dict[str, tuple[PermissionRule, ...]]:
        """Return the permission rules that the components of each app bring along, if any; "" is the only app."""
        of_component = {component.name: component.rules for component in self.components if component.rules}
        rules: dict[str, tuple[PermissionRule, ...]] = {}
        for name, store in self.stores.items() if of_component else ():
            app = name.rpartition("/")[0]
            rules[app] = (*rules.get(app, ()), *of_component.get(store.component, ()))
        return rules

    def scope(self, store: str) -> SecretScope:
        """Return the secret scope of a store that is shown."""
        return self.stores[store].scope


def load(
    resources: Sequence[Path], configs: Sequence[Path], app_id: str, environ: Mapping[str, str], *, builtin: bool = True
) -> Declaration:
    """Read all files for one app. Raises `ConfigurationError` for the first thing that is wrong.

    ``builtin`` lets a pod have its store named ``kubernetes`` without declaring it.
    """
    manifests = load_manifests(resources, namespace=environ.get("NAMESPACE", ""))
    configuration = load_configuration(configs, environ)
    components, notices = visible_components(manifests, configuration, app_id, environ, builtin=builtin)
    stores = {c.name: DeclaredStore(c.name, configuration.scopes.get(c.name, ALLOW_ALL)) for c in components}
    remarks = [*manifests.notices, *notices]
    files = load_file_views({"": resources}, stores, None, app_id, remarks)
    return Declaration(components, stores, TemplateContext(environ, app_id), tuple(remarks), files=files)


def visible_components(
    manifests: AllManifests, configuration: Configuration, app_id: str, environ: Mapping[str, str], *, builtin: bool
) -> tuple[tuple[Component, ...], tuple[Notice, ...]]:
    """Return the components that an app may see, with notices. Raises `ConfigurationError`."""
    visible = manifests.visible_to(app_id)
    components = tuple(c for c in visible.components if not configuration.denies(c))
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
    return components, (*visible.notices, *configuration.notices, *ownerless)


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
