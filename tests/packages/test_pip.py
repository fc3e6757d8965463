"""What README says for pip and pipx, typed as it stands. The package index is a directory of the locked wheels."""

import os
import re
import subprocess
from pathlib import Path

import pytest

import secretfs
from tests.support.built import CACHE
from tests.support.canary import secret
from tests.support.command import ROOT, Done, end_daemons, run
from tests.support.lacking import require_fuse
from tests.support.manifests import component

pytestmark = [pytest.mark.mount, pytest.mark.timeout(3600)]  # pyfuse3 may have to be compiled, on a busy machine

README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build what an index of packages would have."""
    require_fuse()
    wheels = tmp_path_factory.mktemp("index")
    env = {**os.environ, "WHEELS": str(CACHE / "wheels")}
    done = subprocess.run([ROOT / "scripts/build-wheels", wheels], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return wheels


def typed(script: str, index: Path, directory: Path) -> None:
    """Type lines of README on a machine that has nothing of this project."""
    found = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    own = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(directory), "TMPDIR": str(directory)}
    done = subprocess.run(
        ["/bin/sh", "-eu", "-c", script],
        env={**own, **found}, cwd=directory, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]


def shows_a_secret(command: Path, directory: Path) -> None:
    """Mount with a command, read, and unmount."""
    component(directory / "components", "env", "local.env", {"prefix": "SHOWN_"})
    mountpoint = directory / "mnt"
    mountpoint.mkdir()
    arguments = ["--resources-path", f"{directory}/components", "--log-file", f"{directory}/log", str(mountpoint)]
    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(directory), "SHOWN_KEY": secret("of pip")}
    try:
        assert run([str(command), "mount", *arguments], env=env) == Done(0, "", "")
        assert (mountpoint / "env/KEY").read_text() == secret("of pip")
        assert run([str(command), "unmount", str(mountpoint)], env=env).status == 0
        assert not mountpoint.is_mount()
    finally:
        end_daemons(mountpoint)


def test_with_pip(index: Path, tmp_path: Path) -> None:
    block = r"^Or with pip:\n\n```sh\n(apt-get install ([^\n]*)\n)(.*?)^```$"
    found = re.search(block, README, re.DOTALL | re.MULTILINE)
    assert found
    setup = (ROOT / "scripts/setup.sh").read_text(encoding="utf-8").partition("dev_packages=(")[0]
    assert set(found[2].split()) <= set(setup.split())  # which is what the machine of the tests has
    root = tmp_path / "root"
    script = found[3].replace("/opt/secretfs", f"{tmp_path}/opt/secretfs")
    script = re.sub(r"secretfs install-units +#", f"secretfs install-units --root {root} #", script)
    assert str(root) in script
    typed(script, index, tmp_path)
    command = tmp_path / "opt/secretfs/bin/secretfs"
    assert run([str(command), "--version"]).out == f"secretfs, version {secretfs.__version__}\n"
    assert (root / "sbin/mount.secretfs").readlink() == command.with_name("mount.secretfs")
    shows_a_secret(command, tmp_path)
    for library in ("hvac", "hypercorn"):
        typed(f"opt/secretfs/bin/python -c 'import {library}'", index, tmp_path)


def test_with_pipx(index: Path, tmp_path: Path) -> None:
    (line,) = re.findall(r"`(pipx install .*?)`", README)
    typed(line, index, tmp_path)
    command = tmp_path / ".local/bin/secretfs"
    assert run([str(command), "--version"]).out == f"secretfs, version {secretfs.__version__}\n"
    shows_a_secret(command, tmp_path)
