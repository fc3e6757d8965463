"""Component manifests: from directories of YAML to the secret store components one app may see.

Finding, splitting, decoding and filtering are Dapr's (``pkg/internal/loader/disk``, ``pkg/apis/components/v1alpha1``),
with one rule of our own. Dapr skips a document it cannot decode with a warning; here it stops the mount if it may be a
secret store, because a mount without the store somebody meant to configure is worse than none. Documents of other
kinds, and components that are not secret stores, stay none of our business: only their names count, which must not
repeat.

Nothing here knows what the stores are or what their properties mean.
"""

import re
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePath
from typing import Final, NamedTuple

from secretfs.dapr.component_yaml import Field, Object
from secretfs.dapr.documents import (
    CATEGORIES,
    NOT_YAML,
    explained,
    manifest_files,
    may_be_secret_store,
    raw,
    raw_texts,
    read_documents,
)
from secretfs.dapr.goyaml import MappingNode
from secretfs.dapr.memo import Memo, file_identity
from secretfs.dapr.object_metadata import METADATA_FIELDS, what_dapr_skips
from secretfs.dapr.permission_rules import rules_of_annotation
from secretfs.durations import parse_duration, show_duration
from secretfs.errors import ConfigurationError, Notice, Source
from secretfs.permissions import PermissionRule
from secretfs.settings import nearest

API_VERSION: Final = "dapr.io/v1alpha1"
KIND: Final = "Component"
PREFIX: Final = "secretstores."
PERMISSIONS: Final = "secretfs/permissions"
"""The annotation with permission rules."""
DEFAULT_INIT_TIMEOUT: Final = 5.0
"""Seconds; also what an initTimeout that is invalid or not positive means (dapr ``instance.go``)."""

_ROOT_FIELDS = ("apiVersion", "kind", "metadata", "spec", "auth", "scopes")
_SPEC_FIELDS = ("type", "version", "ignoreErrors", "metadata", "initTimeout")
_ITEM_FIELDS = ("name", "value", "secretKeyRef", "envRef")
_STRINGS = re.compile(
    r"metadata\.(?:name|namespace|generatename|selflink|uid|resourceversion|(?:labels|annotations)\..*)",
    re.IGNORECASE | re.DOTALL,
)
"""Paths of fields that Dapr makes strings of before it makes JSON, also of a number that JSON does not have."""


class SecretKeyRef(NamedTuple):
    """A secret of another store that gives a property its value."""

    name: str
    key: str
    """Which key of the secret; the secret's own name when the manifest does not say."""


@dataclass(frozen=True, slots=True)
class Item:
    """One entry of ``spec.metadata``, not resolved."""

    name: str
    value: str | None = field(default=None, repr=False)
    """As Dapr would hand it to the store; None where the manifest gives none, which is not the same as empty."""
    env_ref: str = ""
    secret_key_ref: SecretKeyRef | None = None
    source: Source | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Component:
    """A component as declared. Two are equal when they declare the same, wherever they are written."""

    name: str
    type: str
    version: str = ""
    namespace: str = ""
    ignore_errors: bool = False
    init_timeout: float = DEFAULT_INIT_TIMEOUT
    items: tuple[Item, ...] = ()
    secret_store: str = ""
    scopes: tuple[str, ...] = ()
    annotations: Mapping[str, str] = field(default_factory=dict)
    rules: tuple[PermissionRule, ...] = ()
    """What the annotation ``secretfs/permissions`` says about single secrets."""
    builtin: bool = False
    """Nobody has declared it: the store of every pod."""
    app_id: str = ""
    """The app that a component is opened for, where its properties depend on it; empty where they do not."""
    tokens: str = ""
    """Where that app has tokens of its own; empty where it has none, or the properties do not depend on it."""
    contained_in: str = ""
    """The set of `secretfs.dapr.resource_set` that it is of, if its author is not trusted with the host; else empty."""
    source: Source | None = field(default=None, compare=False)
    annotation_sources: Mapping[str, Source] = field(default_factory=dict, compare=False)

    @property
    def is_secret_store(self) -> bool:
        """Whether the type names a secret store. The prefix is case-sensitive, unlike the rest of the type."""
        return self.type.startswith(PREFIX)

    @property
    def log_name(self) -> str:
        """How Dapr's messages name a component."""
        return f"{self.name} ({self.type}/{self.version})" if self.version else f"{self.name} ({self.type})"

    def visible_to(self, app_id: str) -> bool:
        """Tell whether ``scopes`` lets this app see the component. An empty app id is in no scope."""
        return not self.scopes or (app_id != "" and app_id in self.scopes)


class Manifests(NamedTuple):
    """What the resource directories hold for one app."""

    components: tuple[Component, ...]
    notices: tuple[Notice, ...] = ()


