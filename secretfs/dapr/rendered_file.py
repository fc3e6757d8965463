"""Rendered files: documents that say how a file is made of secrets.

Dapr ignores the kind, so such a document may stand beside components or apps::

    apiVersion: secretfs/v1alpha1
    kind: File
    metadata: {name: pgpass}
    spec:
      path: files/pgpass              # below the root of the view, in a directory of its own
      mode: "0400"                    # owner, group and mode; default: those of a bulk file
      format: text                    # the default for a template
      template: "db:5432:*:{{ secret('vault', 'db').username }}:{{ secret('vault', 'db').password }}"
    scopes: [orders]                  # the app ids that have it; default: all

A file of another format has ``values`` in place of a template, each a reference or a template::

      format: json
      values:
        user: {store: vault, secret: db, key: username}
        url: {template: "jdbc:postgresql://db/{{ secret('env', 'DATABASE') | url }}"}

An unknown field is an error, as in an App document.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from secretfs.dapr.app import API_VERSION
from secretfs.dapr.component_yaml import Field, Object
from secretfs.dapr.documents import manifest_files, raw_texts, read_documents
from secretfs.dapr.goyaml import MappingNode
from secretfs.dapr.memo import Memo, file_identity
from secretfs.dapr.permission_rules import given, group_id, refuse_unknown, user_id
from secretfs.errors import ConfigurationError, Source
from secretfs.permissions import parse_mode
from secretfs.quoting import shell_name
from secretfs.rendering.job import Format, Job, Reference, Template
from secretfs.settings import nearest

KIND: Final = "File"

_MAY_BE_FILE = re.compile(r"^[\"']?kind[\"']?\s*:\s*[\"']?File\b", re.MULTILINE | re.IGNORECASE)
_ROOT_FIELDS = ("apiVersion", "kind", "metadata", "spec", "scopes")
_METADATA_FIELDS = ("name", "labels", "annotations")
_SPEC_FIELDS = ("path", "owner", "group", "mode", "format", "template", "values")
_VALUE_FIELDS = ("store", "secret", "key", "template")

_NEEDED: Final[Mapping[Format, tuple[str, ...]]] = {
    Format.PKCS12: ("certificate", "key"),
    Format.DOCKER: ("server", "username", "password"),
}
"""The values that a format has to have."""
_POSSIBLE: Final[Mapping[Format, tuple[str, ...]]] = {
    Format.PKCS12: ("certificate", "key", "chain", "name", "password"),
    Format.DOCKER: ("server", "username", "password", "email"),
}
"""All values that it may have, where not any name will do."""

_files = Memo[Path, tuple["RenderedFile", ...]]()


@dataclass(frozen=True, slots=True)
class RenderedFile:
    """A rendered file as declared. Two are equal when they declare the same, wherever they are written."""

    name: str
    path: tuple[str, ...]
    """Below the root of the view: a directory, perhaps folders, and the file."""
    job: Job = field(repr=False)
    scopes: tuple[str, ...] = ()
    """The app ids that have it; empty for all."""
    uid: int | None = None
    gid: int | None = None
    mode: int | None = None
    """None: as a bulk file has it."""
    source: Source | None = field(default=None, compare=False)

    @property
    def directory(self) -> str:
        """The directory at the root that it is in."""
        return self.path[0]

    @property
    def inner(self) -> str:
        """Its name in that directory, with the folders on the way."""
        return "/".join(self.path[1:])


def load_files(directories: Sequence[Path]) -> tuple[RenderedFile, ...]:
    """Load the rendered files that the YAML files of these directories declare, in their order.

    Raises `ConfigurationError` for the first thing that is wrong. Documents of other kinds are passed over.
    """
    found: list[RenderedFile] = []
    for path in manifest_files(directories, []):  # what else is there, others have remarked on
        found += _files.get(path, file_identity(path), partial(_files_in, path))
    _refuse_duplicates(found)
    return tuple(found)


def _refuse_duplicates(files: Iterable[RenderedFile]) -> None:
    names: dict[str, RenderedFile] = {}
    for file in files:
        earlier = names.setdefault(file.name, file)
        if earlier is not file:
            raise ConfigurationError(f"file {file.name} is declared twice, first at {earlier.source}", file.source)


def _files_in(path: Path) -> tuple[RenderedFile, ...]:
    may_be_file = _MAY_BE_FILE.search
    documents = read_documents(path, [], lambda text: bool(may_be_file(text)), word=KIND, whole_lines=True)
    return tuple(file for document in documents for file in _files_of(document.root))


def _files_of(root: MappingNode) -> Iterable[RenderedFile]:
    if KIND in raw_texts(root, "kind"):  # else it is somebody else's, and may be as strange as it likes
        document = Field("", root.source, root).members()
        if document["kind"].string() == KIND and document["apiVersion"].string() == API_VERSION:
            yield _file(document)


def _file(document: Object) -> RenderedFile:
    metadata, spec = document["metadata"].members(), document["spec"].members()
    for fields, known in ((document, _ROOT_FIELDS), (metadata, _METADATA_FIELDS), (spec, _SPEC_FIELDS)):
        refuse_unknown(fields, known)
    return RenderedFile(
        name=_required(metadata["name"]),
        path=_path(spec["path"]),
        job=_job(spec),
        scopes=tuple(scope.string() for scope in document["scopes"].elements()),
        uid=given(spec["owner"], user_id),
        gid=given(spec["group"], group_id),
        mode=given(spec["mode"], parse_mode),
        source=document.source,
    )


def _required(field_: Field) -> str:
    text = field_.string()
    if not text:
        raise ConfigurationError(f"{field_.path} is missing", field_.source)
    return text


def _path(field_: Field) -> tuple[str, ...]:
    text = _required(field_)
    parts = tuple(text.split("/"))
    if len(parts) < 2:
        reason = "it has to be in a directory, such as files/NAME: the root has directories only"
    elif any(part in ("", ".", "..") for part in parts):
        reason = "it has to be a path below the root of the mount, without empty parts, . and .."
    elif any(character in text for character in "%\0"):
        reason = "a % would be written as %25"
    elif any(len(part.encode("utf-8", "surrogateescape")) > 255 for part in parts):
        reason = "a part of a path has at most 255 bytes"
    elif any(part.startswith((".bulk.", ".secretfs")) or part in ("..data", "..versions") for part in parts):
        reason = "secretfs reserves that name"
    else:
        return parts
    raise ConfigurationError(f"{field_.path} {text!r}: {reason}", field_.source)


def _job(spec: Object) -> Job:
    template, values = spec["template"], spec["values"]
    if template.is_null() == values.is_null():
        found = "both are there" if not template.is_null() else "neither is there"
        raise ConfigurationError(f"{spec.path} needs either template or values: {found}", spec.source)
    wanted = _format(spec["format"], Format.TEXT if values.is_null() else None)
    if not template.is_null():
        if wanted is not Format.TEXT:
            raise ConfigurationError(
                f"{template.path} makes text; a {wanted.value} file is made of values", template.source
            )
        return Job(wanted, Template(template.string()))
    if wanted is Format.TEXT:
        raise ConfigurationError(f"{values.path}: a text file is made of a template", values.source)
    members = values.members()
    _require_names(wanted, members)
    in_order = sorted(members.fields.items(), key=lambda item: item[1].source.line)
    return Job(wanted, values=tuple((name, _value(value)) for name, value in in_order))


def _format(field_: Field, default: Format | None) -> Format:
    text = field_.string()
    if not text and default is not None:
        return default
    names = [one.value for one in Format]
    if text not in names:
        known = ", ".join(names)
        missing = f"{field_.path} is missing" if not text else f"{field_.path}: there is no format {text!r}"
        raise ConfigurationError(f"{missing}{nearest(text, names)}: {known}", field_.source)
    return Format(text)


def _require_names(wanted: Format, members: Object) -> None:
    for name in _NEEDED.get(wanted, ()):
        if name not in members.fields:
            raise ConfigurationError(f"{members.path}.{name} is missing: {wanted.value} needs it", members.source)
    if wanted in _POSSIBLE:
        refuse_unknown(members, _POSSIBLE[wanted])
    if not members.fields:
        raise ConfigurationError(f"{members.path} is empty", members.source)
    if wanted is Format.DOTENV:
        _require_variables(members)


def _require_variables(members: Object) -> None:
    """Refuse two values whose names would be one shell variable, of which a program would see the last one."""
    names: dict[str, str] = {}
    for name in members.fields:
        variable = shell_name(name)
        earlier = names.setdefault(variable, name)
        if earlier != name:
            reason = f"{earlier} and {name} would be one variable, {variable}: rename one of them"
            raise ConfigurationError(f"{members.path}: {reason}", members.fields[name].source)


def _value(field_: Field) -> Reference | Template:
    value = field_.members()
    refuse_unknown(value, _VALUE_FIELDS)
    if not value["template"].is_null():
        for other in ("store", "secret", "key"):
            if not value[other].is_null():
                raise ConfigurationError(f"{value[other].path}: a value is a template or of a secret", field_.source)
        return Template(value["template"].string())
    return Reference(_required(value["store"]), _required(value["secret"]), value["key"].string())
