"""The archive that is a program: one file, which needs nothing beside it but Python and libfuse."""

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import secretfs
from tests.support.built import built
from tests.support.canary import secret
from tests.support.command import Done, end_daemons, run
from tests.support.lacking import require_fuse
from tests.support.manifests import component
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.mount, pytest.mark.timeout(3600)]  # it may have to be built first, on a busy machine


@pytest.fixture(scope="module")
def archive() -> Path:
    require_fuse()
    return built("build-archive", {})


class Command:
    """The archive under a name, with nothing of this project or of its virtual environment within reach."""

    def __init__(self, archive: Path, directory: Path) -> None:
        self._directory = directory
        self._archive = archive
        self._env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PEX_ROOT": str(directory / "unpacked"), "HOME": "/"}

    def __call__(self, name: str, *arguments: str | Path, **env: str) -> Done:
        link = self._directory / name
        if not link.is_symlink():
            link.symlink_to(self._archive)
        return run([str(link), *map(str, arguments)], env={**self._env, **env}, cwd=self._directory)


@pytest.fixture(scope="module")
def command(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Command:
    return Command(archive, tmp_path_factory.mktemp("archive"))


@pytest.fixture
def mounted(command: Command, tmp_path: Path) -> Iterator[Path]:
    """Mount with it, as mount(8) does."""
    component(tmp_path / "components", "env", "local.env", {"prefix": "ARCHIVE_"})
    (tmp_path / "mnt").mkdir()
    try:
        options = f"log-file={tmp_path / 'log'}"
        done = command(
            "mount.secretfs",
            tmp_path / "components",
            tmp_path / "mnt",
            "-o",
            options,
            ARCHIVE_KEY=secret("of the archive"),
        )
        assert (done.status, done.err) == (0, "")
        yield tmp_path / "mnt"
    finally:
        end_daemons(tmp_path / "mnt")


def test_it_is_the_command(command: Command) -> None:
    assert command("secretfs", "--version") == Done(0, f"secretfs, version {secretfs.__version__}\n", "")


def test_a_mount_of_it_is_served_on_when_its_daemon_is_killed(command: Command, mounted: Path) -> None:
    def worker() -> int | None:
        with contextlib.suppress(ValueError, KeyError):
            return int(json.loads(command("secretfs", "status", "--json", mounted).out)["mount"]["pid"])
        return None

    before = worker()
    assert before
    os.kill(before, signal.SIGKILL)
    assert (mounted / "env/KEY").read_text() == secret("of the archive")
    wait_until(lambda: worker() not in (None, before))
    assert command("secretfs", "unmount", mounted).status == 0


def test_it_installs_itself(command: Command, archive: Path, tmp_path: Path) -> None:
    assert command("secretfs", "install-units", "--root", tmp_path, "--command", archive) == Done(0, "", "")
    for link in ("usr/local/bin/secretfs", "sbin/mount.secretfs"):
        assert (tmp_path / link).readlink() == archive
    pages = subprocess.run(["ls", tmp_path / "usr/local/share/man/man1"], capture_output=True, text=True, check=True)
    assert "secretfs-mount.1" in pages.stdout
