"""``secretstores.kubernetes``: the Secret objects of a Kubernetes namespace, or of several.

Settings, namespaces and the order of logins are Dapr's. Beyond Dapr: changes are visible as soon as the server reports
them, several namespaces, selectors, pages, and exact bytes.

Opening a store sends no request: a wrong token or address shows at the first read, or with `check`.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from secretfs.errors import AccessDenied, ConfigurationError, SecretNotFound
from secretfs.settings import setting
from secretfs.store import CachedRead, Names, Secret, StoreContext
from secretfs.stores._http.failures import about
from secretfs.stores.kubernetes.http import Api
from secretfs.stores.kubernetes.login import find_login, own_namespace
from secretfs.stores.kubernetes.objects import ListScope, is_namespace
from secretfs.stores.kubernetes.watch import WatchCache

T = TypeVar("T")

NAMESPACES = "secretfs/namespaces"
LABELS = "secretfs/label-selector"
FIELDS = "secretfs/field-selector"

ANNOTATIONS = frozenset({NAMESPACES, LABELS, FIELDS})
"""The annotations of a component that this store reads."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The properties of a ``secretstores.kubernetes`` component."""

    namespace: str = setting(
        "defaultNamespace", "The namespace to serve if the variable NAMESPACE is not set.", guards=True
    )
    kubeconfig: str = setting(
        "kubeconfigPath",
        "The kubeconfig to use outside of a cluster. Default: KUBECONFIG, then ~/.kube/config.",
        guards=True,
    )


class KubernetesStore:
    """Secrets of one namespace by their name, or of several as ``namespace/name``."""

    multi_valued = True

    def __init__(self, component: str, api: Api, scopes: list[ListScope]) -> None:
        self._component = component
        self._api = api
        self._scopes = {scope.namespace: scope for scope in scopes}
        self._caches: dict[str, WatchCache] = {}
        self._in_folders = scopes[0].in_folders

    @property
    def namespace(self) -> str:
        """The only namespace whose secrets it has; empty if it may have several, as ``namespace/name``."""
        return "" if self._in_folders else next(iter(self._scopes))

    def check(self) -> None:
        """List one name of each scope. Without the right to list, the right to get some secret is enough."""
        for scope in self._scopes.values():
            try:
                self._ask(str(scope), partial(scope.first_name, self._api))
            except AccessDenied:
                if not self._may_get(scope):
                    raise

    def names(self, folder: str) -> Names:
        """List all names, or those of a namespace. Reads no values."""
        if folder:
            found = self._scopes.get(folder) if self._in_folders else None
            return Names() if found is None else Names(self._names(found))
        if self._in_folders and "" not in self._scopes:
            return Names(folders=frozenset(self._scopes))
        (only,) = self._scopes.values()
        return Names(self._names(only))

    def fetch(self, name: str) -> Secret:
        """Read one secret: from the live copy, or from the server."""
        namespace, _, rest = name.partition("/") if self._in_folders else (next(iter(self._scopes)), "", name)
        scope = self._scope_of(namespace)
        if scope is None:
            raise SecretNotFound(f"secret {name}: not found")
        read = partial(scope.read, self._api, namespace, rest)
        copy = self._caches.get(scope.namespace)
        return self._ask(f"secret {name}", read if copy is None else partial(copy.fetch, name, read))

    def fetch_in(self, namespace: str, name: str) -> Secret:
        """Read the secret that a reference in a component of ``namespace`` means."""
        if self._in_folders:
            if "/" in name or self._scope_of(namespace) is not None:
                return self.fetch(name if "/" in name else f"{namespace}/{name}")
        elif namespace in self._scopes:
            return self.fetch(name)
        scope = next(iter(self._scopes.values()))
        return self._ask(f"secret {name} of namespace {namespace}", partial(scope.read, self._api, namespace, name))

    def unchanged(self, known: Mapping[str, CachedRead]) -> frozenset[str]:
        """Compare with the live copies, which costs no request."""
        return frozenset[str]().union(*(copy.unchanged(known) for copy in self._caches.values()))

    def watch(self, changed: Callable[[frozenset[str]], None]) -> None:
        """Start to keep live copies and to report changes."""
        for scope in self._scopes.values():
            self._caches[scope.namespace] = WatchCache(self._component, self._api, scope, changed)

    def close(self) -> None:
        """End the watches and close the connections."""
        for copy in self._caches.values():
            copy.stop()
        for copy in self._caches.values():
            copy.close()
        self._api.close()

    def _ask(self, subject: str, call: Callable[[], T]) -> T:
        """Ask the server or the live copy, within the deadline. Errors start with ``subject``."""
        with self._api.time.within():
            return about(subject, call)

    def _scope_of(self, namespace: str) -> ListScope | None:
        return self._scopes.get(namespace) or self._scopes.get("")

    def _names(self, scope: ListScope) -> frozenset[str]:
        read = partial(scope.names, self._api)
        copy = self._caches.get(scope.namespace)
        return self._ask(str(scope), read if copy is None else partial(copy.names, read))

    def _may_get(self, scope: ListScope) -> bool:
        """Ask the server whether we may get some secret although we may not list."""
        if not scope.namespace or scope.query:
            return False
        question = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectRulesReview",
            "spec": {"namespace": scope.namespace},
        }
        try:
            status = self._api.post("/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", question).get("status", {})
            rules = status.get("resourceRules", [])
            wanted = [
                rule for rule in rules if {"get", "*"} & {*rule["verbs"]} and {"secrets", "*"} & {*rule["resources"]}
            ]
            return bool(wanted or status.get("incomplete"))
        except (AccessDenied, KeyError, TypeError, AttributeError):
            return False


def open_store(settings: Settings, context: StoreContext) -> KubernetesStore:
    """Find the cluster; send no request. Raises `ConfigurationError` for settings that cannot work."""
    try:
        scopes = _scopes(settings, context)
        login = find_login(settings.kubeconfig, os.environ)
    except ConfigurationError as error:
        raise ConfigurationError(f"{context.component}: {error}") from None
    return KubernetesStore(context.component, Api(login, context.deadline), scopes)


def _scopes(settings: Settings, context: StoreContext) -> list[ListScope]:
    labels, fields = context.annotations.get(LABELS, ""), context.annotations.get(FIELDS, "")
    listed = context.annotations.get(NAMESPACES)
    if listed is None:
        namespace = os.environ.get("NAMESPACE") or settings.namespace or own_namespace()
        if not namespace:
            raise ConfigurationError(
                "namespace is missing on metadata and NAMESPACE env variable, and no default namespace is set"
            )
        namespaces = [namespace]
    elif listed.strip() == "*":
        return [ListScope("", labels, fields, in_folders=True)]
    else:
        namespaces = list(dict.fromkeys(name.strip() for name in listed.split(",")))
    for namespace in namespaces:
        if not is_namespace(namespace):
            subject = "the namespace" if listed is None else NAMESPACES
            raise ConfigurationError(f"{subject}: {namespace!r} cannot be the name of a namespace")
    return [ListScope(namespace, labels, fields, in_folders=listed is not None) for namespace in namespaces]
