"""The command line of the benchmarks."""

import argparse
import json
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

from benchmarks import beside, starts, vault, warm
from benchmarks.fixtures import BenchmarkError, Fixtures
from benchmarks.race import FULL, QUICK, Effort
from benchmarks.report import Section, as_charts, as_json, as_text

_EPILOG = "docs/performance.md says what each line means."


def main() -> int:
    """Measure, print the table, and write the JSON file if one is wanted."""
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__, epilog=_EPILOG)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE as well")
    parser.add_argument("--charts", type=Path, metavar="FILE", help="write charts, as Markdown with Mermaid, to FILE")
    parser.add_argument("--quick", action="store_true", help="see that everything works; the figures mean little")
    arguments = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    try:
        sections = _measure(QUICK if arguments.quick else FULL)
    except _Stopped as stopped:
        print("\ninterrupted: everything is taken down", file=sys.stderr)
        return 128 + stopped.number
    except BenchmarkError as error:
        print(f"\nbenchmarks: {error}", file=sys.stderr)
        return 1
    print(as_text(sections))
    if arguments.json:
        figures = as_json(sections, quick=arguments.quick)
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", "utf-8")
    if arguments.charts:
        arguments.charts.write_text(as_charts(sections), "utf-8")
    return 0


class _Stopped(BaseException):
    """A signal that ends us. Not an Exception, so that nothing on the way takes it for an error of its own."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _stop(number: int, _: FrameType | None) -> NoReturn:
    raise _Stopped(number)


def _measure(effort: Effort) -> list[Section]:
    with Fixtures() as fixtures:
        sections = warm.measure(fixtures, effort)
        with vault.vault(fixtures, effort) as server:
            sections.append(vault.measure(fixtures, effort, server))
            sections += starts.measure(fixtures, effort, server)
            return sections + beside.measure(fixtures, effort, server)


if __name__ == "__main__":
    sys.exit(main())
