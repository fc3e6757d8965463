"""A real mount for a test: the real command line in its own process, always taken down again."""

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.canary import leaked
from tests.support.lacking import require_fuse
from tests.support.proc import texts
from tests.support.waiting import PATIENCE, wait_for_text

_ROOT = Path(__file__).resolve().parents[2]
_MOUNTINFO = Path("/proc/self/mountinfo")
_SUPERVISORS = {b"secretfs.daemon.supervisor", b"secretfs.supervisor"}  # as it is called now, and was in 9540ca8
_STANDBY = b"secretfs.cli.standby"
_HELPERS = {"secretfs-helper", "secretfs-mount", "secretfs-hand"}  # likewise
KERNEL_ANSWERS = os.environ.get("SECRETFS_KERNEL_ANSWERS") != "0"
"""Whether the tests run with mounts in which the kernel answers by itself: a few promises differ then."""
_HARMLESS = re.compile(r"$|(?:INFO|DEBUG) ")


@dataclass(frozen=True)
class Mounted:
    """A running mount."""

    path: Path
    """The mount point."""
    process: subprocess.Popen[bytes]
    """The supervisor. A test may kill it; the mount is cleaned up all the same."""
    log_file: Path

    @property
    def log(self) -> str:
        """What the daemon has said on stderr so far. Wait with `said` for what it must say."""
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    def said(self, text: str, times: int = 1) -> None:
        """Wait until the daemon has said a text so many times: a thread of its own writes the log."""
        wait_for_text(lambda: self.log, text, times)

    @property
    def worker(self) -> int:
        """The process that serves the mount now."""
        (pid,) = daemons(self.path)
        return pid

    def kill(self) -> None:
        """Kill the supervisor and then the worker, so that nobody is left to serve."""
        worker = os.pidfd_open(self.worker)
        self.process.kill()
        self.process.wait()
        signal.pidfd_send_signal(worker, signal.SIGKILL)
        ended = select.select([worker], [], [], PATIENCE)[0]
        os.close(worker)
        if not ended:
            subprocess.run(["umount", "--force", str(self.path)], check=False)
            pytest.fail("the killed daemon waits for itself, and so does everybody who uses the mount")


@contextlib.contextmanager
def mounted(
    *resources: Path,
    config: Sequence[Path] = (),
    app_id: str = "",
    options: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    mountpoint: Path | None = None,
    expect_log: Sequence[str] = (),
    stdout: int | None = None,
) -> Iterator[Mounted]:
    """Mount the manifests in the directories ``resources``, as ``secretfs mount --foreground`` does.

    ``env`` is added to the environment. Lines of the daemon's log, other than those of level INFO and below, fail the
    test unless one of the regular expressions in ``expect_log`` is found in them; a test secret in the log always does.
    When the test itself fails, the log is shown with the failure.
    """
    require_fuse()
    flags = [flag for path in resources for flag in ("--resources-path", str(path))]
    flags += [flag for path in config for flag in ("--config", str(path))]
    flags += ["--app-id", app_id] if app_id else []
    with tempfile.TemporaryDirectory(prefix="secretfs-test-") as scratch:
        path = (mountpoint or Path(scratch, "mnt")).resolve()
        path.mkdir(exist_ok=True)
        log_file = Path(scratch, "log")
        with log_file.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "secretfs", "mount", "--foreground", *flags, *options, str(path)],
                env=os.environ | {"PYTHONPATH": str(_ROOT)} | dict(env or {}),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
            )
        mount = Mounted(path, process, log_file)
        try:
            try:
                _wait_until_mounted(mount, time.monotonic() + PATIENCE)
                yield mount
            finally:
                forced = _take_down(mount)
        except BaseException as error:
            error.add_note(f"--- log of the daemon ---\n{mount.log}--- end of log ---")
            raise
        _check(mount.log, expect_log, forced)


def daemons(mountpoint: Path) -> list[int]:
    """List the processes that serve a mount point, without supervisors and helpers."""
    return [pid for pid, kind in processes(mountpoint) if kind == "worker"]


def supervisor(mountpoint: Path) -> int:
    """Return the process that restarts the one which serves a mount point."""
    (pid,) = [pid for pid, kind in processes(mountpoint) if kind == "supervisor"]
    return pid


def standby(mountpoint: Path) -> int | None:
    """Return the process that stands by to be the next one which serves a mount point."""
    return next((pid for pid, kind in processes(mountpoint) if kind == "standby"), None)


def stands_by(mountpoint: Path) -> bool:
    """Whether that process has imported all it needs."""
    pid = standby(mountpoint)
    with contextlib.suppress(OSError):
        return pid is not None and Path(f"/proc/{pid}/comm").read_text(encoding="ascii") == "secretfs-next\n"
    return False


