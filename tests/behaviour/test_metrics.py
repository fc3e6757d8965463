"""Metrics of a mount: as a control file, for Prometheus, and for node_exporter."""

import os
import re
import signal
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.canary import leaked, secret
from tests.support.command import background, secretfs
from tests.support.manifests import component
from tests.support.mounted import Mounted, mounted, unmount
from tests.support.scrape import get, promtool, samples, scrape
from tests.support.servers.openbao import free_port
from tests.support.shell import errno_of, lines, wait_until
from tests.support.vault_auth import approle, reading
from tests.support.vault_fixtures import Folder

pytestmark = pytest.mark.mount

OLD, NEW = secret("old"), secret("new, and longer")
LONG = {"secretfs/ttl": "1h"}
TAKEOVER = r"process \d+ ended .*: another takes over"


@pytest.fixture
def components(kv: Folder, tmp_path: Path) -> Path:
    kv.put("db", {"user": OLD, "password": OLD})
    kv.put("team/api", {"key": OLD})
    component(tmp_path / "components", "vault", "hashicorp.vault", kv.metadata(), annotations=LONG)
    component(tmp_path / "components", "env", "local.env", {"prefix": "METRICS_"})
    return tmp_path / "components"


@pytest.fixture
def mount(components: Path) -> Iterator[Mounted]:
    with mounted(components, env={"METRICS_TOKEN": secret("env")}, expect_log=[TAKEOVER]) as mount:
        yield mount


def test_the_control_file(mount: Mounted, kv: Folder) -> None:
    """metric-1: `.secretfs/metrics` has metrics as OpenMetrics text, for who runs the mount; it is not listed."""
    assert "metrics" not in lines("ls", "-a", mount.path / ".secretfs")
    status = (mount.path / ".secretfs/metrics").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o400, os.getuid())
    assert (mount.path / "vault/db/password").read_text() == OLD
    for _ in range(3):
        assert (mount.path / "env/TOKEN").read_text() == secret("env")
    kv.put("db", {"user": OLD, "password": NEW})
    assert secretfs("refresh", mount.path, "vault/db").status == 0
    assert (mount.path / "vault/db/password").read_text() == NEW
    assert errno_of((mount.path / "env/NONE").stat) == "ENOENT"
    found = scrape(mount.path)
    assert found["secretfs_store_state ok vault"] == 1
    assert found["secretfs_store_state down vault"] == 0
    assert found["secretfs_store_call_duration_seconds_count fetch ok vault"] == 2
    assert found["secretfs_read_wait_seconds_count ok vault value"] == 1
    assert found["secretfs_rotations_total vault"] == 1
    assert found["secretfs_publication_delay_seconds_count vault"] == 1
    assert found["secretfs_values vault"] == found["secretfs_values_in_use vault"] == 2
    assert found["secretfs_values_stale vault"] == 0
    assert found["secretfs_fuse_message_duration_seconds_count lookup"] > 0
    assert found["secretfs_fuse_errors_total ENOENT"] > 0
    assert found["secretfs_process_resident_memory_bytes"] > 1 << 20
    assert found["secretfs_declaration_refused"] == 0
    text = (mount.path / ".secretfs/metrics").read_text()
    assert text.endswith("# EOF\n")
    assert text.startswith("# HELP secretfs_build The version")


def test_for_prometheus(components: Path, tmp_path: Path) -> None:
    """metric-2: `--metrics-listen` serves them at a Unix socket, for its user, or at a port of this machine alone."""
    path, port = tmp_path / "socket", free_port()
    for flag, address in ((f"unix:{path}", path), (f"127.0.0.1:{port}", ("127.0.0.1", port))):
        with mounted(components, options=[f"--metrics-listen={flag}"], expect_log=[TAKEOVER]) as mount:
            code, headers, page = get(address)
            assert (code, headers["content-type"].partition(";")[0]) == (200, "text/plain")
            assert promtool("check", "metrics", text=page) == ""
            code, headers, page = get(address, "application/openmetrics-text;version=1.0.0")
            assert (code, headers["content-type"].partition(";")[0]) == (200, "application/openmetrics-text")
            told, others = samples(page).keys(), scrape(mount.path).keys()
            assert [name for name in told ^ others if not name.startswith("secretfs_fuse_")] == []
            assert get(address, path="/")[0] == 404
            if isinstance(address, Path):
                assert stat.S_IMODE(address.stat().st_mode) == 0o600
                os.kill(mount.worker, signal.SIGKILL)
                mount.said("took over the mount")
                assert samples(get(address, "application/openmetrics-text")[2])["secretfs_takeovers_total"] == 1
    assert not path.exists()
    done = secretfs("mount", "--resources-path", components, "--metrics-listen=0.0.0.0:9464", tmp_path)
    assert done.status == 2
    assert "if they shall read metrics, write public:0.0.0.0:9464" in " ".join(done.err.split())


def test_a_place_that_is_taken(components: Path, tmp_path: Path) -> None:
    """What cannot be served stops a mount before there is one (metric-2)."""
    (tmp_path / "mnt").mkdir()
    (tmp_path / "file").touch()
    for flag, reason in (
        (f"--metrics-listen=unix:{tmp_path}/file", "there is a file, and it is no socket"),
        (f"--metrics-listen=unix:{tmp_path}/none/s", "No such file or directory"),
        (f"--metrics-listen=unix:{tmp_path}/mnt/s", "is below the mount point"),
        (f"--metrics-file={tmp_path}/none/secretfs.prom", "No such file or directory"),
    ):
        done = secretfs("mount", "--resources-path", components, flag, tmp_path / "mnt")
        assert (done.status, reason in done.err) == (2, True), done.err


