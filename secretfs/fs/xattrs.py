"""Extended attributes of secrets, of their values, and of what is pinned to one version."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final

from secretfs.cache.ttl_cache import CachedAnswer
from secretfs.errors import NoSuchAttribute
from secretfs.fs.content import Contents
from secretfs.fs.keys import DirectoryKey, LeafKey, PinnedSecretKey, PinnedValueKey, SecretKey, ValueKey
from secretfs.store import Secret

XATTR_VERSION: Final = "user.secretfs.version"
"""What the store calls the version of the secret."""
XATTR_STAGES: Final = "user.secretfs.stages"
"""Which labels the store has on that version, such as AWSCURRENT."""
XATTR_FETCHED: Final = "user.secretfs.fetched"
"""When the store was last asked for it, in ISO 8601."""
XATTR_STALE: Final = "user.secretfs.stale"
"""``1`` while it is served although it has expired, because the store does not answer; else ``0``."""

_Read = Callable[[CachedAnswer[Secret]], str]

_XATTRS: Final[dict[str, _Read]] = {
    XATTR_VERSION: lambda secret: secret.value.version,
    XATTR_STAGES: lambda secret: ",".join(secret.value.stages),
    XATTR_FETCHED: lambda secret: datetime.fromtimestamp(secret.fetched_at, UTC).isoformat(timespec="seconds"),
    XATTR_STALE: lambda secret: str(int(secret.stale)),
}
"""How each is read; nothing means that there is none."""

_OF_ONE_VERSION: Final[dict[str, _Read]] = {XATTR_VERSION: _XATTRS[XATTR_VERSION]}
"""What is true of one version of a secret for ever."""


async def get_xattr(contents: Contents, key: DirectoryKey | LeafKey, name: str) -> str:
    """Return an extended attribute. Raises `NoSuchAttribute`."""
    read = _readers(key).get(name)
    secret: CachedAnswer[Secret] | None = None
    if read and isinstance(key, PinnedSecretKey | PinnedValueKey):
        issues = contents.reads_have_effects(key.directory.secret)
        secret = contents.peek_pinned(key.directory) if issues else await contents.pinned(key.directory)
    elif read and isinstance(key, SecretKey | ValueKey):
        secret = await contents.ask(key.component, lambda view: view.secret_without_effects(key.name))
    value = read(secret) if read and secret else ""
    if not value:
        raise NoSuchAttribute(name)
    return value


def list_xattrs(contents: Contents, key: DirectoryKey | LeafKey) -> tuple[str, ...]:
    """Return the names of the extended attributes, without fetching anything: ``ls -l`` asks for every entry."""
    secret, there_may_be = None, True
    if isinstance(key, PinnedSecretKey | PinnedValueKey):
        secret = contents.peek_pinned(key.directory)
    elif isinstance(key, SecretKey | ValueKey):
        secret = contents.view(key.component).peek(key.name)
        there_may_be = not contents.reads_have_effects(key)
    return tuple(
        name
        for name, read in _readers(key).items()
        if (read(secret) if secret else there_may_be and name != XATTR_STAGES)  # which few stores have
    )


def _readers(key: DirectoryKey | LeafKey) -> Mapping[str, _Read]:
    if isinstance(key, PinnedSecretKey | PinnedValueKey):
        return _OF_ONE_VERSION
    return _XATTRS if isinstance(key, SecretKey | ValueKey) else {}
