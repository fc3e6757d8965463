"""Manual pages: they say what ``--help`` says, and man(1) can show them."""

import re
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import click
import pytest

from secretfs.cli.main import cli
from secretfs.cli.manual_pages import manual_pages
from secretfs.install.roff import Page, escape, flags
from secretfs.registry.annotations import FRESHNESS
from secretfs.settings import specs
from secretfs.stores import BUILTIN, load_store_type


@cache
def pages() -> Mapping[str, Page]:
    return {page.path: page for page in manual_pages(cli)}


def shown(page: Page) -> str:
    """Return a page as a terminal shows it, without bold, all in one line."""
    done = subprocess.run(
        ["mandoc", "-T", "ascii", "-O", "width=100"], input=str(page), capture_output=True, text=True, check=True
    )
    return " ".join(re.sub(".\b", "", done.stdout).split())


def commands(command: click.Command, path: str, parent: click.Context | None = None) -> Iterator[tuple[str, str]]:
    """Yield every command by its page, with all that its help has."""
    with click.Context(command, parent, info_name=path, **command.context_settings) as context:
        yield path, " ".join(f"{option.get_help_record(context) or ''}" for option in command.get_params(context))
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                found = command.get_command(context, name)
                assert found is not None
                yield from commands(found, f"{path}-{name}", context)


def test_every_command_has_a_page_with_its_flags() -> None:
    found = dict(commands(cli, "secretfs"))
    others = {"man5/secretfs.yaml.5", "man8/mount.secretfs.8"}
    assert set(pages()) == {f"man1/{name}.1" for name in found} | others
    for name, options in found.items():
        text = shown(pages()[f"man1/{name}.1"])
        for flag in re.findall(r"--[a-z0-9-]+", options):
            assert flag in text, (name, flag)


@pytest.mark.parametrize("path", sorted(pages()))
def test_it_is_what_man_understands(path: str, tmp_path: Path) -> None:
    """mandoc(1) finds nothing to complain of but that pages have no date: they are those of a version."""
    page = tmp_path / Path(path).name  # its section is what follows the last dot, in whatever directory that is
    page.write_text(str(pages()[path]), encoding="utf-8")
    done = subprocess.run(["mandoc", "-T", "lint", "-W", "warning", page], capture_output=True, text=True, check=False)
    assert [line for line in done.stdout.splitlines() if "missing date" not in line] == []


def test_a_command() -> None:
    text = shown(pages()["man1/secretfs-mount.1"])
    assert "secretfs-mount - mount the secrets at a directory" in text
    assert "secretfs mount [OPTIONS] MOUNTPOINT" in text
    assert "-h, --help Show this message and exit. EXIT STATUS" in text
    assert "MOUNTPOINT" not in text.partition("OPTIONS --")[2]
    assert "EXIT STATUS 0 mounted 2 a mistake in flags, manifests or configuration" in text
    assert "Exit codes:" not in text
    assert "secretfs-unmount(1)" in text.partition("SEE ALSO")[2]


def test_the_helper_of_mount() -> None:
    text = shown(pages()["man8/mount.secretfs.8"])
    assert "mount.secretfs SPEC DIRECTORY [-sfnv]" in text
    assert "app-id=ID The app whose view this is" in text
    assert "allow-other Let other users in" in text


def test_the_documents_have_every_annotation_store_and_setting() -> None:
    text = shown(pages()["man5/secretfs.yaml.5"])
    for word in (*FRESHNESS, *BUILTIN, "kind: App", "kind: File", "kind: Configuration", "defaultAccess: deny"):
        assert word in text
    for type_name in BUILTIN:
        for spec in specs(load_store_type(type_name).Settings).values():
            assert spec.name in text, (type_name, spec.name)


@pytest.mark.parametrize("text", [".not a request", "'nor this", r"a \n that is none", "--flag", "it's `code`"])
def test_text_stays_text(text: str) -> None:
    page = Page("page", 1, "a page", "1")
    page.heading("DESCRIPTION")
    page.paragraph(text)
    page.literal(f"first\n{text}")
    assert shown(page).count(text) == 2
    assert escape("plain") == "plain"


def test_flags_stand_out_from_what_follows_them() -> None:
    assert flags("-f, --foreground") == r"\fB\-f\fR, \fB\-\-foreground\fR"
    assert flags("--ttl TIME") == r"\fB\-\-ttl\fR \fITIME\fR"
