"""The daemon is killed, crashes, hangs or is replaced, while its mount is in use."""

import json
import mmap
import os
import random
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest

from secretfs.daemon.processes import daemon_pids, last_failure
from secretfs.linux.mountinfo import require_mounted
from tests.support.canary import secret
from tests.support.command import ROOT, SECRETFS, end_daemons, environment, in_namespace, secretfs
from tests.support.fake_type import Fakes
from tests.support.kernel_caches import Caches, drop
from tests.support.manifests import component
from tests.support.mounted import Mounted, daemons, mounted
from tests.support.proc import opened
from tests.support.readers import Readers
from tests.support.secrets_file import SecretsFile, file
from tests.support.servers.openbao import OpenBao
from tests.support.shell import down, errno_of, stop, wait_until
from tests.support.values import sealed, unsealed
from tests.support.vault_fixtures import Folder
from tests.support.waiting import PATIENCE, wait_for_text, wchan
from tests.support.watching import watching

__all__ = ["file"]

pytestmark = pytest.mark.mount

OLD, NEW = secret("old"), secret("new, and longer")
ENDED = r"process \d+ ended"
LARGE = 300_000
OTHER_VERSION = (8, b"\xff")
"""Offset and bytes that make a journal that of another version of secretfs."""


@contextmanager
def mount_of(components: Path, *expect_log: str) -> Iterator[Mounted]:
    with mounted(components, expect_log=[ENDED, *expect_log]) as mount:
        yield mount


@pytest.fixture
def components(file: SecretsFile, tmp_path: Path) -> Path:
    """Declare a secrets file, looked at every 200 ms."""
    file.write({"token": OLD, "large": secret("l" * LARGE), "team": {f"member-{n}": OLD for n in range(500)}})
    return file.declare(tmp_path / "components", "200ms", nestedSeparator="/")


def killed(mount: Mounted, number: signal.Signals = signal.SIGKILL) -> None:
    """Kill the worker, and wait until another serves."""
    before = mount.log.count("took over")
    os.kill(mount.worker, number)
    mount.said("took over", before + 1)


def test_no_reader_notices(components: Path, kv: Folder) -> None:
    """takeover-1: When the daemon is killed, reads, lookups and listings pause; none fails or returns a wrong byte."""
    values = {f"key-{n}": sealed(n) for n in range(8)}
    kv.put("db", values)
    component(components, "vault", "hashicorp.vault", kv.metadata(), annotations={"secretfs/ttl": "300ms"})
    with mount_of(components) as mount:
        root, team = mount.path, {f"member-{n}" for n in range(500)}

        def read_cold_and_warm() -> None:
            name = random.choice(list(values))
            assert unsealed((root / "vault/db" / name).read_bytes()) == int(name.partition("-")[2])
            assert (root / "file/token").read_text() == OLD

        def list_and_look() -> None:
            assert set(os.listdir(root / "file/team")) == team  # noqa: PTH208
            assert (root / "file/large").stat().st_size == len(secret("l" * LARGE))

        def walk() -> None:
            found = subprocess.run(["find", str(root), "-type", "f"], capture_output=True, check=False)
            assert (found.returncode, found.stderr) == (0, b"")
            assert len(found.stdout.splitlines()) == 510

        def look_for_what_is_not_there() -> None:
            assert errno_of((root / "file/nothing").stat) == "ENOENT"
            assert json.loads((root / "vault/db/.bulk.json").read_text()).keys() == values.keys()

        with Readers(read_cold_and_warm, list_and_look, walk, look_for_what_is_not_there) as readers:
            for _ in range(8):
                time.sleep(random.uniform(0.05, 0.8))
                killed(mount)
        assert readers.failures == []
        assert readers.done > 100


