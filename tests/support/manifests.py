"""Writers for the YAML that a user would write: Dapr components and configurations."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml


def component(
    directory: Path,
    name: str,
    type: str,  # noqa: A002 - the field's name in the manifest
    properties: Mapping[str, object] | None = None,
    *,
    scopes: Iterable[str] = (),
    annotations: Mapping[str, str] | None = None,
    namespace: str = "",
    secret_store: str = "",
    init_timeout: str = "1m",
) -> Path:
    """Write ``<name>.yaml`` into ``directory``, which is made when missing.

    ``type`` may be short: "local.file" stands for "secretstores.local.file". A property that is a mapping is merged
    into its item: ``{"vaultToken": {"secretKeyRef": {"name": "token", "key": "token"}}}``.

    A store has a minute to open, because on a loaded machine the usual 5 s are not enough for many at once. It has
    those 5 s with an ``init_timeout`` that is empty.
    """
    document: dict[str, object] = {
        "apiVersion": "dapr.io/v1alpha1",
        "kind": "Component",
        "metadata": _without_empty({"name": name, "namespace": namespace, "annotations": dict(annotations or {})}),
        "spec": {
            "type": type if type.startswith("secretstores.") else f"secretstores.{type}",
            "version": "v1",
            "metadata": [_item(key, value) for key, value in (properties or {}).items()],
            **_without_empty({"initTimeout": init_timeout}),
        },
    }
    if secret_store:
        document["auth"] = {"secretStore": secret_store}
    if scopes := list(scopes):
        document["scopes"] = scopes
    return _write(directory / f"{name}.yaml", document)


def configuration(directory: Path, *scopes: Mapping[str, object], name: str = "appconfig") -> Path:
    """Write ``<name>.yaml``, a Configuration with these secret scopes; `scope` makes one."""
    document = {
        "apiVersion": "dapr.io/v1alpha1",
        "kind": "Configuration",
        "metadata": {"name": name},
        "spec": {"secrets": {"scopes": [dict(one) for one in scopes]}},
    }
    return _write(directory / f"{name}.yaml", document)


def scope(
    store: str, *, default: str = "", allowed: Iterable[str] | None = None, denied: Iterable[str] | None = None
) -> dict[str, object]:
    """Make one secret scope; what is not given is not written."""
    entry: dict[str, object] = {"storeName": store}
    if default:
        entry["defaultAccess"] = default
    if allowed is not None:
        entry["allowedSecrets"] = list(allowed)
    if denied is not None:
        entry["deniedSecrets"] = list(denied)
    return entry


def _item(name: str, value: object) -> dict[str, object]:
    if isinstance(value, Mapping):
        return {"name": name, **value}
    return {"name": name, "value": str(value) if isinstance(value, Path) else value}


def _without_empty(fields: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in fields.items() if value}


def _write(path: Path, document: Mapping[str, object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return path
