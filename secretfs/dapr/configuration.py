"""Dapr Configuration files: secret scopes, and the component types that are denied.

Dapr reads them unlike components (``pkg/config/configuration.go``, yaml.v3): environment variables are expanded over
the whole text, only the first document counts, field names are case-sensitive, a key given twice is an error, scalars
keep their source text, and later files override earlier ones field by field. A misspelt field is ignored, which in a
file about permissions means that something is allowed: Dapr says nothing, here it is a notice that says so.

Nothing here knows what a secret is, or asks whether a store exists.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from secretfs.dapr.component import API_VERSION, Component
from secretfs.dapr.configuration_yaml import Field
from secretfs.dapr.documents import raw_texts, read_documents
from secretfs.dapr.goyaml import MAX_BYTES, Node, parse, read_text, split_documents
from secretfs.dapr.memo import Memo, file_identity
from secretfs.errors import ConfigurationError, Notice, Source
from secretfs.scopes import Access, SecretScope
from secretfs.settings import nearest

KIND: Final = "Configuration"

_MAY_BE_CONFIGURATION = re.compile(rf"kind[\"']?\s*:\s*[\"']?{KIND}\b", re.IGNORECASE)
_ROOT_FIELDS = ("apiVersion", "kind", "metadata", "spec")
_SPEC_FIELDS = (
    *("httpPipeline", "appHttpPipeline", "tracing", "mtls", "metric", "metrics", "secrets", "accessControl"),
    *("nameResolution", "features", "api", "components", "logging", "wasm", "workflow"),
)
_SCOPE_FIELDS = ("storeName", "defaultAccess", "allowedSecrets", "deniedSecrets")
_HOME = {
    "secrets": "spec.secrets",
    "scopes": "spec.secrets.scopes",
    "components": "spec.components",
    "deny": "spec.components.deny",
    **dict.fromkeys(_SCOPE_FIELDS, "an entry of spec.secrets.scopes"),
}
"""Where a field belongs that was written in a wrong place."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """What all configuration files together say about secrets."""

    scopes: Mapping[str, SecretScope] = field(default_factory=dict)
    """Store name to scope; a store that is not here is not limited."""
    denied_types: tuple[str, ...] = ()
    """``spec.components.deny``: entries are a type, or ``type/version``."""
    scope_sources: Mapping[str, Source] = field(default_factory=dict, compare=False)
    notices: tuple[Notice, ...] = field(default=(), compare=False)

    def denies(self, component: Component) -> bool:
        """Tell whether ``spec.components.deny`` forbids the component.

        With any deny list at all Dapr refuses components without a version (``authorizer/component.go``).
        """
        if not self.denied_types:
            return False
        if not component.type or not component.version:
            return True
        return any(_matches(entry, component) for entry in self.denied_types)


def _matches(entry: str, component: Component) -> bool:
    """Compare with ``type`` or ``type/version``, exactly; Dapr passes over an entry with more slashes."""
    denied_type, *version = entry.split("/")
    return denied_type == component.type and version in ([], [""], [component.version])


def load_configuration(paths: Sequence[Path], environ: Mapping[str, str]) -> Configuration:
    """Load configuration files and merge them in order.

    Raises `ConfigurationError` for the first thing that is wrong.
    """
    return _merge(_load(paths, environ))


def load_configurations(paths: Sequence[Path], environ: Mapping[str, str]) -> dict[str, Configuration]:
    """Load configuration files by ``metadata.name``; those of one name are merged in order.

    Raises `ConfigurationError` for the first thing that is wrong.
    """
    layers: dict[str, list[_Layer]] = {}
    for layer in _load(paths, environ):
        layers.setdefault(layer.name, []).append(layer)
    return {name: _merged.get(name, of_name, partial(_merge, of_name)) for name, of_name in layers.items()}


def configurations_in(path: Path) -> Mapping[str, Configuration]:
    """Return the Configurations among the documents of a file, by name.

    Such a file is one of a set, which holds what Dapr would have from Kubernetes: variables are not expanded. Raises
    `ConfigurationError` for the first thing that is wrong.
    """
    return _document_files.get(path, file_identity(path), partial(_configurations_in, path))


def configurations_before(path: Path) -> Mapping[str, Configuration] | None:
    """Return what a file of a set has said when it could be read for the last time; None if it never could."""
    return _document_files.last(path)


def _merge(layers: Sequence["_Layer"]) -> Configuration:
    entries = next((layer.scopes for layer in reversed(layers) if layer.scopes is not None), ())
    denied = next((layer.denied_types for layer in reversed(layers) if layer.denied_types is not None), ())
    scopes: dict[str, SecretScope] = {}
    sources: dict[str, Source] = {}
    notices = [notice for layer in layers for notice in layer.notices(limited=bool(entries))]
    for entry in entries:
        scope = entry.scope()
        if scope.store_name in scopes:
            raise ConfigurationError(f"{entry.store_name} storeName is repeated in secrets configuration", entry.source)
        scopes[scope.store_name], sources[scope.store_name] = scope, entry.source
        notices += entry.notices(scope)
    return Configuration(scopes, denied, sources, tuple(notices))


@dataclass(frozen=True, slots=True)
class _File:
    """A file's text before variables were expanded: only what stands in it may be quoted in a message."""

    text: str = field(repr=False)

    def quote(self, text: str) -> str:
        return text if text in self.text else "(from the environment)"

    def unknown(self, fields: Mapping[str, Field], known: Sequence[str]) -> Iterator["_Unknown"]:
        for name, given in fields.items():
            if name not in known:
                quoted = given.path.removesuffix(name) + self.quote(name)
                hint = f" (it belongs in {_HOME[name]})" if name in _HOME else nearest(name, known)
                yield _Unknown(f"unknown field {quoted}{hint} is ignored, by Dapr as well", name, given.source)


