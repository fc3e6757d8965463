"""Manual pages of commands, from the texts of ``--help``."""

import inspect
import re
from collections.abc import Iterable, Iterator
from typing import Final

import click

from secretfs.install.roff import Page, bold, escape, flags, italic

_AS_IT_IS: Final = "\b\n"
"""What begins a paragraph that click does not fill."""
_EXIT_CODES: Final = "Exit codes"
_EXIT_CODE: Final = re.compile(r"^ +(\d+) +(.*)$", re.MULTILINE)


def command_pages(
    command: click.Command, name: str, version: str, parent: click.Context | None = None
) -> Iterator[Page]:
    """Write the page of a command, and those of the commands in it."""
    with click.Context(command, parent, info_name=name, **command.context_settings) as context:
        yield _page(context, version)
        if isinstance(command, click.Group):
            for below, found in subcommands(command, context):
                yield from command_pages(found, below, version, context)


def subcommands(group: click.Group, context: click.Context) -> Iterator[tuple[str, click.Command]]:
    """Yield the commands of a group, by name."""
    for name in group.list_commands(context):
        found = group.get_command(context, name)
        if found is not None:
            yield name, found


def _page(context: click.Context, version: str) -> Page:
    command, path = context.command, context.command_path
    page = Page(path.replace(" ", "-"), 1, _summary(command), version)
    page.heading("SYNOPSIS")
    page.synopsis(path, " ".join(command.collect_usage_pieces(context)))
    page.heading("DESCRIPTION")
    exit_codes = _write_help(page, command.help or "")
    page.heading("OPTIONS")
    for option in command.get_params(context):
        record = option.get_help_record(context) if isinstance(option, click.Option) else None
        if record:
            page.item(flags(record[0]), record[1])
    if isinstance(command, click.Group):
        _write_commands(page, context, command)
    _write_exit_codes(page, exit_codes)
    return page


def mount_helper_page(usage: str, text: str, options: Iterable[tuple[str, str]], version: str) -> Page:
    """Write the page of mount.secretfs: how it is called, its help as click reads it, and the mount options."""
    page = Page("mount.secretfs", 8, "mount secrets as files, for mount(8) and fstab(5)", version)
    page.heading("SYNOPSIS")
    page.synopsis("mount.secretfs", usage)
    page.heading("DESCRIPTION")
    exit_codes = _write_help(page, text)
    page.heading("MOUNT OPTIONS")
    for name, meaning in options:
        option, equals, value = name.partition("=")
        page.item(bold(option) + (italic(f"={value}") if equals else ""), meaning)
    _write_exit_codes(page, exit_codes)
    return page


def _summary(command: click.Command) -> str:
    text = command.get_short_help_str(limit=200).rstrip(".")
    return text[:1].lower() + text[1:]


def _write_commands(page: Page, context: click.Context, group: click.Group) -> None:
    page.heading("COMMANDS")
    for name, found in subcommands(group, context):
        page.item(f"{bold(f'{page.name}-{name}')}(1)", found.get_short_help_str(limit=200))


def _write_help(page: Page, text: str) -> list[tuple[str, str]]:
    """Write the paragraphs of a help text. Returns the exit codes in it, which have a section of their own."""
    exit_codes: list[tuple[str, str]] = []
    for block in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        as_it_is = block.removeprefix(_AS_IT_IS)
        if as_it_is.startswith(_EXIT_CODES):
            exit_codes = _EXIT_CODE.findall(as_it_is)
        elif as_it_is != block:
            page.literal(as_it_is)
        else:
            page.paragraph(block)
    return exit_codes


def _write_exit_codes(page: Page, exit_codes: Iterable[tuple[str, str]]) -> None:
    page.heading("EXIT STATUS")
    for code, meaning in exit_codes:
        page.item(escape(code), meaning)