def test_kills_while_values_change(components: Path, file: SecretsFile) -> None:
    """takeover-26: `stat`, `open` and `read` are never ESTALE, however often the daemon is killed meanwhile."""
    first = {f"key-{n}": OLD for n in range(4)}
    file.write(first)
    with mount_of(components) as mount:
        failed: list[str] = []

        def use(path: Path) -> None:
            failed.append(errno_of(path.stat))
            failed.append(errno_of(path.read_bytes))
            with path.open("rb", buffering=0) as opened:
                time.sleep(0.3)  # until there is another value
                failed.append(errno_of(opened.read))
            failed.append(errno_of(path.stat))

        def rotate() -> None:
            file.write({name: secret(str(random.random())) for name in first})
            time.sleep(0.25)  # a change each time that another daemon has taken over, and some between

        readers = [partial(use, mount.path / "file" / name) for name in first]
        with Readers(rotate, *readers, *readers):
            for kills in range(1, 7):
                kill_only_child(mount)
                kill_only_child(mount)  # the next daemon, while those wait who have just waited for the one before
                wait_until(lambda: mount.log.count("took over") >= kills)  # noqa: B023 - waited for at once
        assert set(failed) == {""}


def test_what_is_open_goes_on(components: Path) -> None:
    """takeover-2: Everything open survives: files, mappings, directories that are being read, working directories."""
    with mount_of(components) as mount:
        path = mount.path / "file/large"
        large = secret("l" * LARGE).encode()
        with (
            path.open("rb", buffering=0) as cold,
            path.open("rb") as mapped,
            os.scandir(mount.path / "file/team") as team,
        ):
            memory = mmap.mmap(mapped.fileno(), 0, prot=mmap.PROT_READ)
            first = [next(team).name for _ in range(3)]
            inside = subprocess.Popen(
                [sys.executable, "-c", "import sys; sys.stdin.readline(); print(open('member-7').read())"],
                cwd=mount.path / "file/team", stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            number = os.fstat(cold.fileno()).st_ino
            killed(mount)
            os.posix_fadvise(cold.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert cold.read() == large
            assert os.fstat(cold.fileno()).st_ino == path.stat().st_ino == number
            assert memory[:] == large
            memory.close()
            assert sorted([*first, *(entry.name for entry in team)]) == sorted(f"member-{n}" for n in range(500))
            assert inside.communicate("go\n")[0] == OLD + "\n"


def test_what_is_open_keeps_its_version(components: Path, file: SecretsFile) -> None:
    """takeover-27: A file that is open keeps its version over kills, and if its value changes or goes meanwhile."""
    with mount_of(components) as mount, (mount.path / "file/token").open("rb", buffering=0) as token:
        large = (mount.path / "file/large").open("rb", buffering=0)
        bulk = (mount.path / "file/.bulk.json").open("rb", buffering=0)
        status = (mount.path / ".secretfs/status.json").open("rb", buffering=0)
        wait_until(lambda: os.fstat(bulk.fileno()).st_size)
        with down(mount):
            file.write({"token": NEW})
        assert token.read() == OLD.encode()
        assert (mount.path / "file/token").read_text() == NEW
        killed(mount)
        assert large.read() == secret("l" * LARGE).encode()
        assert json.loads(bulk.read())["token"] == {"token": OLD}
        assert "stores" in json.loads(status.read())
        for opened in (large, bulk, status):
            opened.close()


def test_who_waits_is_answered(tmp_path: Path, own_server: OpenBao) -> None:
    """takeover-4: A program that waits for an answer when the daemon is killed gets it from the next daemon."""
    own_server.put("secret/dapr/slow", {"key": OLD})
    properties = {"vaultAddr": own_server.address, "vaultToken": own_server.token}
    component(tmp_path / "components", "vault", "hashicorp.vault", properties)
    with mount_of(tmp_path / "components") as mount:
        read: list[str] = []
        reader = threading.Thread(target=lambda: read.append((mount.path / "vault/slow/key").read_text()))
        with own_server.hanging():
            reader.start()
            wait_until(lambda: "request_wait_answer" in wchan(reader))
            killed(mount)
        reader.join(PATIENCE)
        assert read == [OLD]


def test_who_polls_is_woken(components: Path, file: SecretsFile) -> None:
    """takeover-5: `poll` on an open file wakes when it is superseded, even if the daemon was killed in between."""
    with mount_of(components) as mount, (mount.path / "file/token").open() as token:
        told: list[tuple[int, int]] = []
        poll = select.poll()
        poll.register(token, select.POLLPRI)
        waiting = threading.Thread(target=lambda: told.extend(poll.poll(PATIENCE * 1000)))
        waiting.start()
        wait_until(lambda: "poll" in wchan(waiting))
        killed(mount)
        assert not told
        file.write({"token": NEW})
        waiting.join()
        assert [events & select.POLLPRI for _, events in told] == [select.POLLPRI]


def test_changes_meanwhile_are_told(components: Path, file: SecretsFile, tmp_path: Path) -> None:
    """takeover-6: Watchers learn of changes and deletions that happen while no daemon serves from the next daemon."""
    with mount_of(components) as mount:
        directory = mount.path / "file"
        for name in ("token", "large", "team/member-1", "team/member-2"):
            (directory / name).read_bytes()
        with watching(tmp_path / "log", directory, directory / "team") as watch:
            with down(mount):
                file.write({"token": NEW, "team": {"member-1": OLD, "member-2": NEW}})
            watch.wait_for(
                f"token MOVED_TO {directory}/", f"large DELETE {directory}/", f"member-2 MOVED_TO {directory}/team/"
            )
        assert not [event for event in watch.events() if event.startswith("member-1 ")]


def test_secrets_that_keep_failing_do_not_keep_the_rest_from_being_announced(tmp_path: Path) -> None:
    """Secrets that fail again and again do not delay the events of others (takeover-6)."""
    information = tmp_path / "site/fake_store-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: fake-store\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[secretfs.stores]\nsecretstores.fake = tests.support.fake_type\n")
    fakes = Fakes(tmp_path / "components", tmp_path / "site")
    failing = [f"bad-{number}" for number in range(8)]

    def declare(value: str, trouble: str = "") -> None:
        values = json.dumps({name: {name: value} for name in (*failing, "good")})
        fakes.add("fake", secrets=values, multiValued="false", fail=trouble)

    declare(OLD)
    env = {"PYTHONPATH": f"{ROOT}:{tmp_path / 'site'}"}
    with mounted(tmp_path / "components", env=env, expect_log=[ENDED, "the fake says so"]) as mount:
        for name in (*failing, "good"):
            assert (mount.path / "fake" / name).read_text() == OLD
        with watching(tmp_path / "log", mount.path / "fake") as watch:
            with down(mount):
                declare(NEW, " ".join(f"fetch:{name}=MalformedAnswer" for name in failing))
            watch.wait_for(f"good MOVED_TO {mount.path}/fake/")
            assert (mount.path / "fake/good").read_text() == NEW


def forget_pages() -> None:
    """Have the kernel drop its caches, as far as we may."""
    if os.geteuid() == 0:
        drop(Caches.ALL)


def test_a_store_that_is_down(components: Path, own_server: OpenBao) -> None:
    """takeover-7: If a store is down at a takeover, what was cached is served; the rest are errors until it is back."""
    own_server.put("secret/dapr/team/db", {"key": OLD, "binary": NEW})
    own_server.put("secret/dapr/other", {"key": OLD})
    properties = {"vaultAddr": own_server.address, "vaultToken": own_server.token}
    annotations = {"secretfs/deadline": "500ms", "secretfs/ttl": "1s"}
    component(components, "vault", "hashicorp.vault", properties, annotations=annotations)
    with mount_of(components, "vault: ") as mount:
        vault = mount.path / "vault"
        assert (vault / "team/db/key").read_text() == OLD
        listed = sorted(os.listdir(vault)), os.listdir(vault / "team")  # noqa: PTH208
        with own_server.hanging():
            for _ in range(3):
                killed(mount)
                forget_pages()
                wait_until(lambda: xattr(vault / "team/db/key") == b"1")
                assert (vault / "team/db/key").read_text() == OLD
                assert (vault / "team/db/binary").read_text() == NEW
                assert (sorted(os.listdir(vault)), os.listdir(vault / "team")) == listed  # noqa: PTH208
                assert errno_of((vault / "other/key").read_bytes) in ("ETIMEDOUT", "EIO")
                assert (mount.path / "file/token").read_text() == OLD
        wait_until(lambda: not errno_of((vault / "other/key").read_bytes))
        wait_until(lambda: xattr(vault / "team/db/key") == b"0")


def xattr(path: Path) -> bytes:
    return os.getxattr(path, "user.secretfs.stale")


def test_nothing_is_asked_that_is_not_due(tmp_path: Path, kv: Folder) -> None:
    """takeover-28: After a restart a store is asked for nothing that is younger than `ttl`: values, names, tokens."""
    names = [f"app-{number}" for number in range(100)]
    for name in names:
        kv.put(name, {"key": OLD})
    component(tmp_path / "components", "vault", "hashicorp.vault", kv.metadata(), annotations={"secretfs/ttl": "10m"})
    with mount_of(tmp_path / "components") as mount:
        for name in names:
            assert (mount.path / "vault" / name / "key").read_text() == OLD
        kv.server.forget()
        for number in (signal.SIGKILL, signal.SIGTERM):
            killed(mount, number)
            forget_pages()
            for name in names:
                assert (mount.path / "vault" / name / "key").read_text() == OLD
            assert set(os.listdir(mount.path / "vault")) == set(names)  # noqa: PTH208
        assert kv.server.requests() == []


def test_a_worker_that_always_ends_at_once(components: Path) -> None:
    """takeover-8: If daemon after daemon ends at once, the supervisor gives up: ENOTCONN; log and status say why."""
    with mounted(components, expect_log=[ENDED, "giving up", "broken.yaml"]) as mount:
        (components / "broken.yaml").write_text("kind: Component\nmetadata: [", encoding="utf-8")
        mount.said("nothing is changed")
        os.kill(mount.worker, signal.SIGKILL)
        mount.said("giving up")
        assert errno_of(os.listdir, mount.path) == "ENOTCONN"
        reason = f"{components}/broken.yaml"
        mount.said(reason)
        done = secretfs("status", mount.path)
        assert done.status == 3
        assert reason in done.err
        assert secretfs("unmount", mount.path).status == 0
        assert mount.process.wait(PATIENCE) == 2
        assert last_failure(str(mount.path)) == ""


def test_after_giving_up(components: Path) -> None:
    """takeover-23: After giving up, the supervisor tries again: after 30 s, then up to 5 min, and at SIGHUP at once."""
    with mounted(components, expect_log=[ENDED, "giving up", "broken.yaml"]) as mount:
        (components / "broken.yaml").write_text("kind: Component\nmetadata: [", encoding="utf-8")
        mount.said("nothing is changed")
        os.kill(mount.worker, signal.SIGKILL)
        mount.said("giving up, trying again in 30 s")
        mount.process.send_signal(signal.SIGHUP)
        mount.said("giving up, trying again in 60 s")
        assert errno_of(os.listdir, mount.path) == "ENOTCONN"
        (components / "broken.yaml").unlink()
        mount.process.send_signal(signal.SIGHUP)
        mount.said("INFO mounted at ", 2)
        assert (mount.path / "file/token").read_text() == OLD
        assert secretfs("status", mount.path).status == 0
        killed(mount)
        assert (mount.path / "file/token").read_text() == OLD


def test_kills_from_outside(components: Path) -> None:
    """takeover-24: A daemon that is killed from outside is always replaced, even if it is killed before it is ready."""
    with mount_of(components) as mount, (mount.path / "file/token").open("rb", buffering=0) as token:
        os.kill(mount.worker, signal.SIGKILL)
        killed_young = {kill_only_child(mount) for _ in range(7)}
        assert len(killed_young) == 7
        mount.said("took over")
        assert token.read() == OLD.encode()
        assert "giving up" not in mount.log


def kill_only_child(mount: Mounted) -> int:
    """Kill a worker, as soon as there is one: a new one takes longer to be ready than to be found. Returns its id."""
    children = Path(f"/proc/{mount.process.pid}/task/{mount.process.pid}/children")
    wait_until(lambda: children.read_text("ascii"))
    pid = int(children.read_text("ascii"))
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: children.read_text("ascii").strip() != str(pid))
    return pid


