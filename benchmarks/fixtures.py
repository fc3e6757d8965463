"""Where the contestants perform: directories, mounts and processes, and their end in every case."""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from secretfs.linux.mountinfo import mounts
from secretfs.linux.mountpoint import unmount

_ROOT = Path(__file__).resolve().parents[1]
_TMPFS = Path("/dev/shm")
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_PATIENCE = 30.0  # seconds for a file system to mount
_ENDING = 5.0  # seconds for it to end once it is unmounted
_FORGOTTEN = ("proxy", "vault", "bao", "dapr", "namespace", "dontwritebytecode")
"""Words in the names of variables that change what is measured, such as that each start compiles all modules anew."""


class BenchmarkError(Exception):
    """Something that the benchmark needs does not work."""


@dataclass(frozen=True, slots=True)
class Mount:
    """A file system that is mounted and the process that serves it."""

    path: Path
    pid: int

    def of_worker(self) -> "Mount":
        """Return the same with the process that serves secretfs, which the one that was started keeps alive."""
        status = json.loads((self.path / ".secretfs/status.json").read_bytes())
        return Mount(self.path, status["mount"]["pid"])

    @property
    def rss(self) -> int:
        """Resident set of the process, in bytes."""
        status = Path(f"/proc/{self.pid}/status").read_text("ascii")
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:"))) << 10

    @property
    def writes(self) -> int | None:
        """Writing system calls of the process so far; None where this is not for us to know."""
        try:
            io = Path(f"/proc/{self.pid}/io").read_text("ascii")
        except PermissionError:
            return None
        return int(next(line.split()[1] for line in io.splitlines() if line.startswith("syscw:")))


class Fixtures:
    """A scratch directory on disk and one on tmpfs; what is started here is gone when they are."""

    def __init__(self) -> None:
        self._places = 0

    def __enter__(self) -> "Fixtures":
        """Set up."""
        if not any((mount.path, mount.fstype) == (str(_TMPFS), "tmpfs") for mount in mounts()):
            raise BenchmarkError(f"{_TMPFS} is not a tmpfs to compare with")
        # A daemon that has left its parent becomes our child: so it can be found, and waited for.
        if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
            raise BenchmarkError(f"PR_SET_CHILD_SUBREAPER: {os.strerror(ctypes.get_errno())}")
        self.environment = {
            name: text for name, text in os.environ.items() if not any(word in name.lower() for word in _FORGOTTEN)
        } | {"PYTHONPATH": str(_ROOT)}
        self._found = _children()
        with contextlib.ExitStack() as stack:
            self.scratch = Path(stack.enter_context(_directory(None)))
            self.tmpfs = Path(stack.enter_context(_directory(_TMPFS)))
            stack.callback(self._clear)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Take everything down; a second Ctrl-C does not interrupt that."""
        patient = [(number, signal.signal(number, signal.SIG_IGN)) for number in (signal.SIGINT, signal.SIGTERM)]
        try:
            self._stack.close()
        finally:
            for number, handler in patient:
                signal.signal(number, handler)

    def directory(self, name: str) -> Path:
        """Make a new directory on disk."""
        self._places += 1
        path = self.scratch / f"{self._places}-{name}"
        path.mkdir()
        return path

    def start(self, module: str, *arguments: str, log: IO[bytes] | None = None) -> subprocess.Popen[bytes]:
        """Start a module of Python, out of reach of the terminal's Ctrl-C: we end it."""
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            process_group=0,
        )

    @contextlib.contextmanager
    def bare(self, names: int) -> Iterator[Mount]:
        """Mount the bare file system."""
        path = self.directory("bare")
        with self.serving(path, self.start("benchmarks.bare", str(names), str(path))) as mount:
            yield mount

    @contextlib.contextmanager
    def secretfs(
        self, resources: Path, variables: Mapping[str, str] | None = None, options: Sequence[str] = ()
    ) -> Iterator[Mount]:
        """Mount secretfs in the foreground; ``variables`` are added to its environment."""
        path = self.directory("secretfs")
        command = [sys.executable, "-m", "secretfs", "mount", "-f", "--resources-path", str(resources)]
        command += [*options, str(path)]
        environment = self.environment | dict(variables or {})
        with self.serving(path, subprocess.Popen(command, env=environment, process_group=0)) as mount:
            yield mount.of_worker()

    @contextlib.contextmanager
    def secretfs_in_background(self, resources: Path) -> Iterator[tuple[float, Mount]]:
        """Run ``secretfs mount`` until it returns, as a user would; yields the seconds that took, and the mount."""
        path = self.directory("secretfs")
        before = _children()
        started = time.perf_counter()
        log = str(path.with_suffix(".log"))
        self.run("-m", "secretfs", "mount", "--log-file", log, "--resources-path", str(resources), str(path))
        seconds = time.perf_counter() - started
        (daemon,) = _children() - before
        try:
            yield seconds, Mount(path, daemon).of_worker()
        finally:
            unmount(path, lazy=True)
            _end(daemon)

    def run(self, *arguments: str) -> None:
        """Run Python until it ends."""
        done = subprocess.run(
            [sys.executable, *arguments], env=self.environment, stdin=subprocess.DEVNULL, check=False, process_group=0
        )
        if done.returncode != 0:
            raise BenchmarkError(f"python {' '.join(arguments)} ended with status {done.returncode}")

    @contextlib.contextmanager
    def serving(self, path: Path, process: subprocess.Popen[bytes]) -> Iterator[Mount]:
        """Wait until ``process`` has mounted ``path``; in the end unmount it, which ends the process."""
        with process:
            try:
                _wait_until_mounted(path, process)
                yield Mount(path, process.pid)
            finally:
                _clear_mounts(path)
                _end(process.pid, gone=lambda: process.poll() is not None)
                process.kill()

    def _clear(self) -> None:
        """Remove whatever an interruption has left, such as a daemon that has not mounted yet."""
        _clear_mounts(self.scratch)
        for pid in _children() - self._found:
            os.kill(pid, signal.SIGTERM)
            _end(pid)
        _clear_mounts(self.scratch)


