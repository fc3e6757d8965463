"""Abort FUSE connections through the kernel's control file system, ``fusectl``, mounted or not."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from secretfs.linux.mount_api import new_mount

_CONNECTIONS = Path("/sys/fs/fuse/connections")


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
    directory = new_mount("fusectl", {})
    try:
        yield directory
    finally:
        os.close(directory)
