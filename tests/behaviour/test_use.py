"""What counts as a use, and what a store is asked in the background for it."""

import json
import os
import re
import select
import signal
import time
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest

from tests.support.canary import secret
from tests.support.manifests import component
from tests.support.mounted import Mounted, mounted, supervisor
from tests.support.proc import texts
from tests.support.shell import run, wait_until

pytestmark = pytest.mark.mount

MANY = {f"s{number:03}": secret(str(number)) for number in range(200)}


def status(mount: Mounted, store: str) -> dict[str, Any]:
    """Return what the mount says of a store."""
    found: dict[str, Any] = json.loads((mount.path / ".secretfs/status.json").read_text())["stores"][store]
    return found


def calls(mount: Mounted, store: str) -> int:
    """Return how often a store has been asked anything."""
    return sum(kind["made"] for kind in status(mount, store)["calls"].values())


def local_file(directory: Path, name: str, secrets: dict[str, str], **annotations: str) -> Path:
    """Declare a store with these secrets. Returns its file."""
    path = directory / f"{name}.json"
    path.write_text(json.dumps(secrets))
    chosen = {f"secretfs/{key.replace('_', '-')}": value for key, value in annotations.items()}
    component(directory / "manifests", name, "local.file", {"secretsFile": path}, annotations=chosen)
    return path


def test_a_walk_is_no_use(tmp_path: Path) -> None:
    """fresh-6: A use is an open: what was only listed or stat'ed is not fetched again in the background."""
    local_file(tmp_path, "walked", MANY, ttl="300ms")
    local_file(tmp_path, "used", {"s": secret("s")}, ttl="300ms")
    with mounted(tmp_path / "manifests") as mount:
        found = run("find", mount.path / "walked", "-type", "f", "-size", "+0").stdout.splitlines()
        assert len(found) == len(MANY)
        (mount.path / "used/s").read_bytes()
        wait_until(lambda: calls(mount, "used") >= 4)  # so a walk that still goes on would show
        walked, used = calls(mount, "walked"), calls(mount, "used")
        wait_until(lambda: calls(mount, "used") >= used + 8)
        assert calls(mount, "walked") == walked


@pytest.mark.parametrize("annotation", ["idle", "max_stale"])
def test_values_leave_memory_during_an_outage(tmp_path: Path, annotation: str) -> None:
    """stale-6: Values also leave memory while their store fails: after `idle`, and after `max-stale` at the latest."""
    path = local_file(tmp_path, "file", {"s": secret("s")}, ttl="200ms", **{annotation: "1s"})
    with mounted(tmp_path / "manifests", expect_log=["file: "]) as mount:
        (mount.path / "file/s").read_bytes()
        assert status(mount, "file")["cached_values"] == 1
        path.unlink()
        wait_until(lambda: status(mount, "file")["state"] == "down")
        wait_until(lambda: status(mount, "file")["cached_values"] == 0)


def values_in_use(mount: Mounted) -> int:
    """Return how many values are kept fresh because somebody has opened them."""
    metrics = (mount.path / ".secretfs/metrics").read_text()
    return sum(map(int, re.findall(r"\nsecretfs_values_in_use\{.*\} (\d+)", metrics)))


def test_a_use_while_no_daemon_serves_is_heard_of(tmp_path: Path) -> None:
    """The next daemon answers it, and keeps the value fresh (takeover-6, fresh-6)."""
    local_file(tmp_path, "file", {"used": secret("1"), "not": secret("2"), "read": secret("3")})
    with mounted(tmp_path / "manifests", expect_log=[r"process \d+ ended"]) as mount:
        path = mount.path / "file/used"
        assert path.stat().st_size == (mount.path / "file/not").stat().st_size
        (mount.path / "file/read").read_bytes()  # from now on the kernel may open files by itself
        assert values_in_use(mount) == 1
        stopped = supervisor(mount.path)
        os.kill(stopped, signal.SIGSTOP)
        os.kill(mount.worker, signal.SIGKILL)
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(path.read_bytes)
            wait([reading], timeout=0.2)
            os.kill(stopped, signal.SIGCONT)
            assert reading.result() == secret("1").encode()
        mount.said("took over")
        wait_until(lambda: values_in_use(mount) == 2)


@pytest.mark.parametrize("killed", [False, True])
def test_reads_that_no_request_tells_of_are_uses(tmp_path: Path, killed: bool) -> None:  # noqa: FBT001 - a parameter
    """A value that is read all the time stays in use for longer than `idle`; one that is not does not (fresh-6)."""
    secrets = {"read": secret("1"), "not": secret("2")}
    local_file(tmp_path, "file", secrets, ttl="400ms", idle="3s")
    with mounted(tmp_path / "manifests", expect_log=[r"process \d+ ended"] if killed else []) as mount:
        for name, value in secrets.items():
            assert (mount.path / "file" / name).read_text() == value
        assert values_in_use(mount) == 2
        if killed:
            os.kill(mount.worker, signal.SIGKILL)
            mount.said("took over")
        path = mount.path / "file/read"

        def only_one() -> bool:
            assert path.read_text() == secret("1")
            return values_in_use(mount) == 1

        wait_until(only_one)
        end = time.monotonic() + 6  # twice as long as what is not in use stays
        while time.monotonic() < end:
            assert only_one()


def test_what_is_stated_all_the_time_is_not_in_use(tmp_path: Path) -> None:
    """Not even if it was read once: the kernel does not ask for its bytes again (fresh-6)."""
    local_file(tmp_path, "file", {"s": secret("1")}, ttl="400ms", idle="2s")
    with mounted(tmp_path / "manifests") as mount:
        path = mount.path / "file/s"
        path.read_bytes()
        assert values_in_use(mount) == 1

        def none() -> bool:
            assert path.stat().st_size
            return values_in_use(mount) == 0

        wait_until(none)


def watched_directories(mount: Mounted) -> int:
    """Return of how many directories the kernel reports what is opened."""
    return sum(info.count("fanotify ino:") for info in texts(mount.worker, "fdinfo/*"))


def test_the_kernel_reports_opens_only_to_an_audit_log(tmp_path: Path) -> None:
    """Reports make each read longer, and a use is told by the requests to read (kernel-1, fresh-6)."""
    local_file(tmp_path, "file", {"s": secret("1")})
    with mounted(tmp_path / "manifests") as mount:
        (mount.path / "file/s").read_bytes()
        (mount.path / "file/s").read_bytes()
        assert values_in_use(mount) == 1
        assert watched_directories(mount) == 0


@pytest.mark.parametrize("audit", [(), ("--audit=observe",)])
@pytest.mark.parametrize("how", ["read", "empty", "polled"])
def test_a_first_open_is_a_use(tmp_path: Path, how: str, audit: tuple[str, ...]) -> None:
    """Also that of an empty file, or of one that is only polled: no request to open has to tell of it (fresh-6)."""
    local_file(tmp_path, "another", {"s": secret("1")})
    local_file(tmp_path, "file", {"s": "" if how == "empty" else secret("2")})
    options = (*audit, f"--audit-to={tmp_path}/audit.jsonl") if audit else ()
    with mounted(tmp_path / "manifests", options=options) as mount:
        (mount.path / "another/s").read_bytes()  # from now on the kernel may open files by itself
        wait_until(lambda: values_in_use(mount) == 1)
        with (mount.path / "file/s").open("rb") as file:
            if how == "polled":
                waiting = select.poll()
                waiting.register(file, select.POLLPRI)
                waiting.poll(0)
            else:
                file.read()
        wait_until(lambda: values_in_use(mount) == 2)