@contextlib.contextmanager
def _directory(parent: Path | None) -> Iterator[str]:
    path = tempfile.mkdtemp(prefix="secretfs-bench-", dir=parent)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def write_files(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write files with the permissions that secrets have."""
    directory.mkdir()
    for name, content in files.items():
        path = directory / name
        path.write_bytes(content)
        path.chmod(0o400)


def _wait_until_mounted(path: Path, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + _PATIENCE
    while str(path) not in {mount.path for mount in mounts()}:
        if process.poll() is not None:
            raise BenchmarkError(f"{_words(process.args)} ended with status {process.returncode}")
        if time.monotonic() > end:
            raise BenchmarkError(f"{_words(process.args)} does not mount")
        time.sleep(0.001)
    path.stat()  # waits until it answers


def _words(arguments: object) -> str:
    return " ".join(map(str, arguments)) if isinstance(arguments, Sequence) else str(arguments)


def _clear_mounts(path: Path) -> None:
    for mount in list(mounts()):
        if Path(mount.path).is_relative_to(path):
            unmount(Path(mount.path), lazy=True)


def _children() -> set[int]:
    listings = Path("/proc/self/task").glob("*/children")
    return {int(pid) for listing in listings for pid in listing.read_text("ascii").split()}


def _end(pid: int, gone: Callable[[], bool] | None = None) -> None:
    """Wait for a child whose file system is unmounted, and kill one that does not end by itself.

    A copy of the mount in somebody else's mount namespace keeps it going; or it is broken.
    """
    gone = gone or (lambda: _reaped(pid))
    end = time.monotonic() + _ENDING
    while not gone():
        if time.monotonic() > end:
            print(f"\n{_blame(pid)}", file=sys.stderr)
            os.kill(pid, signal.SIGKILL)
            end += _PATIENCE
        time.sleep(0.005)


def _blame(pid: int) -> str:
    """Say what does not end, and who else has it mounted: without such a copy it is a defect."""
    *command, mountpoint = Path(f"/proc/{pid}/cmdline").read_text("utf-8").rstrip("\0").split("\0")
    holders = []
    for table in Path("/proc").glob("[0-9]*/mountinfo"):
        with contextlib.suppress(OSError):
            if mountpoint in table.read_text("utf-8", "replace"):
                holders.append(table.parent.name)
    where = f"in the mount namespace of {', '.join(holders)}" if holders else "in no mount namespace that we can see"
    return f"{' '.join(command)} ({pid}) did not end after its unmount and is killed; its mount is still {where}"


def _reaped(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return True
