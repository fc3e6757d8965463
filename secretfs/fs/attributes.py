"""Attributes of inodes: owner, group, mode, size and times, as stat(2) shows them, and extended attributes. Pure."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from stat import S_IFDIR, S_IFLNK, S_IFREG
from typing import Final, NamedTuple

from secretfs.cache.ttl_cache import CachedAnswer
from secretfs.fs.inode import Directory, Version
from secretfs.fs.keys import (
    AppKey,
    BulkKey,
    Control,
    ControlKey,
    ControlsKey,
    DirectoryKey,
    FolderKey,
    LeafKey,
    RootKey,
    SecretBulkKey,
    SecretKey,
    ValueKey,
    app_of,
)
from secretfs.permissions import PermissionRule, Permissions, ViewPermissions
from secretfs.store import Secret

DIRECTORY_TIMEOUT: Final = 60.0
"""Seconds for which the kernel may keep the attributes of a directory, which never change."""

FOREVER: Final = 1e8
"""Seconds for which the kernel may keep what never changes: three years."""

XATTR_VERSION: Final = "user.secretfs.version"
"""What the store calls the version of the secret."""
XATTR_STAGES: Final = "user.secretfs.stages"
"""Which labels the store has on that version, such as AWSCURRENT."""
XATTR_FETCHED: Final = "user.secretfs.fetched"
"""When the store was last asked for it, in ISO 8601."""
XATTR_STALE: Final = "user.secretfs.stale"
"""``1`` while it is served although it has expired, because the store does not answer; else ``0``."""

XATTRS: Final[dict[str, Callable[[CachedAnswer[Secret]], str]]] = {
    XATTR_VERSION: lambda secret: secret.value.version,
    XATTR_STAGES: lambda secret: ",".join(secret.value.stages),
    XATTR_FETCHED: lambda secret: datetime.fromtimestamp(secret.fetched_at, UTC).isoformat(timespec="seconds"),
    XATTR_STALE: lambda secret: str(int(secret.stale)),
}
"""How each extended attribute of a secret is read; nothing means that there is none."""


_CONTROL_DIRECTORY_MODE: Final = 0o500
_CONTROL_FILE_MODES: Final = {control: 0o400 if control is Control.STATUS else 0o200 for control in Control}
_LINKS: Final = (Control.REFRESH_LINK, Control.RELOAD_LINK)


_APPS_MODE: Final = 0o711
"""The mode of the root of a mount for many apps: a user who knows an app finds its directory; only root lists them."""


@dataclass(frozen=True, slots=True)
class PermissionPolicy:
    """Decides owner, group and mode of every inode; nothing else does.

    Control files, and the root of a mount for many apps, belong to the user that runs this process.
    """

    file_mode: int = 0o400
    uid: int | None = None
    """Owner of the secrets; None is the user that runs this process."""
    gid: int | None = None
    """Their group; None is the group of this process."""
    rules: Sequence[PermissionRule] = ()
    """In a mount for a single app."""
    apps: Mapping[str, ViewPermissions] | None = None
    """What is different for an app, in a mount for many."""
    default: ViewPermissions = field(init=False, repr=False)
    """What holds for the only app, and for apps that say nothing. Made once: a listing needs it for each entry."""

    def __post_init__(self) -> None:
        uid = os.getuid() if self.uid is None else self.uid
        gid = os.getgid() if self.gid is None else self.gid
        object.__setattr__(self, "default", ViewPermissions(Permissions(uid, gid, self.file_mode), self.rules))

    def of(self, key: DirectoryKey | LeafKey) -> Permissions:
        """Return owner, group and mode of what is at a place."""
        match key:
            case ValueKey():  # first, because a listing has nothing else
                return self._of_value(key)
            case ControlsKey():
                return Permissions(os.getuid(), os.getgid(), _CONTROL_DIRECTORY_MODE)
            case ControlKey(control):
                return Permissions(os.getuid(), os.getgid(), _CONTROL_FILE_MODES[control])
            case RootKey() if self.apps is not None:
                return Permissions(os.getuid(), os.getgid(), _APPS_MODE)
            case BulkKey() | SecretBulkKey():
                return self.view(app_of(key.component)).of_bulk_file()
        return self._of_directory(key)

    def view(self, app: str | None) -> ViewPermissions:
        """Return what holds for an app; for None, what holds for the only one, and for apps that say nothing."""
        if app is not None and self.apps and app in self.apps:
            return self.apps[app]
        return self.default

    def _of_value(self, key: ValueKey) -> Permissions:
        if self.apps is None and not self.rules:
            return self.default.default
        view = self.view(app_of(key.component))
        if not view.rules:
            return view.default
        path = (key.component.rpartition("/")[2], key.name, *(() if key.key == key.name else (key.key,)))
        return view.of_file("/".join(path))

    def _of_directory(self, key: RootKey | AppKey | FolderKey | SecretKey) -> Permissions:
        """Directories that belong to us are writable for us: we rename there, and may not be root."""
        app = None if isinstance(key, RootKey) else key.app if isinstance(key, AppKey) else app_of(key.component)
        permissions = self.view(app).of_directory()
        ours = app is None or permissions.uid == os.getuid()
        return permissions._replace(mode=permissions.mode | 0o200) if ours else permissions


class Attributes(NamedTuple):
    """What the kernel is told of an inode. Times in seconds; the timeouts say for how long it may keep the rest."""

    inode: int
    mode: int
    """Type and permission bits."""
    uid: int
    gid: int
    size: int
    modified: float
    attr_timeout: float
    entry_timeout: float
    links: int = 1
    """Of a directory too: 1 says "not counted", so that find(1) does not conclude that it has no folders."""


@dataclass(slots=True)
class AttributePolicy:
    """Makes the attributes of the inodes of a mount. ``born`` is when it was mounted, in seconds since the epoch."""

    permissions: PermissionPolicy
    born: float

    def of_directory(self, directory: Directory, entry_timeout: float = 0.0) -> Attributes:
        """Return the attributes of a directory."""
        uid, gid, mode = self.permissions.of(directory.key)
        return Attributes(directory.number, S_IFDIR | mode, uid, gid, 0, self.born, DIRECTORY_TIMEOUT, entry_timeout)

    def of_file(self, version: Version, entry_timeout: float = 0.0) -> Attributes:
        """Return the attributes of a file: for ever, once its version is bound. Until then its size is not known."""
        uid, gid, mode = self.permissions.of(version.key)
        modified = version.modified or self.born
        return Attributes(
            version.number,
            (S_IFLNK if isinstance(version.key, ControlKey) and version.key.control in _LINKS else S_IFREG) | mode,
            uid,
            gid,
            version.size,
            modified,
            FOREVER if version.digest else 0.0,
            entry_timeout,
            int(version.linked),  # else a watch on a file that is open would not hear that it is gone when it is closed
        )
