"""What the kernel is told of an inode: stat(2), and extended attributes."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from stat import S_IFDIR, S_IFREG
from typing import Final, NamedTuple

from secretfs.cache.ttl_cache import CachedAnswer
from secretfs.fs.control_files import DIRECTORY_MODE, MODES
from secretfs.fs.inodes import Directory, Version
from secretfs.fs.keys import Control, ControlsKey
from secretfs.store import Secret

DIRECTORY_TIMEOUT: Final = 60.0
"""Seconds for which the kernel may keep the attributes of a directory, which never change."""

XATTR_VERSION: Final = "user.secretfs.version"
"""What the store calls the version of the secret."""
XATTR_FETCHED: Final = "user.secretfs.fetched"
"""When the store was last asked for it, in ISO 8601."""
XATTR_STALE: Final = "user.secretfs.stale"
"""``1`` while it is served although it has expired, because the store does not answer; else ``0``."""

XATTRS: Final[dict[str, Callable[[CachedAnswer[Secret]], str]]] = {
    XATTR_VERSION: lambda secret: secret.value.version,
    XATTR_FETCHED: lambda secret: datetime.fromtimestamp(secret.fetched_at, UTC).isoformat(timespec="seconds"),
    XATTR_STALE: lambda secret: str(int(secret.stale)),
}
"""How each extended attribute of a secret is read; nothing means that there is none."""


class Attributes(NamedTuple):
    """What the kernel is told of an inode. Times in seconds; the timeouts say for how long it may believe the rest."""

    inode: int
    mode: int
    size: int
    modified: float
    attr_timeout: float
    entry_timeout: float
    control: bool = False
    """Belongs to who runs us, whoever owns the secrets."""


@dataclass(frozen=True, slots=True)
class Modes:
    """Permission bits: of files as given, of directories with an ``x`` for every ``r``."""

    file: int = 0o400

    @property
    def directory(self) -> int:
        """Permission bits of directories. Their owner may write: we rename there, and may not be root."""
        return 0o200 | self.file | (self.file & 0o444) >> 2


@dataclass(frozen=True, slots=True)
class AttributePolicy:
    """How the inodes of a mount look. ``born`` is when it was made, in seconds since the epoch."""

    modes: Modes
    born: float

    def of_directory(self, directory: Directory, entry_timeout: float = 0.0) -> Attributes:
        """Return the attributes of a directory."""
        control = isinstance(directory.key, ControlsKey)
        mode = S_IFDIR | (DIRECTORY_MODE if control else self.modes.directory)
        return Attributes(directory.number, mode, 0, self.born, DIRECTORY_TIMEOUT, entry_timeout, control)

    def of_file(self, version: Version, attr_timeout: float, entry_timeout: float = 0.0) -> Attributes:
        """Return the attributes of a file with a secret in it."""
        modified = version.modified or self.born
        return Attributes(
            version.number, S_IFREG | self.modes.file, version.size, modified, attr_timeout, entry_timeout
        )

    def of_control(self, version: Version, control: Control) -> Attributes:
        """Return the attributes of a control file."""
        modified = version.modified or self.born
        return Attributes(version.number, S_IFREG | MODES[control], version.size, modified, 0.0, 0.0, control=True)
