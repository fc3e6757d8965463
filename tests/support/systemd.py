"""A real systemd, booted for a test: this machine's root or another one, copied on write, in a container on its own."""

import contextlib
import os
import select
import shlex
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.support.command import ROOT
from tests.support.lacking import require_root
from tests.support.machine import removed
from tests.support.shell import Argument, run, wait_until

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PATIENCE = 180.0

# The first process of namespaces of its own: when it is killed, all that it has started ends and all mounts go, also if
# it is the tests themselves that were killed. /run is another one because systemd-nspawn leaves a directory there.
# Devices are made here: those of the machine may be for root alone.
_ALONE = [
    *("setpriv", "--pdeathsig=KILL", "unshare", "--mount", "--propagation=private"),
    *("--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c"),
]
# Control groups as distributions have them today: systemd waits for the last process of a service that it has killed.
_UNIFIED = {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}
_BOOT = """
set -eu
for cgroup in {cgroups}; do echo $$ > "$cgroup/cgroup.procs"; done
mount -t tmpfs none /run
mount -t tmpfs -o mode=755 secretfs-test {scratch}
cd {scratch}
mkdir changes work root
mknod -m 666 fuse c 10 229
mknod -m 600 autofs c 10 235
mount -t overlay overlay -o lowerdir={lower},upperdir=changes,workdir=work root
: > root/etc/fstab
rm -f root/etc/machine-id
: > root/etc/machine-id
exec systemd-nspawn --quiet --directory=root --machine=secretfs-test --boot --register=no --keep-unit \
    --notify-ready=yes --private-network --console=pipe --bind=$PWD/fuse:/dev/fuse --bind=$PWD/autofs:/dev/autofs \
    --system-call-filter='fanotify_init fanotify_mark' {bind} systemd.unit=basic.target
"""


@dataclass(frozen=True)
class System:
    """A booted systemd."""

    leader: int
    """Its PID 1, as the tests see it."""

    def path(self, inside: str | Path) -> Path:
        """Return where a test finds what is at an absolute path inside, mounts included."""
        return Path(f"/proc/{self.leader}/root", *Path(inside).parts[1:])

    def run(
        self, *command: Argument, env: Mapping[str, str] | None = None, user: int = 0
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a program inside."""
        return run(*self.enter(env, user), *command)

    def enter(self, env: Mapping[str, str] | None = None, user: int = 0) -> list[str]:
        """Return what to put in front of a command that shall run inside."""
        variables = {"PATH": _PATH, "LC_ALL": "C"} | dict(env or {})
        enter = ["nsenter", f"--target={self.leader}", "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"]
        enter += [f"--setuid={user}", f"--setgid={user}", "--"]
        return [*enter, "env", "-i", *(f"{name}={value}" for name, value in variables.items())]

    def output(self, *command: Argument) -> str:
        """Return what a program inside prints. It must succeed."""
        done = self.run(*command)
        assert done.returncode == 0, (command, done.stderr.decode(errors="replace"))
        return done.stdout.decode(errors="replace")

    def systemctl(self, *arguments: str) -> str:
        """Run ``systemctl``, which must succeed; returns what it prints."""
        return self.output("systemctl", *arguments)

    def show(self, unit: str, name: str) -> str:
        """Return a property of a unit."""
        return self.systemctl("show", "--property", name, "--value", unit).strip()

    def journal(self, unit: str) -> str:
        """Return what a unit has logged, and what systemd has logged about it, in the order of time."""
        return self.output("journalctl", "--output=cat", f"--unit={unit}")

    def wait_for(self, unit: str, state: str) -> None:
        """Wait until a unit has a state: "active", "inactive", "failed"."""
        wait_until(lambda: self.show(unit, "ActiveState") == state)


@contextlib.contextmanager
def booted(lower: Path | None = None) -> Iterator[System]:
    """Boot; in the end pull the plug. Then no process, mount, control group or file of it is left.

    ``lower`` is a directory with a system, which does not change. By default it is this machine, with this project.
    """
    require_root("only root can boot a systemd")
    with (
        tempfile.TemporaryDirectory(prefix="secretfs-test-") as scratch,
        cgroups_named(Path(scratch).name) as cgroups,
        contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as told,
    ):
        Path(scratch, "system").mkdir()
        told.bind("")  # the kernel chooses an abstract name
        script = _BOOT.format(
            cgroups=" ".join(map(str, cgroups)),
            scratch=shlex.quote(f"{scratch}/system"),
            lower=shlex.quote(str(lower or "/")),
            bind="" if lower else f"--bind={shlex.quote(str(ROOT))}",
        )
        console = Path(scratch, "console")
        with console.open("wb") as output:
            container = subprocess.Popen(
                [*_ALONE, script],
                env={"PATH": _PATH, "NOTIFY_SOCKET": f"@{told.getsockname()[1:].decode()}"} | _UNIFIED,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            yield System(_leader(container, told, console))
        finally:
            container.kill()
            container.wait()


def _leader(container: subprocess.Popen[bytes], told: socket.socket, console: Path) -> int:
    """Wait until the system is up, which systemd-nspawn tells; returns its PID 1.

    Then nobody is told any more: what is not read would keep systemd-nspawn waiting for ever, and PID 1 with it.
    """
    ended, ready = os.pidfd_open(container.pid), told.fileno()
    try:
        while ready in select.select([ready, ended], [], [], _PATIENCE)[0]:
            if "READY=1" in told.recv(4096).decode().splitlines():
                told.close()
                return _child(_child(container.pid))  # unshare, systemd-nspawn, systemd
    finally:
        os.close(ended)
    raise AssertionError(f"the system did not boot:\n{console.read_text('utf-8', 'replace')}")


def _child(pid: int) -> int:
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()
    return int(child)


@contextlib.contextmanager
def cgroups_named(name: str) -> Iterator[list[Path]]:
    """Make a control group where systemd makes its own, in each of its hierarchies: tests may run side by side."""
    cgroups = [Path(hierarchy, name) for hierarchy in _hierarchies()]
    for cgroup in cgroups:
        cgroup.mkdir()
    try:
        yield cgroups
    finally:
        for cgroup in cgroups:
            for directory, _, _ in os.walk(cgroup, topdown=False):
                wait_until(partial(removed, Path(directory)))


def _hierarchies() -> Iterator[str]:
    """Yield where control groups are that systemd names units by: cgroup2, or its own hierarchy without controllers.

    Each once, though it may be bound to other places as well.
    """
    devices = set()
    for line in Path("/proc/self/mountinfo").read_text("utf-8").splitlines():
        before, _, after = line.partition(" - ")
        fstype, _, options = after.split(" ", 2)
        device, _, place = before.split(" ")[2:5]
        names_units = fstype == "cgroup2" or (fstype == "cgroup" and "name=systemd" in options.split(","))
        if names_units and device not in devices:
            devices.add(device)
            yield place
