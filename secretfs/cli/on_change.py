"""The flags ``--on-change...``: what happens when a secret changes, and when."""

import shlex
import signal
from collections.abc import Callable
from functools import partial
from typing import Any

import click

from secretfs.cli.options import F, duration_flag
from secretfs.daemon.on_change import SETTLE, Hook, OnChange, Step
from secretfs.durations import show_duration
from secretfs.settings import nearest


def read_step(text: str) -> Step:
    """Read what happens when a secret changes: a word, a hook, or a signal with or without SIG, or its number."""
    if text == "ignore":
        return "ignore"
    if text == "restart":
        return "restart"
    if text.startswith("exec:"):
        return _hook(text.removeprefix("exec:"))
    if text.isdecimal() and int(text) in signal.valid_signals():
        return int(text)
    name = text.upper().removeprefix("SIG")
    known = {member.removeprefix("SIG"): number for member, number in signal.Signals.__members__.items()}
    if name not in known:
        hint = nearest(name, ["ignore", "restart", *known])
        raise click.BadParameter(f"{text!r} is not ignore, restart, exec:COMMAND or a signal such as HUP{hint}")
    return known[name]


def _hook(text: str) -> Hook:
    """Read a command line as a shell does, but for what a shell would replace."""
    try:
        arguments = tuple(shlex.split(text))
    except ValueError as error:
        raise click.BadParameter(f"exec: {str(error).lower()}") from None
    if not arguments:
        raise click.BadParameter("exec: names no command")
    return Hook(arguments)


def on_change(help_text: str) -> Callable[[F], F]:
    """Add the flags that say what happens when a secret changes, and when."""
    return partial(_add_flags, step_help=help_text)


def _add_flags(command: F, step_help: str) -> F:
    for name, default, help_text in (
        ("splay", 0.0, "A random time up to this is added to it, so that not all restart at once."),
        ("interval", 0.0, "Minimum time between one and the next."),
        ("delay", SETTLE, "Time from a change until that happens. Changes meanwhile count as one."),
    ):
        command = duration_flag(command, f"on-change-{name}", help_text, show_duration(default))
    return click.option(
        "--on-change",
        "step",
        type=read_step,
        default="ignore",
        metavar="ignore|restart|SIGNAL|exec:COMMAND",
        show_default=True,
        help=step_help,
    )(command)


def take_on_change(flags: dict[str, Any]) -> OnChange:
    """Take the values of these flags out of all that a command was given."""
    times = {name: flags.pop(f"on_change_{name}") for name in ("delay", "interval", "splay")}
    return OnChange(flags.pop("step"), **times)
