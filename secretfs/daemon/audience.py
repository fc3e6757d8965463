"""Whom a mount is for: who owns what is declared, who may ask for it, and the rights that this takes."""

import importlib.util
import os
from dataclasses import replace

from secretfs.api.address import TOKEN_VARIABLE
from secretfs.daemon.files import file_permissions, require_rights_for_files
from secretfs.daemon.request import MountOptions
from secretfs.dapr.declaration import Declaration
from secretfs.errors import ConfigurationError
from secretfs.fs.attributes import PermissionPolicy
from secretfs.permissions import Permissions, ViewPermissions


def permissions_of(options: MountOptions, declaration: Declaration) -> PermissionPolicy:
    """Return owner, group and mode of all that is declared."""
    rules = declaration.rules()
    policy = PermissionPolicy(options.mode, options.uid, options.gid, rules.get("", ()))
    if declaration.apps is None:
        return replace(policy, rendered=file_permissions(policy, declaration))
    views = {}
    uid, gid, mode = policy.view(None).default
    for name, app in declaration.apps.items():
        chosen = Permissions(
            uid if app.uid is None else app.uid,
            gid if app.gid is None else app.gid,
            mode if app.mode is None else app.mode,
        )
        views[name] = ViewPermissions(chosen, (*app.rules, *rules.get(name, ())))
    policy = replace(policy, apps=views)
    return replace(policy, rendered=file_permissions(policy, declaration))


def require_rights(options: MountOptions, declaration: Declaration) -> None:
    """Refuse apps of other users, whom nobody but root can serve, and an API that nobody protects.

    Raises `ConfigurationError`.
    """
    _require_protected_api(options, declaration)
    require_rights_for_files(options, declaration)
    for app in (declaration.apps or {}).values():
        if app.uid not in (None, os.getuid()) and os.geteuid() != 0:
            raise ConfigurationError(
                f"app {app.name} belongs to user {app.uid}: only root can mount for other users", app.source
            )
        if app.uid not in (None, os.getuid()) and not options.allow_other:
            raise ConfigurationError(
                f"app {app.name} belongs to user {app.uid}, who gets in with --allow-other only", app.source
            )


def _require_protected_api(options: MountOptions, declaration: Declaration) -> None:
    """Refuse an API to which more would listen than the owner of the secrets, or that cannot be served."""
    if options.api is None:
        return
    if declaration.apps is not None:
        # A request names a store and never an app: in Dapr each app has a sidecar of its own.
        raise ConfigurationError(
            "--api serves one app, and --apps shows many: mount once more, with --app-id and --api"
        )
    if options.api.path is None and not os.environ.get(TOKEN_VARIABLE):
        raise ConfigurationError(
            f"--api {options.api}: every user of this machine can connect to a port; put a token into {TOKEN_VARIABLE},"
            " which clients then have to send, or name a socket: --api unix:/PATH"
        )
    if importlib.util.find_spec("hypercorn") is None:
        raise ConfigurationError("--api needs the package hypercorn: pip install secretfs-fuse[api]")