def processes(mountpoint: Path) -> Iterator[tuple[int, str]]:
    """Yield id and kind of all processes with our command and this mount point in their command line."""
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (directory / "cmdline").read_bytes()
            arguments = set(command.split(b"\0"))
            if arguments & {b"volume-plugin", b"csi"}:
                continue
            if _STANDBY in arguments and os.fsencode(mountpoint) in arguments:
                name = (directory / "comm").read_text().strip()
                served = "helper" if name in _HELPERS else "worker" if name.startswith("secretfs:") else "standby"
                yield int(directory.name), served
            elif os.fsencode(mountpoint) in arguments and b"secretfs" in map(os.path.basename, arguments):
                supervises = not _SUPERVISORS.isdisjoint(arguments)
                helps = _is_helper(directory, command)
                yield int(directory.name), "helper" if helps else "supervisor" if supervises else "worker"


def _is_helper(process: Path, command: bytes) -> bool:
    """Whether a process is a helper: by its name, or while it has none yet, because a worker has forked it."""
    if (process / "comm").read_text().strip() in _HELPERS:
        return True
    (pid,) = re.findall(r"^PPid:\t(\d+)$", (process / "status").read_text(), re.MULTILINE)
    parent = process.parent / pid
    is_named = (parent / "comm").read_text().startswith("secretfs:")
    return is_named and bool((parent / "cmdline").read_bytes() == command)


def fuse_mounts() -> dict[str, str]:
    """Say which FUSE file systems are mounted in this mount namespace: mount point to type."""
    mounts = {}
    for line in _MOUNTINFO.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        fstype = after.split(" ", 1)[0]
        if fstype.startswith("fuse"):
            # The kernel writes space, tab, newline and backslash as \040, \011, \012 and \134.
            point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), before.split(" ")[4])
            mounts[point] = fstype
    return mounts


def wait_for_end(mountpoint: Path) -> None:
    """Wait until those who serve a mount point have ended."""
    for pid, _ in list(processes(mountpoint)):
        with contextlib.suppress(ProcessLookupError):
            process = os.pidfd_open(pid)
            ended = select.select([process], [], [], PATIENCE)[0]
            os.close(process)
            assert ended, "the daemon did not end"


def unmount(path: Path) -> None:
    """Detach whatever is mounted on ``path``, dead or alive, busy or not."""
    command = ["umount", "--lazy"] if os.geteuid() == 0 else ["fusermount3", "-u", "-z"]
    subprocess.run([*command, str(path)], check=True, stdin=subprocess.DEVNULL)


def _wait_until_mounted(mount: Mounted, end: float) -> None:
    with _MOUNTINFO.open("rb") as table:
        changes = select.poll()
        changes.register(table, select.POLLPRI)  # the kernel tells when the table of mounts changes
        while fuse_mounts().get(str(mount.path)) != "fuse.secretfs":
            if mount.process.poll() is not None:
                raise AssertionError(f"secretfs mount ended with status {mount.process.returncode} before it mounted")
            if time.monotonic() > end:
                raise AssertionError("secretfs mount did not mount in time")
            changes.poll(20)
    while "INFO mounted at " not in mount.log:  # the daemon itself has looked, and is out of the way
        if time.monotonic() > end:
            raise AssertionError("the mount did not answer in time")
        time.sleep(0.002)


def _take_down(mount: Mounted) -> str:
    """End the daemon and the mount. Returns what had to be forced, or nothing when the daemon behaved."""
    forced = ""
    ended_before = mount.process.poll() is not None
    if not ended_before:
        mount.process.send_signal(signal.SIGTERM)
    if ended_before:  # a worker without a supervisor unmounts when it ends
        for worker in daemons(mount.path):
            os.kill(worker, signal.SIGTERM)
    try:
        status = mount.process.wait(PATIENCE)
        if status != 0 and not ended_before:
            forced = f"the daemon ended with status {status} after SIGTERM"
    except subprocess.TimeoutExpired:
        mount.kill()
        forced = "the daemon did not end after SIGTERM and was killed"
    if str(mount.path) in fuse_mounts():
        unmount(mount.path)
        wait_for_end(mount.path)
        if not ended_before:
            forced = forced or "the daemon left its mount behind"
    return forced


def _check(log: str, expected: Sequence[str], forced: str) -> None:
    if leaked(log):
        raise AssertionError("a test secret is in the daemon's log")
    trouble = [
        line
        for line in log.splitlines()
        if not _HARMLESS.match(line) and not any(re.search(pattern, line) for pattern in expected)
    ]
    if forced:
        trouble.append(forced)
    if trouble:
        raise AssertionError("unexpected in the daemon's log:\n" + "\n".join(trouble) + f"\n--- all of it ---\n{log}")


def named_children(parent: int, name: str) -> list[int]:
    """Return the process ids of the children of that name."""
    found = [int(child) for text in texts(parent, "task/*/children") for child in text.split()]  # of each thread
    return [child for child in found if f"{name}\n" in texts(child, "comm")]
