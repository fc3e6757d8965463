"""Rendered files, from what is declared to what is shown: where they are, how they are made, and who may read them."""

import os
from collections.abc import Iterator

from secretfs.daemon.request import MountOptions
from secretfs.dapr.declaration import Declaration
from secretfs.errors import ConfigurationError
from secretfs.fs.attributes import FilePermissions, PermissionPolicy
from secretfs.fs.rendered_files import FileToRender
from secretfs.fs.rendered_set import ShownFile
from secretfs.permissions import Permissions


def shown_files(declaration: Declaration) -> Iterator[ShownFile]:
    """Return all rendered files of a declaration."""
    for declared in declaration.files.values():
        file = declared.file
        yield ShownFile(declared.directory, file.inner, FileToRender(file.job, declared.stores, declared.asks_others))


def file_permissions(policy: PermissionPolicy, declaration: Declaration) -> FilePermissions:
    """Return owner, group and mode of each rendered file: as declared, by a rule, or as a bulk file has them."""
    found: dict[tuple[str, str], Permissions] = {}
    searchable: set[str] = set()
    for declared in declaration.files.values():
        file, directory = declared.file, declared.directory
        app = declared.prefix.rstrip("/")
        view = policy.view(app or None)
        path = "/".join(file.path)
        usual = view.of_file(path) if any(rule.matches(path) for rule in view.rules) else view.of_bulk_file()
        chosen = Permissions(
            usual.uid if file.uid is None else file.uid,
            usual.gid if file.gid is None else file.gid,
            usual.mode if file.mode is None else file.mode,
        )
        found[directory, file.inner] = chosen
        default = view.default
        if chosen.uid != default.uid or chosen.gid != default.gid or chosen.mode & ~default.mode:
            searchable |= {app, directory}
    return FilePermissions(found, frozenset(searchable))


def require_rights_for_files(options: MountOptions, declaration: Declaration) -> None:
    """Refuse files of other users, whom nobody but root can serve. Raises `ConfigurationError`."""
    for declared in declaration.files.values():
        file = declared.file
        if file.uid in (None, os.getuid()):
            continue
        if os.geteuid() != 0:
            raise ConfigurationError(
                f"file {file.name} belongs to user {file.uid}: only root can mount for other users", file.source
            )
        if not options.allow_other:
            raise ConfigurationError(
                f"file {file.name} belongs to user {file.uid}, who gets in with --allow-other only", file.source
            )
