"""A mount with --kernel-answers: the kernel answers what it knows, and hears at once of what is different."""

import ctypes
import json
import os
import re
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from secretfs.fuse.inode_for_handle import CHOICE
from tests.support.canary import secret
from tests.support.kernel_caches import Caches, drop, kept
from tests.support.lacking import cannot_test
from tests.support.manifests import component, configuration, scope
from tests.support.mounted import Mounted, mounted, processes
from tests.support.readers import Readers
from tests.support.secrets_file import SecretsFile, file
from tests.support.servers.openbao import OpenBao
from tests.support.shell import errno_of, run, stop, wait_until
from tests.support.values import sealed, unsealed
from tests.support.vault_fixtures import Folder
from tests.support.watching import watching

__all__ = ["file"]

pytestmark = [pytest.mark.mount, pytest.mark.root("only root may have the kernel report what is opened")]

COMPILED = list(Path(__file__).parents[2].glob("secretfs/fuse/_inode_for_handle*.so"))
ENDED = r"process \d+ ended"
OLD, NEW = secret("old"), secret("new, and longer")
MANY = {f"s{number:04}": secret(str(number)) for number in range(1000)}
LARGE = 200_000
IN_ATTRIB = 0x04  # sys/inotify.h

USE = """
import json, os, sys
def read(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        return os.read(descriptor, size + 1).decode()
    finally:
        os.close(descriptor)
directory = sys.argv[1]
print(json.dumps({name: read(f"{directory}/{name}") for name in os.listdir(directory)}))
"""
"""List a directory and read what is in it, and nothing else: a Python file object asks whether it is a terminal."""


@pytest.fixture(params=["compiled", "patched"])
def way(request: pytest.FixtureRequest) -> str:
    """Name a way in which requests get their inode as handle."""
    way = str(request.param)
    if way == "compiled" and not COMPILED:
        cannot_test("what is compiled is not there: python setup.py build_ext --inplace")
    return way


@contextmanager
def answering(
    components: Path, way: str = "", *expect_log: str, options: tuple[str, ...] = (), config: tuple[Path, ...] = ()
) -> Iterator[Mounted]:
    """Mount, and wait until the kernel has been told to open files and directories by itself."""
    env = {CHOICE: way} if way else {}
    flags = ["--kernel-answers", *options]  # also where the tests are run without
    with mounted(components, options=flags, config=config, env=env, expect_log=expect_log) as mount:
        wait_until(lambda: warm_reads(mount)["answered_by"] == "kernel")
        assert way in warm_reads(mount)["reason"]
        os.listdir(mount.path)  # noqa: PTH208 - and this is the last directory that we hear of
        yield mount


def warm_reads(mount: Mounted) -> dict[str, str]:
    found: dict[str, str] = json.loads((mount.path / ".secretfs/status.json").read_text())["mount"]["warm_reads"]
    return found


def use(directory: Path, timeout: float = 30) -> dict[str, str]:
    """List and read a directory in another process, which does not wait for ever."""
    command = [sys.executable, "-c", USE, str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


def warmed(directory: Path) -> dict[str, str]:
    """Use a directory until the kernel has all of it: it keeps a listing that it has read from end to end."""
    for _ in range(2):
        use(directory)
    return use(directory)


@contextmanager
def stopped(mount: Mounted) -> Iterator[None]:
    """Stop all processes of a mount: no message is answered."""
    pids = [pid for pid, _ in processes(mount.path)]
    assert len(pids) >= 2
    for pid in pids:
        stop(pid)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, 18)  # SIGCONT


def local_file(directory: Path, file: SecretsFile, ttl: str = "1h") -> None:
    properties = {"secretsFile": file.path, "nestedSeparator": "/"}
    component(directory, "file", "local.file", properties, annotations={"secretfs/ttl": ttl})


def listed(directory: Path) -> set[str]:
    return set(os.listdir(directory))  # noqa: PTH208


# --- no message ---


def test_nobody_is_asked(tmp_path: Path, file: SecretsFile, way: str) -> None:
    """kernel-1: Warm reads and listings go on while all processes of the mount are stopped."""
    file.write(MANY)
    local_file(tmp_path / "components", file)
    with answering(tmp_path / "components", way, "does not answer", ENDED) as mount, kept():

        def are_there() -> bool:
            assert warmed(mount.path / "file") == MANY
            try:
                with stopped(mount):
                    return use(mount.path / "file", timeout=20) == MANY
            except subprocess.TimeoutExpired:  # the kernel has dropped some: it may whenever it likes
                return False

        wait_until(are_there)


