"""Who a process is: its user, its executable and its control group, and what that says of unit, container and pod.

Everything is read through one descriptor of ``/proc/PID``. So it is all of one process, even if that ends meanwhile and
its id is used again.
"""

import contextlib
import os
import re
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Final, NamedTuple

_ENOUGH: Final = 16 << 10  # bytes of a file in /proc
_TICKS: Final = os.sysconf("SC_CLK_TCK")  # per second
_START_TIME: Final = 19  # of the fields after the name in /proc/PID/stat, counted from 0 (proc_pid_stat(5))

_ID: Final = re.compile(r"(?:^|[-:_])([0-9a-f]{64})(?:\.scope)?$")
"""The id of a container, as Docker, Podman, containerd and CRI-O write it into the name of a control group."""
_NAMED: Final = re.compile(r"(?:lxc\.payload\.|machine-)(.+?)(?:\.scope)?$")
"""A container of LXC or systemd-nspawn, which have names."""
_POD: Final = re.compile(r"(?:^|-)pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})(?:\.slice)?$")
"""The uid of a pod as the kubelet writes it: of a static pod it is a hash."""
_ESCAPE: Final = re.compile(r"\\x([0-9a-f]{2})")  # systemd-escape(1)


class ProcessIdentity(NamedTuple):
    """A process. What could not be found out is None; ids are those of our own namespaces."""

    uid: int | None = None
    """Of its accesses to files."""
    gid: int | None = None
    pid: int | None = None
    executable: str | None = None
    """A path in the process's own root directory. Another user's takes CAP_SYS_PTRACE to find out."""
    command: str | None = None
    """The name of the thread that asks: 15 bytes at most, and the process may choose it."""
    cgroup: str | None = None
    """The path of its control group."""

    @property
    def unit(self) -> str | None:
        """The innermost systemd unit that it belongs to."""
        return _innermost(_unit, self.cgroup)

    @property
    def container(self) -> str | None:
        """The id of the innermost container that it runs in; of LXC and systemd-nspawn, the name."""
        return _innermost(_container, self.cgroup)

    @property
    def pod(self) -> str | None:
        """The uid of the Kubernetes pod that it runs in."""
        return _innermost(_pod, self.cgroup)


@lru_cache(maxsize=1000)
def _innermost(meaning: Callable[[str], str | None], cgroup: str | None) -> str | None:
    """Return what the innermost control group means that means something."""
    found = (meaning(name) for name in reversed((cgroup or "").split("/")))
    return next(filter(None, found), None)


def _unit(name: str) -> str | None:
    if not name.endswith((".service", ".scope")):
        return None
    return name.removeprefix("_")  # which systemd puts before a name that means something to the kernel


def _container(name: str) -> str | None:
    if found := _ID.search(name):
        return found[1]
    found = _NAMED.match(name)
    return _ESCAPE.sub(lambda code: chr(int(code[1], 16)), found[1]) if found else None


def _pod(name: str) -> str | None:
    found = _POD.search(name)
    return found[1].replace("_", "-") if found else None


def identify(
    thread: int, *, uid: int | None = None, gid: int | None = None, at: float | None = None
) -> ProcessIdentity:
    """Find out who a thread is of which the kernel has told the id, and maybe user and group.

    ``at`` is when it asked for something, in seconds since the epoch, if it does not wait for us: a process that was
    started since then, or has another user, is another one. Then only what the kernel has told is known.
    """
    told = ProcessIdentity(uid, gid, thread or None)
    if not thread:  # it is outside our pid namespace
        return told
    try:
        directory = os.open(f"/proc/{thread}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:  # it has ended
        return told
    try:
        status = _read(directory, "status")
        if at is not None and _started(_read(directory, "stat")) > at:
            return told
        user, group = (int(_field(status, name).split()[-1]) for name in ("Uid", "Gid"))
        if uid not in (None, user):
            return told
        executable = None
        with contextlib.suppress(OSError):  # it is another user's, or a thread of the kernel
            executable = os.fsdecode(os.readlink(b"exe", dir_fd=directory))
        cgroup = _cgroup(_read(directory, "cgroup"))
        process, name = int(_field(status, "Tgid")), _field(status, "Name")
        return ProcessIdentity(user, group, process, executable, name, cgroup)
    except (OSError, ValueError):  # it has ended meanwhile
        return told
    finally:
        os.close(directory)


def _read(directory: int, name: str) -> str:
    descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        return os.fsdecode(os.read(descriptor, _ENOUGH))
    finally:
        os.close(descriptor)


def _field(status: str, name: str) -> str:
    """Return a line of /proc/PID/status. Of users and groups, the last is that of accesses to files."""
    return f"\n{status}".partition(f"\n{name}:\t")[2].partition("\n")[0]  # a name of a process may look like a line


def _started(stat: str) -> float:
    """Return when a process was started, in seconds since the epoch, or up to a tick of the kernel's clock before."""
    ticks = int(stat.rpartition(")")[2].split()[_START_TIME])
    return ticks / _TICKS + _boot_time()


def _boot_time() -> float:
    """Return when the machine was booted, on the clock that is set now."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


def _cgroup(text: str) -> str | None:
    """Return the control group of version 2, or that which systemd or the memory controller has of version 1."""
    paths: dict[str, str] = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        paths.update(dict.fromkeys(controllers.split(","), path))
    known = [paths[name] for name in ("", "name=systemd", "memory", "pids") if name in paths]
    return next((path for path in known if path != "/"), known[0] if known else None)
