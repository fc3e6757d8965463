"""A host that declares apps, and what users of it get to see."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.canary import secret
from tests.support.manifests import component
from tests.support.mounted import Mounted, mounted
from tests.support.secrets_file import SecretsFile
from tests.support.shell import run

ORDERS, BILLING, TLS, NOBODY = 4001, 4002, 4003, 65534
SECRETS = {"db": {"password": secret("db"), "user": secret("user")}, "tls": {"key": secret("key")}}


class Host:
    """What is declared on a host."""

    def __init__(self, root: Path) -> None:
        self.components, self.apps, self.configs = root / "components", root / "apps", root / "configs"
        self.mountpoint = root / "mnt"
        for directory in (self.components, self.apps, self.configs, self.mountpoint):
            directory.mkdir()

    def add(self, name: str, spec: Mapping[str, object] | None = None) -> None:
        """Declare an app; JSON is YAML."""
        document = {"apiVersion": "secretfs/v1alpha1", "kind": "App", "metadata": {"name": name}, "spec": spec or {}}
        new = self.apps / f"{name}.new"
        new.write_text(json.dumps(document), encoding="utf-8")
        new.replace(self.apps / f"{name}.yaml")

    def remove(self, name: str) -> None:
        (self.apps / f"{name}.yaml").unlink()

    @property
    def options(self) -> list[str]:
        return ["--apps", str(self.apps), "--allow-other"]


@pytest.fixture
def host(tmp_path: Path, file: SecretsFile) -> Host:
    """Declare two apps that see one secrets file, at a place that every user can reach."""
    for directory in (tmp_path, *tmp_path.parents):
        if directory.stat().st_mode & 0o011 != 0o011:
            directory.chmod(directory.stat().st_mode | 0o011)
    host = Host(tmp_path)
    file.write(SECRETS)
    component(host.components, "file", "local.file", {"secretsFile": file.path, "nestedSeparator": "/"})
    host.add("orders", {"owner": str(ORDERS)})
    host.add("billing", {"owner": str(BILLING)})
    return host


@pytest.fixture
def mount(host: Host) -> Iterator[Mounted]:
    with mounted(host.components, options=host.options, mountpoint=host.mountpoint) as mount:
        yield mount


def read_as(user: int, path: Path, *groups: int) -> str:
    """Read a file as a user with groups; returns its text, or what went wrong."""
    supplementary = ["--groups", ",".join(map(str, groups))] if groups else ["--clear-groups"]
    done = run("setpriv", "--reuid", str(user), "--regid", str(user), *supplementary, "cat", path)
    return done.stdout.decode() if done.returncode == 0 else done.stderr.decode().rpartition(": ")[2].strip()


def list_as(user: int, path: Path) -> str:
    done = run("setpriv", "--reuid", str(user), "--regid", str(user), "--clear-groups", "ls", path)
    return done.stdout.decode() if done.returncode == 0 else done.stderr.decode().rpartition(": ")[2].strip()
