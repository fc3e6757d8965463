"""The Debian package, on a clean Debian with a booted systemd: installed, upgraded under readers, removed, purged."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import secretfs
from tests.support.built import built
from tests.support.canary import secret
from tests.support.command import ROOT
from tests.support.lacking import require_root
from tests.support.manifests import component
from tests.support.readers import Readers
from tests.support.systemd import System, booted
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.mount,
    pytest.mark.root("only root boots a system"),
    pytest.mark.timeout(3600),  # it may have to be built first, on a busy machine
]

UNIT = "secretfs@srv-secrets.service"
NEXT = f"{secretfs.__version__}+next"


@pytest.fixture(scope="module")
def package() -> Path:
    """Build the package."""
    require_root("only root boots a system to install it in")
    return built("build-deb", {"DEB_COMPRESSION": "-Zgzip -z1"})


@pytest.fixture(scope="module")
def next_package(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the version after: the same files, but for the number in them."""
    tree, result = tmp_path_factory.mktemp("next") / "tree", tmp_path_factory.mktemp("packages") / "next.deb"
    subprocess.run(["dpkg-deb", "--raw-extract", package, tree], check=True)
    (module,) = tree.glob("opt/secretfs/lib/python3*/site-packages/secretfs/__init__.py")
    for path in (module, tree / "DEBIAN/control"):
        text = path.read_text(encoding="utf-8")
        assert secretfs.__version__ in text
        path.write_text(text.replace(secretfs.__version__, NEXT, 1), encoding="utf-8")
    for compiled in module.parent.glob("__pycache__/__init__.*.pyc"):
        compiled.unlink()
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", tree, result], check=True)
    shutil.rmtree(tree)
    return result


