"""Thirty apps cost what one costs; of a thousand, each comes and goes alone."""

import json
import os
import signal
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from tests.support.app_host import NOBODY, Host, host, read_as
from tests.support.canary import secret
from tests.support.command import secretfs
from tests.support.manifests import component, scope
from tests.support.mounted import Mounted, daemons, mounted
from tests.support.readers import Readers
from tests.support.secrets_file import SecretsFile, file
from tests.support.shell import errno_of, wait_until

__all__ = ["file", "host"]

pytestmark = [pytest.mark.mount, pytest.mark.root("needs to mount for other users, which only root can")]

SECRETS = 50
FIRST_USER = 5000
APPS, VISIBLE = 1000, 100
NAMES = [f"service-{number:04}" for number in range(10_000)]


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


def resident(process: int) -> int:
    """Return the memory of a process, in pages."""
    return int(Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1])


def read_all(mount: Mounted, app: str) -> None:
    for number in range(SECRETS):
        assert (mount.path / app / f"file/service-{number}/password").read_text() == secret(str(number))


def test_thirty_apps_ask_as_often_as_one(host_of_many: Host) -> None:
    """app-16: Thirty apps of thirty users have one daemon, which asks a store as often as for a single app.

    It has 1.2 times the memory, at most.
    """
    made, memory = [], []
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
            memory.append(resident(mount.worker))
            assert len(daemons(mount.path)) == 1
    assert made[0]["fetch"] == SECRETS
    assert made[1] == made[0]
    assert memory[1] <= 1.2 * memory[0]


@pytest.fixture
def thousand(host: Host, file: SecretsFile) -> Host:
    """Declare 1,000 apps, and a Configuration for each that allows it 100 of 10,000 secrets; neighbours share half."""
    file.write({name: secret(name) for name in NAMES})
    component(host.components, "file", "local.file", {"secretsFile": file.path})
    for path in host.apps.iterdir():
        path.unlink()
    for number in range(APPS + 1):
        declare(host.configs / f"{number}.yaml", "dapr.io/v1alpha1", "Configuration", f"app-{number}", limits(number))
    for number in range(APPS):
        host.add(f"app-{number}", {"owner": str(FIRST_USER + number), "configuration": f"app-{number}"})
    return host


def visible_to(number: int) -> list[str]:
    return [NAMES[place % len(NAMES)] for place in range(number * VISIBLE // 2, number * VISIBLE // 2 + VISIBLE)]


def limits(number: int) -> dict[str, object]:
    return {"secrets": {"scopes": [scope("file", default="deny", allowed=visible_to(number))]}}


def declare(path: Path, version: str, kind: str, name: str, spec: Mapping[str, object]) -> None:
    document = {"apiVersion": version, "kind": kind, "metadata": {"name": name}, "spec": spec}
    path.write_text(json.dumps(document), encoding="utf-8")  # JSON is YAML


@pytest.mark.timeout(1200)
def test_a_thousand_apps(thousand: Host, tmp_path: Path) -> None:
    """app-17: Among a thousand apps one is added, changed or removed without an error for readers of the others."""
    host, document, name = thousand, tmp_path / "added.yaml", f"app-{APPS}"

    def apply(owner: int) -> int:
        spec = {"owner": str(owner), "configuration": name}
        declare(document, "secretfs/v1alpha1", "App", name, spec)
        return secretfs("apps", "apply", mount.path, document).status

    with mounted(
        host.components,
        config=[host.configs / f"{number}.yaml" for number in range(APPS + 1)],
        options=host.options,
        mountpoint=host.mountpoint,
        expect_log=["killed by SIGKILL"],
    ) as mount:
        first = visible_to(APPS)[0]
        added = mount.path / name / "file" / first

        def read(number: int, count: int = VISIBLE) -> None:
            for name in visible_to(number)[:count]:
                assert (mount.path / f"app-{number}/file" / name).read_text() == secret(name)

        with Readers(*(partial(read, number) for number in (0, APPS // 2, APPS - 1))) as readers:
            for owner in (NOBODY, NOBODY - 1):
                assert apply(owner) == 0
                assert read_as(owner, added) == secret(first)
            for number in range(APPS):
                read(number, 1)
            with added.open("rb", buffering=0) as held, ThreadPoolExecutor(1) as threads:
                before = mount.worker
                changing = threads.submit(apply, NOBODY)
                wait_until(lambda: f'"owner": "{NOBODY}"' in (host.apps / f"{name}.yaml").read_text())
                os.kill(before, signal.SIGKILL)
                assert changing.result() in (0, 3)  # 3 if it takes longer to take over than the command waits
                wait_until(lambda: daemons(mount.path) not in ([], [before]))
                assert held.read().decode() == secret(first)
            assert apply(NOBODY) == 0
            for number in range(APPS):
                read(number, 1)
            assert read_as(NOBODY, added) == secret(first)
            assert secretfs("apps", "remove", mount.path, name).status == 0
            assert errno_of(added.stat) == "ENOENT"
            done = readers.done
            wait_until(lambda: readers.done > done + 3)
        assert readers.failures == []
        apps = {f"app-{number}": FIRST_USER + number for number in range(APPS)}
        assert {path.name: path.stat().st_uid for path in mount.path.iterdir()} == apps
        hidden = set(NAMES) - {*visible_to(0)}
        assert {path.name for path in (mount.path / "app-0/file").iterdir()} == set(visible_to(0))
        assert errno_of((mount.path / "app-0/file" / hidden.pop()).stat) == "ENOENT"
