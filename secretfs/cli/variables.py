"""The flags of ``secretfs run`` that make environment variables of secrets."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from secretfs.daemon.variables import Variable, Variables, is_name, is_path
from secretfs.errors import ConfigurationError

F = TypeVar("F", bound=Callable[..., Any])


def _path(text: str) -> str:
    """Read a path below the mount point."""
    if not is_path(text):
        raise click.BadParameter(f"{text!r} is not STORE/SECRET or STORE/SECRET/KEY, as below the mount point")
    return text


def _name(text: str) -> str:
    if not is_name(text):
        raise click.BadParameter(f"{text!r} cannot be the name of a variable: it takes letters, digits and _")
    return text


def _variable(text: str) -> Variable:
    """Read NAME=PATH."""
    name, equals, path = text.partition("=")
    if not equals:
        raise click.BadParameter(f"{text!r} is not NAME=STORE/SECRET or NAME=STORE/SECRET/KEY")
    return Variable(_name(name), _path(path))


def variables(command: F) -> F:
    """Add the flags."""
    for option in (
        click.option("--mask", is_flag=True, help="Show *** for values of these variables in the command's output."),
        click.option(
            "--env-prefix",
            type=_name,
            default=None,
            metavar="PREFIX",
            help="Put this before the names of the variables that --env-from sets.",
        ),
        click.option(
            "--env-from",
            type=_path,
            multiple=True,
            metavar="STORE/SECRET",
            help="Set a variable for each key of a secret, of the key's name. Repeatable.",
        ),
        click.option(
            "--env",
            type=_variable,
            multiple=True,
            metavar="NAME=STORE/SECRET[/KEY]",
            help="Set an environment variable of the command, when it starts. Repeatable.",
        ),
    ):
        command = option(command)
    return command


def take_variables(flags: dict[str, Any]) -> Variables:
    """Take the values of these flags out of all that the command was given. Raises `ConfigurationError`."""
    single, directories, prefix = (flags.pop(name) for name in ("env", "env_from", "env_prefix"))
    if prefix is not None and not directories:
        raise ConfigurationError("--env-prefix is for --env-from: give that as well, or leave this out")
    return Variables(single, directories, prefix or "")