def test_an_upgrade(components: Path) -> None:
    """takeover-9: On SIGTERM to the daemon its supervisor starts another one, of the version that is installed now."""
    with mount_of(components) as mount:
        before = json.loads((mount.path / ".secretfs/status.json").read_text())["mount"]
        killed(mount, signal.SIGTERM)
        now = json.loads((mount.path / ".secretfs/status.json").read_text())["mount"]
        assert now["pid"] != before["pid"]
        assert now["started"] == before["started"]
        assert (before["takeovers"], now["takeovers"]) == (0, 1)


def test_nothing_is_left_over(components: Path) -> None:
    """takeover-10: After a takeover inodes are forgotten as before: those that nobody uses cost no memory."""
    with mount_of(components) as mount:

        def inodes() -> int:
            status: Mapping[str, dict[str, int]] = json.loads((mount.path / ".secretfs/status.json").read_text())
            return status["mount"]["inodes"]

        def have_been_forgotten() -> bool:
            drop(Caches.NAMES)
            return inodes() < few + 20

        few = inodes()
        team = mount.path / "file/team"
        with ExitStack() as stack:  # so that the kernel forgets none of them
            for name in os.listdir(team):  # noqa: PTH208
                stack.callback(os.close, os.open(team / name, os.O_PATH))
            many = inodes()
            assert many > few + 500
            killed(mount)
            assert inodes() >= many
        if os.geteuid() == 0:
            wait_until(have_been_forgotten)


