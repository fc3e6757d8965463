"""Attributes of inodes: owner, group, mode, size and times, as stat(2) shows them. Pure."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from stat import S_IFDIR, S_IFLNK, S_IFREG
from types import MappingProxyType
from typing import Final, NamedTuple

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
    PinnedSecretKey,
    PinnedValueKey,
    RootKey,
    SecretBulkKey,
    SecretKey,
    ValueKey,
    VersionKey,
    VersionsKey,
    VersionValueKey,
    app_of,
)
from secretfs.permissions import PermissionRule, Permissions, ViewPermissions

FOREVER: Final = 1e8
"""Seconds for which the kernel may keep what never changes: three years."""

_CONTROL_DIRECTORY_MODE: Final = 0o500
_READABLE: Final = (Control.STATUS, Control.METRICS)
_CONTROL_FILE_MODES: Final = {control: 0o400 if control in _READABLE else 0o200 for control in Control}
_LINKS: Final = (Control.REFRESH_LINK, Control.RELOAD_LINK)


_APPS_MODE: Final = 0o711
"""The mode of the root of a mount for many apps: a user who knows an app finds its directory; only root lists them."""


class FilePermissions(NamedTuple):
    """Who may read the rendered files."""

    files: Mapping[tuple[str, str], Permissions] = MappingProxyType({})
    """By where their directory is shown, and their name in it."""
    searchable: frozenset[str] = frozenset()
    """The directories, and the apps (none for the root), in which a file is for somebody else than the rest."""


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
    rendered: FilePermissions = field(default_factory=FilePermissions)
    default: ViewPermissions = field(init=False, repr=False)
    """What holds for the only app, and for apps that say nothing. Made once: a listing needs it for each entry."""

    def __post_init__(self) -> None:
        uid = os.getuid() if self.uid is None else self.uid
        gid = os.getgid() if self.gid is None else self.gid
        object.__setattr__(self, "default", ViewPermissions(Permissions(uid, gid, self.file_mode), self.rules))

    def of(self, key: DirectoryKey | LeafKey) -> Permissions:
        """Return owner, group and mode of what is at a place."""
        match key:
            case ValueKey() | PinnedValueKey() | VersionValueKey():  # first, because a listing has nothing else
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

    def _of_value(self, key: ValueKey | PinnedValueKey | VersionValueKey) -> Permissions:
        if self.rendered.files and (key.component, key.name) in self.rendered.files:
            return self.rendered.files[key.component, key.name]
        if self.apps is None and not self.rules:
            return self.default.default
        view = self.view(app_of(key.component))
        if not view.rules:
            return view.default
        path = (key.component.rpartition("/")[2], key.name, *(() if key.key == key.name else (key.key,)))
        return view.of_file("/".join(path))

    def _of_directory(
        self, key: RootKey | AppKey | FolderKey | SecretKey | PinnedSecretKey | VersionsKey | VersionKey
    ) -> Permissions:
        """Directories that belong to us are writable for us: we rename there, and may not be root."""
        app = None if isinstance(key, RootKey) else key.app if isinstance(key, AppKey) else app_of(key.component)
        permissions = self.view(app).of_directory()
        if self.rendered.searchable and _name_of(key) in self.rendered.searchable:
            permissions = permissions._replace(mode=permissions.mode | 0o111)
        ours = app is None or permissions.uid == os.getuid()
        return permissions._replace(mode=permissions.mode | 0o200) if ours else permissions


def _name_of(key: DirectoryKey) -> str | None:
    """Return what `FilePermissions.searchable` calls a directory."""
    match key:
        case RootKey():
            return ""
        case AppKey(app):
            return app
        case FolderKey(component):
            return component
    return None


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

    def of_directory(self, directory: Directory, now: float, entry_timeout: float = 0.0) -> Attributes:
        """Return the attributes of a directory, at a moment of the owner's clock: the kernel is about to keep them."""
        uid, gid, mode = self.permissions.of(directory.key)
        timeout = directory.tell(now, self.born)
        modified = directory.modified or self.born
        return Attributes(directory.number, S_IFDIR | mode, uid, gid, 0, modified, timeout, entry_timeout)

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
