"""``secretfs status``: the health of one mount and its stores, or of all mounts."""

import json
import os
import sys
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NoReturn

import click

from secretfs.cache.health import State
from secretfs.cli.options import PATH
from secretfs.cli.reporting import wrap
from secretfs.daemon.control_client import read_status
from secretfs.durations import show_duration
from secretfs.errors import MountError
from secretfs.linux.log import printable
from secretfs.linux.mountinfo import secretfs_mounts
from secretfs.linux.mountpoint import resolve

EXIT_UNWELL: Final = 1
WATCH_EVERY: Final = 2.0
"""Seconds."""
MOST_FILES: Final = 20
"""Rendered files that have a line, those that fail first."""


@click.command("status")
@click.option("--json", "as_json", is_flag=True, help="Print it for programs: .secretfs/status.json as it is.")
@click.option("--watch", is_flag=True, help="Show it again every 2 s, until Ctrl-C.")
@click.argument("mountpoint", type=PATH, required=False)
def status_command(mountpoint: Path | None, *, as_json: bool, watch: bool) -> NoReturn:
    """Show the health of the mount at MOUNTPOINT, its stores and rendered files, what is wrong first.

    Without MOUNTPOINT, show the health of all mounts that are yours; for root, of all mounts. No name and no value of a
    secret is ever shown. Only the user who runs a mount, and root, may read it.

    \b
    Exit codes:
      0  all is well
      1  a store is down, in doubt or refuses, old values are served, or a
         rendered file fails
      2  a mistake in flags
      3  there is no secretfs, it was killed, hangs, or is somebody else's
    """  # noqa: D301
    path = None if mountpoint is None else resolve(mountpoint)
    if watch:
        sys.exit(_watch(path, as_json=as_json))
    sys.exit(_print(*_look(path), as_json=as_json))


def _look(path: Path | None) -> "tuple[StatusReport, str]":
    """Return the status of one mount, or of all, for people and as JSON. Raises `MountError`."""
    if path is None:
        mounts = fetch_all([Path(mount.path) for mount in secretfs_mounts(os.geteuid())])
        return show_all(mounts), json.dumps([mount.to_json() for mount in mounts], indent=2) + "\n"
    status = read_status(path)
    return show(json.loads(status), path, time.time()), status.decode()


def _print(report: "StatusReport", text: str, *, as_json: bool) -> int:
    if as_json:
        click.echo(text, nl=False)
    else:
        for line in report.lines:
            click.secho(wrap(printable(line.text), sys.stdout), fg=(None, "yellow", "red")[line.severity])
    return report.exit_code


def _watch(path: Path | None, *, as_json: bool) -> int:
    """Show a status again and again. On a terminal each takes the place of the last; as JSON each is a line."""
    code = 0
    with suppress(KeyboardInterrupt):
        while True:
            try:
                report, text = _look(path)
            except MountError as error:
                report = StatusReport([Line(str(error), 2)], error.exit_code)
                text = json.dumps({"mountpoint": str(path), "error": str(error)})
            if as_json:
                text = json.dumps(json.loads(text)) + "\n"
            elif sys.stdout.isatty():
                click.clear()
            code = _print(report, text, as_json=as_json)
            if not (as_json or sys.stdout.isatty()):
                click.echo()
            sys.stdout.flush()
            time.sleep(WATCH_EVERY)
    return code


@dataclass(frozen=True, slots=True)
class Health:
    """What one mount has answered."""

    mountpoint: Path
    status: Mapping[str, Any] | None = None
    error: MountError | None = None
    """Why there is no status."""

    def to_json(self) -> Mapping[str, Any]:
        """Return it for programs."""
        return {
            "mountpoint": str(self.mountpoint),
            "error": None if self.error is None else str(self.error),
            "status": self.status,
        }


def fetch_all(mountpoints: Sequence[Path]) -> list[Health]:
    """Read the status of mounts, side by side: some may hang."""
    with ThreadPoolExecutor(len(mountpoints) or 1) as threads:
        return list(threads.map(fetch, mountpoints))


def fetch(mountpoint: Path) -> Health:
    """Read the status of a mount. That of another user may be anything."""
    try:
        health = Health(mountpoint, json.loads(read_status(mountpoint)))
        _health(health)
    except MountError as error:
        return Health(mountpoint, error=error)
    except (ValueError, LookupError, TypeError, AttributeError):
        return Health(mountpoint, error=MountError(f"what {mountpoint} answers is not a status that we can read"))
    return health


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


