"""Changes that programs are notified of: inotify, poll, `tail -F`, through a real mount and a real kernel."""

import errno
import os
import select
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.canary import secret
from tests.support.command import ROOT, in_namespace
from tests.support.manifests import component
from tests.support.mounted import mounted
from tests.support.secrets_file import SecretsFile, file
from tests.support.shell import errno_of, wait_until
from tests.support.vault_fixtures import Folder
from tests.support.waiting import PATIENCE
from tests.support.watching import watching

__all__ = ["file"]

pytestmark = pytest.mark.mount

OLD, NEW = secret("old"), secret("new, and longer")
FIRST = {"token": OLD, "team": {"a": OLD, "b": OLD}, "gone": {"all": OLD}}


@pytest.fixture
def store(file: SecretsFile, tmp_path: Path) -> Iterator[Path]:
    """Mount a secrets file whose changes show quickly; gives the directory of its store."""
    file.write(FIRST)
    properties = {"secretsFile": file.path, "nestedSeparator": "/"}
    component(tmp_path / "components", "file", "local.file", properties, annotations={"secretfs/ttl": "200ms"})
    with mounted(tmp_path / "components") as mount:
        yield mount.path / "file"


def look_at(directory: Path) -> None:
    """Read everything, as a program does that wants to hear of changes."""
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            path.read_bytes()


def test_a_watcher_of_a_directory_is_told_of_a_new_version(store: Path, file: SecretsFile, tmp_path: Path) -> None:
    """notify-1: When a value changes, inotify watchers of its directory get IN_MOVED_TO."""
    look_at(store)
    with watching(tmp_path / "log", store, store / "team") as watch:
        file.write({**FIRST, "team": {"a": NEW, "b": OLD}})
        watch.wait_for(f"a MOVED_TO {store}/team/")
        assert (store / "team/a").read_text() == NEW
        file.write({**FIRST, "token": NEW, "team": {"a": NEW, "b": OLD}})
        watch.wait_for(f"token MOVED_TO {store}/")
        assert (store / "token").read_text() == NEW
        assert watch.events() == [f"a MOVED_TO {store}/team/", f"token MOVED_TO {store}/"]


@pytest.mark.parametrize("reader_first", [False, True])
def test_a_watcher_of_a_file_itself_is_told(
    store: Path, file: SecretsFile, tmp_path: Path, *, reader_first: bool
) -> None:
    """notify-6: A watch on a file gets IN_ATTRIB when its value changes, and IN_DELETE_SELF by its last close."""
    look_at(store)
    token, held = store / "token", store / "team/a"
    reader = f"while :; do cat {token} {held}; done" if reader_first else ":"
    with (
        held.open("rb") as opened,
        subprocess.Popen(["sh", "-c", reader], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as reading,
        watching(tmp_path / "log", token, held) as watch,
    ):
        try:
            file.write({**FIRST, "token": NEW, "team": {"a": NEW, "b": OLD}})
            watch.wait_for(f" ATTRIB {token}", f" DELETE_SELF {token}", f" ATTRIB {held}")
        finally:
            reading.kill()
        assert os.fstat(opened.fileno()).st_nlink == 0  # as of any file that was replaced
        assert opened.read() == OLD.encode()
        if not reader_first:  # after a reader the kernel has it at two entries, and says so of the one that goes
            assert f" DELETE_SELF {held}" not in watch.events()
        opened.close()
        watch.wait_for(f" DELETE_SELF {held}")
    assert (token.read_text(), held.read_text(), token.stat().st_nlink) == (NEW, NEW, 1)


def test_a_watcher_of_a_file_is_told_that_it_is_deleted(store: Path, file: SecretsFile, tmp_path: Path) -> None:
    """The same for a secret that is deleted (notify-6)."""
    look_at(store)
    with watching(tmp_path / "log", store / "token") as watch:
        file.write({"team": {"a": OLD, "b": OLD}})
        watch.wait_for(f" ATTRIB {store}/token", f" DELETE_SELF {store}/token")


def test_what_comes_and_goes_is_told(store: Path, file: SecretsFile, tmp_path: Path) -> None:
    """notify-2: Watchers get IN_MOVED_TO for a new secret (a directory: IN_CREATE), IN_DELETE for a deleted one."""
    look_at(store)
    with watching(tmp_path / "log", store, store / "team") as watch:
        file.write({"token": OLD, "team": {"a": OLD, "c": NEW}, "more": {"x": NEW}})
        watch.wait_for(
            f"c MOVED_TO {store}/team/",
            f"b DELETE {store}/team/",
            f"more CREATE,ISDIR {store}/",
            f"gone DELETE,ISDIR {store}/",
        )
    assert sorted(path.name for path in store.iterdir()) == ["more", "team", "token"]
    assert (store / "more/x").read_text() == NEW
    assert errno_of((store / "team/b").stat) == "ENOENT"
    assert errno_of((store / "gone").stat) == "ENOENT"


def test_the_same_in_vault(kv: Folder, tmp_path: Path) -> None:
    """Keys are replaced one by one; secrets are directories that appear and disappear (notify-1, notify-2)."""
    kv.put("db", {"user": OLD, "password": OLD})
    kv.put("gone", {"key": OLD})
    component(tmp_path / "components", "vault", "hashicorp.vault", kv.metadata(), annotations={"secretfs/ttl": "200ms"})
    with mounted(tmp_path / "components") as mount:
        vault = mount.path / "vault"
        look_at(vault)
        with watching(tmp_path / "log", vault, vault / "db") as watch:
            kv.put("db", {"user": OLD, "password": NEW, "port": "1"})
            kv.put("added", {"key": NEW})
            kv.delete("gone")
            watch.wait_for(
                f"password MOVED_TO {vault}/db/", f"port MOVED_TO {vault}/db/", f"added CREATE,ISDIR {vault}/"
            )
            assert f"user MOVED_TO {vault}/db/" not in watch.events()
        assert (vault / "db/password").read_text() == NEW
        assert (vault / "added/key").read_text() == NEW


def test_who_has_a_file_open_is_woken(store: Path, file: SecretsFile) -> None:
    """notify-3: `poll`, `select` and `epoll` on an open file report POLLPRI and POLLERR when it is superseded."""
    path = store / "token"
    for wake in (by_poll, by_epoll, by_select):
        file.write({**FIRST, "token": OLD})
        wait_until(lambda: path.read_text() == OLD)
        with path.open("rb", buffering=0) as opened:
            assert opened.read() == OLD.encode()
            assert not wake(opened.fileno(), 0)
            file.write({**FIRST, "token": NEW})
            assert wake(opened.fileno(), PATIENCE)
            assert os.pread(opened.fileno(), 999, 0) == OLD.encode()
        assert path.read_text() == NEW


def by_poll(fd: int, seconds: float) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLPRI)
    return poller.poll(seconds * 1000) == [(fd, select.POLLPRI | select.POLLERR)]


