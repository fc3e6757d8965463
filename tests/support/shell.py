"""What tests do to a mount: run the programs users run, and say how system calls end."""

import errno
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.support.command import secretfs
from tests.support.mounted import Mounted, fuse_mounts
from tests.support.waiting import PATIENCE
from tests.support.waiting import wait_until as wait_until  # noqa: PLC0414 - tests import it from here

Argument = str | bytes | Path


def run(
    *command: Argument,
    cwd: Path | None = None,
    stdin: bytes = b"",
    env: Mapping[str, str] | None = None,
    user: int | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Run a program, without a shell and in the C locale; what it prints is kept from the test's own output."""
    return subprocess.run(
        command,
        cwd=cwd,
        input=stdin,
        env=os.environ | {"LC_ALL": "C"} | dict(env or {}),
        capture_output=True,
        check=False,
        timeout=PATIENCE,
        user=user,
        group=user,
        extra_groups=None if user is None else [],
    )


def output(*command: Argument, cwd: Path | None = None, stdin: bytes = b"") -> bytes:
    """Return what a program prints. It must succeed, and complain about nothing."""
    done = run(*command, cwd=cwd, stdin=stdin)
    assert (done.returncode, done.stderr) == (0, b""), f"{command[0]!r}: {done.stderr!r}"
    return done.stdout


def lines(*command: Argument, cwd: Path | None = None) -> list[str]:
    """Return the lines a program prints, sorted."""
    return sorted(os.fsdecode(output(*command, cwd=cwd)).splitlines())


def refused_mount(resources: Path, *options: str) -> tuple[int, str]:
    """Ask for a mount that must not come about; returns the exit code and the reason."""
    with tempfile.TemporaryDirectory() as directory:
        done = secretfs("mount", "--resources-path", resources, *options, directory)
        assert directory not in fuse_mounts()
    return done.status, done.err


def errno_of(call: Callable[..., object], *arguments: object) -> str:
    """Call, and return the name of the errno it ends with: "ENOENT", or "" if it succeeds."""
    try:
        call(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


def wait_for(moment: float) -> None:
    """Wait until a moment of `time.monotonic` at which something has been promised to be true."""
    time.sleep(max(0.0, moment - time.monotonic()))


def ways_to_ask(path: Path) -> list[str]:
    """Return the errnos with which the ways to ask for a path end."""
    calls: list[Callable[[], object]] = [
        path.stat,
        path.lstat,
        path.read_bytes,
        lambda: os.listdir(path),  # noqa: PTH208
        lambda: os.listxattr(path),
        lambda: os.getxattr(path, "user.secretfs.version"),
        lambda: os.statvfs(path),
        (path / "below").stat,
    ]
    return [errno_of(call) for call in calls]


def stop(pid: int) -> None:
    """Stop a process, and return when it has stopped: on a loaded machine a signal takes its time."""
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(") ")[2][0] == "T")


@contextmanager
def down(mount: Mounted) -> Iterator[None]:
    """Leave the mount without a worker: it is killed, and the supervisor cannot start another one yet."""
    stop(mount.process.pid)
    worker = os.pidfd_open(mount.worker)
    signal.pidfd_send_signal(worker, signal.SIGKILL)
    select.select([worker], [], [], 10)
    os.close(worker)
    try:
        yield
    finally:
        os.kill(mount.process.pid, signal.SIGCONT)