def show_all(mounts: Sequence[Health]) -> StatusReport:
    """Render the health of several mounts: why one does not answer first, then a table of all."""
    errors = [mount.error for mount in mounts if mount.error is not None]
    lines = [Line(str(error), 2) for error in errors]
    if not mounts:
        return StatusReport([Line("no secretfs is mounted")], 0)
    if lines:
        lines.append(Line(""))
    rows = [_health(mount) for mount in mounts]
    lines += _columns((("MOUNT POINT", "STATE", "APP ID", "STORES", "NOT WELL"), 0), rows, right={3})
    codes = [error.exit_code for error in errors] or [EXIT_UNWELL if any(severity for _, severity in rows) else 0]
    return StatusReport(lines, max(codes))


def _health(mount: Health) -> tuple[Sequence[str], int]:
    if mount.status is None:
        return (str(mount.mountpoint), "no answer", "-", "-", "-"), 2
    stores = mount.status["stores"]
    severities = {name: severity(store) for name, store in stores.items()}
    severities |= {directory: 1 for directory, files in mount.status.get("files", {}).items() if files["failing"]}
    worst = max(severities.values(), default=0)
    wrong = ", ".join(name for name, severity in severities.items() if severity) or "-"
    state = ("ok", "in doubt", "down")[worst]
    return (str(mount.mountpoint), state, mount.status["mount"]["app_id"] or "-", str(len(stores)), wrong), worst


def show(status: Mapping[str, Any], mountpoint: Path, now: float) -> StatusReport:
    """Render a status: what is wrong first, then a table of the stores, the worst first."""
    mount = status["mount"]
    stores = sorted(status["stores"].items(), key=lambda item: (-severity(item[1]), item[0]))
    wrong = [(name, store) for name, store in stores if severity(store)]
    files = known_files(status)
    lines = [Line(problem, severity(store)) for name, store in wrong for problem in problems(name, store, now)]
    lines += [Line(problem, 1) for problem in file_problems(files, now)]
    if lines:
        lines.append(Line(""))
    lines += _table(stores, now)
    lines += _files_table(files, sum(one["declared"] for one in status.get("files", {}).values()), now)
    lines += _waiting(status.get("calls", {"apps": {}})["apps"], status.get("requests", {}))
    app = f"app id {mount['app_id']}" if mount["app_id"] else "no app id"
    lines += [
        Line(""),
        *_warm_reads(mount.get("warm_reads")),  # versions before do not have it
        *_lacking(mount.get("protections", {})),  # nor this
        Line(
            f"{mountpoint}: secretfs {mount['version']}, {app}, process {mount['pid']}, since {mount['started']}, "
            f"{mount['inodes']} inodes, taken over {mount['takeovers']} times"
        ),
    ]
    return StatusReport(lines, EXIT_UNWELL if any(line.severity for line in lines) else 0)


def _warm_reads(warm: Mapping[str, str] | None) -> Iterator[Line]:
    """Say who answers warm reads, and why."""
    if warm:
        who = "the kernel" if warm["answered_by"] == "kernel" else "this daemon, by two messages each"
        yield Line(f"warm reads are answered by {who}: {warm['reason']}")


def _lacking(protections: Mapping[str, Mapping[str, Any]]) -> Iterator[Line]:
    """Say what does not protect the secrets of the daemon."""
    for name, protection in protections.items():
        if not protection["holds"]:
            yield Line(f"not protected ({name.replace('_', ' ')}): {protection['how']}", 1)


def _waiting(apps: Mapping[str, Mapping[str, int]], requests: Mapping[str, Mapping[str, int]]) -> Iterator[Line]:
    """Say which apps ask for more than is answered at once, the worst first."""
    waiting = {app: work for app, work in apps.items() if work["waiting"]}
    refused = {app: work for app, work in requests.items() if work["refused"]}
    if waiting or refused:
        yield Line("")
    for asker, work in sorted(refused.items(), key=lambda item: -item[1]["refused"]):
        whose = asker if " " in asker else f"app {asker}"  # the other is "user 1000"
        yield Line(f"{whose}: {work['waiting']} requests wait, {work['refused']} were too many (EAGAIN)")
    for app, work in sorted(waiting.items(), key=lambda item: -item[1]["waiting"]):
        whose = f"app {app}" if app else "the only app"
        yield Line(f"{whose}: {work['waiting']} calls wait for their turn, {work['running']} run")


