"""Output of the commands for people: warnings, progress."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from secretfs.cli.reporting import wrap
from secretfs.linux.log import printable


def warn(text: str) -> None:
    """Show a warning."""
    click.secho(wrap(f"warning: {printable(text)}", sys.stderr), fg="yellow", err=True)


@contextmanager
def progress(steps: int, *, shown: bool = True) -> Iterator[Callable[[], None]]:
    """Show on a terminal how far the stores are, in so many steps; leave nothing of it there."""
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        show()

    def show() -> None:
        text = f"connecting to the stores: {100 * done // steps if steps else 100} %"
        click.echo(f"\r{text}", nl=False, err=True)

    if not (shown and sys.stderr.isatty()):
        yield lambda: None
        return
    try:
        show()
        yield step
    finally:
        click.echo("\r\033[K", nl=False, err=True)
