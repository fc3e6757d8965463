"""Extended attributes of secrets, of their values, and of what is pinned to one version."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final

from secretfs.cache.ttl_cache import CachedAnswer
from secretfs.errors import NoSuchAttribute
from secretfs.fs.content import Contents
from secretfs.fs.keys import (
    DirectoryKey,
    LeafKey,
    PinnedSecretKey,
    PinnedValueKey,
    SecretKey,
    ValueKey,
    VersionKey,
    VersionValueKey,
)
from secretfs.store import Secret

XATTR_VERSION: Final = "user.secretfs.version"
"""What the store calls the version of the secret."""
XATTR_STAGES: Final = "user.secretfs.stages"
"""Which labels the store has on that version, such as AWSCURRENT."""
XATTR_FETCHED: Final = "user.secretfs.fetched"
"""When the store was last asked for it, in ISO 8601."""
XATTR_STALE: Final = "user.secretfs.stale"
"""``1`` while it is served although it has expired, because the store does not answer; else ``0``."""

XATTR_METADATA: Final = "user.secretfs.metadata."
"""Begins the name of each that holds what people have written down about the secret."""

_NAME_MAX: Final = 255  # bytes of the name of an extended attribute

_Read = Callable[[CachedAnswer[Secret]], str | None]

_XATTRS: Final[dict[str, _Read]] = {
    XATTR_VERSION: lambda secret: secret.value.version or None,
    XATTR_STAGES: lambda secret: ",".join(secret.value.stages) or None,
    XATTR_FETCHED: lambda secret: datetime.fromtimestamp(secret.fetched_at, UTC).isoformat(timespec="seconds"),
    XATTR_STALE: lambda secret: str(int(secret.stale)),
}
"""How each is read; None means that there is none."""

_OF_ONE_VERSION: Final[dict[str, _Read]] = {XATTR_VERSION: _XATTRS[XATTR_VERSION]}
"""What is true of one version of a secret for ever."""

_Pinned = PinnedSecretKey | PinnedValueKey
_Version = VersionKey | VersionValueKey
_Newest = SecretKey | ValueKey


async def get_xattr(contents: Contents, key: DirectoryKey | LeafKey, name: str) -> str:
    """Return an extended attribute. Raises `NoSuchAttribute`."""
    read = _reader(key, name)
    secret: CachedAnswer[Secret] | None = None
    if read and isinstance(key, _Pinned):
        issues = contents.reads_have_effects(key.directory.secret)
        secret = contents.peek_pinned(key.directory) if issues else await contents.pinned(key.directory)
    elif read and isinstance(key, _Version):
        secret = await contents.version(_directory_of(key))
    elif read and isinstance(key, _Newest):
        secret = await contents.ask(key.component, lambda view: view.secret_without_effects(key.name))
    value = read(secret) if read and secret else None
    if value is None:
        raise NoSuchAttribute(name)
    return value


def list_xattrs(contents: Contents, key: DirectoryKey | LeafKey) -> tuple[str, ...]:
    """Return the names of the extended attributes, without fetching anything: ``ls -l`` asks for every entry.

    What few secrets have is listed only where that is known.
    """
    secret, there_may_be = None, True
    if isinstance(key, _Pinned):
        secret = contents.peek_pinned(key.directory)
    elif isinstance(key, _Version):
        secret = contents.view(key.component).versions.peek(key.name, key.version)
    elif isinstance(key, _Newest):
        secret = contents.view(key.component).peek(key.name)
        there_may_be = not contents.reads_have_effects(key)
    names = [
        name
        for name, read in _readers(key).items()
        if (read(secret) is not None if secret else there_may_be and name != XATTR_STAGES)
    ]
    if secret and isinstance(key, _Newest):
        names += filter(_can_be_a_name, (XATTR_METADATA + name for name in secret.value.metadata))
    return tuple(names)


def _readers(key: DirectoryKey | LeafKey) -> Mapping[str, _Read]:
    if isinstance(key, _Pinned | _Version):
        return _OF_ONE_VERSION
    return _XATTRS if isinstance(key, _Newest) else {}


def _reader(key: DirectoryKey | LeafKey, name: str) -> _Read | None:
    """Return what reads an attribute; None if there is never one of that name."""
    if isinstance(key, _Newest) and name.startswith(XATTR_METADATA):
        return lambda secret: secret.value.metadata.get(name.removeprefix(XATTR_METADATA))
    return _readers(key).get(name)


def _directory_of(key: VersionKey | VersionValueKey) -> VersionKey:
    return key if isinstance(key, VersionKey) else key.directory


def _can_be_a_name(name: str) -> bool:
    return "\0" not in name and len(name.encode()) <= _NAME_MAX and name != XATTR_METADATA
