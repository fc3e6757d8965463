"""Plug-ins of Dapr, in Python and in JavaScript, read by ordinary programs from a real mount."""

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.canary import secret
from tests.support.command import ROOT, secretfs
from tests.support.manifests import component
from tests.support.mounted import Mounted, mounted
from tests.support.pluggable import PlugIn, plug_in
from tests.support.shell import errno_of, lines, output, wait_until

pytestmark = pytest.mark.mount

PAGE = (ROOT / "docs/stores/pluggable.md").read_text(encoding="utf-8")
SECRETS = 1000
PATIENT = {"secretfs/deadline": "60s"}  # for a busy machine
LIVELY = PATIENT | {"secretfs/ttl": "500ms"}
OUTAGE = r"plug-in \S+\.sock: "
"""What the log has while a plug-in does not run, and while it starts."""


@pytest.fixture(scope="module")
def sockets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("s")
    folder.chmod(0o700)
    return folder


@pytest.fixture(scope="module")
def environment(sockets: Path) -> dict[str, str]:
    return {"DAPR_COMPONENTS_SOCKETS_FOLDER": str(sockets)}


@pytest.fixture(scope="module")
def python(sockets: Path, scratch: Path) -> Iterator[PlugIn]:
    """The one of the page, whose secrets are files."""
    with plug_in("python", sockets, scratch / "python", "company-vault") as python:
        python.put("db/password", {"value": secret("1").encode()})
        python.put("other", {"value": secret("other").encode()})
        yield python


@pytest.fixture(scope="module")
def javascript(sockets: Path, scratch: Path) -> Iterator[PlugIn]:
    """One whose secrets are directories."""
    with plug_in("javascript", sockets, scratch / "javascript", "Node.Store", multi_valued=True) as javascript:
        many = {f"many-{number:03}": {"key": secret(str(number))} for number in range(SECRETS)}
        javascript.change(secrets=many)
        javascript.put("db", {"user": "Jürgen".encode(), "password": secret("1").encode()})
        yield javascript


@pytest.fixture(scope="module")
def resources(scratch: Path, python: PlugIn, javascript: PlugIn) -> Path:
    folder = scratch / "components"
    component(folder, "node", "node.store", {"set": "secrets"}, annotations=LIVELY)
    (manifest,) = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    text = manifest.replace("name: company\n", f"name: company\n  annotations: {json.dumps(LIVELY)}\n")
    (folder / "company.yaml").write_text(text)
    return folder


@pytest.fixture(scope="module")
def mount(resources: Path, environment: dict[str, str]) -> Iterator[Mounted]:
    with mounted(resources, env=environment, expect_log=[OUTAGE]) as mount:
        yield mount


def test_any_plug_in_is_a_store(mount: Mounted, python: PlugIn, javascript: PlugIn) -> None:
    """plugin-1: A plug-in of Dapr, in any language, is served with the manifest of
    [stores/pluggable.md](stores/pluggable.md)."""
    assert lines("ls", mount.path / "company") == ["db", "other"]
    assert output("cat", mount.path / "company/db/password") == secret("1").encode()
    assert errno_of((mount.path / "company/none").read_bytes) == "ENOENT"
    assert lines("ls", mount.path / "node/db") == ["password", "user"]
    assert output("cat", mount.path / "node/db/user") == "Jürgen".encode()
    assert python.calls("Init") == [
        {"method": "Init", "instance": "company", "properties": {"url": "https://secrets.example.com"}}
    ]
    assert [call["instance"] for call in javascript.calls("Init")] == ["node"]


def test_check_asks_only_when_it_connects(resources: Path, environment: dict[str, str], javascript: PlugIn) -> None:
    """`secretfs check` looks at the manifest, and asks no plug-in; with `--connect` it does (plugin-1)."""
    before = len(javascript.calls("Init"))
    done = secretfs("check", "--resources-path", resources, env=environment)
    assert done.status == 0, done.err
    assert len(javascript.calls("Init")) == before
    done = secretfs("check", "--connect", "--resources-path", resources, env=environment)
    assert done.status == 0, done.err
    assert len(javascript.calls("Init")) == before + 1


