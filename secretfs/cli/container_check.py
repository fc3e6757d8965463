"""What a running container sees of a mount, and why it does not see it: a finding for ``secretfs doctor --container``.

All of it is read from the tables of mounts of both sides (mount_namespaces(7)); no engine is asked for more than a
process id.
"""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from secretfs.cli.diagnose import Finding
from secretfs.errors import MountError
from secretfs.linux.mountinfo import FSTYPE, MountInfo, mounts, require_mounted, surrounding
from secretfs.linux.mountpoint import resolve

_ENGINES: Final = ("docker", "podman")
_CHECK: Final = "container"


def examine_container(name: str, mountpoint: Path) -> Finding:
    """Look for the mount at ``mountpoint`` in a container, given by name, id or the id of a process in it."""
    try:
        path = resolve(mountpoint)
        mount = require_mounted(path)
        inside = _mounts_inside(name)
    except MountError as error:
        return Finding.fail(_CHECK, error)
    return explain(path, mount, surrounding(path), list(mounts()), inside)


def explain(
    mountpoint: Path, mount: MountInfo, around: MountInfo, outside: Sequence[MountInfo], inside: Sequence[MountInfo]
) -> Finding:
    """Compare the mounts of a container with those of the host.

    ``mount`` is the secretfs at ``mountpoint``, and ``around`` the mount in which its directory is.
    """
    seen = [one for one in inside if one.device == mount.device]
    if seen:
        places = ", ".join(f"{one.path} (all of it)" if one.root == "/" else one.path for one in seen)
        return Finding(_CHECK, f"it sees the secrets at {places}")
    parent = f"bind the parent directory: -v {mountpoint.parent}:/run/secrets:ro,rslave"
    if earlier := [one for one in inside if one.fstype == FSTYPE]:
        alive = {one.device: one.path for one in outside if one.fstype == FSTYPE}
        place = earlier[-1].path
        if earlier[-1].device in alive:
            text = f"at {place} it has another secretfs, that of {alive[earlier[-1].device]}"
            return Finding.warn(_CHECK, text, f"bind {mountpoint}, or {parent}")
        text = f"at {place} it keeps an earlier mount, whose daemon is gone"
        return Finding.warn(_CHECK, text, f"restart the container; for it to see every later mount, {parent}")
    return _unseen(mountpoint, around, inside, parent)


def _unseen(mountpoint: Path, around: MountInfo, inside: Sequence[MountInfo], parent: str) -> Finding:
    """Say why a container that has no secretfs has none."""
    directory = Path(around.root, mountpoint.relative_to(around.path))
    same = [one for one in inside if one.device == around.device and one.path != "/"]
    covered = [one for one in same if Path(one.root).is_relative_to(directory)]
    if covered:
        text = f"{covered[-1].path} is the directory under the mount: the container is older than the mount"
        return Finding.warn(_CHECK, text, f"restart the container; for it to see every later mount, {parent}")
    above = [one for one in same if directory.is_relative_to(one.root)]
    if not above:
        return Finding.warn(_CHECK, "nothing of the mount is bound in it", f"use a volume, or {parent}")
    bind = max(above, key=lambda one: len(one.root))
    if not (bind.receives or bind.shared):
        text = f"the bind at {bind.path} is private: it does not receive what is mounted after its start"
        return Finding.warn(_CHECK, text, "bind it with rslave (Compose: propagation: rslave)")
    if not around.shared:
        text = f"{around.path} is private on the host: no container receives what is mounted in it"
        return Finding.warn(_CHECK, text, f"mount --make-rshared {around.path}, and start the container again")
    text = f"the bind at {bind.path} receives from another mount namespace than this one"
    return Finding.warn(_CHECK, text, "rootless Podman keeps the namespace of its first start: podman system migrate")


def _mounts_inside(name: str) -> list[MountInfo]:
    pid = int(name) if name.isdecimal() else _process_of(name)
    try:
        return list(mounts(pid))
    except OSError as error:
        raise MountError(f"cannot see the mounts of process {pid}: {error.strerror}", "try it as root") from None


def _process_of(container: str) -> int:
    """Ask the engines for a process of a container."""
    for engine in filter(shutil.which, _ENGINES):
        command = [engine, "inspect", "--type", "container", "--format", "{{.State.Pid}}", "--", container]
        done = subprocess.run(  # noqa: S603 - no shell
            command, env=os.environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        if done.returncode == 0 and int(done.stdout) > 0:
            return int(done.stdout)
    reason = f"neither Docker nor Podman runs a container {container}"
    raise MountError(reason, "see `docker ps` or `podman ps`, or give the id of a process in it")
