"""Whom a mount is for: who owns what is declared, and the rights that this takes."""

import os
from dataclasses import replace

from secretfs.daemon.request import MountOptions
from secretfs.dapr.declaration import Declaration
from secretfs.errors import ConfigurationError
from secretfs.fs.attributes import PermissionPolicy
from secretfs.permissions import Permissions, ViewPermissions


def permissions_of(options: MountOptions, declaration: Declaration) -> PermissionPolicy:
    """Return owner, group and mode of all that is declared."""
    policy = PermissionPolicy(options.mode, options.uid, options.gid, declaration.rules_of(None))
    if declaration.apps is None:
        return policy
    views = {}
    for name, app in declaration.apps.items():
        uid, gid, mode = policy.view(None).default
        chosen = Permissions(
            uid if app.uid is None else app.uid,
            gid if app.gid is None else app.gid,
            mode if app.mode is None else app.mode,
        )
        views[name] = ViewPermissions(chosen, (*app.rules, *declaration.rules_of(name)))
    return replace(policy, apps=views)


def require_rights(options: MountOptions, declaration: Declaration) -> None:
    """Refuse apps of other users, whom nobody but root can serve. Raises `ConfigurationError`."""
    for app in (declaration.apps or {}).values():
        if app.uid not in (None, os.getuid()) and os.geteuid() != 0:
            raise ConfigurationError(
                f"app {app.name} belongs to user {app.uid}: only root can mount for other users", app.source
            )
        if app.uid not in (None, os.getuid()) and not options.allow_other:
            raise ConfigurationError(
                f"app {app.name} belongs to user {app.uid}, who gets in with --allow-other only", app.source
            )