def test_for_node_exporter(components: Path, tmp_path: Path) -> None:
    """metric-3: `--metrics-file` is replaced in one step, every 15 s, and removed when the mount ends."""
    path = tmp_path / "secretfs.prom"
    with mounted(components, options=[f"--metrics-file={path}"], expect_log=[TAKEOVER]) as mount:
        wait_until(lambda: "secretfs_values" in path.read_text())
        assert promtool("check", "metrics", text=path.read_text()) == ""
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
        first = path.stat().st_ino
        os.kill(mount.worker, signal.SIGKILL)
        mount.said("took over the mount")
        wait_until(lambda: path.stat().st_ino != first)
        assert re.search(r"^secretfs_takeovers_total.* 1.0$", path.read_text(), re.MULTILINE)
        unmount(mount.path)
        wait_until(lambda: not path.exists())
    assert [each for each in tmp_path.iterdir() if "prom" in each.name] == []


def test_a_relative_path_is_that_of_the_command(components: Path, tmp_path: Path) -> None:
    """The daemon leaves the directory that it was started in, and still writes the file there (metric-3)."""
    arguments = ("--resources-path", components, "--metrics-file=secretfs.prom")
    with background(tmp_path / "mnt", *arguments, cwd=tmp_path) as daemon:
        wait_until(lambda: "secretfs_values" in (tmp_path / "secretfs.prom").read_text())
        os.kill(daemon, signal.SIGKILL)
        taken_over = re.compile(r"^secretfs_takeovers_total.* 1.0$", re.MULTILINE)
        wait_until(lambda: taken_over.search((tmp_path / "secretfs.prom").read_text()))
    wait_until(lambda: not (tmp_path / "secretfs.prom").exists())


def test_what_they_tell(mount: Mounted, kv: Folder) -> None:
    """metric-4: Metrics name no secret, no value and no app; how many there are depends on the stores alone."""
    (mount.path / "vault/db/password").read_text()
    (mount.path / "vault/team/api/key").read_text()
    before = scrape(mount.path)
    for number in range(30):
        kv.put(f"quarry/{number}", {"key": OLD, "other": OLD})
    assert secretfs("refresh", mount.path).status == 0
    for number in range(30):
        assert (mount.path / f"vault/quarry/{number}/key").read_text() == OLD
    page = (mount.path / ".secretfs/metrics").read_text()
    now = samples(page)
    assert now["secretfs_values vault"] == before["secretfs_values vault"] + 60
    kinds = ("secretfs_fuse_", "secretfs_store_call_", "secretfs_store_last_success_")  # what has not happened before
    assert [name for name in now.keys() - before.keys() if not name.startswith(kinds)] == []
    assert not leaked(page)
    assert not any(word in page for word in ("quarry", "team", "password", "TOKEN"))


def test_a_scrape_is_in_nobodys_way(mount: Mounted) -> None:
    """metric-5: A scrape asks no store, and no reader fails because of it, however many read at that time."""
    path = mount.path / "vault/db/password"
    assert path.read_text() == OLD
    over, wrong, reads = threading.Event(), [], []

    def read() -> None:
        count = 0
        while not over.is_set():
            if path.read_text() != OLD:
                wrong.append(count)
            count += 1
        reads.append(count)

    before = scrape(mount.path)
    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    for _ in range(20):
        scrape(mount.path)
    now = scrape(mount.path)
    over.set()
    for reader in readers:
        reader.join()
    assert (wrong, min(reads) > 0) == ([], True)
    calls = "secretfs_store_call_duration_seconds_count"
    assert {name: value for name, value in now.items() if name.startswith(calls)} == {
        name: value for name, value in before.items() if name.startswith(calls)
    }


def test_takeovers_are_counted_over_all_workers(mount: Mounted) -> None:
    """metric-6: Takeovers are counted over all workers of a mount; other counters begin anew with each."""
    assert (mount.path / "vault/db/password").read_text() == OLD
    assert scrape(mount.path)["secretfs_takeovers_total"] == 0
    for number in (1, 2):
        os.kill(mount.worker, signal.SIGKILL)
        mount.said("took over the mount", number)
        found = scrape(mount.path)
        assert found["secretfs_takeovers_total"] == number
        assert found["secretfs_started_timestamp_seconds"] > found["secretfs_mounted_timestamp_seconds"]
        assert "secretfs_read_wait_seconds_count ok vault value" not in found


def test_when_tokens_end(kv: Folder, tmp_path: Path) -> None:
    """The end of a token that we have logged in for is on the page; that of one that never ends is not (metric-1)."""
    kv.put("db", {"password": OLD})
    login = approle(kv.server, reading(kv.server, kv.prefix))
    metadata = kv.metadata(**login)
    del metadata["vaultToken"]
    component(tmp_path / "c", "ours", "hashicorp.vault", metadata)
    component(tmp_path / "c", "given", "hashicorp.vault", kv.metadata())
    with mounted(tmp_path / "c") as mount:
        assert (mount.path / "ours/db/password").read_text() == OLD
        found = scrape(mount.path)
        assert "secretfs_token_expiry_timestamp_seconds given" not in found
        assert 3000 < found["secretfs_token_expiry_timestamp_seconds ours"] - time.time() <= 3601
        assert found["secretfs_leases ours"] == 0
