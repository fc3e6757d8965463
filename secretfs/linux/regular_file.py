"""Open a file that somebody has named, and nothing that another user has put in its place."""

import contextlib
import errno
import os
import stat
from collections import deque
from pathlib import Path
from typing import Final

_LINKS: Final = 40  # as many as the kernel follows (path_resolution(7))


def open_regular(path: str, flags: int, mode: int = 0o600) -> int:
    """Open the regular file at the absolute ``path``; never a FIFO, whose open may hang, or a device.

    Links are followed as usual, except in a directory where other users may put one. Raises `OSError`.
    """
    with contextlib.suppress(FileNotFoundError):
        _require_regular(Path(path).stat())
    names, links = deque(Path(path).parts[1:]), 0
    directory = _open_directory("/")
    try:
        while names:
            name = names.popleft()
            if _is_link(name, directory):
                links += 1
                if links > _LINKS or _others_may_write(os.fstat(directory)):
                    raise OSError(errno.ELOOP, "another user may have made a link that leads there")
                target = Path(os.readlink(name, dir_fd=directory))
                names.extendleft(reversed(target.parts[target.is_absolute() :]))
                name = "/" if target.is_absolute() else "."
            elif not names:
                return _open_file(name, flags, mode, directory)
            below = _open_directory(name, directory)
            os.close(directory)
            directory = below
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    finally:
        os.close(directory)


def _open_directory(name: str, directory: int | None = None) -> int:
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(name, flags, dir_fd=directory)


def _open_file(name: str, flags: int, mode: int, directory: int) -> int:
    descriptor = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, mode, dir_fd=directory)
    try:
        _require_regular(os.fstat(descriptor))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _require_regular(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file")


def _is_link(name: str, directory: int) -> bool:
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode)
    except FileNotFoundError:  # it is about to be made, or the open says so
        return False


def _others_may_write(directory: os.stat_result) -> bool:
    """Whether somebody else than root and this user, alone or in this user's group, may put links into a directory."""
    return (
        directory.st_uid not in (0, os.geteuid())
        or bool(directory.st_mode & stat.S_IWOTH)
        or (bool(directory.st_mode & stat.S_IWGRP) and directory.st_gid != os.getegid())
    )
