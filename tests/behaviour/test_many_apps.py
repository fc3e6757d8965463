"""Thirty apps cost what one costs; of a thousand, each comes and goes alone."""

import json
import os
import signal
from pathlib import Path

import pytest

from tests.support.app_host import NOBODY, Host, host, read_as
from tests.support.canary import secret
from tests.support.command import secretfs
from tests.support.mounted import Mounted, daemons, mounted
from tests.support.readers import Readers
from tests.support.secrets_file import SecretsFile, file
from tests.support.shell import errno_of, wait_until

__all__ = ["file", "host"]

pytestmark = [pytest.mark.mount, pytest.mark.root("needs to mount for other users, which only root can")]

SECRETS = 50
FIRST_USER = 5000


@pytest.fixture
def host_of_many(host: Host, file: SecretsFile) -> Host:
    """Declare no app yet, and a store with many secrets."""
    file.write({f"service-{number}": {"password": secret(str(number))} for number in range(SECRETS)})
    for path in host.apps.iterdir():
        path.unlink()
    return host


def calls(mount: Mounted) -> dict[str, int]:
    """Return how often the store was asked, by the kind of question."""
    status = json.loads((mount.path / ".secretfs/status.json").read_text(encoding="utf-8"))
    return {kind: count["made"] for kind, count in status["stores"]["file"]["calls"].items()}


def read_all(mount: Mounted, app: str) -> None:
    for number in range(SECRETS):
        assert (mount.path / app / f"file/service-{number}/password").read_text() == secret(str(number))


def test_thirty_apps_ask_as_often_as_one(host_of_many: Host) -> None:
    """app-16: Thirty apps of thirty users have one daemon, which asks a store as often as for a single app."""
    made = []
    for count in (1, 30):
        for number in range(count):
            host_of_many.add(f"app-{number}", {"owner": str(FIRST_USER + number)})
        with mounted(
            host_of_many.components, options=host_of_many.options, mountpoint=host_of_many.mountpoint
        ) as mount:
            for number in range(count):
                read_all(mount, f"app-{number}")
                path = mount.path / f"app-{number}/file/service-0/password"
                assert read_as(FIRST_USER + number, path) == secret("0")
            made.append(calls(mount))
            assert len(daemons(mount.path)) == 1
    assert made[0]["fetch"] == SECRETS
    assert made[1] == made[0]


def test_a_thousand_apps(host_of_many: Host, tmp_path: Path) -> None:
    """app-17: Among a thousand apps one is added, changed or removed without an error for readers of the others."""
    apps = [f"app-{number:03}" for number in range(1000)]
    for number, app in enumerate(apps):
        host_of_many.add(app, {"owner": str(FIRST_USER + number)})
    document = tmp_path / "added.yaml"

    def declare(owner: int) -> None:
        spec = {"owner": str(owner)}
        text = {"apiVersion": "secretfs/v1alpha1", "kind": "App", "metadata": {"name": "added"}, "spec": spec}
        document.write_text(json.dumps(text), encoding="utf-8")

    with mounted(
        host_of_many.components,
        options=host_of_many.options,
        mountpoint=host_of_many.mountpoint,
        expect_log=["killed by SIGKILL"],
    ) as mount:
        added = mount.path / "added/file/service-1/password"

        def read(app: str) -> None:
            for number in range(SECRETS):
                text = (mount.path / app / f"file/service-{number}/password").read_text()
                assert text == secret(str(number))

        with Readers(*(lambda app=app: read(app) for app in (apps[0], apps[500], apps[999]))) as readers:
            for owner in (NOBODY, NOBODY - 1):
                declare(owner)
                assert secretfs("apps", "apply", mount.path, document).status == 0
                assert read_as(owner, added) == secret("1")
            before = mount.worker
            os.kill(before, signal.SIGKILL)
            wait_until(lambda: daemons(mount.path) not in ([], [before]))
            assert read_as(NOBODY - 1, added) == secret("1")
            assert secretfs("apps", "remove", mount.path, "added").status == 0
            assert errno_of(added.stat) == "ENOENT"
            done = readers.done
            wait_until(lambda: readers.done > done + 3)
        assert readers.failures == []
        assert sorted(os.listdir(mount.path)) == apps  # noqa: PTH208 - names are what counts
        assert {(mount.path / app).stat().st_uid - FIRST_USER for app in apps} == set(range(1000))
