"""A directory of files as a store: systemd credentials, and volumes of Docker and Kubernetes."""

import os
import re
from pathlib import Path

import pytest
import yaml

from tests.support.canary import secret
from tests.support.command import ROOT
from tests.support.manifests import component
from tests.support.mounted import mounted
from tests.support.shell import errno_of, ways_to_ask
from tests.support.waiting import wait_until

pytestmark = pytest.mark.mount

PAGE = ROOT / "docs/stores/directory.md"
HOUR = {"secretfs/ttl": "1h"}


def put(path: Path, value: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name("..new")
    new.write_text(value)
    new.replace(path)


def test_changes(tmp_path: Path) -> None:
    """directory-1: Each file is a secret: its change, a new file and a removed one show within seconds, whatever `ttl`
    is."""
    tree = tmp_path / "tree"
    put(tree / "team/db", secret("old"))
    put(tree / "gone", secret("gone"))
    component(tmp_path / "m", "files", "secretstores.secretfs.directory", {"path": tree}, annotations=HOUR)
    with mounted(tmp_path / "m") as mount:
        files = mount.path / "files"
        assert (files / "team/db").read_text() == secret("old")
        assert (files / "gone").read_text() == secret("gone")
        put(tree / "team/db", secret("new, and longer"))
        put(tree / "team/new", secret("another"))
        (tree / "gone").unlink()
        wait_until(lambda: (files / "team/db").read_text() == secret("new, and longer"))
        wait_until(lambda: sorted(os.listdir(files / "team")) == ["db", "new"])  # noqa: PTH208
        assert (files / "team/new").read_text() == secret("another")
        wait_until(lambda: errno_of(os.stat, files / "gone") == "ENOENT")


def test_links(tmp_path: Path) -> None:
    """directory-2: A link that leads out of the directory does not exist, for no program and no user."""
    tree = tmp_path / "tree"
    put(tree / "a", secret("inside"))
    put(tmp_path / "outside/x", secret("outside"))
    (tree / "link").symlink_to(tmp_path / "outside/x")
    (tree / "folder").symlink_to(tmp_path / "outside")
    (tree / "within").symlink_to("a")
    component(tmp_path / "m", "files", "secretstores.secretfs.directory", {"path": tree})
    with mounted(tmp_path / "m") as mount:
        files = mount.path / "files"
        assert sorted(os.listdir(files)) == ["a", "within"]  # noqa: PTH208
        assert (files / "within").read_text() == secret("inside")
        for name in ("link", "folder", "folder/x"):
            assert set(ways_to_ask(files / name)) == {"ENOENT"}


def test_the_manifests_of_the_page(tmp_path: Path) -> None:
    """directory-3: The manifests of [stores/directory.md](stores/directory.md) serve what they say they do."""
    places = {"/run/secrets": tmp_path / "run", "/etc/secret-volumes": tmp_path / "volumes"}
    put(tmp_path / "run/token", secret("token"))
    put(tmp_path / "run/db/password", secret("password"))
    put(tmp_path / "credentials/token", secret("credential"))
    version = tmp_path / "volumes/db/..2026"
    put(version / "user", "app")
    put(version / "password", secret("volume"))
    (version.parent / "..data").symlink_to(version.name)
    for key in ("user", "password"):
        (version.parent / key).symlink_to(f"..data/{key}")
    (tmp_path / "m").mkdir()
    for number, text in enumerate(
        re.findall(r"^```yaml\n(.*?)^```$", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    ):
        for place, instead in places.items():
            text = text.replace(place, str(instead))  # noqa: PLW2901
        assert yaml.safe_load(text)["kind"] == "Component"
        (tmp_path / f"m/{number}.yaml").write_text(text)
    with mounted(tmp_path / "m", env={"CREDENTIALS_DIRECTORY": str(tmp_path / "credentials")}) as mount:
        shown = {
            str(path.relative_to(mount.path)): path.read_text() for path in mount.path.rglob("*") if path.is_file()
        }
    assert shown == {
        "files/token": secret("token"),
        "files/db/password": secret("password"),
        "credentials/token": secret("credential"),
        "volumes/db/user": "app",
        "volumes/db/password": secret("volume"),
    }
