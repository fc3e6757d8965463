"""``secretfs install-units``, and ``make install``, into a directory that stands for the root."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from secretfs.cli.main import main
from tests.support.command import ROOT, Done, run

LINKS = {"usr/local/bin/secretfs": "secretfs", "sbin/mount.secretfs": "mount.secretfs"}
UNITS = {
    f"usr/local/lib/systemd/{unit.parent.name}/{unit.name}" for unit in (ROOT / "secretfs/install/systemd").glob("*/*")
}
COMPLETIONS = {
    "usr/local/share/bash-completion/completions/secretfs",
    "usr/local/share/fish/vendor_completions.d/secretfs.fish",
    "usr/local/share/zsh/site-functions/_secretfs",
}
PAGES = {
    "usr/local/share/man/man1/secretfs.1",
    "usr/local/share/man/man1/secretfs-mount.1",
    "usr/local/share/man/man1/secretfs-apps-apply.1",
    "usr/local/share/man/man5/secretfs.yaml.5",
    "usr/local/share/man/man8/mount.secretfs.8",
}


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    """Give a directory with the two commands, as pip makes them."""
    for name in LINKS.values():
        path = tmp_path / "venv/bin" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o755)
    return tmp_path / "venv/bin"


InstallUnits = Callable[..., Done]


@pytest.fixture
def install_units(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> InstallUnits:
    """Run it in this process: the libraries of all stores take some time to import."""

    def call(root: Path, *flags: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["secretfs", "install-units", "--root", str(root), *flags])
        with pytest.raises(SystemExit) as ended:
            main()
        return Done(int(ended.value.code or 0), *capfd.readouterr())

    return call


def files(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir()}


def contents(root: Path) -> dict[str, object]:
    return {name: path.readlink() if (path := root / name).is_symlink() else path.read_bytes() for name in files(root)}


def test_it_puts_everything_where_the_system_looks(tmp_path: Path, install_units: InstallUnits, commands: Path) -> None:
    root = tmp_path / "root"
    for _ in range(2):
        assert install_units(root, f"--command={commands / 'secretfs'}") == Done(0, "", "")
        assert files(root) >= LINKS.keys() | UNITS | COMPLETIONS | PAGES
        assert {path for path in files(root) if "/man/" not in path} == LINKS.keys() | UNITS | COMPLETIONS
    for link, name in LINKS.items():
        assert (root / link).readlink() == commands / name
    for unit in UNITS:
        text = (root / unit).read_text(encoding="utf-8")
        assert ("ExecStart=/usr/local/bin/secretfs " in text) == unit.endswith(".service")
        assert "@bindir@" not in text
    assert install_units(root, f"--command={commands / 'secretfs'}", "--remove") == Done(0, "", "")
    assert files(root) == set()
    assert len(list(commands.iterdir())) == 2


def test_what_a_package_has_installed_stays(tmp_path: Path, install_units: InstallUnits, commands: Path) -> None:
    """Removing another installation, in /usr/local, leaves the package alone, whichever came last."""
    root = tmp_path / "root"
    (root / "usr/sbin").mkdir(parents=True)
    (root / "sbin").symlink_to("usr/sbin")
    package = root / "opt/secretfs/bin"
    package.mkdir(parents=True)
    for name in LINKS.values():
        (package / name).touch(mode=0o755)

    def upgrade() -> None:
        assert install_units(root, "--command=/opt/secretfs/bin/secretfs", "--prefix=/usr").status == 0

    upgrade()
    before = contents(root)
    own = f"--command={commands / 'secretfs'}"
    assert install_units(root, own, "--remove").status == 0  # there is none
    assert contents(root) == before
    assert install_units(root, own).status == 0
    upgrade()
    assert install_units(root, own, "--remove").status == 0
    assert contents(root) == before
    assert (root / "sbin/mount.secretfs").readlink() == Path("/opt/secretfs/bin/mount.secretfs")


@pytest.mark.parametrize(("verb", "flags"), [("install", ""), ("uninstall", " --remove")])
def test_make(verb: str, flags: str) -> None:
    """``make install`` and ``make uninstall`` are that command, with the variables that such targets have."""
    variables = ["DESTDIR=/root of it", "SECRETFS=/opt/secretfs/bin/secretfs", "PREFIX=/usr"]
    make = ["make", "-C", str(ROOT), "--no-print-directory", "--dry-run", "--assume-old=setup-run"]
    written = f'install-units --command "/opt/secretfs/bin/secretfs" --prefix "/usr" --root "/root of it"{flags}\n'
    assert run([*make, verb, *variables]).out == f"{ROOT}/.venv/bin/secretfs {written}"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('PRUNEFS="NFS fuse.sshfs"\n', 'PRUNEFS="NFS fuse.sshfs fuse.secretfs"\n'),
        ('PRUNEFS = "NFS"\n', 'PRUNEFS = "NFS fuse.secretfs"\n'),
        ('PRUNEFS=""\n', 'PRUNEFS="fuse.secretfs"\n'),
        ('# PRUNEFS="a"\nPRUNEPATHS="/tmp"\n', '# PRUNEFS="a"\nPRUNEPATHS="/tmp"\nPRUNEFS="fuse.secretfs"\n'),
    ],
)
def test_it_keeps_updatedb_out_of_secrets(
    tmp_path: Path, commands: Path, install_units: InstallUnits, before: str, after: str
) -> None:
    conf = tmp_path / "root/etc/updatedb.conf"
    conf.parent.mkdir(parents=True)
    conf.write_text(before, encoding="utf-8")
    for _ in range(2):
        assert install_units(tmp_path / "root", f"--command={commands / 'secretfs'}").status == 0
        assert conf.read_text(encoding="utf-8") == after
    assert install_units(tmp_path / "root", f"--command={commands / 'secretfs'}", "--remove").status == 0
    assert conf.read_text(encoding="utf-8").replace('PRUNEFS=""\n', "") == before.replace('PRUNEFS=""\n', "")


def test_a_package_chooses_the_prefix(tmp_path: Path, install_units: InstallUnits, commands: Path) -> None:
    """What belongs to the distribution has its helper of mount(8) where /sbin is a link to."""
    assert install_units(tmp_path, f"--command={commands / 'secretfs'}", "--prefix=/usr").status == 0
    unit = (tmp_path / "usr/lib/systemd/system/secretfs@.service").read_text(encoding="utf-8")
    assert "ExecStart=/usr/bin/secretfs mount " in unit
    assert (tmp_path / "usr/sbin/mount.secretfs").readlink() == commands / "mount.secretfs"


def test_a_command_that_is_one_file_is_both(tmp_path: Path, install_units: InstallUnits, commands: Path) -> None:
    (commands / "mount.secretfs").unlink()
    assert install_units(tmp_path, f"--command={commands / 'secretfs'}").status == 0
    assert (tmp_path / "sbin/mount.secretfs").readlink() == commands / "secretfs"


def test_a_command_that_is_in_its_place_stays_there(tmp_path: Path, install_units: InstallUnits) -> None:
    command = tmp_path / "usr/local/bin/secretfs"
    command.parent.mkdir(parents=True)
    for name in LINKS.values():
        (command.parent / name).touch(mode=0o755)
    for flags in ([], ["--remove"]):
        assert install_units(tmp_path, f"--command={command}", *flags).status == 0
        assert os.lstat(command).st_mode & 0o777 == 0o755
        assert not command.is_symlink()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--command=/nowhere/secretfs"], "/nowhere/secretfs is not there, or is no program"),
        (["--command=venv/secretfs"], "--command venv/secretfs: give an absolute path"),
        (["--prefix=usr"], "--prefix usr: give an absolute path"),
    ],
)
def test_what_cannot_be_is_a_mistake(tmp_path: Path, install_units: InstallUnits, flags: list[str], said: str) -> None:
    done = install_units(tmp_path, *flags)
    assert (done.status, done.out) == (2, "")
    assert said in done.err
    assert files(tmp_path) == set()


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path, install_units: InstallUnits, commands: Path) -> None:
    (tmp_path / "usr/local").mkdir(parents=True)
    (tmp_path / "usr/local/lib").touch()
    done = install_units(tmp_path, f"--command={commands / 'secretfs'}")
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith(f"secretfs: {tmp_path}/usr/local/lib")