def test_a_bulk_file_is_two_calls(tmp_path: Path, environment: dict[str, str], javascript: PlugIn) -> None:
    """plugin-2: A bulk file of 1,000 secrets of a plug-in costs it two calls: a listing, and all values."""
    component(tmp_path, "bulk", "node.store", annotations=PATIENT)
    with mounted(tmp_path, env=environment) as mount:
        whole = json.loads((mount.path / "bulk/.bulk.json").read_bytes())
    assert whole["many-007"] == {"key": secret("7")}
    assert len(whole) == SECRETS + 1
    asked = [call["method"] for call in javascript.calls() if call["instance"] == "bulk"]
    assert asked == ["Init", "Features", "Ping", "BulkGet", "BulkGet"]


def test_a_rotation_shows(mount: Mounted, python: PlugIn, javascript: PlugIn) -> None:
    """plugin-3: A new value of a plug-in shows within `ttl`."""
    files = {python: mount.path / "company/other", javascript: mount.path / "node/db/password"}
    for path in files.values():
        path.read_bytes()
    python.put("other", {"value": secret("2").encode()})
    javascript.put("db", {"user": b"other", "password": secret("2").encode()})
    for path in files.values():
        wait_until(lambda path=path: path.read_text() == secret("2"))  # type: ignore[misc]


def test_one_that_is_killed_is_missed_by_nobody(mount: Mounted, python: PlugIn, javascript: PlugIn) -> None:
    """plugin-4: While a plug-in does not run, known values are served; when it runs again, it is initialised, and its
    new values show."""
    for running, path in ((python, mount.path / "company/db/password"), (javascript, mount.path / "node/db/password")):
        known, before = path.read_bytes(), len(running.calls("Init"))
        running.kill()
        wait_until(lambda path=path: os.getxattr(path, "user.secretfs.stale") == b"1")  # type: ignore[misc]
        assert path.read_bytes() == known
        key = "value" if running is python else "password"
        running.put("db/password" if running is python else "db", {key: secret("after").encode()})
        running.start()
        wait_until(lambda path=path: path.read_text() == secret("after"))  # type: ignore[misc]
        assert len(running.calls("Init")) > before


def test_one_that_comes_later_is_served_then(
    tmp_path: Path, sockets: Path, environment: dict[str, str], python: PlugIn
) -> None:
    """plugin-5: With `ignoreErrors`, a plug-in that is started later than the mount is served then, and costs other
    stores nothing before."""
    component(tmp_path / "c", "company", "company-vault")
    manifest = component(tmp_path / "c", "late", "late")
    manifest.write_text(manifest.read_text().replace("spec:\n", "spec:\n  ignoreErrors: true\n"))
    with mounted(tmp_path / "c", env=environment, expect_log=["no socket of this name is in"]) as mount:
        assert (mount.path / "company/other").read_text().startswith(secret(""))
        assert errno_of(os.listdir, mount.path / "late") == "EIO"
        with plug_in("python", sockets, tmp_path / "plug-in", "late", multi_valued=True) as late:
            late.put("db", {"password": secret("late").encode()})
            path = mount.path / "late/db/password"
            wait_until(lambda: errno_of(path.read_bytes) == "")
            assert path.read_text() == secret("late")


def test_a_takeover_while_a_plug_in_does_not_run(
    tmp_path: Path, environment: dict[str, str], javascript: PlugIn
) -> None:
    """A worker that takes over serves what the last one knew of a plug-in that does not run, and asks it when it runs
    again (plugin-4)."""
    component(tmp_path / "c", "taken", "node.store", annotations=LIVELY)
    javascript.put("taken", {"password": secret("before").encode()})
    with mounted(tmp_path / "c", env=environment, expect_log=[OUTAGE, "killed by SIGKILL"]) as mount:
        path = mount.path / "taken/taken/password"
        assert path.read_text() == secret("before")
        javascript.kill()
        os.kill(mount.worker, signal.SIGKILL)
        assert path.read_text() == secret("before")
        javascript.put("taken", {"password": secret("after").encode()})
        javascript.start()
        wait_until(lambda: path.read_text() == secret("after"))
