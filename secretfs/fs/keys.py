"""Keys: what a place in the tree is, whichever inode is there now; and their form in the journal. Pure."""

import json
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar, Final, NamedTuple

PIN: Final = 16
"""Bytes that say which version of a secret a place is in."""


class Bulk(Enum):
    """The forms of a store's bulk file. The value is the end of its name."""

    JSON = "json"
    ENV = "env"
    EXPORT = "export.env"
    PROPERTIES = "properties"
    YAML = "yaml"

    @property
    def segment(self) -> bytes:
        """The name of the file."""
        return b".bulk." + self.value.encode()


@dataclass(frozen=True, slots=True)
class RootKey:
    """The mount point."""

    component: ClassVar[str] = ""
    pin: ClassVar[bytes] = b""


@dataclass(frozen=True, slots=True)
class AppKey:
    """The directory of an app, in a mount for many apps."""

    app: str
    pin: ClassVar[bytes] = b""

    @property
    def component(self) -> str:
        """The app, which is no store: whose inode numbers are those of this directory."""
        return self.app


@dataclass(frozen=True, slots=True)
class FolderKey:
    """A store (no segments) or a folder in it."""

    component: str
    """Where the store is shown: ``COMPONENT``, and in a mount for many apps ``APP/COMPONENT``."""
    segments: tuple[str, ...] = ()
    pin: ClassVar[bytes] = b""


@dataclass(frozen=True, slots=True)
class SecretKey:
    """A secret of a multi-valued store: a directory of its keys."""

    component: str
    name: str
    pin: ClassVar[bytes] = b""


class ValueKey(NamedTuple):
    """One value: a key of a secret. In a single-valued store the key is the secret's name.

    A tuple, because a listing makes one for each entry and looks it up: that takes half the time.
    """

    component: str
    name: str
    key: str

    @property
    def pin(self) -> bytes:
        """Nothing: it has whatever version is current."""
        return b""


@dataclass(frozen=True, slots=True)
class BulkKey:
    """The bulk file of a store."""

    component: str
    form: Bulk
    pin: ClassVar[bytes] = b""


@dataclass(frozen=True, slots=True)
class SecretBulkKey:
    """The bulk file of one multi-valued secret: all its keys, of one version."""

    component: str
    name: str
    form: Bulk
    pin: ClassVar[bytes] = b""


@dataclass(frozen=True, slots=True)
class PinnedSecretKey:
    """The directory ``..data`` of a multi-valued secret: one version of it, and never another."""

    component: str
    name: str
    pin: bytes = field(repr=False)
    """Which version: a keyed digest of its values, of `PIN` bytes."""

    @property
    def secret(self) -> SecretKey:
        """The secret, whatever its version."""
        return SecretKey(self.component, self.name)

    @property
    def directory(self) -> "PinnedSecretKey":
        """The directory itself, as that of a value in it."""
        return self


@dataclass(frozen=True, slots=True)
class PinnedValueKey:
    """One value in a ``..data``."""

    component: str
    name: str
    pin: bytes = field(repr=False)
    key: str

    @property
    def directory(self) -> PinnedSecretKey:
        """The directory it is in."""
        return PinnedSecretKey(self.component, self.name, self.pin)


@dataclass(frozen=True, slots=True)
class VersionsKey:
    """The directory ``..versions`` of a multi-valued secret."""

    component: str
    name: str
    pin: ClassVar[bytes] = b""

    @property
    def secret(self) -> SecretKey:
        """The secret, in its newest version."""
        return SecretKey(self.component, self.name)


@dataclass(frozen=True, slots=True)
class VersionKey:
    """The directory of one version of a secret, by what the store calls it. What it holds never changes."""

    component: str
    name: str
    version: str
    pin: ClassVar[bytes] = b""

    @property
    def above(self) -> VersionsKey:
        """The directory it is in."""
        return VersionsKey(self.component, self.name)


@dataclass(frozen=True, slots=True)
class VersionValueKey:
    """One value of one version of a secret."""

    component: str
    name: str
    version: str
    key: str
    pin: ClassVar[bytes] = b""

    @property
    def directory(self) -> VersionKey:
        """The directory it is in."""
        return VersionKey(self.component, self.name, self.version)


