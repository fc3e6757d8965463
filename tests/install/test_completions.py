"""Completions, as a shell that has them installed asks for them."""

import os
import shlex
from pathlib import Path

import pytest

from secretfs.cli.main import cli
from secretfs.install.files import Place, install
from tests.support.command import ROOT, Done, run

SECRETFS = ROOT / ".venv/bin/secretfs"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    install(Place(Path("/usr/local"), root), {"secretfs": SECRETFS, "mount.secretfs": SECRETFS}, cli, [])
    return root / "usr/local"


def complete(installed: Path, *words: str, directory: Path = ROOT) -> list[str]:
    """Return what bash offers for the last of the words."""
    script = f"""
        compopt() {{ :; }}
        complete() {{ function=$4; test "${{@: -1}}" = secretfs; }}
        source {shlex.quote(str(installed / "share/bash-completion/completions/secretfs"))}
        COMP_WORDS=({shlex.join(words)}) COMP_CWORD={len(words) - 1}
        "$function" secretfs {shlex.quote(words[-1])}
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    path = f"{SECRETFS.parent}:{os.environ['PATH']}"
    done: Done = run(["bash", "-euc", script], env={**os.environ, "PATH": path}, cwd=directory)
    assert (done.status, done.err) == (0, "")
    return done.out.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["secretfs", "m"], {"mount"}),
        (["secretfs", "un"], {"unmount"}),
        (["secretfs", "apps", ""], {"apply", "list", "remove"}),
        (["secretfs", "mount", "--log-f"], {"--log-file", "--log-format"}),
        (["secretfs", "mount", "--log-format", ""], {"text", "json"}),
    ],
    ids=str,
)
def test_bash(installed: Path, words: list[str], offered: set[str]) -> None:
    assert set(complete(installed, *words)) == offered


def test_the_scripts_are_for_the_shells_that_find_them(installed: Path) -> None:
    assert (
        (installed / "share/zsh/site-functions/_secretfs").read_text(encoding="utf-8").startswith("#compdef secretfs")
    )
    fish = (installed / "share/fish/vendor_completions.d/secretfs.fish").read_text(encoding="utf-8")
    assert "complete --no-files --command secretfs" in fish
