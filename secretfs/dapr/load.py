"""Everything a user declared, read and checked against each other: manifests, configuration and the environment."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from secretfs.dapr.component import Component, load_components
from secretfs.dapr.configuration import Configuration, load_configuration
from secretfs.dapr.references import Surroundings
from secretfs.errors import ConfigurationError, Notice, Source
from secretfs.scopes import ALLOW_ALL, SecretScope

_KUBERNETES = Component(
    "kubernetes", "secretstores.kubernetes", "v1", ignore_errors=True, source=Source("the store of every pod")
)
_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")


@dataclass(frozen=True, slots=True)
class Declaration:
    """The stores one app may see, and what it may see of them."""

    components: tuple[Component, ...]
    configuration: Configuration
    surroundings: Surroundings
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
    return Declaration(components, configuration, Surroundings(environ, app_id), notices)


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