def test_a_supervisor_that_is_killed(components: Path) -> None:
    """takeover-11: If its supervisor is killed, the daemon goes on, and unmounts when it is asked to end."""
    with mount_of(components) as mount:
        worker = mount.worker
        mount.process.kill()
        mount.process.wait()
        assert (mount.path / "file/token").read_text() == OLD
        os.kill(worker, signal.SIGTERM)
        wait_until(lambda: not os.path.ismount(mount.path))


@pytest.mark.root("a supervisor's memory may be written to by root alone")
@pytest.mark.parametrize(
    ("offset", "data", "why"),
    [
        (11 * 8 + 40 + 16, bytes(4), "a kernel before Linux 6.9 does not send again"),  # flags2 of the saved FUSE_INIT
        (*OTHER_VERSION, "it is of another version of secretfs"),
    ],
    ids=["an older kernel", "another version"],
)
def test_what_cannot_be_taken_over(components: Path, offset: int, data: bytes, why: str) -> None:
    """takeover-12: A mount that cannot be taken over is mounted anew, and the log says why; open files are ENOTCONN."""
    with mount_of(components, "cannot be taken over") as mount:
        token = os.open(mount.path / "file/token", os.O_RDONLY)
        spoil_journal(mount, offset, data)
        mount.said("INFO mounted at ", 2)
        mount.said(why)
        assert (mount.path / "file/token").read_text() == OLD
        assert errno_of(os.read, token, 9) in ("ENOTCONN", "ECONNABORTED")
        assert errno_of(os.close, token) == "ENOTCONN"
        killed(mount)
        assert (mount.path / "file/token").read_text() == OLD


