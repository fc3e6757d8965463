"""``secretfs init``: a first component, commented, and what to type next."""

import os
import shlex
import sys
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from string import Template
from typing import Final, NoReturn

import click
import trio

from secretfs.cache.freshness import Freshness
from secretfs.cli.check import examine, print_found
from secretfs.cli.options import PATH
from secretfs.cli.output import progress
from secretfs.cli.starters import STARTERS, Question, Starter, component
from secretfs.dapr.component import load_manifests
from secretfs.dapr.load import load_declaration
from secretfs.dapr.sources import Sources
from secretfs.errors import ConfigurationError
from secretfs.settings import nearest

_DEFAULT: Final = "vault"


def _answer(text: str) -> tuple[str, str]:
    """Read PROPERTY=VALUE."""
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise click.BadParameter(f"{text!r} is not PROPERTY=VALUE")
    return name, value


def _store(text: str) -> str:
    """Read the name of a starter."""
    if text not in STARTERS:
        raise click.BadParameter(f"{text!r} is none of {', '.join(STARTERS)}{nearest(text, STARTERS)}")
    return text


@click.command("init")
@click.option("--store", type=_store, metavar="TYPE", help="The kind of store: one of those below.")
@click.option("--name", default="", metavar="NAME", help="What the store is called in the mount.  [default: by type]")
@click.option(
    "--set", "answers", type=_answer, multiple=True, metavar="PROPERTY=VALUE",
    help="Answer a question beforehand, such as vaultAddr=https://vault.example:8200. Repeatable.",
)  # fmt: skip
@click.option("--no-connect", "offline", is_flag=True, help="Do not look whether the store answers.")
@click.argument("directory", type=PATH, default="components")
def init_command(
    directory: Path, *, store: str | None, name: str, answers: tuple[tuple[str, str], ...], offline: bool
) -> NoReturn:
    """Write a commented component for a store into DIRECTORY (components), and check it as `check --connect` does.

    On a terminal it asks for what no flag says. Nothing is overwritten, and no secret is asked for: the component says
    where the credentials are.

    \b
    Types:
      vault           kubernetes      aws             aws-parameters
      azure           gcp             file            directory
      env             keyring         sops            alicloud
      huaweicloud     tencentcloud

    \b
    Exit codes:
      0  it is written, and all is well
      1  it is written, and there are warnings: the store is empty yet
      2  a mistake in flags, and nothing is written; or something is missing,
         such as the file with the token
      4  it is written, and the store does not answer, or refuses
    """  # noqa: D301
    asks = sys.stdin.isatty() and sys.stdout.isatty()
    store = store or _ask_for_store(asks=asks)
    starter = STARTERS[store]
    name = name or starter.name or store
    path = directory / f"{name}.yaml"
    _require_room(directory, path, name)
    found = _ask(starter, dict(answers), asks=asks)
    _write(directory, path, component(store, name, found))
    _make_place(starter, found)
    code = _check(directory, connect=not offline)
    _say_what_is_next(starter, found, directory)
    sys.exit(code)


def _ask_for_store(*, asks: bool) -> str:
    if not asks:
        raise ConfigurationError(f"--store is missing; it is one of {', '.join(STARTERS)}")
    for name, starter in STARTERS.items():
        click.echo(f"  {name:15}{starter.title}")
    return str(click.prompt("Store", default=_DEFAULT, value_proc=_store))


def _ask(starter: Starter, given: dict[str, str], *, asks: bool) -> dict[str, str]:
    """Return the answers to all questions of a starter. Raises `ConfigurationError` for what only a user can say."""
    known = [question.setting for question in starter.questions]
    for name in given:
        if name not in known:
            raise ConfigurationError(
                f"--set {name}: the questions are {', '.join(known)}{nearest(name, known)}; edit the file for the rest"
            )
    return {
        question.setting: given.get(question.setting) or _ask_one(question, asks=asks) for question in starter.questions
    }


def _ask_one(question: Question, *, asks: bool) -> str:
    if asks:
        return str(click.prompt(question.text, default=question.proposal or None))
    if not question.proposal:
        raise ConfigurationError(f"--set {question.setting}=VALUE is missing: {question.text.lower()}")
    return question.proposal


def _require_room(directory: Path, path: Path, name: str) -> None:
    """Refuse to write a file that is there, or a store that another file declares. Raises `ConfigurationError`."""
    if os.path.lexists(path):
        raise ConfigurationError(f"{path} is there already, and nothing is overwritten; --name gives it another name")
    if directory.is_dir():
        for declared, _ in load_manifests([directory], namespace=os.environ.get("NAMESPACE", "")).components:
            if declared.name == name:
                raise ConfigurationError(f"{declared.source} declares {name} already; --name gives it another name")


def _write(directory: Path, path: Path, text: str) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise ConfigurationError(f"{error.filename or path}: {error.strerror}") from None
    click.echo(f"wrote {path}")


def _make_place(starter: Starter, answers: Mapping[str, str]) -> None:
    """Make the empty file or directory that a local store needs, for its owner alone, if there is none."""
    made = Path(answers[starter.file or starter.directory]) if starter.file or starter.directory else None
    if made is None or os.path.lexists(made):
        return
    try:
        if starter.directory:
            made.mkdir(mode=0o700, parents=True)
        else:
            with os.fdopen(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
                file.write("{}\n")
    except OSError as error:
        raise ConfigurationError(f"{error.filename or made}: {error.strerror}") from None
    click.echo(f"made {made}, empty, for you alone")


def _say_what_is_next(starter: Starter, answers: Mapping[str, str], directory: Path) -> None:
    flag = f"--resources-path {shlex.quote(str(directory))}"
    quoted = {name: shlex.quote(value) for name, value in answers.items()}
    first = (Template(line).substitute(quoted) for line in starter.first)
    _say("Write a first secret. Where that waits, type the secret, then Ctrl-D:", first)
    _say("Look, and mount:", (f"secretfs tree {flag}", f"secretfs mount {flag} /mnt/secrets"))


def _say(heading: str, lines: Iterable[str]) -> None:
    click.echo(f"\n{heading}\n")
    for line in lines:
        click.echo(f"    {line}")


def _check(directory: Path, *, connect: bool) -> int:
    """Do what `secretfs check` does. Returns its exit code."""
    connecting = " --connect" if connect else ""
    click.echo(f"\n$ secretfs check{connecting} --resources-path {shlex.quote(str(directory))}")
    declaration = load_declaration(Sources((directory,)))
    with progress(2 * len(declaration.components), shown=connect) as step:
        found = trio.run(partial(examine, declaration, Freshness(), connect=connect, step=step))
    print_found(found)
    return found.exit_code(strict=False)
