"""Everything at once, for long: readers, watchers, rotations, outages, reloads and refreshes on one mount.

    python -m benchmarks.soak --minutes 10

The stores are a real OpenBao behind a way that can be broken, and local files. Every value carries its checksum and the
number of its version, so that readers can tell a torn one, a mixed one and one that is older than they have seen. What
the daemon holds is looked at all the time: inodes, tasks, threads, descriptors and memory must not grow. Ends with 1 if
there is a finding.
"""

import argparse
import contextlib
import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from benchmarks.churn import TTL, Churn
from benchmarks.fixtures import BenchmarkError, Fixtures, Mount
from benchmarks.instrumented import tasks
from benchmarks.soaker import FIRM, PASSING
from secretfs.cache.client import CONCURRENCY
from tests.support.canary import leaked
from tests.support.servers.faulty import Faulty
from tests.support.servers.openbao import OpenBao, openbao
from tests.support.values import unsealed

READERS, WATCHERS = 2, 2
FRESH_AGAIN = 15.0
"""Seconds within which everything is fresh once the server is back: the breaker may pause for half of it."""
SETTLED = 15.0
"""Seconds that work under way may take to end. What leaks does not go away."""
_EXPECTED = ("nothing is changed", "vault: ", "it goes on as it was")
_REMOUNT = 32 | 2 | 4 | 8  # MS_REMOUNT, MS_NOSUID, MS_NODEV, MS_NOEXEC: <sys/mount.h>


@dataclass(frozen=True)
class Sample:
    """What the daemon holds at one moment."""

    seconds: float
    inodes: int
    tasks: int
    threads: int
    descriptors: int
    rss: int

    def row(self) -> str:
        """Show as a line of the table."""
        return (
            f"{self.seconds:8.0f} {self.inodes:8} {self.tasks:7} {self.threads:8} {self.descriptors:12} "
            f"{self.rss / 1e6:9.1f}"
        )


HEADER = f"{'seconds':>8} {'inodes':>8} {'tasks':>7} {'threads':>8} {'descriptors':>12} {'RSS (MB)':>9}"

# What may come on top of what there was in the middle of the time: noise, and work that is under way.
TOLERANCE = {"inodes": 60, "tasks": 60, "threads": 12, "descriptors": 12, "rss": 16e6}
# What may be left over what there was at first. Then one after the other was read; by now there was a connection to the
# server for each call that may be under way, and it is kept open.
LEFT = {"tasks": 6, "descriptors": CONCURRENCY}


