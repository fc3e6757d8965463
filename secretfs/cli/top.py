"""``secretfs top``: stores, readers and rotations of mounts, live on a terminal; once into a pipe."""

import contextlib
import importlib.util
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NoReturn

import click

from secretfs.cli.options import PATH
from secretfs.cli.status import Health, ago, fetch_all, file_problems, known_files, problems, severity
from secretfs.durations import show_duration
from secretfs.errors import ConfigurationError
from secretfs.linux.log import printable
from secretfs.linux.mountinfo import secretfs_mounts
from secretfs.linux.mountpoint import resolve

EVERY: Final = 1.0
"""Seconds."""

_SHORTEST: Final = 8
"""Columns for names of stores, on however narrow a terminal."""
_STYLES: Final = ("", "yellow", "red")
_COLUMNS: Final = (
    "STORE",
    "STATE",
    "VALUES",
    "STALE",
    "HIT/s",
    "COLD/s",
    "WAIT",
    "CALL/s",
    "FAILED",
    "ROTATED",
    "LAST",
)


@click.command("top")
@click.argument("mountpoint", type=PATH, required=False)
def top_command(mountpoint: Path | None) -> NoReturn:
    """Show the stores of the mount at MOUNTPOINT live: their state, who reads, who waits, what has changed.

    Without MOUNTPOINT, show all mounts that are yours. Press q or Ctrl-C to end. Into a pipe it is printed once.

    \b
    HIT/s   reads that took no wait
    COLD/s  reads that waited for the store; WAIT: those that do now
    CALL/s  calls of the store, for readers and in the background

    \b
    Exit codes:
      0  shown
      2  a mistake in flags, or the package rich is not installed
      3  there is no secretfs, it was killed, hangs, or is somebody else's
    """  # noqa: D301
    if importlib.util.find_spec("rich") is None:
        raise ConfigurationError("secretfs top needs the package rich: pip install secretfs-fuse[top]")
    path = None if mountpoint is None else resolve(mountpoint)
    mounts = _fetch(path)
    if path is not None and (error := mounts[0].error) is not None:
        raise error
    view = _View()
    if not sys.stdout.isatty():
        view.print(mounts)
        sys.exit(0)
    with contextlib.suppress(KeyboardInterrupt):
        view.live(lambda: _fetch(path))
    sys.exit(0)


def _fetch(path: Path | None) -> Sequence[Health]:
    mounts = [Path(mount.path) for mount in secretfs_mounts(os.geteuid())] if path is None else [path]
    return fetch_all(mounts)


class Rates:
    """How fast the counters of stores grow, from one look to the next."""

    def __init__(self) -> None:
        self._before: dict[tuple[str, str, str], tuple[float, int]] = {}

    def per_second(self, counter: tuple[str, str, str], count: int, now: float) -> str:
        """Return the growth of a counter since the last look; "-" at the first, and when it began anew."""
        since, before = self._before.get(counter, (now, count))
        self._before[counter] = now, count
        if now <= since or count < before:
            return "-"
        rate = (count - before) / (now - since)
        return f"{rate:.1f}" if 0 < rate < 100 else f"{rate:.0f}"


class _View:
    """Draws mounts with rich, which is imported when it is asked for."""

    def __init__(self) -> None:
        from rich.console import Console  # noqa: PLC0415 - no other command needs it

        self._console = Console(highlight=False)
        self._rates = Rates()

    def print(self, mounts: Sequence[Health]) -> None:
        """Print mounts once."""
        self._console.print(self._draw(mounts, time.time()))

    def live(self, look: Any) -> None:
        """Draw again and again, until q is pressed."""
        from rich.live import Live  # noqa: PLC0415

        with _keys() as keys, Live(console=self._console, screen=True, auto_refresh=False) as live:
            while True:
                live.update(self._draw(look(), time.time()), refresh=True)
                if _pressed_q(keys):
                    return

    def _draw(self, mounts: Sequence[Health], now: float) -> Any:
        from rich.console import Group  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        if not mounts:
            return Text("no secretfs is mounted")
        return Group(*(part for mount in mounts for part in self._mount(mount, now)))

    def _mount(self, health: Health, now: float) -> Iterator[Any]:
        from rich.text import Text  # noqa: PLC0415

        if health.status is None:
            yield Text(printable(str(health.error)), style="red")  # it names the mount
            return
        mount, stores = health.status["mount"], health.status["stores"]
        age = show_duration(max(0, int(now - datetime.fromisoformat(mount["started"]).timestamp())))
        yield Text(printable(str(health.mountpoint)), style="bold")
        numbers = f"taken over {mount['takeovers']} times, {mount['inodes']} inodes"
        yield Text(f"up {age}, process {mount['pid']}, {numbers}")
        order = sorted(stores.items(), key=lambda item: (-severity(item[1]), item[0]))
        yield self._table(str(health.mountpoint), order, now)
        for name, store in order:
            if severity(store):
                for problem in problems(name, store, now):
                    yield Text(printable(problem), style=_STYLES[severity(store)])
        for problem in file_problems(known_files(health.status), now):
            yield Text(printable(problem), style=_STYLES[1])

    def _table(self, mountpoint: str, stores: Sequence[tuple[str, Mapping[str, Any]]], now: float) -> Any:
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        rows = [
            [printable(name), store["state"], *self._numbers(mountpoint, name, store, now)] for name, store in stores
        ]
        widths = [max(map(len, column)) for column in zip(_COLUMNS, *rows, strict=True)]
        left = self._console.width - sum(widths[1:]) - len(widths)
        widths[0] = min(widths[0], max(_SHORTEST, left))  # what is too long is cut
        table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
        for title, width in zip(_COLUMNS, widths, strict=True):
            right = title not in ("STORE", "STATE", "LAST")
            table.add_column(
                title, justify="right" if right else "left", no_wrap=True, overflow="ellipsis", width=width
            )
        for row, (_, store) in zip(rows, stores, strict=True):
            table.add_row(*map(Text, row), style=_STYLES[severity(store)])
        return table

    def _numbers(self, mountpoint: str, name: str, store: Mapping[str, Any], now: float) -> Iterator[str]:
        readers = store.get("readers", {"hits": 0, "waits": 0, "waiting": 0})  # versions before have neither
        rotations = store.get("rotations", {"values": 0, "last": None})
        calls = store["calls"].values()

        def rate(what: str, count: int) -> str:
            return self._rates.per_second((mountpoint, name, what), count, now)

        yield str(store["cached_values"])
        yield str(store["stale_values"])
        yield rate("hits", readers["hits"])
        yield rate("waits", readers["waits"])
        yield str(readers["waiting"])
        yield rate("calls", sum(call["made"] for call in calls))
        yield str(sum(call["failed"] for call in calls))
        yield str(rotations["values"])
        yield ago(rotations["last"], now).removesuffix(" ago") if rotations["last"] else "-"


@contextlib.contextmanager
def _keys() -> Iterator[int | None]:
    """Read single keys from the terminal until the end of the block. Yields where; None if that is no terminal."""
    if not sys.stdin.isatty():
        yield None
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    try:
        yield descriptor
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _pressed_q(keys: int | None) -> bool:
    """Wait until it is time to look again. Returns whether q was pressed."""
    if keys is None:
        time.sleep(EVERY)
        return False
    end = time.monotonic() + EVERY
    while (left := end - time.monotonic()) > 0:
        if select.select([keys], [], [], left)[0] and os.read(keys, 1) in (b"q", b"Q", b""):
            return True
    return False