def by_epoll(fd: int, seconds: float) -> bool:
    with select.epoll() as poller:
        poller.register(fd, select.EPOLLPRI | select.EPOLLET)
        return poller.poll(seconds) == [(fd, select.EPOLLPRI | select.EPOLLERR)]


def by_select(fd: int, seconds: float) -> bool:
    return select.select([], [], [fd], seconds)[2] == [fd]


def test_a_file_is_always_readable_for_poll(store: Path) -> None:
    """A program that waits until it can read does not wait (notify-3)."""
    with (store / "token").open("rb") as opened:
        assert select.select([opened], [], [], 0)[0] == [opened]


def test_tail_follows(store: Path, file: SecretsFile, tmp_path: Path) -> None:
    """notify-4: `tail -F` follows a value from version to version."""
    command = ["tail", "-F", "--sleep-interval=0.05", "--max-unchanged-stats=1", str(store / "token")]
    log = tmp_path / "tail"
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL) as tail:
        try:
            wait_until(lambda: log.read_text() == OLD)
            file.write({**FIRST, "token": NEW})
            wait_until(lambda: log.read_text() == OLD + NEW)
            file.write({**FIRST, "token": OLD})
            wait_until(lambda: log.read_text() == OLD + NEW + OLD)
        finally:
            tail.kill()


def test_nobody_else_can_do_what_we_do(store: Path) -> None:
    """What publishes a change is refused to every other process, root included (ro-1)."""
    calls: list[Callable[[], object]] = [
        lambda: (store / "token").rename(store / "other"),
        lambda: (store / "team/a").rename(store / "team/b"),
        (store / "token").unlink,
        (store / "new").mkdir,
        (store / "team").rmdir,
    ]
    assert [errno_of(call) for call in calls] == ["EROFS"] * len(calls)
    assert sorted(path.name for path in store.iterdir()) == ["gone", "team", "token"]


def test_nothing_is_told_when_nothing_changes(store: Path, file: SecretsFile, tmp_path: Path) -> None:
    """notify-5: A value that is written again without a change causes no event."""
    look_at(store)
    with watching(tmp_path / "log", store, store / "team") as watch:
        for _ in range(3):
            file.write(FIRST)
            wait_until(lambda: (store / "token").read_text() == OLD)
        file.write({**FIRST, "token": NEW})
        watch.wait_for(f"token MOVED_TO {store}/")
        assert watch.events() == [f"token MOVED_TO {store}/"]


def test_an_overlay_does_not_follow() -> None:
    """As "What is not promised" says: ESTALE until the overlay is mounted again. Bind mounts follow (change-4)."""
    assert "**A current value through overlayfs.**" in (ROOT / "docs/SEMANTICS.md").read_text("utf-8")
    done = in_namespace("""
        mkdir c m bound empty over
        write() { printf '{"a": "%s"}' "$1" > new.json; mv new.json secrets.json; }
        overlay() { mount -t overlay none -o lowerdir=m/file:empty over; }
        write one
        printf '%s\n' 'apiVersion: dapr.io/v1alpha1' 'kind: Component' 'metadata: {name: file}' \
            "spec: {type: secretstores.local.file, metadata: [{name: secretsFile, value: secrets.json}]}" > c/file.yaml
        secretfs mount --resources-path c m
        mount --bind m bound
        overlay
        cat over/a bound/file/a; echo
        write two
        until [ "$(cat m/file/a)" = two ]; do :; done
        cat bound/file/a; echo
        cat over/a || true
        umount over
        overlay
        cat over/a
        umount over bound
        secretfs unmount m
    """)
    assert (done.out, done.err) == ("oneone\ntwo\ntwo", f"cat: over/a: {os.strerror(errno.ESTALE)}\n")