def test_everybody_is_killed(tmp_path: Path, file: SecretsFile) -> None:
    """What was read is there for the rest of its ttl, also when nobody serves any more (kernel-1)."""
    file.write({"token": OLD, "cold": OLD})
    local_file(tmp_path / "components", file)

    def are_there() -> bool:
        found: list[object] = []
        with answering(tmp_path / "components") as mount, kept():
            path = mount.path / "file/token"
            assert path.read_text() == OLD
            for _ in range(2):
                listed(path.parent)
            mount.kill()
            errors = {
                errno_of(lambda: found.append(path.read_text())),
                errno_of(lambda: found.append(listed(path.parent))),
            }
            assert errors <= {"", "ENOTCONN"}  # the kernel has dropped some: it may whenever it likes
            assert errno_of((path.parent / "never-asked-for").stat) == "ENOTCONN"
        return found == [OLD, {"token", "cold"}]

    wait_until(are_there)


def test_no_longer_than_ttl(tmp_path: Path, file: SecretsFile, way: str) -> None:
    """kernel-2: They do so for what is left of `ttl`, a minute at most: then a program waits for the next daemon."""
    ttl = 1.0
    file.write({"token": OLD})
    local_file(tmp_path / "components", file, f"{ttl:.0f}s")
    began: list[tuple[float, str, set[str]]] = []
    over = threading.Event()
    with answering(tmp_path / "components", way) as mount:

        def read_on() -> None:
            while not over.is_set():
                start = time.monotonic()
                began.append((start, (mount.path / "file/token").read_text(), listed(mount.path / "file")))

        reader = threading.Thread(target=read_on)
        warmed(mount.path / "file")
        with stopped(mount):
            since = time.monotonic()
            file.write({"token": NEW, "more": NEW})
            reader.start()
            while time.monotonic() < since + 2 * ttl:  # the kernel has what it has for so long at most
                time.sleep(ttl / 10)
        try:
            wait_until(lambda: any(text == NEW and "more" in names for _, text, names in began))
        finally:
            over.set()
            reader.join()
    assert [text for start, text, _ in began if start > since + ttl + 0.1 and text == OLD] == []
    assert [names for start, _, names in began if start > since + ttl + 0.1 and "more" not in names] == []


# --- what is different shows ---


def test_names_of_a_store_that_is_watched(tmp_path: Path, file: SecretsFile, way: str) -> None:
    """kernel-3: A listing that the kernel has kept shows a change of names as soon as any other listing."""
    file.write({"token": OLD, "team": {"a": OLD, "b": OLD}})
    local_file(tmp_path / "components", file)
    with answering(tmp_path / "components", way) as mount:
        store = mount.path / "file"

        def shows(names: set[str], team: set[str]) -> bool:
            there = (store / "team").exists()
            return listed(store) == names and there == bool(team) and (not there or listed(store / "team") == team)

        wait_until(lambda: shows({"token", "team"}, {"a", "b"}))
        for document, names, team in (
            ({"token": OLD, "more": OLD, "team": {"a": OLD, "b": OLD}}, {"token", "more", "team"}, {"a", "b"}),
            ({"more": OLD, "team": {"a": OLD, "b": OLD, "c": OLD}}, {"more", "team"}, {"a", "b", "c"}),
            ({"more": OLD}, {"more"}, set()),
            ({"more": OLD, "team": {"d": OLD}}, {"more", "team"}, {"d"}),
        ):
            for directory in (store, store / "team"):
                if directory.is_dir():
                    warmed(directory) if not (directory / "team").is_dir() else listed(directory)
            file.write(document)
            wait_until(lambda names=names, team=team: shows(names, team))  # type: ignore[misc]
            assert shows(names, team)


def test_names_of_a_store_that_is_asked(tmp_path: Path, own_server: OpenBao) -> None:
    """A listing expires with ttl, and at once when a look-up finds out more (kernel-3, fresh-7)."""
    folder = Folder(own_server, "kernel-names")
    folder.put("one", {"key": OLD})
    for name, ttl in (("short", "300ms"), ("long", "1h")):
        annotations = {"secretfs/ttl": ttl, "secretfs/negative-ttl": "10ms"}
        component(tmp_path / "components", name, "hashicorp.vault", folder.metadata(), annotations=annotations)
    with answering(tmp_path / "components") as mount:
        for store in ("short", "long"):
            for _ in range(3):
                assert listed(mount.path / store) == {"one"}
        folder.put("two", {"key": NEW})
        wait_until(lambda: listed(mount.path / "short") == {"one", "two"})
        assert listed(mount.path / "long") == {"one"}
        wait_until((mount.path / "long/two/key").exists)
        wait_until(lambda: listed(mount.path / "long") == {"one", "two"})
        folder.delete("one")
        wait_until(lambda: listed(mount.path / "short") == {"two"})
        (mount.path / ".secretfs/refresh").write_bytes(b"long")
        assert listed(mount.path / "long") == {"two"}


