"""``secretfs cat``, ``get`` and ``tree``: what they print, which may be a secret, and what they say, which may not."""

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.canary import leaked
from tests.support.command import SECRETFS, environment
from tests.support.waiting import PATIENCE


@dataclass(frozen=True)
class Looked:
    """How it ended. Secrets are on standard output alone."""

    status: int
    out: bytes
    err: str

    def __post_init__(self) -> None:
        assert "Traceback" not in self.err, self.err
        assert not leaked(self.err), "a test secret is on standard error"


def look(*arguments: str | Path, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Looked:
    """Run ``secretfs``."""
    done = subprocess.run(
        [*SECRETFS, *map(str, arguments)], env=environment(env), cwd=cwd, stdin=subprocess.DEVNULL,
        capture_output=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    return Looked(done.returncode, done.stdout, done.stderr.decode())
