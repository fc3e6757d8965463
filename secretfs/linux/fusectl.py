"""Abort FUSE connections through the kernel's control file system, ``fusectl``, mounted or not."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CONNECTIONS = Path("/sys/fs/fuse/connections")
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432  # asm-generic/unistd.h; the same on every architecture but alpha
_FSCONFIG_CMD_CREATE = 6  # linux/mount.h
_CLOEXEC = 1  # FSOPEN_CLOEXEC and FSMOUNT_CLOEXEC


def abort(minor: int) -> None:
    """Abort the connection with this minor device number. Raises OSError.

    Calls that wait for it end with ECONNABORTED, later ones with ENOTCONN. Aborting twice is no error.
    """
    name = f"{minor}/abort"
    try:
        switch = os.open(_CONNECTIONS / name, os.O_WRONLY)
    except FileNotFoundError:  # fusectl is not mounted there
        with _detached() as directory:
            switch = os.open(name, os.O_WRONLY, dir_fd=directory)
    try:
        os.write(switch, b"1")
    finally:
        os.close(switch)


@contextmanager
def _detached() -> Iterator[int]:
    """Mount fusectl outside the tree of mounts, which takes root; yields its directory."""
    libc = ctypes.CDLL(None, use_errno=True)
    context = _checked(libc.syscall(_FSOPEN, b"fusectl", _CLOEXEC))
    try:
        _checked(libc.syscall(_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0))
        directory = _checked(libc.syscall(_FSMOUNT, context, _CLOEXEC, 0))
    finally:
        os.close(context)
    try:
        yield directory
    finally:
        os.close(directory)


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
