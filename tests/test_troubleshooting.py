"""docs/troubleshooting.md: what it refers to is there."""

import re

import click
import pytest

from secretfs.cli.main import command as command_of
from tests.support.command import ROOT

PAGE = ROOT / "docs/troubleshooting.md"
TEXT = PAGE.read_text(encoding="utf-8")
SOURCES = "\n".join(
    (ROOT / "secretfs/linux" / f"{name}.py").read_text(encoding="utf-8")
    for name in ("preflight", "mountpoint", "process")
)
SAID_BY_FUSERMOUNT = ("not owned by user", "too many FUSE filesystems mounted", "mount failed: Operation not permitted")


@pytest.mark.parametrize("command", sorted(set(re.findall(r"`(secretfs [a-z]+[^`]*)`", TEXT))))
def test_every_command_is_one(command: str) -> None:
    _, name, *words = command.split()
    known = command_of(name)
    flags = {flag for parameter in known.params if isinstance(parameter, click.Option) for flag in parameter.opts}
    assert {word for word in words if word.startswith("-")} <= flags


def test_what_a_refused_mount_says_is_what_it_says() -> None:
    """The quotes of the table, but for what fusermount3 says, and for the place of "..."."""
    table = TEXT.partition("| It says | Cause | Fix |")[2].partition("\n\n")[0]
    quotes = [quote for row in table.splitlines()[2:] for quote in re.findall(r"`([^`]+)`", row.split("|")[1])]
    assert len(quotes) > 10
    for quote in quotes:
        if quote in SAID_BY_FUSERMOUNT or quote.startswith("mounting over"):
            continue
        words = re.sub(r"^/dev/fuse ", "{DEVICE} ", quote).removesuffix(": Operation not permitted")
        assert words in SOURCES, quote