@dataclass(frozen=True, slots=True)
class AllManifests:
    """What the resource directories hold, for whichever app."""

    components: tuple[tuple[Component, tuple[Notice, ...]], ...]
    """In load order, each with the remarks on its document; also components that are not secret stores."""
    notices: tuple[Notice, ...]
    _places: Mapping[str, Sequence[int]] = field(init=False, repr=False)
    """Where the components are that count for an app id: of a thousand, each may be for another one."""

    def __post_init__(self) -> None:
        names = Counter(component.name for component, _ in self.components)
        places: dict[str, list[int]] = {"": []}
        for place, (component, _) in enumerate(self.components):
            everybody = not component.scopes or names[component.name] > 1
            for app_id in ("",) if everybody else dict.fromkeys(component.scopes):
                places.setdefault(app_id, []).append(place)
        object.__setattr__(self, "_places", places)

    def visible_to(self, app_id: str) -> Manifests:
        """Return the secret stores that an app may see, with the remarks on their documents.

        Raises `ConfigurationError` for two of the same name.
        """
        declared: dict[str, Component] = {}
        notices: list[Notice] = []
        for place in sorted({*self._places[""], *self._places.get(app_id, ())}):
            component, remarks = self.components[place]
            _refuse_duplicate(component, declared)
            if component.visible_to(app_id):
                declared[component.name] = component
                notices += remarks
        return Manifests(tuple(c for c in declared.values() if c.is_secret_store), tuple(notices))


def load_manifests(directories: Sequence[Path], *, namespace: str) -> AllManifests:
    """Load the components of all apps.

    ``namespace`` is the environment's NAMESPACE; when it is empty, or a manifest has none, namespaces do not matter.
    Raises `ConfigurationError` for the first thing that is wrong.
    """
    notices: list[Notice] = []
    components: list[tuple[Component, tuple[Notice, ...]]] = []
    for path in manifest_files(directories, notices):
        declared, remarks = components_in(path)
        components += [one for one in declared if not namespace or one[0].namespace in ("", namespace)]
        notices += remarks
    named = frozenset(_named_files(component for component, _ in components))
    return AllManifests(tuple(components), tuple(notice for notice in notices if not _is_named(notice, named)))


def _named_files(components: Iterable[Component]) -> Iterator[str]:
    """Yield what may be the name of a file in the properties of components: they say where their secrets are."""
    for component in components:
        for item in component.items:
            if item.value:
                yield PurePath(item.value).name


def _is_named(notice: Notice, names: Container[str]) -> bool:
    """Tell whether a notice is about a file that is no manifest, and that a component names."""
    return notice.message == NOT_YAML and notice.source is not None and PurePath(notice.source.path).name in names


def _refuse_duplicate(component: Component, declared: Mapping[str, Component]) -> None:
    """Only a component that this app sees stands in the way of another (dapr ``disk.go`` filterManifests)."""
    earlier = declared.get(component.name)
    if earlier:
        raise ConfigurationError(
            f"duplicate definition of {KIND} name {component.log_name} with existing {earlier.log_name}"
            f" at {earlier.source}",
            component.source,
        )


Declared = tuple[tuple[tuple[Component, tuple[Notice, ...]], ...], tuple[Notice, ...]]
"""The components of a file, each with remarks, and remarks on the file."""

_files = Memo[Path, Declared]()


def components_in(path: Path) -> Declared:
    """Return the components of a file. Raises `ConfigurationError` for the first thing that is wrong."""
    return _files.get(path, file_identity(path), partial(_read, path))


def components_before(path: Path) -> Declared | None:
    """Return what a file has said when it could be read for the last time; None if it never could."""
    return _files.last(path)


def _read(path: Path) -> Declared:
    components: list[tuple[Component, tuple[Notice, ...]]] = []
    notices: list[Notice] = []
    for document in read_documents(path, notices, may_be_secret_store):
        try:
            decoded = _decode_component(Field("", document.root.source, document.root))
        except ConfigurationError as error:
            if _may_be_secret_store(document.root):
                raise explained(error, document.text, document.root.source.line) from None
            continue
        if decoded:
            component, remarks = decoded
            components.append((component, tuple(remarks)))
    return tuple(components), tuple(notices)


def _may_be_secret_store(root: MappingNode) -> bool:
    """Tell from the raw texts of a document that does not decode whether it could be a secret store component."""
    if KIND not in raw_texts(root, "kind"):
        return False
    specs = [spec for spec in raw(root, "spec") if isinstance(spec, MappingNode)]
    types = {text for spec in specs for text in raw_texts(spec, "type")} - {""}
    return not types or any(_misspelt_category(text) or text.startswith(PREFIX) for text in types)