class Soak:
    """One run: its fixtures, the changes, and what was found."""

    def __init__(self, fixtures: Fixtures, server: OpenBao, way: Faulty, seed: int) -> None:
        self._fixtures = fixtures
        self._churn = Churn(fixtures, server, way, seed)
        self.findings, self.happened = self._churn.findings, self._churn.happened
        self._directory = fixtures.directory("soak")
        self._log = self._directory / "log"
        self._census = self._directory / "tasks"

    def run(self, seconds: float, show: Callable[[str], None]) -> None:
        """Do it all for so long."""
        self._churn.prepare()
        path = self._fixtures.directory("mnt")
        command = [sys.executable, "-m", "secretfs.daemon.supervisor", "-1", "-", str(path)]
        command += [sys.executable, "-m", "benchmarks.instrumented", str(self._census), "mount", "-f"]
        command += ["--resources-path", str(self._churn.resources), "--config", str(self._churn.config)]
        with contextlib.ExitStack() as stack:
            log = stack.enter_context(self._log.open("wb"))
            daemon = subprocess.Popen(
                [*command, str(path)],
                env=self._fixtures.environment,
                stderr=log,
                stdin=subprocess.DEVNULL,
                process_group=0,
            )
            mount = stack.enter_context(self._fixtures.serving(path, daemon)).of_worker()
            self._read_everything(mount)
            idle = self._sample(mount, 0.0)
            try:
                samples = self._soak(mount, seconds, show)
            except OSError as error:
                tail = self._log.read_text("utf-8", "replace").splitlines()[-40:]
                raise BenchmarkError("\n".join([f"{error}; the daemon: {daemon.poll()}; its log:", *tail])) from None
            self._all_is_fresh(mount)
            self._judge(samples)
            time.sleep(2 * TTL)
            self._forget(mount, idle, show)
            if daemon.poll() is not None:
                self.findings.append(f"the daemon ended with status {daemon.returncode}")
        self._read_log()

    def _soak(self, mount: Mount, seconds: float, show: Callable[[str], None]) -> list[Sample]:
        started = time.monotonic()
        samples = []
        with self._readers(mount), self._inotifywait(mount), self._churn.busy(mount):
            show(HEADER)
            pause = max(1.0, seconds / 20)
            while time.monotonic() < started + seconds:
                time.sleep(min(pause, max(0.0, started + seconds - time.monotonic())))
                samples.append(self._sample(mount, time.monotonic() - started))
                show(samples[-1].row())
                if len(self.findings) > 50:
                    break
        return samples

    @contextlib.contextmanager
    def _readers(self, mount: Mount) -> Iterator[None]:
        kinds = ["read"] * READERS + ["watch"] * WATCHERS
        processes = [
            self._fixtures.start("benchmarks.soaker", str(seed), str(mount.path), kind)
            for seed, kind in enumerate(kinds)
        ]
        try:
            yield
        finally:
            for process in processes:
                self._take_report(process)

    def _take_report(self, process: subprocess.Popen[bytes]) -> None:
        out, _ = process.communicate(timeout=60)
        if process.returncode != 0:
            self.findings.append(f"a reader ended with status {process.returncode}")
            return
        report: dict[str, Any] = json.loads(out)
        self.findings += report["findings"]
        self.happened.update(report["done"])
        self.happened.update({f"errors: {name}": count for name, count in report["errors"].items()})
        self.happened["watchers woken"] += report["woken"]
        self.happened["watchers woken to see the same"] += report["unchanged"]
        slowest = "slowest operation (ms)"
        self.happened[slowest] = max(self.happened[slowest], int(report["slowest"] * 1000))

    @contextlib.contextmanager
    def _inotifywait(self, mount: Mount) -> Iterator[None]:
        events = self._directory / "inotify"
        command = ["inotifywait", "--monitor", "--quiet", "--format", "%e", str(mount.path / "file")]
        command += [str(mount.path / "vault" / f"{FIRM}-{number}") for number in range(20)]
        with events.open("wb") as out, subprocess.Popen([*command], stdout=out, stderr=subprocess.DEVNULL) as process:
            try:
                yield
            finally:
                process.kill()
        self.happened["MOVED_TO seen by inotify"] += events.read_text("ascii").count("MOVED_TO")
        if not self.happened["MOVED_TO seen by inotify"]:
            self.findings.append("inotify saw nothing")

    # --- what comes to light ---

    def _sample(self, mount: Mount, seconds: float) -> Sample:
        process = Path("/proc", str(mount.pid))
        status = json.loads((mount.path / ".secretfs/status.json").read_bytes())
        return Sample(
            seconds,
            status["mount"]["inodes"],
            tasks(self._census),
            len(list((process / "task").iterdir())),
            len(list((process / "fd").iterdir())),
            mount.rss,
        )

    def _read_everything(self, mount: Mount) -> None:
        for store in ("file", "edited"):
            for name in self._churn.files[store]:
                unsealed((mount.path / store / name).read_bytes())
        for name in self._churn.vault:
            unsealed((mount.path / "vault" / name / "key").read_bytes())

    def _all_is_fresh(self, mount: Mount) -> None:
        """Every value must become the newest one."""
        end = time.monotonic() + FRESH_AGAIN + TTL
        wanted = {f"vault/{name}/key": value for name, value in self._churn.vault.items()}
        wanted |= {
            f"{store}/{name}": value for store, secrets in self._churn.files.items() for name, value in secrets.items()
        }
        wanted = {path: value for path, value in wanted.items() if PASSING not in path}  # a scope may hide these
        while wanted and time.monotonic() < end:
            for path, value in list(wanted.items()):
                with contextlib.suppress(OSError):
                    if (mount.path / path).read_text() == value:
                        del wanted[path]
            time.sleep(0.05)
        self.findings += [f"{path} does not become fresh again" for path in wanted]

    def _judge(self, samples: list[Sample]) -> None:
        """Compare the last third with the one before: what grows without end has grown."""
        third = len(samples) // 3
        if not third:
            return
        for name, tolerance in TOLERANCE.items():
            middle = statistics.median(getattr(sample, name) for sample in samples[third : 2 * third])
            last = statistics.median(getattr(sample, name) for sample in samples[-third:])
            if last > middle + tolerance:
                self.findings.append(f"{name} grow: {middle} in the middle, {last} at the end")

    def _forget(self, mount: Mount, idle: Sample, show: Callable[[str], None]) -> None:
        """Let the kernel forget all that it knows of the mount; then the daemon must hold no more than at the start."""
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(b"secretfs", os.fsencode(mount.path), b"fuse.secretfs", _REMOUNT, None) != 0:
            show(f"(not all is forgotten: {os.strerror(ctypes.get_errno())})")
            return
        after = self._sample(mount, 0.0)
        end = time.monotonic() + SETTLED
        while self._left(idle, after) and time.monotonic() < end:
            time.sleep(0.5)
            after = self._sample(mount, 0.0)
        show("at first, with all values read once; and at the end, when the kernel has forgotten all:")
        show(idle.row())
        show(after.row())
        self.findings += self._left(idle, after)

    def _left(self, idle: Sample, after: Sample) -> list[str]:
        """Say what there is that there was not at first."""
        found = [f"{after.inodes} inodes are left"] if after.inodes > 5 else []  # the root, .secretfs and status.json
        for name, tolerance in LEFT.items():
            if getattr(after, name) > getattr(idle, name) + tolerance:
                found.append(f"{getattr(after, name)} {name} are left of {getattr(idle, name)}")
        return found

    def _read_log(self) -> None:
        log = self._log.read_text("utf-8", "replace")
        if leaked(log):
            self.findings.append("a secret is in the log")
        for line in log.splitlines():
            level = line.split(" ", 1)[0]
            if level not in ("INFO", "DEBUG", "WARNING", "ERROR") or (
                level == "ERROR" and not any(text in line for text in _EXPECTED)
            ):
                self.findings.append(f"log: {line}")
        self.happened["lines of log"] = log.count("\n")


def soak(seconds: float, seed: int, show: Callable[[str], None]) -> list[str]:
    """Soak for so long; returns what was found."""
    with Fixtures() as fixtures, openbao(fixtures.directory("openbao")) as server, Faulty(server.port) as way:
        run = Soak(fixtures, server, way, seed)
        run.run(seconds, show)
        for what, count in sorted(run.happened.items()):
            show(f"{count:10} {what}")
        return run.findings


def main() -> int:
    """Run, and print what comes to light."""
    parser = argparse.ArgumentParser("python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    out: IO[str] = sys.stdout
    try:
        findings = soak(60 * arguments.minutes, arguments.seed, lambda line: print(line, file=out, flush=True))
    except BenchmarkError as error:
        print(f"soak: {error}", file=sys.stderr)
        return 1
    for finding in findings:
        print(f"FINDING {finding}")
    print(f"{len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