def test_a_store_of_another_shape(components: Path, file: SecretsFile) -> None:
    """takeover-25: A component that was edited while no daemon served is shown as what it is now."""
    other = {"secretsFile": {"secretKeyRef": {"name": "FILE", "key": "FILE"}}}
    component(components, "env", "local.env", {"prefix": "SECRETS_"})
    component(components, "kv", "local.file", other, secret_store="env")
    file.write({"db": {"user": OLD}})
    with mounted(components, expect_log=[ENDED], env={"SECRETS_FILE": str(file.path)}) as mount:
        assert (mount.path / "kv/db:user").read_text() == OLD
        with down(mount):
            component(components, "kv", "local.file", {**other, "multiValued": "true"}, secret_store="env")
        wait_until(lambda: os.listdir(mount.path / "kv") == ["db"])  # noqa: PTH208 - one removed just now is empty
        assert (mount.path / "kv/db/user").read_text() == OLD
        wait_until(lambda: errno_of((mount.path / "kv/db:user").stat) == "ENOENT")


def test_a_store_of_another_type(components: Path, file: SecretsFile, tmp_path: Path) -> None:
    """Watchers of the root see that the store is another one, as after a reload (takeover-25, reload-5)."""
    component(components, "kv", "local.env", {"prefix": "KV_"})
    with mounted(components, expect_log=[ENDED], env={"KV_TOKEN": OLD}) as mount:
        assert (mount.path / "kv/TOKEN").read_text() == OLD
        before = (mount.path / "kv").stat().st_ino
        with watching(tmp_path / "log", mount.path) as watch:
            with down(mount):
                component(components, "kv", "local.file", {"secretsFile": file.path, "nestedSeparator": "/"})
            watch.wait_for(f"kv DELETE,ISDIR {mount.path}/", f"kv CREATE,ISDIR {mount.path}/")
        assert (mount.path / "kv/token").read_text() == OLD
        assert errno_of((mount.path / "kv/TOKEN").stat) == "ENOENT"
        assert (mount.path / "kv").stat().st_ino != before


