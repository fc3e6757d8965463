"""The manual pages of all that people type, and of the documents that a mount reads."""

from collections.abc import Sequence
from typing import Final

import click

import secretfs
from secretfs.cli.mount_helper import HELP, USAGE, mount_options
from secretfs.install.command_pages import command_pages, mount_helper_page, subcommands
from secretfs.install.roff import Page
from secretfs.install.yaml_page import yaml_page

DOCUMENTATION: Final = "https://github.com/secretfs/secretfs/tree/main/docs"


def manual_pages(cli: click.Group) -> Sequence[Page]:
    """Write all manual pages, from the texts of ``--help``."""
    version = secretfs.__version__
    with click.Context(cli, **cli.context_settings) as context:
        commands = dict(subcommands(cli, context))
    pages = [
        *command_pages(cli, "secretfs", version),
        mount_helper_page(USAGE, HELP, mount_options(commands["mount"]), version),
        yaml_page(version),
    ]
    names = [(page.name, page.section) for page in pages]
    for page in pages:
        page.see_also(names, DOCUMENTATION)
    return pages
