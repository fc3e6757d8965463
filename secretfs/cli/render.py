"""``secretfs render``: what a rendered file would be, without mounting. Shows asterisks for every value."""

import sys
from collections.abc import Mapping
from functools import partial
from typing import Any, NoReturn

import click
import trio

from secretfs.cli.options import sources, take_sources
from secretfs.cli.output import warn
from secretfs.cli.unmounted import looking
from secretfs.daemon.unmounted import place_of
from secretfs.dapr.declaration import Declaration
from secretfs.dapr.file_views import DeclaredFile
from secretfs.dapr.load import load_declaration
from secretfs.errors import ConfigurationError, StoreError
from secretfs.fs.rendering_parts import Part, Parts
from secretfs.linux.log import printable
from secretfs.rendering.conversation import Asked
from secretfs.rendering.job import Mode
from secretfs.rendering.renderer import Renderer
from secretfs.settings import nearest


@click.command("render")
@sources
@click.option("--issue", is_flag=True, help="Have credentials issued that the file takes. They are revoked at the end.")
@click.argument("file", metavar="FILE")
def render_command(*, file: str, issue: bool, **flags: Any) -> NoReturn:
    """Render FILE with the secrets that the stores have now, and show the outcome with asterisks for all values.

    FILE is the path below the mount point, such as files/pgpass, or the name of the document. The file is rendered
    twice: with its values, to find what is wrong, and with asterisks in their place, to be shown.

    \b
    Exit codes:
      0  it can be rendered
      2  a mistake in flags, manifests or configuration, or there is no such file
      4  it cannot be rendered: a template is at fault, or a store fails
    """  # noqa: D301
    declaration = load_declaration(take_sources(flags))
    declared = _find(declaration, file)
    size, masked = trio.run(partial(_render, declaration, declared, issue=issue))
    click.echo(printable(masked) if sys.stdout.isatty() else masked, nl=False)
    if not masked.endswith("\n"):
        click.echo()
    click.echo(f"{declared.shown}: {size} bytes", err=True)
    sys.exit(0)


def _find(declaration: Declaration, wanted: str) -> DeclaredFile:
    """Find a file by its path or its name. Raises `ConfigurationError`."""
    files = declaration.files
    path = wanted.strip("/")
    if path in files:
        return files[path]
    named = [declared for declared in files.values() if declared.file.name == wanted]
    if len(named) == 1:
        return named[0]
    if named:
        paths = ", ".join(declared.shown for declared in named)
        raise ConfigurationError(f"several apps have the file {wanted}; give a path: {paths}")
    names = [*files, *(declared.file.name for declared in files.values())]
    there = nearest(path, names) if names else "; no document has kind: File"
    raise ConfigurationError(f"there is no rendered file {wanted}{there}")


async def _render(declaration: Declaration, declared: DeclaredFile, *, issue: bool) -> tuple[int, str]:
    """Return the size of a file, and the file with asterisks."""
    async with looking(declaration, [place_of(declared.shown)]) as (tree, registry):
        for failure in registry.failures:
            warn(str(failure))
        parts = Parts()
        parts.show(tree.views)
        asked = Asked(*_asking(parts, declared.prefix, issue=issue))
        renderer = Renderer()
        try:
            data = await renderer.render(declared.file.job, asked)
            masked = await renderer.render(declared.file.job, asked, Mode.MASKED)
        finally:
            renderer.close()
    return len(data), masked.decode(errors="replace")


def _asking(parts: Parts, prefix: str, *, issue: bool) -> tuple[Any, Any]:
    async def ask_secret(store: str, name: str) -> Mapping[str, bytes]:
        if parts.issues(prefix + store) and not issue:
            raise StoreError(f"{store} issues a credential for each look: --issue asks for one")
        return (await parts.get(Part(prefix + store, name))).value.values

    async def ask_folder(store: str, folder: str) -> list[str]:
        return list((await parts.get(Part(prefix + store, folder, is_folder=True))).value.names)

    return ask_secret, ask_folder
