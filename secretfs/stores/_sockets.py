"""The Unix sockets of plug-ins: where they are, which one is meant, and whether it may be trusted.

A plug-in is sent the properties of its component, credentials among them, and what it answers is served as secrets. So
nobody but root, the user that secretfs runs as, and those whom they let into the folder may be able to put one there.
"""

import os
import stat
from pathlib import Path
from typing import Final, NamedTuple

from secretfs.errors import StoreUnavailable

FOLDER: Final = "DAPR_COMPONENTS_SOCKETS_FOLDER"
"""The environment variable that names the folder. Empty means that there is none, as to Dapr."""
DEFAULT_FOLDER: Final = "/tmp/dapr-components-sockets"  # noqa: S108 - Dapr's, and who it belongs to is checked


class Identity(NamedTuple):
    """What tells a socket from another one of the same name: a plug-in that is started again makes a new one."""

    device: int
    inode: int
    changed: int


def folder() -> str:
    """Return the folder, absolute. Empty if the environment names none, and the default one is not there."""
    named = os.environ.get(FOLDER)
    if named is None:
        return DEFAULT_FOLDER if Path(DEFAULT_FOLDER).is_dir() else ""
    return str(Path(named).absolute()) if named else ""


def by_name(within: str) -> dict[str, list[str]]:
    """Return the paths of the sockets in a folder by their names: in lower case, without the last suffix.

    Raises OSError if the folder cannot be listed.
    """
    found: dict[str, list[str]] = {}
    with os.scandir(within) as entries:
        for path, name in sorted((entry.path, _stem(entry.name)) for entry in entries if is_socket(entry)):
            if name:
                found.setdefault(name.lower(), []).append(path)
    return found


def inspect(path: str) -> Identity:
    """Return which socket is there now. Raises `StoreUnavailable` if there is none, or if it is not to be trusted."""
    parent = path.rpartition("/")[0]
    try:
        around, socket = os.stat(parent), os.stat(path, follow_symlinks=False)  # noqa: PTH116 - at each call
    except OSError as error:
        raise StoreUnavailable(f"{path}: {error.strerror}") from None
    if not stat.S_ISSOCK(socket.st_mode):
        raise StoreUnavailable(f"{path} is no socket")
    reason = _distrust(path, socket, parent, around)
    if reason:
        raise StoreUnavailable(reason)
    return Identity(socket.st_dev, socket.st_ino, socket.st_ctime_ns)


def _stem(name: str) -> str:
    """Return a file name without its last suffix, as Go's filepath.Ext finds it: ".sock" has no name."""
    return name.rpartition(".")[0] if "." in name else name


def is_socket(entry: os.DirEntry[str]) -> bool:
    """Tell whether something in a folder is a socket, and no link to one: Dapr follows none. What is gone is none."""
    try:
        return stat.S_ISSOCK(entry.stat(follow_symlinks=False).st_mode)
    except FileNotFoundError:  # a plug-in that is started again
        return False


def _distrust(path: str, socket: os.stat_result, parent: str, around: os.stat_result) -> str:
    """Say why a socket is not to be trusted; empty if it is."""
    owners = {0, os.geteuid()}
    whose = f"root or user {os.geteuid()}" if os.geteuid() else "root"
    open_to_all = bool(around.st_mode & stat.S_IWOTH)
    if around.st_uid not in owners:
        return f"{parent} belongs to user {around.st_uid}, who could put any socket there: it must be that of {whose}"
    if open_to_all and not around.st_mode & stat.S_ISVTX:
        return f"everybody may write {parent}, and could put any socket there: chmod o-w {parent}"
    if open_to_all and socket.st_uid not in owners:
        return f"{path} belongs to user {socket.st_uid}, and everybody may write {parent}: it must be that of {whose}"
    if socket.st_mode & stat.S_IWOTH and around.st_mode & stat.S_IXOTH:
        return f"everybody may connect to {path} and read its secrets: chmod o-x {parent}"
    return ""
