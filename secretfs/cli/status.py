"""``secretfs status``: the status of a mount, for people."""

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NoReturn

import click

from secretfs.cache.health import State
from secretfs.cli.options import PATH
from secretfs.daemon.control_client import read_status
from secretfs.linux.log import printable
from secretfs.linux.mountpoint import resolve

EXIT_TROUBLE: Final = 1

_SEVERITY: Final = {state.value: place for place, state in enumerate(State)}


@click.command("status", short_help="Say how a mount and its stores do.")
@click.option("--json", "as_json", is_flag=True, help="Print it for programs: .secretfs/status.json as it is.")
@click.argument("mountpoint", type=PATH)
def status_command(mountpoint: Path, *, as_json: bool) -> NoReturn:
    """Say how the mount at MOUNTPOINT and its stores do: what is wrong first. Never shows a name or value of a secret.

    Only the user who runs the mount may ask.

    \b
    Exit codes:
      0  all is well
      1  a store is down, in doubt or refuses, or old values are served
      3  there is no secretfs, it was killed, hangs, or is somebody else's
    """  # noqa: D301
    path = resolve(mountpoint)
    text = read_status(path)
    shown = show(json.loads(text), path, time.time())
    if as_json:
        click.echo(text, nl=False)
        sys.exit(shown.exit_code)
    for line in shown.lines:
        click.secho(printable(line.text), fg=(None, "yellow", "red")[line.severity])
    sys.exit(shown.exit_code)


@dataclass(frozen=True, slots=True)
class Line:
    """A line of what is shown, and whether it is about something that is wrong."""

    text: str
    severity: int = 0
    """0 for what is well, 1 for what is in doubt, 2 for what is down."""


@dataclass(frozen=True, slots=True)
class StatusReport:
    """A status as people see it."""

    lines: Sequence[Line]
    exit_code: int


def show(status: Mapping[str, Any], mountpoint: Path, now: float) -> StatusReport:
    """Render a status: what is wrong first, then a table of the stores, the worst first."""
    mount = status["mount"]
    stores = sorted(status["stores"].items(), key=lambda item: (-_severity(item[1]), item[0]))
    wrong = [(name, store) for name, store in stores if _severity(store)]
    lines = [Line(trouble, _severity(store)) for name, store in wrong for trouble in _troubles(name, store, now)]
    if lines:
        lines.append(Line(""))
    lines += [Line(text, severity) for text, severity in _table(stores, now)]
    app = f"app id {mount['app_id']}" if mount["app_id"] else "no app id"
    lines += [
        Line(""),
        Line(
            f"{mountpoint}: secretfs {mount['version']}, {app}, process {mount['pid']}, since {mount['started']}, "
            f"{mount['inodes']} inodes, {mount['open_files']} open files, taken over {mount['takeovers']} times"
        ),
    ]
    return StatusReport(lines, EXIT_TROUBLE if wrong else 0)


def _severity(store: Mapping[str, Any]) -> int:
    if store["state"] == State.DOWN.value:
        return 2
    return int(store["state"] != State.OK.value or bool(store["stale_values"]))


def _troubles(name: str, store: Mapping[str, Any], now: float) -> Iterator[str]:
    """Say what is wrong with a store."""
    error, retry = store["last_error"], store["breaker"]["next_try"]
    why = f": {error['class']}, {_ago(error['at'], now)}: {error['message']}" if error else ""
    yield f"{name} is {store['state']}{why}"
    if store["stale_values"]:
        yield f"{name} serves {store['stale_values']} of {store['cached_values']} values although they have expired"
    if retry:
        yield f"{name} is tried again {_ahead(retry, now)}; at once with secretfs refresh"


def _table(stores: Sequence[tuple[str, Mapping[str, Any]]], now: float) -> Iterator[tuple[str, int]]:
    header = ("STORE", "STATE", "NAMES", "CACHED", "STALE", "CALLS", "FAILED", "LAST SUCCESS", "LAST ERROR")
    rows = [(header, 0)]
    for name, store in stores:
        calls, error = store["calls"].values(), store["last_error"]
        numbers = (
            *(store["names"], store["cached_values"], store["stale_values"]),
            *(sum(call["made"] for call in calls), sum(call["failed"] for call in calls)),
        )
        told = f"{error['class']} {_ago(error['at'], now)}" if error else "-"
        row = (name, store["state"], *map(str, numbers), _ago(store["last_success"], now), told)
        rows.append((row, _severity(store)))
    widths = [max(len(row[column]) for row, _ in rows) for column in range(len(header))]
    for row, severity in rows:
        cells = (
            cell.rjust(width) if 2 <= column <= 6 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip(), severity


def _ago(moment: str | None, now: float) -> str:
    return "never" if moment is None else f"{_span(now - datetime.fromisoformat(moment).timestamp())} ago"


def _ahead(moment: str, now: float) -> str:
    seconds = datetime.fromisoformat(moment).timestamp() - now
    return f"in {_span(seconds)}" if seconds >= 1 else "now"


def _span(seconds: float) -> str:
    whole = max(0, int(seconds))
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if whole >= 2 * size:
            return f"{whole // size}{unit}"
    return f"{whole}s"
