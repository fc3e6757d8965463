"""The image: what is in it, and what is not."""

import json
import re
import subprocess
import tarfile
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

import secretfs
from tests.support.command import ROOT

pytestmark = pytest.mark.timeout(3600)  # the image may have to be built first, on a busy machine

LOCKED = re.compile(r"^([a-z0-9-]+)==(\S+)", re.MULTILINE)


@pytest.fixture(scope="module")
def root(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpack the layers of the image."""
    directory: Path = tmp_path_factory.mktemp("root")
    directory.chmod(0o755)
    with tarfile.open(image) as archive:
        for layer in _manifest(archive)["layers"]:
            content = archive.extractfile(_blob(layer["digest"]))
            assert content
            subprocess.run(["tar", "-x", "-z", "-C", directory], input=content.read(), check=True)
    return directory


def _blob(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _json(archive: tarfile.TarFile, name: str) -> dict[str, Any]:
    file = archive.extractfile(name)
    assert file
    return dict(json.load(file))


def _manifest(archive: tarfile.TarFile) -> dict[str, Any]:
    return _json(archive, _blob(_json(archive, "index.json")["manifests"][0]["digest"]))


def run(root: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a program in the image, as the user that it names."""
    alone = [
        "/usr/bin/unshare",
        "--mount",
        "--propagation=private",
        f"--root={root}",
        "--setuid=65532",
        "--setgid=65532",
        "--",
    ]
    env = {"PATH": "/opt/secretfs/bin", "LC_ALL": "C.UTF-8"}
    return subprocess.run([*alone, *command], env=env, capture_output=True, text=True, check=False)


def test_its_labels_and_its_user(image: Path) -> None:
    with tarfile.open(image) as archive:
        config = _json(archive, _blob(_manifest(archive)["config"]["digest"]))["config"]
    assert config["User"] == "65532:65532"
    assert config["Cmd"] == ["secretfs", "--help"]
    assert config["Labels"]["org.opencontainers.image.version"] == secretfs.__version__
    assert config["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"


def test_it_has_no_shell_and_nothing_that_installs(root: Path) -> None:
    names = {PurePosixPath(path).name for path in map(str, root.rglob("*")) if "/bin/" in path or "/sbin/" in path}
    assert {"secretfs", "python3.11"} <= names
    assert not names & {"sh", "bash", "dash", "busybox", "apt", "dpkg", "pip", "pip3", "gcc", "perl", "tar"}


def test_the_command_runs_in_it_as_its_user(root: Path) -> None:
    done = run(root, "secretfs", "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert secretfs.__version__ in done.stdout


def test_every_module_can_be_imported_in_it(root: Path) -> None:
    """So no library is missing that a package of Debian would have, nor one of Python."""
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in sorted((ROOT / "secretfs").rglob("*.py"))
        if path.name not in ("__main__.py", "__init__.py", "testing.py")
    ]
    program = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)"
    done = run(root, "python", "-c", program, *modules)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_shared_library_finds_those_that_it_needs(root: Path) -> None:
    libraries = [path for path in root.rglob("*.so*") if path.is_file() and not path.is_symlink()]
    assert len(libraries) > 50
    loader = "/lib64/ld-linux-x86-64.so.2"
    for path in libraries:
        if path.read_bytes()[:4] == b"\x7fELF" and not path.name.startswith("ld-linux"):
            done = run(root, loader, "--list", f"/{path.relative_to(root)}")
            assert done.returncode == 0, (path, done.stdout, done.stderr)


def test_what_is_in_it_is_described(image: Path, root: Path) -> None:
    """CycloneDX: each locked package with its version, and each package of Debian."""
    python = json.loads(Path(f"{image}.python.cdx.json").read_bytes())
    assert (python["bomFormat"], python["specVersion"]) == ("CycloneDX", "1.6")
    found = {(_plain(each["name"]), each["version"]) for each in python["components"]}
    installed = {
        path.name.split("-")[0].lower() for path in root.glob("opt/secretfs/lib/python3.*/site-packages/*.dist-info")
    }
    locked = dict(LOCKED.findall((ROOT / "requirements/run.txt").read_text(encoding="ascii")))
    expected = {
        (name, version) for name, version in locked.items() if name.replace("-", "_").replace(".", "_") in installed
    }
    assert len(expected) > 40
    assert expected <= found

    debian = json.loads(Path(f"{image}.debian.cdx.json").read_bytes())
    assert (debian["bomFormat"], debian["specVersion"]) == ("CycloneDX", "1.6")
    packages = (ROOT / "deploy/image/packages").read_text(encoding="ascii").split()
    assert set(packages) <= {each["name"] for each in debian["components"]}
    assert all(each["purl"].startswith("pkg:deb/debian/") for each in debian["components"] if "purl" in each)


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
