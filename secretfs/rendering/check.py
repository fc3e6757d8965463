"""Check templates before anything is mounted: their syntax, and which stores they ask."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Final

from secretfs.rendering.job import CHECKING, CPU_SECONDS, Checked, Fault

PROGRAM: Final = [sys.executable, "-P", "-m", "secretfs.rendering.server"]
"""The process that renders. It has nothing of our environment but what Python itself takes from there."""


def installed(package: str) -> bool:
    """Whether a package is there that rendering takes."""
    return importlib.util.find_spec(package) is not None


def environment() -> dict[str, str]:
    """Return the environment of the process that renders."""
    return {name: value for name, value in os.environ.items() if name.startswith("PYTHON")}


def check_templates(sources: Sequence[str]) -> list[Checked]:
    """Check templates, in a process that the kernel ends if one of them takes too long. Raises OSError."""
    found: list[Checked] = []
    while len(found) < len(sources):
        found += _check_in_a_process(sources[len(found) :])
        if len(found) < len(sources):  # the next one has ended the process
            found.append(Checked(fault=Fault(f"it takes more than {CPU_SECONDS} s to read, or too much memory")))
    return found


def _check_in_a_process(sources: Sequence[str]) -> list[Checked]:
    """Check templates up to one that ends the process. Raises OSError if it does not even begin."""
    done = subprocess.run(  # noqa: S603 - this program
        [*PROGRAM, "--check"],
        input=json.dumps(list(sources)).encode(),
        stdout=subprocess.PIPE,
        env=environment(),
        check=False,
    )
    begun, *lines = done.stdout.splitlines() or [b""]
    if begun != CHECKING:
        raise OSError("the process that checks templates does not begin")
    return [_checked(line) for line in lines]


def _checked(line: bytes) -> Checked:
    document = json.loads(line)
    if "fault" in document:
        return Checked(fault=Fault(*document["fault"]))
    stores, others = document["stores"]
    return Checked(tuple(stores), others)