class Control(Enum):
    """The files of the control directory."""

    STATUS = "status"
    METRICS = "metrics"
    REFRESH = "refresh"
    RELOAD = "reload"
    REFRESH_LINK = "refresh-link"
    RELOAD_LINK = "reload-link"
    """Where the mount is read-only, these have the names of the two that take requests, and lead to them."""


@dataclass(frozen=True, slots=True)
class ControlsKey:
    """The control directory of the mount."""

    component: ClassVar[str] = ""
    pin: ClassVar[bytes] = b""


@dataclass(frozen=True, slots=True)
class ControlKey:
    """A file in the control directory."""

    control: Control
    component: ClassVar[str] = ""
    pin: ClassVar[bytes] = b""


FileKey = ValueKey | PinnedValueKey | VersionValueKey | BulkKey | SecretBulkKey
"""A file whose content comes from a store."""
DirectoryKey = RootKey | AppKey | FolderKey | SecretKey | PinnedSecretKey | VersionsKey | VersionKey | ControlsKey
LeafKey = FileKey | ControlKey

_KINDS: Final[dict[str, Any]] = {
    "root": RootKey,
    "app": AppKey,
    "folder": FolderKey,
    "secret": SecretKey,
    "value": ValueKey,
    "bulk": BulkKey,
    "secret-bulk": SecretBulkKey,
    "versions": VersionsKey,
    "version": VersionKey,
    "version-value": VersionValueKey,
    "controls": ControlsKey,
    "control": ControlKey,
}
_NAMES: Final = {kind: name for name, kind in _KINDS.items()}
_ENUMS: Final = {"form": Bulk, "control": Control}


def app_of(component: str) -> str | None:
    """Return the app whose directory a store is shown in; None in a mount for a single app."""
    app, slash, _ = component.partition("/")
    return app if slash else None


def app_of_key(key: DirectoryKey | LeafKey) -> str:
    """Return the app whose store a place is in; nothing for any other place."""
    return app_of(key.component) or ""


def parent_of(component: str) -> RootKey | AppKey:
    """Return the directory that a store is shown in."""
    app = app_of(component)
    return RootKey() if app is None else AppKey(app)


def key_to_text(key: DirectoryKey | LeafKey) -> bytes:
    """Return a key as text, without its pin. Names stay as they are, also those that are not UTF-8."""
    if type(key) is ValueKey:  # as most are
        return json.dumps([_NAMES[ValueKey], *key]).encode()
    if key.pin:
        key = _unpinned(key)
    parts = [getattr(key, name) for name in type(key).__match_args__]
    return json.dumps([_NAMES[type(key)], *(part.value if isinstance(part, Enum) else part for part in parts)]).encode()


def _unpinned(key: DirectoryKey | LeafKey) -> DirectoryKey | LeafKey:
    if isinstance(key, PinnedSecretKey):
        return key.secret
    return ValueKey(key.component, key.name, key.key) if isinstance(key, PinnedValueKey) else key


def _name(part: object) -> str:
    if not isinstance(part, str):
        raise TypeError(f"a name is a {type(part).__name__}")
    return part


def _path(part: object) -> tuple[str, ...]:
    if not isinstance(part, list):
        raise TypeError(f"a path is a {type(part).__name__}")
    return tuple(map(_name, part))


def key_from_text(text: bytes, pin: bytes = b"") -> DirectoryKey | LeafKey:
    """Return the key that `key_to_text` wrote. Raises ValueError, TypeError or KeyError for anything else."""
    kind_name, *parts = json.loads(text)
    kind = _KINDS[kind_name]
    given: list[Any] = []
    for name, part in zip(kind.__match_args__, parts, strict=True):
        enum = _ENUMS.get(name)
        given.append(enum(part) if enum else _path(part) if name == "segments" else _name(part))
    key: DirectoryKey | LeafKey = kind(*given)
    if pin and isinstance(key, SecretKey):
        return PinnedSecretKey(key.component, key.name, pin)
    if pin and isinstance(key, ValueKey):
        return PinnedValueKey(key.component, key.name, pin, key.key)
    return key
