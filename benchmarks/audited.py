"""What an audit log costs those who read: ratios to the same mount without one, in turns in the same run.

    python -m benchmarks.audited

As root it measures mounts in which the kernel opens files by itself where it may, unless ``--no-kernel-answers``
is given.
"""

import argparse
import contextlib
import json
import os
import sys
import time
from functools import partial
from pathlib import Path

from benchmarks.fixtures import BenchmarkError, Fixtures, Mount
from benchmarks.names import STORE, file_names
from benchmarks.race import FULL, QUICK, Effort, race
from benchmarks.report import SECRETFS, Section, as_text
from benchmarks.warm import local_store, race_readers, read, read_all

NONE = "no audit"
_OPENS = 100  # of one file, which are timed together
_PATIENCE = 30.0  # seconds for the kernel to be told to open files by itself


def main() -> int:
    """Measure and print the tables: one for each mode, in which `NONE` is what is compared with."""
    parser = argparse.ArgumentParser("python -m benchmarks.audited", description=__doc__)
    parser.add_argument("--no-kernel-answers", action="store_true", help="in mounts with that flag")
    parser.add_argument("--quick", action="store_true", help="see that everything works; the figures mean little")
    arguments = parser.parse_args()
    try:
        with Fixtures() as fixtures:
            effort = QUICK if arguments.quick else FULL
            modes = ("observe", "strict")
            kernel_answers = os.geteuid() == 0 and not arguments.no_kernel_answers
            sections = [_measure(fixtures, effort, mode, kernel_answers=kernel_answers) for mode in modes]
    except BenchmarkError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    print(as_text(sections))
    return 0


def _measure(fixtures: Fixtures, effort: Effort, mode: str, *, kernel_answers: bool) -> Section:
    section = Section(f"--audit={mode}", (NONE,))
    resources = local_store(fixtures, effort.names)
    common = [] if kernel_answers else ["--no-kernel-answers"]
    audit = [f"--audit={mode}", f"--audit-to={fixtures.directory('audit') / 'log'}"]
    with contextlib.ExitStack() as stack:
        mounts = {
            SECRETFS: stack.enter_context(fixtures.secretfs(resources, options=[*common, *audit])),
            NONE: stack.enter_context(fixtures.secretfs(resources, options=common)),
        }
        stores = {name: mount.path / STORE for name, mount in mounts.items()}
        paths = {name: [str(store / file) for file in file_names(effort.names)] for name, store in stores.items()}
        if kernel_answers:
            _wait_for_kernel(mounts[NONE])
        for each in paths.values():
            read_all(each)
        once = {name: partial(_read_often, each[0]) for name, each in paths.items()}
        section.add("open, fstat, read, close", race(once, rounds=effort.rounds, operations=_OPENS))
        every = {name: partial(read_all, each) for name, each in paths.items()}
        rounds = max(3, effort.rounds // 2)
        title = f"open, read, close of {effort.names} files, each"
        section.add(title, race(every, rounds=rounds, operations=effort.names))
        section.add("open, read, close by 4 processes at once", race_readers(fixtures, stores, effort))
    return section


def _read_often(path: str) -> None:
    for _ in range(_OPENS):
        read(path)


def _wait_for_kernel(mount: Mount) -> None:
    end = time.monotonic() + _PATIENCE
    while _answered_by(mount.path) != "kernel":
        if time.monotonic() > end:
            raise BenchmarkError("the kernel does not open files by itself here")
        time.sleep(0.1)


def _answered_by(mount: Path) -> str:
    status = json.loads((mount / ".secretfs/status.json").read_bytes())
    return str(status["mount"]["warm_reads"]["answered_by"])


if __name__ == "__main__":
    sys.exit(main())