class _Unknown(NamedTuple):
    """A field that nobody reads."""

    message: str
    name: str
    source: Source

    @property
    def meant_to_limit(self) -> bool:
        """Whether its name looks like that of a field which would have limited access to secrets."""
        return bool(nearest(self.name, ("secrets", "scopes", *_SCOPE_FIELDS)))

    def notice(self, effect: str = "") -> Notice:
        return Notice(self.message + effect, self.source)


class _ScopeEntry(NamedTuple):
    """An entry of ``spec.secrets.scopes`` before validation, which Dapr does on the merged result."""

    fields: Mapping[str, Field]
    source: Source
    file: _File

    @property
    def store_name(self) -> str:
        """The store's name as a message may show it."""
        return self.file.quote(self._string("storeName"))

    def require_types(self) -> None:
        """Raise `ConfigurationError` for a field of another type, also in a file that a later one overrides."""
        for name in ("storeName", "defaultAccess"):
            self._string(name)
        for name in ("allowedSecrets", "deniedSecrets"):
            self._strings(name)

    def scope(self) -> SecretScope:
        return SecretScope(
            self._string("storeName"), self._access(), self._strings("allowedSecrets"), self._strings("deniedSecrets")
        )

    def notices(self, scope: SecretScope) -> Iterator[Notice]:
        effect = f", so every secret of {self.store_name} is allowed" if scope.unrestricted else ""
        for unknown in self.file.unknown(self.fields, _SCOPE_FIELDS):
            yield unknown.notice(effect)
        for name in ("allowedSecrets", "deniedSecrets"):
            listed = self.fields.get(name)
            if listed and listed.has_nulls():
                yield Notice(f"{listed.path} has an entry without a value, which is ignored{effect}", listed.source)
        if not scope.store_name:
            yield Notice("a scope without storeName limits no store", self.source)

    def _access(self) -> Access:
        text = self._string("defaultAccess")
        if text.lower() in ("", "allow"):
            return Access.ALLOW
        if text.lower() == "deny":
            return Access.DENY
        raise ConfigurationError(
            f"defaultAccess {self.file.quote(text)} can be either allow or deny", self.fields["defaultAccess"].source
        )

    def _string(self, name: str) -> str:
        return self.fields[name].string() if name in self.fields else ""

    def _strings(self, name: str) -> frozenset[str]:
        return frozenset(item.string() for item in self.fields[name].elements()) if name in self.fields else frozenset()


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    """What one file says; None where it says nothing and an earlier file's word stands."""

    name: str
    """``metadata.name``, which Dapr itself never reads."""
    scopes: tuple[_ScopeEntry, ...] | None
    denied_types: tuple[str, ...] | None
    unknown: tuple[_Unknown, ...]
    remarks: tuple[Notice, ...]

    def notices(self, *, limited: bool) -> Iterator[Notice]:
        """Say what is ignored; ``limited`` is whether any store ends up with a scope."""
        yield from self.remarks
        for unknown in self.unknown:
            yield unknown.notice(", so no store is limited" if unknown.meant_to_limit and not limited else "")


_files = Memo[Path, _Layer]()
_document_files = Memo[Path, Mapping[str, Configuration]]()
_merged = Memo[str, Configuration]()


def _load(paths: Sequence[Path], environ: Mapping[str, str]) -> list[_Layer]:
    """Read files, in order. One that is the same as before is not parsed again: a thousand apps may have one each."""
    variables = hash(frozenset(environ.items())) if paths else 0  # not themselves: there may be credentials among them
    return [_files.get(path, (file_identity(path), variables), partial(_parse, path, environ)) for path in paths]


