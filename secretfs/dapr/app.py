"""Apps: what has a view of its own in a mount for many apps.

An app is a document of a kind that Dapr ignores, so it may stand in the same files as components::

    apiVersion: secretfs/v1alpha1
    kind: App
    metadata: {name: orders}        # the name of the directory
    spec:
      appId: orders                 # the Dapr app id; default: the name
      configuration: orders         # metadata.name of a Dapr Configuration; default: all that are given
      resources: payments/shared    # a directory below that of --app-resources, in the place of --resources-path
      objects: payments             # or one below that of --app-objects, whose authors are not trusted with the host
      owner: orders                 # a user name or a host id; default: the user that mounts
      group: orders                 # a group name or a host id; default: the owner's group
      mode: "0400"
      tokens: /run/tokens/orders    # a directory with tokens of its own identity, a file AUDIENCE.jwt each
      permissions:                  # the first rule that matches decides
        - {match: "vault/tls/*", group: ssl-cert, mode: "0440"}

Fields are decoded like those of a component (`secretfs.dapr.component_yaml`), but an unknown field is an error: nobody
else reads these documents.
"""

import pwd
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from secretfs.dapr.component_yaml import Field, Object
from secretfs.dapr.documents import manifest_files, raw_texts, read_documents
from secretfs.dapr.goyaml import MappingNode, parse
from secretfs.dapr.memo import Memo, file_identity
from secretfs.dapr.permission_rules import given, group_id, parse_rules, refuse_unknown, user_id
from secretfs.errors import ConfigurationError, Notice, Source
from secretfs.permissions import PermissionRule, parse_mode

API_VERSION: Final = "secretfs/v1alpha1"
KIND: Final = "App"

_MAY_BE_APP = re.compile(r"secretfs/|^[\"']?kind[\"']?\s*:\s*[\"']?App\b", re.MULTILINE | re.IGNORECASE)
_ROOT_FIELDS = ("apiVersion", "kind", "metadata", "spec")
_METADATA_FIELDS = ("name", "labels", "annotations")
_SPEC_FIELDS = ("appId", "configuration", "resources", "objects", "owner", "group", "mode", "tokens", "permissions")
_SET_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(?:/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")

_files = Memo[Path, tuple[tuple["App", ...], tuple[Notice, ...]]]()


@dataclass(frozen=True, slots=True)
class App:
    """An app as declared. Two are equal when they declare the same, wherever they are written."""

    name: str
    app_id: str = ""
    """The Dapr app id whose view it has; empty for ``name``."""
    configuration: str = ""
    """``metadata.name`` of its Configuration; empty for all that are given."""
    resources: str = ""
    """The directory, below one for trusted sets, whose components it sees; empty for those of everybody."""
    objects: str = ""
    """The same, below one for sets that are contained."""
    uid: int | None = None
    gid: int | None = None
    mode: int | None = None
    """None: as the mount has it."""
    tokens: str = ""
    """An absolute path: the directory with tokens that say who the app is; empty if it has none."""
    rules: tuple[PermissionRule, ...] = ()
    source: Source | None = field(default=None, compare=False)


def load_apps(directories: Sequence[Path], notices: list[Notice]) -> tuple[App, ...]:
    """Load the apps that the YAML files of these directories declare, by name.

    Raises `ConfigurationError` for the first thing that is wrong. Documents of other kinds are passed over.
    """
    apps: dict[str, App] = {}
    for path in manifest_files(directories, notices):
        declared, remarks = _files.get(path, file_identity(path), partial(_apps_in, path))
        notices += remarks
        for app in declared:
            earlier = apps.get(app.name)
            if earlier:
                raise ConfigurationError(f"app {app.name} is declared twice, first at {earlier.source}", app.source)
            apps[app.name] = app
    return tuple(apps[name] for name in sorted(apps))


def _apps_in(path: Path) -> tuple[tuple[App, ...], tuple[Notice, ...]]:
    """Read the apps of one file, with remarks. Raises `ConfigurationError`."""
    notices: list[Notice] = []
    documents = read_documents(path, notices, lambda text: bool(_MAY_BE_APP.search(text)))
    return tuple(app for document in documents for app in _apps_of(document.root)), tuple(notices)


def apps_in_text(text: str, path: str, line: int) -> Iterable[App]:
    """Read the app of one document, which begins at a line of a file; none if it is something else."""
    root = parse(text, path, line)
    if isinstance(root, MappingNode):
        yield from _apps_of(root)


def _apps_of(root: MappingNode) -> Iterable[App]:
    if KIND in raw_texts(root, "kind"):  # else it is somebody else's, and may be as strange as it likes
        document = Field("", root.source, root).members()
        if document["kind"].string() == KIND and document["apiVersion"].string() == API_VERSION:
            yield _app(document)


def _app(document: Object) -> App:
    metadata, spec = document["metadata"].members(), document["spec"].members()
    for fields, known in ((document, _ROOT_FIELDS), (metadata, _METADATA_FIELDS), (spec, _SPEC_FIELDS)):
        refuse_unknown(fields, known)
    resources, objects = (given(spec[name], _set_name) or "" for name in ("resources", "objects"))
    if resources and objects:
        raise ConfigurationError("spec.resources and spec.objects both say what the app sees", spec["objects"].source)
    return App(
        name=_name(metadata["name"]),
        app_id=given(spec["appId"], parse_app_id) or "",
        configuration=spec["configuration"].string(),
        resources=resources,
        objects=objects,
        uid=given(spec["owner"], user_id),
        gid=_gid(spec),
        mode=given(spec["mode"], parse_mode),
        tokens=given(spec["tokens"], _absolute) or "",
        rules=parse_rules(spec["permissions"]),
        source=document.source,
    )


def _name(name: Field) -> str:
    """Read the name, which becomes a directory at the root of the mount."""
    text = name.string()
    if not text:
        raise ConfigurationError(f"{name.path} is missing", name.source)
    if not is_app_name(text):
        raise ConfigurationError(f"{name.path} {text!r} cannot be the name of a directory here", name.source)
    return text


def is_app_name(text: str) -> bool:
    """Whether a text can be the name of an app, which is one segment of a path."""
    return bool(text) and not text.startswith(".") and "/" not in text and "\0" not in text


def parse_app_id(text: str) -> str:
    """Read a Dapr app id, which may become part of a path (``{appID}``). Raises ValueError."""
    if not is_app_name(text):
        raise ValueError(f"{text!r} cannot be an app id here: it has a slash, or begins with a dot")
    return text


def _set_name(text: str) -> str:
    """Read the name of a set: a relative path that stays below where it begins."""
    if not _SET_NAME.fullmatch(text):
        raise ValueError(f"{text!r} is not the name of a set, such as payments or payments/shared")
    return text


def _absolute(text: str) -> str:
    if not text.startswith("/"):
        raise ValueError(f"{text!r} is not an absolute path")
    return text


def _gid(spec: Object) -> int | None:
    """Read the group; that of the owner where only the owner is given, and the owner is a user of this host."""
    gid = given(spec["group"], group_id)
    uid = given(spec["owner"], user_id)
    if gid is not None or uid is None:
        return gid
    try:
        return pwd.getpwuid(uid).pw_gid
    except KeyError:
        return uid
