"""A machine for container engines: namespaces with mounts, processes and a network of their own, which end together.

There / is shared, as where systemd runs. /run, /srv and /etc may be written to, and nothing outside changes. What is
left in control groups is removed in the end.
"""

import contextlib
import errno
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.support.command import ROOT
from tests.support.lacking import require_root
from tests.support.shell import Argument, run, wait_until
from tests.support.waiting import PATIENCE

CGROUPS = Path("/sys/fs/cgroup")
PATH = f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin"

_START = """
set -eu
mount -t tmpfs -o mode=755 none /srv
mount -t tmpfs -o mode=755 none /run
mkdir /srv/secrets /run/etc /run/etc.work
mount -t overlay -o lowerdir=/etc,upperdir=/run/etc,workdir=/run/etc.work none /etc
mknod -m 666 /run/fuse c 10 229
mount --bind /run/fuse /dev/fuse
mount --make-rshared /
echo ready
while :; do sleep 1000 & wait; done
"""


@dataclass(frozen=True)
class Machine:
    """Namespaces in which engines run."""

    leader: int
    """The first process in them, as the tests see it. It reaps what has lost its parent, as every init does."""
    name: str
    """A control group for everything that engines start, without its slash."""
    env: Mapping[str, str]
    """The environment of everything that runs in it."""

    def path(self, inside: str | Path) -> Path:
        """Return where a test finds what is at an absolute path inside, mounts included."""
        return Path(f"/proc/{self.leader}/root", *Path(inside).parts[1:])

    def enter(self, user: int = 0, env: Mapping[str, str] | None = None) -> list[str]:
        """Return what to put in front of a command that shall run inside."""
        enter = ["nsenter", f"--target={self.leader}", "--mount", "--net", "--pid", "--wdns=/srv"]
        enter += [f"--setuid={user}", f"--setgid={user}"] if user else []
        variables = {**self.env, **(env or {})}
        return [*enter, "--", "env", "-i", *(f"{name}={value}" for name, value in variables.items())]

    def run(self, *command: Argument, user: int = 0) -> subprocess.CompletedProcess[bytes]:
        """Run a program inside."""
        return run(*self.enter(user), *command)

    def output(self, *command: Argument, user: int = 0) -> str:
        """Return what a program inside prints. It must succeed."""
        done = self.run(*command, user=user)
        assert done.returncode == 0, (command[:4], done.stderr.decode(errors="replace"))
        return done.stdout.decode(errors="replace")

    def shell(self, script: str, user: int = 0) -> str:
        """Return what a script inside prints. It must succeed."""
        return self.output("bash", "-euc", script, user=user)

    def refused(self, *command: Argument) -> str:
        """Return what a program inside says when it fails, which it must."""
        done = self.run(*command)
        assert done.returncode != 0, command
        return done.stderr.decode(errors="replace")

    @contextlib.contextmanager
    def running(self, *command: Argument, log: Path) -> Iterator[subprocess.Popen[bytes]]:
        """Run a program inside until the end, in which it is killed."""
        with log.open("ab") as output:
            process = subprocess.Popen(
                [*self.enter(), *map(str, command)], stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        try:
            yield process
        finally:
            self.kill(process)

    def pid(self, process: subprocess.Popen[bytes]) -> int:
        """Return the process that `running` has started inside, as the tests see it."""
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text("ascii").split()
        return int(child)

    def signal(self, process: subprocess.Popen[bytes], number: signal.Signals) -> None:
        """Send a signal to what `running` has started, if it has not ended by itself."""
        if process.poll() is None:
            with contextlib.suppress(ValueError, ProcessLookupError):
                os.kill(self.pid(process), number)

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """Kill what `running` has started."""
        self.signal(process, signal.SIGKILL)
        process.wait(PATIENCE)


@contextlib.contextmanager
def machine(directory: Path | None = None) -> Iterator[Machine]:
    """Make a machine; in the end all that runs in it is killed, and all that is mounted in it goes.

    ``directory`` is where its scratch directory is, by default that of the tests.
    """
    require_root("only root can make namespaces with devices in them")
    alone = ["setpriv", "--pdeathsig=KILL", "unshare", "--mount", "--propagation=private", "--net"]
    alone += ["--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", _START]
    scratch_directory = tempfile.TemporaryDirectory(prefix="secretfs-test-", dir=directory)
    with scratch_directory as scratch, _cgroups(Path(scratch).name) as cgroup:
        holder = subprocess.Popen(alone, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        try:
            assert holder.stdout
            assert holder.stdout.readline() == b"ready\n"
            (leader,) = Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text("ascii").split()
            env = {
                "PATH": PATH, "PYTHONPATH": str(ROOT), "LC_ALL": "C", "HOME": "/run",
                "DOCKER_HOST": "unix:///run/docker.sock",
                "CONTAINERS_CONF": "/run/containers.conf", "CONTAINERS_STORAGE_CONF": "/run/storage.conf",
            }  # fmt: skip
            yield Machine(int(leader), cgroup, env)
        finally:
            holder.kill()
            holder.communicate()


@contextlib.contextmanager
def _cgroups(name: str) -> Iterator[str]:
    """Give a name for control groups; in the end there is none of that name in any hierarchy."""
    try:
        yield name
    finally:
        for hierarchy in hierarchies():
            for directory, _, _ in os.walk(hierarchy / name, topdown=False):
                wait_until(partial(removed, Path(directory)))


def hierarchies() -> list[Path]:
    """Return the directories of all hierarchies of control groups: of cgroup v2 alone, or of each controller of v1."""
    if (CGROUPS / "cgroup.controllers").exists():
        return [CGROUPS]
    return [path for path in CGROUPS.iterdir() if path.is_dir() and not path.is_symlink()]


def make_cgroup(hierarchy: Path, name: str) -> Path:
    """Make a control group at the top of a hierarchy that processes can enter: a cpuset of v1 needs its processors."""
    cgroup = hierarchy / name
    cgroup.mkdir()
    for cpuset in ("cpuset.cpus", "cpuset.mems"):
        if hierarchy != CGROUPS and (hierarchy / cpuset).exists():
            (cgroup / cpuset).write_text((hierarchy / cpuset).read_text("ascii"), "ascii")
    return cgroup


def removed(cgroup: Path) -> bool:
    """Remove a control group, unless processes are still ending in it."""
    try:
        cgroup.rmdir()
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


def quoted(*words: str) -> str:
    """Write words for a shell."""
    return shlex.join(words)