def test_a_user_is_taken_over_too() -> None:
    """takeover-13: None of this needs root."""
    done = in_namespace("""
        export TOKEN_A=value
        as_nobody mkdir m
        env_component TOKEN_
        as_nobody secretfs mount --log-file log --resources-path c m
        for i in 1 2 3; do
            pkill -KILL -n secretfs:
            as_nobody cat m/env/A; echo
            until [ "$(grep -c "took over" log)" = $i ]; do sleep 0.01; done
        done
        as_nobody secretfs unmount m
    """)
    assert (done.status, done.out, done.err) == (0, "value\nvalue\nvalue\n", "")


def stop_worker(mount: Mounted) -> None:
    stop(mount.worker)


def kill(mount: Mounted) -> None:
    os.kill(mount.worker, signal.SIGKILL)


@pytest.mark.parametrize("trouble", [stop_worker, kill], ids=["stopped", "killed"])
@pytest.mark.parametrize("command", [["umount", "--lazy"], [*SECRETFS, "unmount"]], ids=["umount", "secretfs"])
def test_unmounted_meanwhile(components: Path, trouble: Callable[[Mounted], None], command: list[str]) -> None:
    """takeover-15: A mount that is unmounted while no daemon serves stays unmounted, and its processes end."""
    other = components.parent / "other"
    component(other, "env", "local.env", {"prefix": "OTHER_"})
    with mount_of(components, "does not answer: it is killed", "has no secretfs mounted") as mount:
        (mount.path / "file/token").read_bytes()
        trouble(mount)
        subprocess.run([*command, str(mount.path)], env=environment(), check=True)
        assert secretfs("mount", "--resources-path", other, mount.path).status == 0
        try:
            mount.process.wait(PATIENCE)
            assert os.listdir(mount.path) == ["env"]  # noqa: PTH208
            assert len(daemons(mount.path)) == 1
        finally:
            end_daemons(mount.path)


