"""The way out of a container: ``python -m secretfs.containers.csi.outside COMMAND...`` runs a command outside of it.

The processes of a mount must outlive the pod that started them: with the last of them every pod on the node would lose
its volume for good. A container ends by its control groups, so the process leaves them; and its network ends with the
pod, so it enters that of process 1. The files it runs from are those of the image, which its mount namespace keeps.

That takes a pod with ``hostPID`` and ``privileged``. Without it the command runs all the same, and the log says what it
will cost.
"""

import contextlib
import ctypes
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NoReturn

from secretfs.errors import MountError
from secretfs.linux.log import log_to_stderr
from secretfs.linux.mountinfo import mounts

GROUP: Final = "secretfs-csi-"
"""What the names of our control groups begin with."""
PATIENCE: Final = 10.0
"""Seconds that systemd has to make a scope."""

_HOST: Final = Path("/proc/1")
_CLONE_NEWNS, _CLONE_NEWCGROUP, _CLONE_NEWUTS, _CLONE_NEWIPC, _CLONE_NEWNET = (
    0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x40000000,
)  # fmt: skip
_NAMESPACES: Final = {
    "cgroup": _CLONE_NEWCGROUP, "uts": _CLONE_NEWUTS, "ipc": _CLONE_NEWIPC, "net": _CLONE_NEWNET,
}  # fmt: skip
"""Namespaces that are entered: linux/sched.h."""
_CPUSETS: Final = ("cpuset.cpus", "cpuset.mems")

log = logging.getLogger(__name__)


def main() -> NoReturn:
    """Leave the container, and become the command."""
    log_to_stderr()
    try:
        require_host_processes()
        enter_namespaces()
        leave_groups()
    except (MountError, OSError) as error:
        reason = str(error) if isinstance(error, MountError) else error.strerror
        log.warning("the mount ends with this container, and with it the volumes of all pods: %s", reason)
    command = sys.argv[1:]
    os.execv(command[0], command)  # noqa: S606 - no shell


def require_host_processes() -> None:
    """Raise `MountError` if the driver is process 1 of a namespace, which ends with it."""
    if os.getppid() == 1:
        raise MountError("the pod has a process namespace of its own", "give it hostPID: true")


def enter_namespaces() -> None:
    """Enter the namespaces of process 1, but for its files. Raises OSError."""
    for name, kind in _NAMESPACES.items():
        host, ours = _HOST / "ns" / name, Path("/proc/self/ns") / name
        if host.stat().st_ino != ours.stat().st_ino:
            _set_namespace(host, kind)


def leave_groups() -> None:
    """Leave the control groups of the container. Raises `MountError` or OSError."""
    if (_HOST / "comm").read_text("utf-8").strip() == "systemd":
        _make_scope()
    else:
        _make_groups()


def _make_scope() -> None:
    """Have the host's systemd put this process into a unit of its own, by the host's busctl(1)."""
    scope = f"{GROUP}{os.getpid()}.scope"
    manager = ["org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager"]
    properties = [
        "PIDs", "au", "1", str(os.getpid()),
        "CollectMode", "s", "inactive-or-failed",
        "Description", "s", "What holds the secretfs of pods",
    ]  # fmt: skip
    call = ["StartTransientUnit", "ssa(sv)a(sa(sv))", scope, "fail", "3", *properties, "0"]
    try:
        done = subprocess.run(  # noqa: S603 - no shell
            ["busctl", "--quiet", "call", *manager, *call],  # noqa: S607 - where the host has it
            preexec_fn=_enter_files_of_host,  # this process has no threads
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip
    except subprocess.SubprocessError as error:  # it hangs; or the files of the host cannot be entered
        raise MountError(f"systemd cannot be asked for a scope: {error}") from None
    if done.returncode:
        raise MountError(f"systemd makes no scope: {done.stderr.strip()}")
    end = time.monotonic() + PATIENCE
    while scope not in Path("/proc/self/cgroup").read_text("ascii"):
        if time.monotonic() > end:
            raise MountError("systemd has not made a scope in time")
        time.sleep(0.01)


def _enter_files_of_host() -> None:
    _set_namespace(_HOST / "ns/mnt", _CLONE_NEWNS)


def _make_groups() -> None:
    """Make a control group of our own in each hierarchy of the host, enter it, and remove those of our predecessors."""
    for root in _hierarchies():
        for old in root.glob(f"{GROUP}*"):
            if not Path("/proc", old.name.removeprefix(GROUP)).exists():  # one that lives may be about to enter
                with contextlib.suppress(OSError):  # there are processes in it
                    old.rmdir()
        group = root / f"{GROUP}{os.getpid()}"
        group.mkdir(exist_ok=True)
        for name in _CPUSETS:
            with contextlib.suppress(FileNotFoundError):  # another controller's; cgroup v2 inherits
                if not (group / name).read_text("ascii").strip():
                    (group / name).write_text((root / name).read_text("ascii"), "ascii")
        (group / "cgroup.procs").write_text(str(os.getpid()), "ascii")


def _hierarchies() -> Iterator[Path]:
    """Yield the directory of each hierarchy of control groups, as process 1 sees it."""
    seen = set()
    for mount in mounts(1):
        if mount.fstype in ("cgroup", "cgroup2") and mount.device not in seen:
            seen.add(mount.device)
            yield Path(f"{_HOST}/root{mount.path}")


def _set_namespace(path: Path, kind: int) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(descriptor, kind) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
    finally:
        os.close(descriptor)


def run_outside(command: Sequence[str]) -> list[str]:
    """Return the command line that runs a command, by its path, outside of this container."""
    return [sys.executable, "-P", "-m", "secretfs.containers.csi.outside", *command]


if __name__ == "__main__":
    main()
