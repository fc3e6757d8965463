"""``secretfs get``: one value, or all keys of a secret, without a mount."""

import sys
from typing import Any, NoReturn

import click
import trio

from secretfs.cli.options import sources, take_sources
from secretfs.cli.unmounted import looking, put_out, tell
from secretfs.daemon.unmounted import path_of
from secretfs.dapr.declaration import Declaration
from secretfs.dapr.load import load_declaration
from secretfs.errors import ConfigurationError, SecretFSError
from secretfs.fs.keys import Bulk


@click.command("get")
@sources
@click.option(
    "--format",
    "form",
    type=click.Choice([form.value for form in Bulk]),
    metavar="FORM",
    help="Which bulk file to print of a secret with keys, or a store: json, env, export.env, properties or yaml."
    "  [default: json]",
)
@click.argument("path")
def get_command(path: str, *, form: str | None, **flags: Any) -> NoReturn:
    """Print the secret at PATH: a value such as vault/db/password, all keys of vault/db, or the whole store vault.

    A value is printed as it is; a newline follows on a terminal, and nowhere else. It takes no mount: only the store of
    PATH is opened, and the scopes are those of a mount.

    \b
    Exit codes:
      0  it is printed
      1  there is no such secret, or not for this app; or PATH is a folder
      2  a mistake in flags, manifests or configuration
      4  a store does not answer, or refuses
    """  # noqa: D301
    declaration = load_declaration(take_sources(flags))
    found = trio.run(_get, declaration, path, form)
    if found is None:
        raise ConfigurationError(f"--format: {path} is a single value, which is printed as it is")
    if isinstance(found, int):
        sys.exit(found)
    put_out(found + b"\n" if sys.stdout.isatty() and not found.endswith(b"\n") else found)
    sys.exit(0)


async def _get(declaration: Declaration, given: str, form: str | None) -> bytes | int | None:
    """Return what is to be printed, or the exit code when it cannot be read; None for a value that has no format."""
    path = path_of(given)
    async with looking(declaration, [path]) as (tree, registry):
        registry.require()
        try:
            found = await tree.read_whole(path, Bulk(form or Bulk.JSON))
            return await tree.read(path) if found is None and form is None else found
        except (SecretFSError, OSError) as error:
            return await tell(tree, path, error)