def _parse(path: Path, environ: Mapping[str, str]) -> _Layer:
    file, whole = _File(read_text(path)), Source(str(path))
    text = expand_env(file.text, environ)
    if len(text) > MAX_BYTES:
        raise ConfigurationError(f"larger than {MAX_BYTES} bytes once variables are expanded", whole)
    root = parse(text, str(path), bare_tag=None)
    return _layer(root, root.source if root else whole, file, tuple(_further_documents(text, path)))


def _configurations_in(path: Path) -> Mapping[str, Configuration]:
    found: dict[str, Configuration] = {}
    for root, text in read_documents(path, [], lambda text: bool(_MAY_BE_CONFIGURATION.search(text)), word=KIND):
        versions = raw_texts(root, "apiversion") or {API_VERSION}
        if KIND not in raw_texts(root, "kind") or not any(version.startswith("dapr.io/") for version in versions):
            continue
        layer = _layer(root, root.source, _File(text), ())
        if not layer.name:
            raise ConfigurationError("metadata.name is missing", root.source)
        if layer.name in found:
            raise ConfigurationError(f"there is another Configuration {layer.name} in this file", root.source)
        found[layer.name] = _merge([layer])
    return found


def _layer(root: Node | None, whole: Source, file: _File, remarks: tuple[Notice, ...]) -> _Layer:
    document = Field("", whole, root).members()
    spec = _members(document, "spec")
    secrets, components = _members(spec, "secrets"), _members(spec, "components")
    metadata = _members(document, "metadata")
    return _Layer(
        name=metadata["name"].string() if "name" in metadata else "",
        scopes=_scopes(spec, secrets, file),
        denied_types=_denied_types(spec, components),
        unknown=(
            *file.unknown(document, _ROOT_FIELDS),
            *file.unknown(spec, _SPEC_FIELDS),
            *file.unknown(secrets, ("scopes",)),
            *file.unknown(components, ("deny",)),
        ),
        remarks=(*_wrong_kind(document, whole), *remarks),
    )


def _members(fields: Mapping[str, Field], name: str) -> Mapping[str, Field]:
    return fields[name].members() if name in fields else {}


def _scopes(spec: Mapping[str, Field], secrets: Mapping[str, Field], file: _File) -> tuple[_ScopeEntry, ...] | None:
    """Return the entries; none at all for a null, with which yaml.v3 takes back what an earlier file said."""
    if "scopes" in secrets:
        entries = tuple(_ScopeEntry(item.members(), item.source, file) for item in secrets["scopes"].elements())
        for entry in entries:
            entry.require_types()
        return entries
    return () if "secrets" in spec and spec["secrets"].is_null() else None


def _denied_types(spec: Mapping[str, Field], components: Mapping[str, Field]) -> tuple[str, ...] | None:
    if "deny" in components:
        return tuple(item.string() for item in components["deny"].elements())
    return () if "components" in spec and spec["components"].is_null() else None


def _wrong_kind(document: Mapping[str, Field], whole: Source) -> Iterator[Notice]:
    for name, expected in (("apiVersion", API_VERSION), ("kind", KIND)):
        given = document.get(name)
        if given is None or not given.is_scalar() or given.string() != expected:
            source = given.source if given else whole
            yield Notice(f"{name} is not {expected}; the file is read as one all the same, as Dapr does", source)


def _further_documents(text: str, path: Path) -> Iterator[Notice]:
    for line, document in split_documents(text):
        if line > 1 and re.search(r"^[^#\s]", document, re.MULTILINE):
            yield Notice(
                "only the first document of a configuration file is read, by Dapr as well", Source(str(path), line)
            )
            return


_NAME = r"\{|(?P<special>[*#$@!?0-9-])|(?P<word>[A-Za-z_][A-Za-z0-9_]*)"
_VARIABLE = re.compile(rf"\$(?:\{{(?P<braced>[^}}]*)\}}|{_NAME})")
_VARIABLE_WITHOUT_BRACES = re.compile(rf"\$(?:{_NAME})")


def expand_env(text: str, environ: Mapping[str, str]) -> str:
    """Expand ``$NAME`` and ``${NAME}`` as Go's ``os.ExpandEnv`` does.

    What is not set is empty. There is no escape: ``$$`` is the variable named ``$``. ``${`` without an end and ``${}``
    are eaten; a ``$`` before anything else stays.
    """

    def value(match: re.Match[str]) -> str:
        return environ.get(match[match.lastgroup or 0], "")

    # After the last brace no "${" has an end. Looking for one each time would take forever on a text of nothing else.
    end = text.rfind("}") + 1
    return _VARIABLE.sub(value, text[:end]) + _VARIABLE_WITHOUT_BRACES.sub(value, text[end:])
