"""``make install`` and ``make uninstall``, into a directory that stands for the root."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.command import ROOT
from tests.support.shell import run

LINKS = {"usr/local/bin/secretfs": "secretfs", "sbin/mount.secretfs": "mount.secretfs"}
UNITS = {f"usr/local/lib/systemd/{kind}/secretfs@.service" for kind in ("system", "user")}


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    """Give a directory with the two commands, as pip makes them."""
    for name in LINKS.values():
        path = tmp_path / "venv/bin" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o755)
    return tmp_path / "venv/bin"


def script(verb: str, root: Path, command: Path, **env: str) -> subprocess.CompletedProcess[bytes]:
    return run(
        ROOT / "scripts/install.sh", verb, env={"DESTDIR": str(root), "SECRETFS": str(command), "PREFIX": "", **env}
    )


def files(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir()}


def test_it_puts_links_and_units_where_the_system_looks(tmp_path: Path, commands: Path) -> None:
    root = tmp_path / "root"
    for _ in range(2):
        assert script("install", root, commands / "secretfs").returncode == 0
        assert files(root) == LINKS.keys() | UNITS
    for link, name in LINKS.items():
        assert (root / link).readlink() == commands / name
    for unit in UNITS:
        assert "ExecStart=/usr/local/bin/secretfs mount " in (root / unit).read_text(encoding="utf-8")
        assert "@bindir@" not in (root / unit).read_text(encoding="utf-8")
    assert script("uninstall", root, commands / "secretfs").returncode == 0
    assert files(root) == set()
    assert len(list(commands.iterdir())) == 2


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('PRUNEFS="NFS fuse.sshfs"\n', 'PRUNEFS="NFS fuse.sshfs fuse.secretfs"\n'),
        ('PRUNEFS = "NFS"\n', 'PRUNEFS = "NFS fuse.secretfs"\n'),
        ('# PRUNEFS="a"\nPRUNEPATHS="/tmp"\n', '# PRUNEFS="a"\nPRUNEPATHS="/tmp"\nPRUNEFS="fuse.secretfs"\n'),
    ],
)
def test_it_keeps_updatedb_out_of_secrets(tmp_path: Path, commands: Path, before: str, after: str) -> None:
    root = tmp_path / "root"
    conf = root / "etc/updatedb.conf"
    conf.parent.mkdir(parents=True)
    conf.write_text(before, encoding="utf-8")
    for _ in range(2):
        assert script("install", root, commands / "secretfs").returncode == 0
        assert conf.read_text(encoding="utf-8") == after
    assert script("uninstall", root, commands / "secretfs").returncode == 0
    assert conf.read_text(encoding="utf-8").replace('PRUNEFS=""\n', "") == before


def test_a_package_chooses_the_prefix(tmp_path: Path, commands: Path) -> None:
    root = tmp_path / "root"
    assert script("install", root, commands / "secretfs", PREFIX="/usr").returncode == 0
    unit = (root / "usr/lib/systemd/system/secretfs@.service").read_text(encoding="utf-8")
    assert "ExecStart=/usr/bin/secretfs mount " in unit


def test_a_command_that_is_in_its_place_stays_there(tmp_path: Path) -> None:
    root = tmp_path / "root"
    command = root / "usr/local/bin/secretfs"
    command.parent.mkdir(parents=True)
    for name in LINKS.values():
        (command.parent / name).touch(mode=0o755)
    for verb in ("install", "uninstall"):
        assert script(verb, root, command).returncode == 0
        assert os.lstat(command).st_mode & 0o777 == 0o755
        assert not command.is_symlink()


def test_without_the_command_it_says_what_to_do(tmp_path: Path) -> None:
    done = script("install", tmp_path, tmp_path / "nowhere/secretfs")
    assert done.returncode == 1
    assert done.stderr.decode().startswith(
        f"install: there is no {tmp_path}/nowhere/secretfs with mount.secretfs beside it"
    )
    assert files(tmp_path) == set()
