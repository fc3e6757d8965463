"""Who has opened which secret: the audit log of a real mount."""

import json
import os
import re
import signal
import stat
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.support.audited import AuditFile, in_container
from tests.support.canary import secret
from tests.support.database_engine import Engine, database
from tests.support.manifests import component, configuration, scope
from tests.support.mounted import KERNEL_ANSWERS, Mounted, mounted, processes, unmount
from tests.support.secrets_file import SecretsFile, file
from tests.support.servers.openbao import OpenBao
from tests.support.servers.postgres import Postgres
from tests.support.shell import errno_of, run, stop, wait_until
from tests.support.systemd import cgroups_named
from tests.support.vault_fixtures import Folder

__all__ = ["database", "file"]

pytestmark = pytest.mark.mount

PROCESSES, FILES, USERS, CONTAINERS = 200, 10, 20, 5  # it holds for 50 files as well, and takes longer
FIRST_USER = 20_000
ENDED = r"process \d+ ended"
LOST = r"audit records are lost"
AGAIN = r"audit records are written again"


@pytest.fixture
def log(tmp_path: Path) -> AuditFile:
    return AuditFile(tmp_path / "audit/log")


@contextmanager
def audited(
    components: Path,
    log: AuditFile,
    mode: str = "strict",
    *flags: str,
    expect_log: tuple[str, ...] = (),
    config: Sequence[Path] = (),
    app_id: str = "",
) -> Iterator[Mounted]:
    """Mount with an audit log in a file."""
    log.path.parent.mkdir(exist_ok=True)
    options = [f"--audit={mode}", f"--audit-to={log.path}", *flags]
    with mounted(components, options=options, expect_log=expect_log, config=config, app_id=app_id) as mount:
        yield mount


def local_file(directory: Path, file: SecretsFile, **settings: str) -> Path:
    properties = {"secretsFile": file.path, "nestedSeparator": "/"}
    component(directory, "file", "local.file", properties, annotations=settings)
    return directory


def read(path: Path) -> None:
    """Read a file with a process of its own."""
    assert run("cat", path).returncode == 0