def test_scopes_and_stores(tmp_path: Path, file: SecretsFile) -> None:
    """Another scope, and a store that comes or goes, show in listings that the kernel has kept (kernel-3)."""
    file.write({"token": OLD, "hidden": OLD})
    local_file(tmp_path / "components", file)
    config = configuration(tmp_path / "config", scope("file", default="allow", denied=["hidden"]))
    with answering(tmp_path / "components", "", "no matching secret store", config=(config,)) as mount:
        for _ in range(3):
            assert (listed(mount.path), listed(mount.path / "file")) == ({"file"}, {"token"})
        configuration(tmp_path / "config", scope("file", default="allow", denied=["token"]))
        wait_until(lambda: listed(mount.path / "file") == {"hidden"})
        assert errno_of((mount.path / "file/token").read_text) == "ENOENT"
        component(tmp_path / "components", "env", "local.env", {"prefix": "SOME_"})
        wait_until(lambda: listed(mount.path) == {"file", "env"})
        (tmp_path / "components/file.yaml").unlink()
        wait_until(lambda: listed(mount.path) == {"env"})


def test_apps_that_come_and_go(tmp_path: Path, file: SecretsFile) -> None:
    """So do apps (kernel-3)."""
    file.write({"token": OLD})
    local_file(tmp_path / "components", file)
    apps = tmp_path / "apps"
    apps.mkdir()

    def declare(name: str) -> None:
        document = (
            f"apiVersion: secretfs/v1alpha1\nkind: App\nmetadata: {{name: {name}}}\nspec: {{owner: {os.getuid()}}}\n"
        )
        (apps / f"{name}.yaml").write_text(document)

    declare("first")
    expected = r"removed first"
    with answering(tmp_path / "components", "", expected, options=("--apps", str(apps))) as mount:
        for _ in range(3):
            assert (listed(mount.path), listed(mount.path / "first")) == ({"first"}, {"file"})
        held = (mount.path / "first/file/token").open("rb", buffering=0)
        declare("second")
        wait_until(lambda: listed(mount.path) == {"first", "second"})
        (apps / "first.yaml").unlink()
        wait_until(lambda: listed(mount.path) == {"second"})
        with held:
            wait_until(lambda: errno_of(held.read) == "ESTALE")


