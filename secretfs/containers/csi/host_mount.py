"""The mount of a node's volumes: its processes live outside of the pod that starts them, and follow each other.

Each start of the driver is a takeover, as its pod is a new one: what the processes before read, such as the files of a
ConfigMap, ended with the old pod. They serve until the new ones do.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from secretfs.containers.csi.outside import run_outside
from secretfs.errors import ConfigurationError, MountError
from secretfs.linux.daemonize import start_in_background
from secretfs.linux.mountinfo import IN_MEMORY, surrounding

SOCKET: Final = "supervisor.sock"
"""The name of the socket, beside the mount point, where the next supervisor finds the one before."""
DOCUMENTS: Final = "apps"
"""The name of the directory, beside the mount point, for documents of volumes."""
OBJECTS: Final = "objects"
"""The name of the directory, beside that for documents of volumes, for Dapr's objects."""


def prepare(mountpoint: Path) -> None:
    """Make the mount point and what is beside it, for root alone: pods have bind mounts. Raises `MountError`."""
    try:
        mountpoint.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        (mountpoint.parent / DOCUMENTS).mkdir(mode=0o700, exist_ok=True)
        mountpoint.mkdir(mode=0o755, exist_ok=True)
    except FileExistsError:  # a dead mount is there, which cannot be looked at
        pass
    except OSError as error:
        raise MountError(f"cannot make {mountpoint} and what is beside it: {error.strerror}") from None


def prepare_objects(place: Path) -> Path:
    """Make the directory for Dapr's objects in another one. Raises `ConfigurationError` if that is on a disk."""
    directory = place / OBJECTS
    if (fstype := surrounding(place).fstype) not in IN_MEMORY:
        raise ConfigurationError(
            f"--components-from-api: components may have credentials and are kept in memory only, and {directory} is "
            f"on {fstype}: have the mount in /run"
        )
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise MountError(f"cannot make {directory}: {error.strerror}") from None
    return directory


def serve_outside(mountpoint: Path, options: Sequence[str]) -> None:
    """Mount with these options of ``secretfs mount``, or take the mount over. Returns when it is served.

    Raises `MountError` if it is not.
    """
    program = [sys.executable, "-P", "-m"]  # -P: nothing is imported from the working directory
    worker = [*program, "secretfs", "mount", *options, str(mountpoint)]

    def command(ready: int) -> list[str]:
        follow = ["--follow", str(mountpoint.parent / SOCKET)]
        supervisor = [*program, "secretfs.daemon.supervisor", *follow, str(ready), "", str(mountpoint)]
        return run_outside([*supervisor, *worker])

    status = start_in_background(command)
    if status:
        raise MountError(f"the mount at {mountpoint} did not come up (exit code {status})")
