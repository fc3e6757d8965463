"""The volumes of a mount for many apps: each is the view of one app, and its options are the fields of an App document.

Nothing else is kept. What volumes there are is said by the mount and its documents, and who uses one by the table of
mounts of every process, so a plug-in that is killed and started again knows as much as before.
"""

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

from secretfs.daemon.app_documents import (
    change,
    declared_apps,
    document_of,
    locked,
    require_shown,
    without_place,
)
from secretfs.dapr.app import API_VERSION, KIND, is_app_name, parse_app_id
from secretfs.dapr.permission_rules import group_id, user_id
from secretfs.errors import ConfigurationError, MountError
from secretfs.linux.mountinfo import binds, secretfs_at
from secretfs.linux.mountpoint import call_with_timeout
from secretfs.permissions import parse_mode
from secretfs.settings import nearest

_FIELDS: Final[Mapping[str, str]] = {
    "app-id": "appId", "configuration": "configuration", "uid": "owner", "gid": "group", "mode": "mode",
}  # fmt: skip
"""What may be given with ``-o``, and the field of ``spec`` that it is."""
_PARSERS: Final[Mapping[str, Callable[[str], object]]] = {
    "app-id": parse_app_id, "configuration": str, "uid": user_id, "gid": group_id, "mode": parse_mode,
}  # fmt: skip
_MARK: Final = {"secretfs/created-by": "volume-plugin"}
"""The labels of documents that are volumes: whoever removes a volume removes no app that somebody declared."""
_ANONYMOUS: Final = re.compile("[0-9a-f]{64}")
"""A name that an engine has made up."""


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume as it is now."""

    name: str
    path: Path
    """What a container binds."""
    options: Mapping[str, str] | None = None
    """Those that it was created with; None for an app that was declared by other means."""
    created: datetime | None = None


class Volumes:
    """The volumes of one mount. All methods wait for the mount, and raise `ConfigurationError` or `MountError`."""

    def __init__(self, mountpoint: Path, directory: Path | None = None) -> None:
        """``directory`` is where documents of volumes are; by default the last one that ``--apps`` names."""
        self._mountpoint = mountpoint
        self._given = directory
        self._last: Path | None = None

    def list(self) -> list[Volume]:
        """Return the volumes: every app that the mount shows is one."""
        directory, names = self._known()
        return [_volume(self._mountpoint, directory, name) for name in names]

    def get(self, name: str) -> Volume:
        """Return a volume, although there may be no mount at the moment."""
        directory, names = self._known()
        if name not in names:
            raise ConfigurationError(f"no such volume: {name}{nearest(name, names)}")
        return _volume(self._mountpoint, directory, name)

    def mount(self, name: str) -> Path:
        """Return what an engine is to bind, which the mount shows now."""
        volume = self.get(name)
        declared_apps(self._mountpoint)  # or the reason for which nothing can be mounted
        require_shown(self._mountpoint, name)
        return volume.path

    def create(self, name: str, options: Mapping[str, str]) -> None:
        """Declare the app that a volume shows. The same volume may be created again."""
        spec = _spec(name, options)
        directory, _ = self._known()
        with locked(directory):
            if name in self._known()[1]:
                _require_same(self.get(name), options)
                return
            path = document_of(directory, name)
            read = declared_apps(self._mountpoint)["app_directories"]
            if os.path.realpath(directory) not in map(os.path.realpath, read):
                raise ConfigurationError(f"the mount reads no apps from --dir {directory}, but from {', '.join(read)}")
            if os.path.lexists(path):
                raise ConfigurationError(f"{path} is there, and declares something else; choose another name")
            document = {
                "apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name, "labels": _MARK}, "spec": spec,
            }  # fmt: skip
            try:
                change(self._mountpoint, {path: json.dumps(document).encode()})
            except ConfigurationError as error:
                raise ConfigurationError(without_place(str(error), path)) from None
            require_shown(self._mountpoint, name)
            if not call_with_timeout(self._mountpoint, partial(os.listdir, self._mountpoint / name)):
                change(self._mountpoint, {path: None})
                app_id = options.get("app-id") or name
                reason = f"app id {app_id} sees no secret store; compare it with the scopes of the components"
                raise ConfigurationError(reason)

    def remove(self, name: str) -> None:
        """Remove the app that a volume shows, unless something has its directory mounted."""
        directory, _ = self._known()
        with locked(directory):
            volume = self.get(name)
            if volume.options is None:
                raise ConfigurationError(f"{name} is an app that was declared by other means: remove its document")
            if users := self.users(name):
                processes = ", ".join(map(str, sorted(users.values())))
                raise ConfigurationError(f"volume {name} is mounted by {len(users)} others (process {processes})")
            change(self._mountpoint, {document_of(directory, name): None})

    def users(self, name: str) -> dict[int, int]:
        """Return the bind mounts of a volume in all containers: the mount's id to a process that sees it."""
        mount = secretfs_at(self._mountpoint)
        return binds(mount.device, f"/{name}") if mount else {}

    def _known(self) -> tuple[Path, Sequence[str]]:
        """Return the directory of documents, and the names of the volumes.

        While the mount does not answer, these are the documents of volumes. An engine that hears that a volume which it
        has in use is gone says something else than that the mount is.
        """
        try:
            declared = declared_apps(self._mountpoint)
        except MountError:
            directory = self._given or self._last
            if directory is None:
                raise
            return directory, [path.stem for path in sorted(directory.glob("*.yaml")) if _written(path)]
        self._last = Path(declared["app_directories"][-1])
        return self._given or self._last, declared["apps"]


def _volume(mountpoint: Path, directory: Path, name: str) -> Volume:
    written = _written(document_of(directory, name))
    if written is None:
        return Volume(name, mountpoint / name)
    spec, created = written
    options = {option: str(spec[field]) for option, field in _FIELDS.items() if field in spec}
    return Volume(name, mountpoint / name, options, created)


def _spec(name: str, options: Mapping[str, str]) -> dict[str, str]:
    """Return the ``spec`` of the App document that options stand for."""
    if not is_app_name(name):
        raise ConfigurationError(f"{name!r} cannot be the name of a directory here")
    for option, text in options.items():
        if option not in _FIELDS:
            known = ", ".join(_FIELDS)
            hint = nearest(option, _FIELDS) or f" (there are {known})"
            raise ConfigurationError(f"unknown option {option}{hint}")
        try:
            _PARSERS[option](text)
        except ValueError as error:
            raise ConfigurationError(f"option {option}: {error}") from None
    if _ANONYMOUS.fullmatch(name) and "app-id" not in options:
        raise ConfigurationError("a volume without a name has to say which app it shows: app-id=ID")
    return {_FIELDS[option]: text for option, text in options.items()}


def _written(document: Path) -> tuple[Mapping[str, Any], datetime] | None:
    """Read the ``spec`` of a document that `Volumes.create` wrote, and when; None if it did not, or there is none."""
    try:
        created = datetime.fromtimestamp(document.stat().st_mtime, UTC)
        root = json.loads(document.read_bytes())
        return (root["spec"], created) if root["metadata"]["labels"] == _MARK else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _require_same(existing: Volume, options: Mapping[str, str]) -> None:
    """Accept a volume that is created again, unless other options are given."""
    if existing.options is None and options:
        raise ConfigurationError(f"{existing.name} is an app that was declared by other means: give no options")
    if existing.options is not None and dict(existing.options) != dict(options):
        given = ", ".join(f"{name}={text}" for name, text in existing.options.items()) or "no options"
        raise ConfigurationError(f"volume {existing.name} exists with {given}; remove it first")
