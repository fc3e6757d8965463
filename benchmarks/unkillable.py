"""Kills and restarts of the service under readers, rotations, a container, a process inside the mount and a mapping.

    python -m benchmarks.unkillable --kills 50 --restarts 20

A real systemd is booted for it, as root. Ends with 1 if anybody saw an error or a wrong byte, or waited for a second.
"""

import argparse
import sys

from tests.support.command import ROOT
from tests.support.systemd import booted
from tests.support.unkillable import Report, clear, install, participants, torment

LONGEST = 1.0
"""Seconds."""


def main() -> int:
    """Run it, and print what each participant has to say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--restarts", type=int, default=20)
    arguments = parser.parse_args()
    reports: list[Report] = []
    with booted() as system:
        system.output("chmod", "o+x", *ROOT.parents)
        system.output(ROOT / ".venv/bin/secretfs", "install-units")
        install(system)
        try:
            with participants(system, reports):
                # The unit gives up after 20 starts in 30 s, and a kill and a restart count alike.
                torment(system, kills=arguments.kills, restarts=arguments.restarts, pause=(0.5, 3.1))
        finally:
            clear(system)
    for one in reports:
        print(f"{one.who:18} {one.done:8} reads, {one.failed} failed, the longest took {one.longest:.2f} s")
        for failure in one.failures:
            print(f"    {failure}")
    return int(any(one.failed or one.longest > LONGEST for one in reports))


if __name__ == "__main__":
    sys.exit(main())
