"""``secretfs cat``: files of the tree, without a mount."""

import sys
from typing import Any, NoReturn

import click
import trio

from secretfs.cli.options import sources, take_sources
from secretfs.cli.unmounted import looking, put_out, tell
from secretfs.daemon.unmounted import path_of
from secretfs.dapr.declaration import Declaration
from secretfs.dapr.load import load_declaration
from secretfs.errors import SecretFSError


@click.command("cat")
@sources
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
def cat_command(paths: tuple[str, ...], **flags: Any) -> NoReturn:
    """Print the files at each PATH, such as vault/db/password, as `cat` in a mount would. It takes no mount.

    The bytes go to standard output as they are: no newline is added. Only the stores of these paths are opened. Scopes,
    names and errors are those of a mount; .bulk.json and all other names that are not listed can be read as well.

    \b
    Exit codes, that of the first PATH that cannot be read:
      0  all is printed
      1  there is no such file, or not for this app
      2  a mistake in flags, manifests or configuration
      4  a store does not answer, or refuses
    """  # noqa: D301
    declaration = load_declaration(take_sources(flags))
    found, code = trio.run(_read_all, declaration, paths)
    for data in found:
        put_out(data)
    sys.exit(code)


async def _read_all(declaration: Declaration, given: tuple[str, ...]) -> tuple[list[bytes], int]:
    """Read what can be read, and tell of what cannot. Returns it with the exit code."""
    found, codes, paths = list[bytes](), list[int](), [path_of(path) for path in given]
    async with looking(declaration, paths) as (tree, registry):
        registry.require()
        for path in paths:
            try:
                found.append(await tree.read(path))
            except (SecretFSError, OSError) as error:
                codes.append(await tell(tree, path, error))
    return found, codes[0] if codes else 0
