"""Dapr's objects in a real API server: their custom resource definitions, and what namespaces have of them."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tests.support.kube_fixtures import Namespace
from tests.support.servers.kube_apiserver import KubeApiserver
from tests.support.waiting import wait_until

KINDS = {"components": "Component", "configurations": "Configuration"}
_ANYTHING = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
_DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


def install_definitions(server: KubeApiserver, *plurals: str) -> None:
    """Install definitions, all by default, as far as they are not there, and wait until they are served."""
    for plural in plurals or KINDS:
        names = {"plural": plural, "singular": plural[:-1], "kind": KINDS[plural], "listKind": f"{KINDS[plural]}List"}
        version = {"name": "v1alpha1", "served": True, "storage": True, "schema": {"openAPIV3Schema": _ANYTHING}}
        spec = {"group": "dapr.io", "scope": "Namespaced", "names": names, "versions": [version]}
        document = {"metadata": {"name": f"{plural}.dapr.io"}, "spec": spec}
        server.call("POST", _DEFINITIONS, document, ok=(201, 409))
        wait_until(partial(_is_served, server, plural))


def remove_definition(server: KubeApiserver, plural: str) -> None:
    """Remove a definition with all objects of it, and wait until it is not served any more."""
    server.call("DELETE", f"{_DEFINITIONS}/{plural}.dapr.io")
    wait_until(lambda: not _is_served(server, plural))


def _is_served(server: KubeApiserver, plural: str) -> bool:
    try:
        return "items" in server.call("GET", f"/apis/dapr.io/v1alpha1/{plural}", ok=(200, 404))
    except ValueError:  # a 404 in words, of a server that knows nothing of the group
        return False


def let_read_objects(namespace: Namespace, *verbs: str, binding: str = "objects") -> None:
    """Give the service account ``driver`` of a namespace rights on objects everywhere; without verbs all it needs."""
    name = f"{binding}-{namespace.name}"
    flags = [f"--verb={','.join(verbs or ('list', 'watch'))}", "--resource=components.dapr.io,configurations.dapr.io"]
    namespace.kubectl("create", "clusterrole", name, *flags)
    subject = f"--serviceaccount={namespace.name}:driver"
    namespace.kubectl("create", "clusterrolebinding", name, f"--clusterrole={name}", subject)


@dataclass(frozen=True)
class DaprObjects:
    """The objects of one namespace."""

    server: KubeApiserver
    namespace: str

    def put(
        self, kind: str, name: str, content: Mapping[str, Any], annotations: Mapping[str, str] | None = None
    ) -> None:
        """Write an object, or a new version of it."""
        metadata: dict[str, Any] = {"name": name, "annotations": dict(annotations or {})}
        document = {"apiVersion": "dapr.io/v1alpha1", "kind": kind, "metadata": metadata, **copy.deepcopy(content)}
        there = self.server.call("GET", self._path(kind, name), ok=(200, 404))
        if there["kind"] == "Status":
            self.server.call("POST", self._path(kind), document)
        else:
            metadata["resourceVersion"] = there["metadata"]["resourceVersion"]
            self.server.call("PUT", self._path(kind, name), document)

    def component(
        self, name: str, type_: str, properties: Mapping[str, str], *, scopes: Sequence[str] = (), **annotations: str
    ) -> None:
        """Write a component; annotations are named without ``secretfs/``, and with ``_``."""
        items = [{"name": key, "value": value} for key, value in properties.items()]
        content: dict[str, Any] = {"spec": {"type": f"secretstores.{type_}", "version": "v1", "metadata": items}}
        content |= {"scopes": list(scopes)} if scopes else {}
        texts = {f"secretfs/{key.replace('_', '-')}": text for key, text in annotations.items()}
        self.put("Component", name, content, texts)

    def configuration(self, name: str, *scopes: Mapping[str, Any]) -> None:
        """Write a configuration with secret scopes."""
        self.put("Configuration", name, {"spec": {"secrets": {"scopes": list(scopes)}}})

    def delete(self, kind: str, name: str) -> None:
        """Delete an object."""
        self.server.call("DELETE", self._path(kind, name))

    def _path(self, kind: str, name: str = "") -> str:
        plural = next(plural for plural, of_kind in KINDS.items() if of_kind == kind)
        base = f"/apis/dapr.io/v1alpha1/namespaces/{self.namespace}/{plural}"
        return f"{base}/{name}" if name else base