class TestManyReaders:
    @pytest.fixture
    def versions(self, kv: Folder, tmp_path: Path) -> dict[str, str]:
        """Write secrets of which each has a version of its own; returns the versions by name."""
        versions = {}
        for number in range(FILES):
            name, times = f"s{number:02}", number % 3 + 1
            for time in range(times):
                kv.put(name, {"value": secret(f"{name} {time}")})
            versions[name] = str(times)
        component(tmp_path / "components", "vault", "hashicorp.vault", kv.metadata(vaultValueType="map"))
        return versions

    def read_in_containers(self, mount: Mounted) -> dict[int, str]:
        """Have processes of many users in some containers read all files. Returns the container of each user."""
        where: dict[int, str] = {}
        with ExitStack() as stack:
            cgroups = stack.enter_context(cgroups_named(f"secretfs-audit-{os.getpid()}"))
            processes = []
            for number in range(CONTAINERS):
                container = f"{number:064x}"
                inner = [cgroup / f"docker-{container}.scope" for cgroup in cgroups]
                for cgroup in inner:
                    cgroup.mkdir()
                users = range(FIRST_USER + number, FIRST_USER + USERS, CONTAINERS)
                where |= dict.fromkeys(users, container)
                each = PROCESSES // USERS
                all_files = "sh -c 'exec cat /srv/*/value' >/dev/null &"
                script = " ".join(
                    f"setpriv --reuid={user} --regid={user + 1} --clear-groups {all_files}"
                    for user in users
                    for _ in range(each)
                )
                container_of = in_container(inner, mount.path / "vault", Path("/srv"), f"{script} wait")
                processes.append(stack.enter_context(container_of))
            assert [process.wait() for process in processes] == [0] * CONTAINERS
        return where

    @pytest.mark.root("only root may start processes of other users")
    def test_strict(self, versions: dict[str, str], tmp_path: Path, log: AuditFile) -> None:
        """audit-1: With `--audit=strict` each open is one record, written before `open` returns."""
        flags = ["--allow-other", "--mode=0444"]
        with audited(tmp_path / "components", log, "strict", *flags) as mount:
            where = self.read_in_containers(mount)
            opens = log.of("open")  # the processes have ended, so all is written
        assert len(opens) == PROCESSES * FILES
        assert {(r["result"], r["component"], r["key"], r["executable"]) for r in opens} == {
            ("ok", "vault", "value", opens[0]["executable"])
        }
        assert Path(opens[0]["executable"]).name in ("cat", "busybox", "coreutils")
        assert {(record["uid"], record["gid"], record["container"]) for record in opens} == {
            (user, user + 1, container) for user, container in where.items()
        }
        assert Counter(record["uid"] for record in opens) == dict.fromkeys(where, PROCESSES * FILES // USERS)
        assert set(Counter(record["pid"] for record in opens).values()) == {FILES}
        assert {record["secret"]: record["version"] for record in opens} == versions
        assert len({(record["secret"], record["version"]) for record in opens}) == FILES

    @pytest.mark.root("only root may start processes of other users")
    def test_observe(self, versions: dict[str, str], tmp_path: Path, log: AuditFile) -> None:
        """audit-2: With `--audit=observe` nobody waits; equal records that wait to be written are one with a count."""
        flags = ["--allow-other", "--mode=0444"]
        with audited(tmp_path / "components", log, "observe", *flags) as mount:
            where = self.read_in_containers(mount)
        opens = log.of("open")
        lost = sum(record["lost"] for record in log.of("lost"))
        assert sum(record.get("count", 1) for record in opens) + lost == PROCESSES * FILES
        assert lost == 0
        assert set(Counter((record["pid"], record["secret"]) for record in opens).values()) == {1}
        assert len({record["pid"] for record in opens}) == PROCESSES
        living = [record for record in opens if "uid" in record]  # the kernel names a process, and not its user
        assert KERNEL_ANSWERS or len(living) == len(opens)
        found = {(record["uid"], record.get("container", where[record["uid"]])) for record in living}
        assert found <= set(where.items()) if KERNEL_ANSWERS else found == set(where.items())
        assert {record["secret"]: record["version"] for record in opens} == versions


def test_a_record_says_who_and_what(file: SecretsFile, tmp_path: Path, log: AuditFile) -> None:
    """audit-3: A record says who opened what: app, component, secret, key, version; user, process, control group."""
    file.write({"team": {"db": secret()}})
    components = local_file(tmp_path / "components", file)
    with audited(components, log, app_id="web") as mount:
        done = subprocess.Popen(["cat", str(mount.path / "file/team/db")], stdout=subprocess.DEVNULL)
        done.wait()
    (record,) = log.of("open")
    assert record.pop("time").endswith("Z")
    inode, cgroup = record.pop("inode"), record.pop("cgroup")
    assert inode > 0
    assert cgroup.startswith("/")
    for name in ("unit", "container", "pod"):  # of whatever runs the tests
        record.pop(name, None)
    assert record == {
        "v": 1,
        "event": "open",
        "mount": str(mount.path),
        "app": "web",
        "component": "file",
        "secret": "team/db",
        "key": "team/db",
        "result": "ok",
        "uid": os.getuid(),
        "gid": os.getgid(),
        "pid": done.pid,
        "executable": str(Path("/proc/self/root", "bin/cat").resolve()).removeprefix("/proc/self/root"),
        "command": "cat",
    }


def test_what_is_refused(file: SecretsFile, tmp_path: Path, log: AuditFile) -> None:
    """audit-4: What is refused is a record as well, whether it does not exist, is hidden or is forbidden."""
    file.write({"shown": secret(), "hidden": secret()})
    components = local_file(tmp_path / "components", file)
    config = configuration(tmp_path / "config", scope("file", denied=["hidden"]))
    with audited(components, log, config=[config]) as mount:
        for name in ("hidden", "missing"):
            assert errno_of((mount.path / "file" / name).read_bytes) == "ENOENT"
        assert errno_of((mount.path / "store").stat) == "ENOENT"
        assert errno_of(lambda: os.open(mount.path / "file/shown", os.O_RDWR)) == "EROFS"
    refused = {
        (record.get("component"), record["path"], record["request"], record["result"], record["pid"])
        for record in log.of("refused")
        if "path" in record
    }
    assert refused == {
        ("file", "hidden", "lookup", "ENOENT", os.getpid()),
        ("file", "missing", "lookup", "ENOENT", os.getpid()),
        (None, "store", "lookup", "ENOENT", os.getpid()),
    }


@contextmanager
def small_disk(at: Path) -> Iterator[None]:
    """Mount a file system that has room for one page."""
    at.mkdir()
    assert run("mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", at).returncode == 0
    try:
        yield
    finally:
        assert run("umount", at).returncode == 0


@pytest.mark.root("only root may mount a small disk")
@pytest.mark.parametrize("closed", [True, False])
def test_a_disk_that_is_full(file: SecretsFile, tmp_path: Path, log: AuditFile, *, closed: bool) -> None:
    """With `--audit-fail-closed` an open without a record is refused (audit-5)."""
    file.write({"a": secret()})
    components = local_file(tmp_path / "components", file)
    flags = ["--audit-fail-closed"] if closed else []
    with small_disk(log.path.parent), audited(components, log, "strict", *flags, expect_log=(LOST, AGAIN)) as mount:
        path = mount.path / "file/a"
        errors = Counter(errno_of(path.read_bytes) for _ in range(40))  # a record has 300 bytes and more
        assert set(errors) == ({"", "EPERM"} if closed else {""})
        mount.said("No space left on device")
        log.path.write_bytes(b"")
        assert errno_of(path.read_bytes) == ""
        (lost,) = log.of("lost")
        assert len(log.of("open")) == 1
        if closed:
            assert lost["lost"] == errors["EPERM"]


def test_without_a_record_an_open_is_refused(file: SecretsFile, tmp_path: Path, log: AuditFile) -> None:
    """audit-5: With `--audit-fail-closed` an open whose record cannot be written is EPERM; else it is served."""
    file.write({"a": secret()})
    components = local_file(tmp_path / "components", file)
    expect = (LOST, AGAIN)
    with audited(components, log, "strict", "--audit-fail-closed", expect_log=expect) as mount:
        read(mount.path / "file/a")
        log.path.rename(tmp_path / "old")
        log.path.parent.rmdir()
        assert errno_of((mount.path / "file/a").read_bytes) == "EPERM"
        assert errno_of((mount.path / "file/b").read_bytes) == "ENOENT"  # as without an audit log
        log.path.parent.mkdir()
        read(mount.path / "file/a")
        assert [record["event"] for record in log.records] == ["lost", "open"]
        assert log.records[0]["lost"] == 2


def test_a_sink_that_nobody_reads(file: SecretsFile, tmp_path: Path) -> None:
    """audit-6: An open waits for its record for 5 s at most; then it is refused or served, as *audit-5* says."""
    file.write({"a": secret()})
    components = local_file(tmp_path / "components", file)
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    with pytest.raises(BlockingIOError):  # noqa: PT012 - when it is full
        while True:
            os.write(writer, b"x")
    flags = ["--audit=strict", "--audit-to=-", "--audit-fail-closed"]
    with mounted(components, options=flags, stdout=writer, expect_log=[LOST, AGAIN]) as mount:
        assert errno_of((mount.path / "file/a").read_bytes) == "EPERM"
        assert set(os.read(reader, 1 << 20)) == set(b"x")
        assert errno_of((mount.path / "file/a").read_bytes) == ""
        records = [json.loads(line) for line in os.read(reader, 1 << 20).splitlines() if line.strip()]
        assert [record["event"] for record in records][-2:] == ["lost", "open"]
    os.close(reader)
    os.close(writer)


def test_a_file_is_rotated(file: SecretsFile, tmp_path: Path, log: AuditFile) -> None:
    """audit-7: A file of records has mode 0600; if it is moved or deleted, the next record makes another one."""
    file.write({"a": secret()})
    components = local_file(tmp_path / "components", file)
    with audited(components, log) as mount:
        read(mount.path / "file/a")
        assert stat.S_IMODE(log.path.stat().st_mode) == 0o600
        moved = AuditFile(log.path.rename(tmp_path / "log.1"))
        read(mount.path / "file/a")
        assert (len(moved.of("open")), len(log.of("open"))) == (1, 1)
        log.path.unlink()
        read(mount.path / "file/a")
        assert len(log.of("open")) == 1
        assert stat.S_IMODE(log.path.stat().st_mode) == 0o600


def test_the_daemon_is_killed(file: SecretsFile, tmp_path: Path, log: AuditFile) -> None:
    """audit-8: Opens while no daemon serves wait for the next one, which records them: none is without a record."""
    file.write({"a": secret()})
    components = local_file(tmp_path / "components", file)
    with audited(components, log, expect_log=(ENDED,)) as mount:
        read(mount.path / "file/a")
        done = tmp_path / "done"
        script = f"while [ ! -e {done} ]; do cat {mount.path}/file/a >/dev/null || exit 1; done"
        reader = subprocess.Popen(["sh", "-c", script])
        for takeover in range(1, 4):
            wait_until(partial(log.has_more, len(log.of("open")) + 5))
            os.kill(mount.worker, signal.SIGKILL)
            mount.said("took over the mount", takeover)
        done.touch()
        assert reader.wait() == 0
        opened = Counter(record["pid"] for record in log.of("open", command="cat"))
        assert len(opened) >= 15
        assert sum(count - 1 for count in opened.values()) <= 3  # one that was written, and not answered, at each kill
        assert len(log.of("takeover")) == 3


def test_what_waits_when_the_daemon_is_killed(file: SecretsFile, tmp_path: Path, log: AuditFile) -> None:
    """An open that waits when the daemon is killed is recorded by the next one (audit-8)."""
    file.write({"a": secret()})
    components = local_file(tmp_path / "components", file)
    with audited(components, log, expect_log=(ENDED,)) as mount:
        read(mount.path / "file/a")
        worker = mount.worker
        stop(worker)
        reader = subprocess.Popen(["cat", str(mount.path / "file/a")], stdout=subprocess.DEVNULL)
        os.kill(worker, signal.SIGKILL)
        assert reader.wait() == 0
        assert len(log.of("open", pid=reader.pid)) == 1


def test_other_events(kv: Folder, tmp_path: Path, log: AuditFile) -> None:
    """audit-9: Mounts, takeovers, rotations with their version, reloads, requests and unmounts are records as well."""
    kv.put("db", {"password": secret("1")})
    components = tmp_path / "components"
    component(components, "vault", "hashicorp.vault", kv.metadata(), annotations={"secretfs/ttl": "1s"})
    with audited(components, log, "observe", expect_log=(ENDED, "not valid YAML"), app_id="web") as mount:
        (begin,) = log.wait_for("mount", daemon=mount.worker)
        assert (begin["app"], begin["components"], begin["audit"]) == ("web", ["vault"], "observe")
        read(mount.path / "vault/db/password")
        log.wait_for("open", version="1")
        kv.put("db", {"password": secret("2")})
        (rotation,) = log.wait_for("rotation")
        assert (rotation["component"], rotation["secret"]) == ("vault", "db")
        assert (rotation["keys"], rotation["version"]) == (["password"], "2")
        wait_until(lambda: (mount.path / "vault/db/password").read_bytes() and log.of("open", version="2"))
        read(mount.path / "vault/.bulk.json")
        log.wait_for("bulk", file=".bulk.json", component="vault")
        assert run("sh", "-c", f"echo vault/db > {mount.path}/.secretfs/refresh").returncode == 0
        (request,) = log.wait_for("request", file=".secretfs/refresh")
        assert (request["paths"], request["uid"]) == (["vault/db"], os.getuid())
        component(components, "env", "local.env")
        (reload,) = log.wait_for("reload")
        assert reload["changed"] == ["env"]
        (components / "broken.yaml").write_text("kind: Component\nspec: [")
        assert run("sh", "-c", f"echo > {mount.path}/.secretfs/reload").returncode in (0, 1)
        log.wait_for("reload", 2)
        (components / "broken.yaml").unlink()
        os.kill(mount.worker, signal.SIGKILL)
        log.wait_for("takeover")
        unmount(mount.path)
        log.wait_for("unmount")
    assert log.path.read_text().count(secret()) == 0


def test_hashed_names(file: SecretsFile, tmp_path: Path, log: AuditFile) -> None:
    """audit-10: With `--audit-names=hash` keyed hashes stand in the place of the names of secrets and keys."""
    file.write({"team": {"billing": secret()}})
    components = local_file(tmp_path / "components", file)
    with audited(components, log, "strict", "--audit-names=hash", expect_log=(ENDED,)) as mount:
        read(mount.path / "file/team/billing")
        assert errno_of((mount.path / "file/team/payroll").read_bytes) == "ENOENT"
        os.kill(mount.worker, signal.SIGKILL)
        mount.said("took over the mount")
        read(mount.path / "file/team/billing")
    text = log.path.read_text()
    assert not re.search("billing|payroll|team", text.replace(str(tmp_path), ""))
    first, second = log.of("open")
    assert first["secret"] == second["secret"]
    assert re.fullmatch("[0-9a-f]{32}", first["secret"])
    assert {record["names_key"] for record in (*log.of("mount"), *log.of("takeover"))} == {
        log.of("mount")[0]["names_key"]
    }


def answered_by(mount: Mounted) -> tuple[str, str]:
    """Say who answers warm reads of a mount, and why."""
    found = json.loads((mount.path / ".secretfs/status.json").read_text())["mount"]["warm_reads"]
    return found["answered_by"], found["reason"]


@pytest.mark.root("only root may have the kernel report what is opened")
def test_the_kernel_opens_by_itself(kv: Folder, tmp_path: Path, log: AuditFile) -> None:
    """audit-11: Where the kernel opens files by itself, it tells `observe` of each process and file that is opened."""
    kv.put("db", {"password": secret("1")})
    components = tmp_path / "components"
    component(components, "vault", "hashicorp.vault", kv.metadata(), annotations={"secretfs/ttl": "1h"})
    with audited(components, log, "observe", "--kernel-answers", expect_log=(ENDED,)) as mount:
        wait_until(lambda: answered_by(mount)[0] == "kernel")
        path = mount.path / "vault/db/password"
        readers = []
        for _ in range(20):
            reader = subprocess.Popen(["cat", str(path)], stdout=subprocess.DEVNULL)
            reader.wait()
            readers.append(reader.pid)
        opens = log.wait_for("open", 20)
        assert [(record["pid"], record["version"], record["secret"]) for record in opens] == [
            (pid, "1", "db") for pid in readers
        ]
        assert answered_by(mount)[0] == "kernel"
        pids = [pid for pid, _ in processes(mount.path)]
        for pid in pids:
            stop(pid)
        with subprocess.Popen(["cat", str(path)], stdout=subprocess.DEVNULL) as unserved:
            unserved.wait()
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        log.wait_for("open", pid=unserved.pid)
        worker = mount.worker
        stop(worker)
        with subprocess.Popen(["cat", str(path)], stdout=subprocess.DEVNULL) as unserved:
            unserved.wait()
        os.kill(worker, signal.SIGKILL)
        mount.said("took over the mount")
        assert len(log.wait_for("open", pid=unserved.pid)) == 1  # by the next daemon


@pytest.mark.root("only root may have the kernel report what is opened")
def test_the_kernel_may_not_open_by_itself(file: SecretsFile, tmp_path: Path, log: AuditFile) -> None:
    """With `--audit=strict` the kernel asks at each open, also with `--kernel-answers` (audit-1, kernel-7)."""
    file.write({"a": secret()})
    components = local_file(tmp_path / "components", file)
    with audited(components, log, "strict", "--kernel-answers") as mount:
        for _ in range(10):
            (mount.path / "file/a").read_bytes()
        assert len(log.of("open")) == 10
        assert answered_by(mount) == ("secretfs", "--audit=strict has each open wait for its record")


def test_leases(openbao_server: OpenBao, database: Postgres, tmp_path: Path, log: AuditFile) -> None:
    """audit-12: A credential that a backend issues, and its revocation, are records with the id of its lease."""
    engine = Engine(openbao_server, database)
    engine.role("app", "1h", "24h")
    component(tmp_path / "components", "database", "hashicorp.vault", engine.login())
    with audited(tmp_path / "components", log, "observe") as mount:
        read(mount.path / "database/app/password")
        (issued,) = log.wait_for("issued")
        assert (issued["component"], issued["secret"]) == ("database", "app")
        assert log.wait_for("open")[0]["version"] == issued["lease"]
    (revoked,) = log.of("revoked")
    assert revoked["lease"] == issued["lease"]