@pytest.fixture(scope="module")
def clean() -> Iterator[System]:
    """Boot a Debian that has nothing but what debootstrap puts there, and systemd."""
    require_root("only root boots a system")
    made = subprocess.run([ROOT / "scripts/build-debian-root"], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr[-4000:]
    with booted(Path(made.stdout.strip())) as system:
        yield system


def apt(system: System, *arguments: str) -> str:
    env = ["env", "DEBIAN_FRONTEND=noninteractive"]
    return system.output(*env, "apt-get", "-qq", "-y", "--no-install-recommends", *arguments)


@pytest.fixture
def without_libraries(package: Path, tmp_path: Path) -> Path:
    """Make the same package without the libraries of others: lintian takes minutes for them."""
    tree, result = tmp_path / "tree", tmp_path / package.name
    subprocess.run(["dpkg-deb", "--raw-extract", package, tree], check=True)
    (libraries,) = tree.glob("opt/secretfs/lib/python3*/site-packages")
    for path in libraries.iterdir():
        if not path.name.startswith("secretfs"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    sums = tree / "DEBIAN/md5sums"
    kept = [
        line
        for line in sums.read_text().splitlines(keepends=True)
        if (tree / line.split(maxsplit=1)[1].strip()).exists()
    ]
    sums.write_text("".join(kept), encoding="utf-8")
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", tree, result], check=True)
    return result


def test_lintian_complains_of_nothing_that_is_not_overridden(
    without_libraries: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # lintian leaves a file there
    done = subprocess.run(
        ["lintian", "--allow-root", "--fail-on=warning,error", without_libraries],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_its_life(clean: System, package: Path, next_package: Path) -> None:
    """One test, because each step begins where the one before has ended."""
    for path in (package, next_package):
        shutil.copy(path, clean.path("/root"))
    before = found(clean)
    apt(clean, "install", f"/root/{package.name}")
    installed(clean)
    serve(clean)
    password = clean.path("/srv/secrets/file/password")
    by_hand = clean.path("/srv/by-hand/file/password")

    def read() -> None:
        assert password.read_text(encoding="utf-8") == secret("of the unit")
        assert by_hand.read_text(encoding="utf-8") == secret("of the unit")

    daemons = clean.show(UNIT, "MainPID"), status_pid(clean)
    with password.open(encoding="utf-8") as held, Readers(read, read, read, read) as readers:
        apt(clean, "install", f"/root/{next_package.name}")
        assert clean.output("secretfs", "--version") == f"secretfs, version {NEXT}\n"
        clean.wait_for(UNIT, "active")
        wait_until(lambda: status_pid(clean) not in (None, daemons[1]))
        assert clean.show(UNIT, "MainPID") not in ("0", daemons[0])
        done = readers.done
        wait_until(lambda: readers.done > done + 40)
        assert held.read() == secret("of the unit")
    assert readers.failures == []

    clean.output("secretfs", "unmount", "/srv/by-hand")
    apt(clean, "remove", "secretfs")
    assert list(clean.path("/srv/secrets").iterdir()) == []
    assert clean.path("/etc/secretfs/components/file.yaml").exists()
    assert not clean.path("/opt/secretfs").exists()
    apt(clean, "purge", "secretfs")
    assert clean.path("/etc/secretfs/components/file.yaml").exists()
    clean.output("rm", "-r", "/etc/secretfs", "/root/components")
    assert found(clean) == before


def found(system: System) -> list[str]:
    """List what the system has of us, outside of what is its own, such as its log and its list of packages."""
    done = system.run("find", "/etc", "/opt", "/usr", "-xdev", "-iname", "*secretfs*")  # there may be no /opt
    return sorted(done.stdout.decode().split())


def installed(system: System) -> None:
    """Look at what the installation alone has brought."""
    assert system.output("secretfs", "--version") == f"secretfs, version {secretfs.__version__}\n"
    for path in (
        "/sbin/mount.secretfs", "/usr/share/man/man1/secretfs-mount.1.gz", "/usr/share/man/man8/mount.secretfs.8.gz",
        "/usr/share/man/man5/secretfs.yaml.5.gz", "/usr/share/bash-completion/completions/secretfs",
        "/usr/share/zsh/vendor-completions/_secretfs", "/usr/share/fish/vendor_completions.d/secretfs.fish",
        "/usr/lib/systemd/system/plocate-updatedb.service.d/secretfs.conf",
        "/usr/lib/systemd/system/secretfs-reload@.service",
    ):  # fmt: skip
        assert system.run("test", "-f", path).returncode == 0, path
    for directory in ("/etc/secretfs", "/etc/secretfs/components"):
        assert system.output("stat", "-c", "%a %U %G", directory) == "750 root secretfs\n"
    assert re.match(r"uid=\d+\(secretfs\)", system.output("id", "secretfs"))
    unit = system.systemctl("cat", UNIT)
    assert "ExecStart=/usr/bin/secretfs mount " in unit
    for type_name in ("hashicorp.vault", "kubernetes", "azure.keyvault", "gcp.secretmanager", "aws.secretmanager"):
        code = f"from secretfs.stores import load_store_type; load_store_type('secretstores.{type_name}')"
        system.output("/opt/secretfs/bin/python3", "-P", "-c", code)


def serve(system: System) -> None:
    """Start the service, as the documentation says, and mount a second time by hand."""
    component(system.path("/etc/secretfs/components"), "file", "local.file", {"secretsFile": "/etc/secretfs/secrets"})
    system.path("/etc/secretfs/secrets").write_text(f'{{"password": "{secret("of the unit")}"}}', encoding="utf-8")
    system.path("/etc/secretfs/srv-secrets.conf").write_text(
        "SECRETFS_OPTIONS=--resources-path=/etc/secretfs/components --allow-other --mode=0444\n", encoding="utf-8"
    )
    system.output("mkdir", "/srv/secrets", "/srv/by-hand", "/root/components")
    system.systemctl("enable", "--now", UNIT)
    options = "allow-other,mode=0444"
    system.output("mount", "-t", "secretfs", "/etc/secretfs/components", "/srv/by-hand", "-o", options)


def status_pid(system: System) -> int | None:
    """Return the daemon of the mount that was made by hand, or None while it is being replaced."""
    done = system.run("secretfs", "status", "--json", "/srv/by-hand")
    return int(json.loads(done.stdout)["mount"]["pid"]) if done.returncode in (0, 1) else None