@pytest.mark.timeout(600)
def test_a_thousand_rotations(tmp_path: Path, own_server: OpenBao, way: str) -> None:
    """kernel-4: A reader gets a whole version, also if its pages have been dropped; watchers see each version."""
    folder = Folder(own_server, f"kernel-{way}")
    rotations = 1000 if way == "compiled" else 100
    folder.put("large", {"key": sealed(0, LARGE)})
    annotations = {"secretfs/ttl": "1h"}
    component(tmp_path / "components", "vault", "hashicorp.vault", folder.metadata(), annotations=annotations)
    with answering(tmp_path / "components", way) as mount:
        path, refresh = mount.path / "vault/large/key", mount.path / ".secretfs/refresh"
        seen: set[int] = set()

        def read_warm_and_cold() -> None:
            with path.open("rb", buffering=0) as descriptor:
                size = os.fstat(descriptor.fileno()).st_size
                for _ in range(2):
                    content = b"".join(iter(lambda: descriptor.read(50_000), b""))
                    assert len(content) == size
                    seen.add(unsealed(content))
                    os.posix_fadvise(descriptor.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                    descriptor.seek(0)
            time.sleep(0.001)  # a thread that does not let go of the interpreter keeps the others from running

        held = {0: path.open("rb", buffering=0)}
        with (
            watching(tmp_path / "log", path.parent) as watch,
            Readers(read_warm_and_cold, read_warm_and_cold) as readers,
        ):
            for number in range(1, rotations + 1):
                told = attributes_of(path)
                folder.put("large", {"key": sealed(number, LARGE)})
                refresh.write_bytes(b"vault/large")
                assert unsealed(path.read_bytes()) == number
                wait_until(told)
                if number % (rotations // 10) == 0:
                    held[number] = path.open("rb", buffering=0)
                    drop(Caches.PAGES)
                    done = readers.done
                    wait_until(lambda done=done: readers.done > done + 2)  # type: ignore[misc]  # one began after this
            count = f"key MOVED_TO {path.parent}/"
            wait_until(lambda: watch.events().count(count) == rotations)
        assert readers.failures == []
        assert seen >= held.keys() - {0}
        for number, descriptor in held.items():
            with descriptor:
                assert unsealed(descriptor.read()) == number


def attributes_of(path: Path) -> Callable[[], bool]:
    """Watch a file itself; returns whether its attributes have changed, as they do when another takes its place."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    assert libc.inotify_add_watch(descriptor, os.fsencode(path), IN_ATTRIB) > 0

    def told() -> bool:
        try:
            _, mask = struct.unpack_from("iI", os.read(descriptor, 4096))
        except BlockingIOError:
            return False
        os.close(descriptor)
        return bool(mask & IN_ATTRIB)

    return told


# --- requests ---


def test_requests_have_an_errno_each(tmp_path: Path, file: SecretsFile, way: str) -> None:
    """kernel-5: Control files are as in any other mount: a new snapshot for each open, an errno for each write."""
    file.write({"token": OLD})
    local_file(tmp_path / "components", file)
    with answering(tmp_path / "components", way) as mount:
        control = mount.path / ".secretfs"
        descriptor = os.open(control / "refresh", os.O_WRONLY)
        assert os.write(descriptor, b"file/token") == 10
        assert errno_of(os.write, descriptor, b"file/nothing") == "ENOENT"
        assert os.write(descriptor, b"file/token\n*") == 12
        os.close(descriptor)
        (control / "refresh").write_bytes(b"file\n" * 10_000)
        assert errno_of((control / "refresh").write_bytes, b"x" * 70_000) == "EFBIG"
        before = inodes(mount)
        (mount.path / "file/token").read_text()
        assert inodes(mount) > before
        with (control / "status.json").open("rb", 0) as status:
            assert len(status.read()) == os.fstat(status.fileno()).st_size


def inodes(mount: Mounted) -> int:
    return int(json.loads((mount.path / ".secretfs/status.json").read_text())["mount"]["inodes"])


# --- takeover, and where it cannot be had ---


def test_it_is_taken_over(tmp_path: Path, file: SecretsFile, way: str) -> None:
    """kernel-6: A mount is taken over as it was made; what has changed meanwhile shows within `ttl`."""
    file.write({"token": OLD, "other": OLD})
    local_file(tmp_path / "components", file, "300ms")
    with answering(tmp_path / "components", way, ENDED) as mount, (mount.path / "file/token").open("rb", 0) as held:
        assert warmed(mount.path / "file") == {"token": OLD, "other": OLD}
        for turn in range(3):
            supervisor, worker = mount.process.pid, mount.worker
            stop(supervisor)
            os.kill(worker, 9)
            file.write({"token": f"{NEW} {turn}", f"other-{turn}": OLD})
            os.kill(supervisor, 18)
            mount.said("took over", turn + 1)
            assert warm_reads(mount)["answered_by"] == "kernel"
            expected = {"token": f"{NEW} {turn}", f"other-{turn}": OLD}
            wait_until(lambda expected=expected: use(mount.path / "file") == expected)  # type: ignore[misc]
            seen: list[bytes] = []  # of the version that was lost with the daemon, as far as the kernel has it still
            failed = errno_of(lambda seen=seen: seen.append(os.pread(held.fileno(), 999, 0)))
            assert (failed, seen) in (("", [OLD.encode()]), ("ESTALE", []))


def test_where_it_cannot_be_had(tmp_path: Path, file: SecretsFile) -> None:
    """kernel-7: Where it cannot be had, the daemon answers each; `status` and `doctor` say why."""
    file.write({"token": OLD})
    local_file(tmp_path / "components", file)
    with mounted(tmp_path / "components", options=["--kernel-answers"], env={CHOICE: "none"}) as mount:
        assert (mount.path / "file/token").read_text() == OLD
        assert warm_reads(mount)["answered_by"] == "secretfs"
        told = run(sys.executable, "-m", "secretfs", "status", mount.path).stdout.decode()
        assert "warm reads are answered by this daemon" in told
    for choice, pattern in (("none", r"WARN +warm reads +the daemon"), ("patched", r"PASS +warm reads +the kernel")):
        done = run(sys.executable, "-m", "secretfs", "doctor", "--kernel-answers", env={CHOICE: choice})
        assert re.search(pattern, done.stdout.decode())


def test_what_was_mounted_without_it(tmp_path: Path, file: SecretsFile) -> None:
    """A mount with `--no-kernel-answers` says so (kernel-7)."""
    file.write({"token": OLD})
    local_file(tmp_path / "components", file)
    with mounted(tmp_path / "components", options=["--no-kernel-answers"]) as mount:
        assert (mount.path / "file/token").read_text() == OLD
        expected: Any = {
            "answered_by": "secretfs",
            "reason": "mounted with --no-kernel-answers, or where it cannot be had",
        }
        assert warm_reads(mount) == expected