def severity(store: Mapping[str, Any]) -> int:
    """Return how bad the state of a store is: 0, 1 or 2, as in `Line`."""
    if store["state"] == State.DOWN.value:
        return 2
    return int(store["state"] != State.OK.value or bool(store["stale_values"]))


def problems(name: str, store: Mapping[str, Any], now: float) -> Iterator[str]:
    """Say what is wrong with a store."""
    error, retry = store["last_error"], store["breaker"]["next_try"]
    why = f": {error['class']}, {ago(error['at'], now)}: {error['message']}" if error else ""
    yield f"{name} is {store['state']}{why}"
    if store["stale_values"]:
        yield f"{name} serves {store['stale_values']} of {store['cached_values']} values although they have expired"
    if retry:
        yield f"{name} is tried again {_ahead(retry, now)}; at once with secretfs refresh"


def _table(stores: Sequence[tuple[str, Mapping[str, Any]]], now: float) -> Iterator[Line]:
    header = ("STORE", "STATE", "NAMES", "CACHED", "STALE", "CALLS", "FAILED", "SUCCESS", "ERROR")
    rows: list[tuple[Sequence[str], int]] = []
    for name, store in stores:
        calls, error = store["calls"].values(), store["last_error"]
        numbers = (
            *(store["names"], store["cached_values"], store["stale_values"]),
            *(sum(call["made"] for call in calls), sum(call["failed"] for call in calls)),
        )
        failed = ago(error["at"], now) if error else "-"
        row = (name, store["state"], *map(str, numbers), ago(store["last_success"], now), failed)
        rows.append((row, severity(store)))
    return _columns((header, 0), rows, right=range(2, 7))


KnownFiles = Sequence[tuple[str, Mapping[str, Any]]]
"""Rendered files that somebody has read lately, by path: when each was rendered, and why it fails."""


def known_files(status: Mapping[str, Any]) -> KnownFiles:
    """Return the rendered files of a mount, those that fail first. Versions before have none in their status."""
    found = [
        (f"{directory}/{name}", file)
        for directory, files in status.get("files", {}).items()
        for name, file in files.get("known", {}).items()
    ]
    return sorted(found, key=lambda item: (item[1]["error"] is None, item[0]))


def file_problems(files: KnownFiles, now: float) -> Iterator[str]:
    """Say which rendered files fail, and why."""
    for path, file in files[:MOST_FILES]:
        if error := file["error"]:
            yield f"{path} cannot be rendered: {error['class']}, {ago(error['at'], now)}: {error['message']}"


def _files_table(files: KnownFiles, declared: int, now: float) -> Iterator[Line]:
    if not declared:
        return
    yield Line("")
    rows: list[tuple[Sequence[str], int]] = []
    for path, file in files[:MOST_FILES]:
        failed = ago(file["error"]["at"], now) if file["error"] else "-"
        state = "failing" if file["error"] else "ok"
        rows.append(((path, state, ago(file["rendered"], now), failed), int(bool(file["error"]))))
    if rows:
        yield from _columns((("FILE", "STATE", "RENDERED", "ERROR"), 0), rows, right=())
    failing = sum(file["error"] is not None for _, file in files[MOST_FILES:])
    if len(files) > MOST_FILES:
        more = f"{len(files) - MOST_FILES} more rendered files, {failing} of them failing: secretfs status --json"
        yield Line(more, int(bool(failing)))
    if declared > len(files):
        yield Line(f"rendered files that nobody has read lately: {declared - len(files)}")


def _columns(
    header: tuple[Sequence[str], int], rows: Sequence[tuple[Sequence[str], int]], right: Container[int]
) -> Iterator[Line]:
    """Align the columns of a table; those in ``right`` to the right."""
    everything = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*(cells for cells, _ in everything), strict=True)]
    for cells, severity in everything:
        aligned = (
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        yield Line("  ".join(aligned).rstrip(), severity)


def ago(moment: str | None, now: float) -> str:
    """Say how long ago a moment was."""
    return "never" if moment is None else f"{_span(now - datetime.fromisoformat(moment).timestamp())} ago"


def _ahead(moment: str, now: float) -> str:
    seconds = datetime.fromisoformat(moment).timestamp() - now
    return f"in {_span(seconds)}" if seconds >= 1 else "now"


def _span(seconds: float) -> str:
    """Write an age or a wait, the more roughly the longer it is."""
    unit = 3600 if seconds >= 86400 else 60 if seconds >= 3600 else 1
    return show_duration(max(0, int(seconds)) // unit * unit)
