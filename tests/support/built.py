"""What packages and archives the tests have built, each kept until anything that it is made of changes."""

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.support.command import ROOT

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "secretfs-tests")
_MADE_OF = (
    *("secretfs", "packaging", "docs", "examples", "requirements", "scripts"),
    *("README.md", "CHANGELOG.md", "LICENSE", "pyproject.toml", "setup.py"),
)


def built(script: str, env: Mapping[str, str]) -> Path:
    """Return what a script builds, which is a single file; it is run unless it has been, for exactly these files."""
    kept = CACHE / "built" / f"{script}-{_digest(env)}"
    kept.parent.mkdir(parents=True, exist_ok=True)
    with kept.with_name(f"{script}.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another run of the tests waits for what this one builds
        if not kept.exists():
            _build(script, env, kept)
    (found,) = kept.iterdir()
    return found


def _build(script: str, env: Mapping[str, str], kept: Path) -> None:
    for other in kept.parent.glob(f"{script}-*"):
        shutil.rmtree(other)
    building = kept.with_suffix(".new")
    done = subprocess.run(
        [ROOT / "scripts" / script, building],
        env={**os.environ, "WHEELS": str(CACHE / "wheels"), **env}, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-4000:]
    building.rename(kept)


def _digest(env: Mapping[str, str]) -> str:
    """Return a hash of all that goes into it: files, and the machine that builds."""
    python = subprocess.run([env.get("PYTHON", "/usr/bin/python3"), "-VV"], capture_output=True, check=True).stdout
    machine = (os.uname().machine, platform.freedesktop_os_release(), python)
    found = hashlib.sha256(repr((sorted(env.items()), machine)).encode())
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z", *_MADE_OF],
        capture_output=True, check=True,
    ).stdout.split(b"\0")  # fmt: skip
    for name in sorted(filter(None, listed)):
        path = ROOT / os.fsdecode(name)
        if path.is_file():
            found.update(name + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()[:16]