def test_what_cannot_be_taken_over_while_a_store_is_down(components: Path, file: SecretsFile) -> None:
    """takeover-16: A mount that can be neither taken over nor mounted anew is ENOTCONN, with a reason, never empty."""
    with mounted(components, expect_log=[ENDED, "cannot be taken over", "giving up", "secrets.json"]) as mount:
        spoil_journal(mount, *OTHER_VERSION, file.path.unlink)
        mount.said("giving up")
        assert errno_of(os.listdir, mount.path) == "ENOTCONN"
        assert "secrets.json" in secretfs("status", mount.path).err
        assert secretfs("unmount", mount.path).status == 0
        assert mount.process.wait(PATIENCE) == 2


def spoil_journal(mount: Mounted, offset: int, data: bytes, meanwhile: Callable[[], object] = lambda: None) -> None:
    """Kill the worker, and leave its successor a journal with other bytes at an offset."""
    wait_until(lambda: any("secretfs-journal" in of for of in opened(mount.process.pid).values()))
    (journal,) = [path for path, of in opened(mount.process.pid).items() if "secretfs-journal" in of]
    with down(mount), journal.open("r+b", buffering=0) as file:
        meanwhile()
        file.seek(offset)
        file.write(data)


@pytest.mark.root("only root mounts on top of something")
def test_a_mount_that_is_covered(components: Path, tmp_path: Path) -> None:
    """takeover-17: A mount that is covered by another, or detached and still open somewhere, is taken over as well."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with mount_of(components, "not answer") as mount:
        subprocess.run(["mount", "--bind", str(mount.path), str(elsewhere)], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "none", str(mount.path)], check=True)
        try:
            worker = mount.worker
            os.kill(worker, signal.SIGKILL)
            wait_until(lambda: mount.worker != worker if daemons(mount.path) else False)
            assert (elsewhere / "file/token").read_text() == OLD
            assert (elsewhere / "file/large").stat().st_size == len(secret("l" * LARGE))
        finally:
            subprocess.run(["umount", str(mount.path)], check=True)
            subprocess.run(["umount", str(elsewhere)], check=True)


def test_a_supervisor_leaves_the_mount_of_another_alone(components: Path) -> None:
    """takeover-18: A supervisor unmounts its own mount, and no other mount that has taken its place."""
    with mounted(components) as mount, (mount.path / "file/token").open("rb"):
        subprocess.run(["umount", "--lazy", str(mount.path)], check=True)
        assert secretfs("mount", "--resources-path", components, mount.path).status == 0
        mount.process.send_signal(signal.SIGTERM)
        assert mount.process.wait(PATIENCE) == 0
        assert (mount.path / "file/token").read_text() == OLD
        assert secretfs("unmount", mount.path).status == 0


def test_mounted_at_the_working_directory(components: Path, tmp_path: Path) -> None:
    """takeover-19: A mount that was requested at "." is taken over like any other."""
    point, log = tmp_path / "here", tmp_path / "log"
    point.mkdir()
    done = secretfs("mount", "--resources-path", components, "--log-file", log, ".", cwd=point)
    assert done.status == 0, done.err
    try:
        parent, worker = daemon_pids(require_mounted(point))
        assert Path(f"/proc/{parent}/cmdline").read_bytes().count(b"secretfs.daemon.supervisor") == 1
        stop(parent)
        os.kill(worker, signal.SIGKILL)
        if os.geteuid() == 0:  # nothing of the mount is to be had from the kernel's memory
            drop(Caches.NAMES)
        os.kill(parent, signal.SIGCONT)
        wait_for_text(lambda: log.read_text("utf-8"), "took over")
        assert (point / "file/token").read_text() == OLD
    finally:
        assert secretfs("unmount", "--force", point).status == 0
