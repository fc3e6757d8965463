"""``scripts/test.sh``, which ``make test`` runs."""

from pathlib import Path

from tests.support.command import ROOT
from tests.support.shell import run


def test_arguments_are_passed_on_to_pytest(tmp_path: Path) -> None:
    """A path runs the tests in that path, and no others."""
    path = "tests/test_durations.py"
    done = run(ROOT / "scripts/test.sh", path, "--collect-only", "--quiet", "--no-cov", env={"TMPDIR": str(tmp_path)})
    collected = {line.partition("::")[0] for line in done.stdout.decode().splitlines() if "::" in line}
    assert collected == {path}