def _decode_component(root: Field) -> tuple[Component, list[Notice]] | None:
    document = root.members()
    if document["kind"].strict_string() != KIND or document["apiVersion"].strict_string() != API_VERSION:
        return None
    header = _header(document)
    if not header.type:
        return header, [Notice("spec.type is null, so this is no secret store; passed over", header.source)]
    if not header.is_secret_store:
        return header, []
    # Dapr converts the whole document, so an infinite number in a field that nobody reads still spoils it.
    root.json(_STRINGS)
    return _secret_store(document, header)


def _header(document: Object) -> Component:
    """Decode the name of the component and the app ids that it is for."""
    metadata, spec = document["metadata"].members(), document["spec"].members()
    return Component(
        name=_name(metadata["name"]),
        type=_type(spec["type"]),
        version=spec["version"].string(),
        namespace=metadata["namespace"].string(),
        scopes=tuple(scope.strict_string() for scope in document["scopes"].elements()),
        source=document.source,
    )


def _name(name: Field) -> str:
    """Kubernetes' IsValidPathSegmentName, and not empty: the name becomes a directory."""
    text = name.string()
    if not text:
        raise ConfigurationError(f"{name.path} is missing", name.source)
    if text in {".", ".."}:
        raise ConfigurationError(f"invalid name {text!r} for {KIND!r}: may not be {text!r}", name.source)
    for char in "/%":
        if char in text:
            raise ConfigurationError(f"invalid name {text!r} for {KIND!r}: may not contain {char!r}", name.source)
    return text


def _type(component_type: Field) -> str:
    """Read the type. A null is none, to Dapr as well; a document that does not have the field is unfinished."""
    text = component_type.string()
    if not text and component_type.node is None:
        raise ConfigurationError(f"{component_type.path} is missing", component_type.source)
    if _misspelt_category(text):
        raise ConfigurationError(f"incorrect type {text}: a secret store's begins with {PREFIX}", component_type.source)
    return text


def _misspelt_category(component_type: str) -> bool:
    """Tell whether ``SecretStores.x`` or ``secretstore.x`` was meant; Dapr refuses to start with such a type."""
    category = component_type.partition(".")[0]
    return category not in CATEGORIES and "secretstores" in nearest(category, CATEGORIES)


def _secret_store(document: Object, header: Component) -> tuple[Component, list[Notice]]:
    metadata, spec, auth = document["metadata"].members(), document["spec"].members(), document["auth"].members()
    annotations = metadata["annotations"].members().fields
    notices = [
        *document.unknown(_ROOT_FIELDS),
        *metadata.unknown(METADATA_FIELDS),
        *what_dapr_skips(metadata),
        *spec.unknown(_SPEC_FIELDS),
        *auth.unknown(("secretStore",)),
    ]
    component = replace(
        header,
        ignore_errors=spec["ignoreErrors"].boolean(),
        init_timeout=_init_timeout(spec["initTimeout"], notices),
        items=tuple(_item(item, notices) for item in spec["metadata"].elements()),
        secret_store=auth["secretStore"].string(),
        rules=_rules(annotations),
        annotations={name: annotation.string() for name, annotation in annotations.items()},
        annotation_sources={name: annotation.source for name, annotation in annotations.items()},
    )
    return component, notices


def _rules(annotations: Mapping[str, Field]) -> tuple[PermissionRule, ...]:
    annotation = annotations.get(PERMISSIONS)
    return rules_of_annotation(annotation.string(), annotation.source) if annotation else ()


def _init_timeout(timeout: Field, notices: list[Notice]) -> float:
    text = timeout.string()
    try:
        seconds = parse_duration(text) if text else DEFAULT_INIT_TIMEOUT
    except ValueError as error:
        seconds, reason = 0.0, str(error)
    else:
        reason = "not positive"
    if seconds > 0:
        return seconds
    notices.append(
        Notice(f"{timeout.path} is {reason}; {show_duration(DEFAULT_INIT_TIMEOUT)} counts instead", timeout.source)
    )
    return DEFAULT_INIT_TIMEOUT


def _item(field_: Field, notices: list[Notice]) -> Item:
    item = field_.members()
    notices += item.unknown(_ITEM_FIELDS)
    return Item(
        name=item["name"].string(),
        value=item["value"].property_text(),
        env_ref=item["envRef"].string(),
        secret_key_ref=_secret_key_ref(item["secretKeyRef"], notices),
        source=field_.source,
    )


def _secret_key_ref(reference: Field, notices: list[Notice]) -> SecretKeyRef | None:
    """Decode a reference. Without a name Dapr goes on to the next item, whatever the key says."""
    members = reference.members()
    notices += members.unknown(("name", "key"))
    name, key = members["name"].string(), members["key"].string()
    if name:
        return SecretKeyRef(name, key or name)
    if not reference.is_null():
        notices.append(Notice(f"{reference.path} has no name and is ignored", reference.source))
    return None
