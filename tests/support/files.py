"""Writers for rendered files, as a user would declare them."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml


def file(
    directory: Path,
    name: str,
    path: str,
    template: str | None = None,
    *,
    form: str = "",
    values: Mapping[str, object] | None = None,
    scopes: Iterable[str] = (),
    **fields: str,
) -> Path:
    """Write ``file-<name>.yaml`` into a directory: a document of kind File. ``fields`` are owner, group and mode."""
    spec: dict[str, object] = {"path": path, **fields}
    if form:
        spec["format"] = form
    if template is not None:
        spec["template"] = template
    if values is not None:
        spec["values"] = dict(values)
    document: dict[str, object] = {
        "apiVersion": "secretfs/v1alpha1",
        "kind": "File",
        "metadata": {"name": name},
        "spec": spec,
    }
    if scopes := list(scopes):
        document["scopes"] = scopes
    directory.mkdir(parents=True, exist_ok=True)
    written = directory / f"file-{name}.yaml"
    written.with_suffix(".new").write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return written.with_suffix(".new").rename(written)
