"""Secrets that change while they are read, and how soon the change is visible."""

import json
import mmap
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.support.canary import secret
from tests.support.manifests import component
from tests.support.mounted import mounted
from tests.support.servers.openbao import OpenBao
from tests.support.shell import errno_of, lines, output, run, wait_for, wait_until
from tests.support.values import sealed, unsealed
from tests.support.vault_fixtures import Folder
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.mount

TTL = 0.3
SOON = 20.0  # seconds: on a busy machine much more than TTL, and less than the ttl of a store that has none of its own
VERSIONS = 200
LARGE = 199_000  # bytes at least
OLD, NEW = secret("old"), secret("new, and longer")


@dataclass(frozen=True)
class Source:
    """A place where secrets come from: how to write one there, and where its file is."""

    put: Callable[[str, str], None]
    delete: Callable[[str], None]
    path: Callable[[str], Path]
    rapid: Callable[[str], Path]
    """The same, with the shortest ttl that is of any use."""
    hectic: Callable[[str], Path]
    """The same, with a ttl that is over before an answer is there."""


class SecretsFile:
    """A file for local.file that is replaced as a whole, as careful programs do."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.secrets: dict[str, str] = {}
        self._save()

    def put(self, name: str, value: str) -> None:
        self.secrets[name] = value
        self._save()

    def delete(self, name: str) -> None:
        del self.secrets[name]
        self._save()

    def _save(self) -> None:
        temporary = self.path.with_suffix(".new")
        temporary.write_text(json.dumps(self.secrets))
        temporary.replace(self.path)


@pytest.fixture(scope="module")
def sources(scratch: Path, own_server: OpenBao) -> Iterator[dict[str, Source]]:
    file = SecretsFile(scratch / "secrets.json")
    folder = Folder(own_server, "change")
    for prefix, ttl in (("", "300ms"), ("rapid-", "100ms"), ("hectic-", "1ms")):
        annotations = {"secretfs/ttl": ttl}
        component(
            scratch / "manifests", f"{prefix}file", "local.file", {"secretsFile": file.path}, annotations=annotations
        )
        component(
            scratch / "manifests", f"{prefix}vault", "hashicorp.vault", folder.metadata(), annotations=annotations
        )
    with mounted(scratch / "manifests", options=["--deadline=2m"]) as mount:
        yield {
            "file": Source(
                file.put,
                file.delete,
                lambda name: mount.path / "file" / name,
                lambda name: mount.path / "rapid-file" / name,
                lambda name: mount.path / "hectic-file" / name,
            ),
            "vault": Source(
                lambda name, value: folder.put(name, {"key": value}),
                folder.delete,
                lambda name: mount.path / "vault" / name / "key",
                lambda name: mount.path / "rapid-vault" / name / "key",
                lambda name: mount.path / "hectic-vault" / name / "key",
            ),
        }


@pytest.fixture(params=["file", "vault"])
def source(sources: dict[str, Source], request: pytest.FixtureRequest) -> Source:
    return sources[str(request.param)]


@contextmanager
def rotating(source: Source, names: Sequence[str]) -> Iterator[None]:
    """Write one version after the other, as fast as it goes, until the block ends."""
    stop = threading.Event()

    def rotate() -> None:
        number = len(names)
        while not stop.is_set():
            source.put(names[number % len(names)], sealed(number))
            number += 1

    for number, name in enumerate(names):
        source.put(name, sealed(number))
    thread = threading.Thread(target=rotate)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def appear(source: Source, name: str, value: str) -> Path:
    """Write a secret, and return its file once it is seen."""
    path = source.path(name)
    source.put(name, value)
    wait_until(lambda: there(path) and path.read_text() == value)
    return path


def there(path: Path) -> bool:
    return errno_of(path.stat) == ""


def read_once(path: Path) -> int:
    """Open, stat, read in pieces and close; returns which version it was."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        content = b""
        while piece := os.read(descriptor, 16384):
            content += piece
        assert len(content) == size == os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)
    return unsealed(content)


def read_until(paths: Sequence[Path], versions: int) -> list[Exception]:
    """Read in two threads until so many versions have been seen; returns what went wrong."""
    wait_until(lambda: all(there(path) for path in paths))
    seen: set[int] = set()
    failures: list[Exception] = []

    def read_on() -> None:
        try:
            known, since = 0, time.monotonic()
            while len(seen) < versions and not failures:
                seen.update(read_once(path) for path in paths)
                if len(seen) > known:
                    known, since = len(seen), time.monotonic()
                assert time.monotonic() < since + PATIENCE, f"only {known} versions were seen"
        except (AssertionError, OSError, ValueError) as error:
            failures.append(error)

    readers = [threading.Thread(target=read_on) for _ in range(2)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    return failures


def test_never_torn(source: Source) -> None:
    """change-1: A reader gets one complete version of a value that changes; `fstat` returns that version's size."""
    names = [f"torn-{number}" for number in range(10)]
    with rotating(source, names):
        assert read_until([source.rapid(name) for name in names], VERSIONS) == []


def test_a_thousand_rotations(tmp_path: Path, own_server: OpenBao) -> None:
    """In 1,000 rotations of a value of 200 KB no reader sees a torn one, nor an older after a newer one (change-1)."""
    folder = Folder(own_server, "thousand")
    folder.put("large", {"key": sealed(0, LARGE)})
    component(tmp_path / "manifests", "vault", "hashicorp.vault", folder.metadata(), annotations={"secretfs/ttl": "1h"})
    seen: list[int] = []
    over = threading.Event()
    with mounted(tmp_path / "manifests") as mount, ThreadPoolExecutor(1) as reader:
        path, refresh = mount.path / "vault/large/key", mount.path / ".secretfs/refresh"

        def read_on() -> None:
            while not over.is_set():
                seen.append(read_once(path))

        reading = reader.submit(read_on)
        try:
            for number in range(1, 1001):
                folder.put("large", {"key": sealed(number, LARGE)})
                refresh.write_bytes(b"vault/large")
                if number % 5 == 0:  # however busy the machine is, the reader sees many of them
                    wait_until(lambda least=number: seen and seen[-1] >= least)  # type: ignore[misc]
            wait_until(lambda: read_once(path) == 1000)
        finally:
            over.set()
        reading.result()
    assert seen == sorted(seen)
    assert len(set(seen)) >= 200


def test_a_ttl_that_is_over_before_the_answer_is_there(source: Source) -> None:
    """A reader gets a version even if the value changes faster than it can be read (change-1)."""
    with rotating(source, ["hectic"]):
        assert read_until([source.hectic("hectic")], VERSIONS // 5) == []  # an answer lives for 0.1 s at least


COMMANDS: dict[str, Callable[[Path], bytes]] = {
    "cat": lambda path: output("cat", path),
    "dd": lambda path: output("dd", f"if={path}", "bs=777", "status=none"),
    "tail": lambda path: output("tail", "-c", "+1", path),
    "tar": lambda path: output("sh", "-c", 'tar -cP "$0" | tar -xOP', path),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_programs_never_see_a_mixture(source: Source, command: str) -> None:
    """Programs that ask for the size and then read get one version, too (change-1)."""
    with rotating(source, ["mixed"]):
        path = source.rapid("mixed")
        wait_until(lambda: there(path))
        seen: set[int] = set()
        end = time.monotonic() + PATIENCE
        while len(seen) < 5:
            seen.add(unsealed(COMMANDS[command](path)))
            assert time.monotonic() < end


def test_cp(source: Source) -> None:
    """`cp` refuses a file that was replaced between its `stat` and its `open`; it never copies a mixture (change-1)."""
    with rotating(source, ["copied"]), tempfile.TemporaryDirectory() as directory:
        path, copy = source.rapid("copied"), Path(directory, "copy")
        wait_until(lambda: there(path))
        seen: set[int] = set()
        end = time.monotonic() + PATIENCE
        while len(seen) < 5:
            done = run("cp", path, copy)
            if done.returncode == 0:
                seen.add(unsealed(copy.read_bytes()))
            else:
                assert b"as it was replaced while being copied" in done.stderr
            assert time.monotonic() < end


def test_an_open_file_keeps_its_version(source: Source) -> None:
    """change-2: An open file keeps the version and the size that it had when it was opened, until it is closed."""
    path = appear(source, "open", OLD)
    with path.open("rb", buffering=0) as file:
        assert file.read(8) == OLD[:8].encode()
        source.put("open", NEW)
        wait_until(lambda: path.read_text() == NEW)
        assert os.fstat(file.fileno()).st_size == len(OLD)
        assert file.read() == OLD[8:].encode()
        source.delete("open")
        wait_until(lambda: errno_of(path.stat) == "ENOENT")
        assert os.fstat(file.fileno()).st_size == len(OLD)
        assert os.pread(file.fileno(), 1000, 0) == OLD.encode()


def test_an_open_file_that_nobody_has_read_yet(source: Source) -> None:
    """It is the version of the `open`, also when the first `read` comes after the change (change-2)."""
    path = appear(source, "unread", OLD)
    with path.open("rb", buffering=0) as file:
        source.put("unread", NEW)
        wait_until(lambda: path.read_text() == NEW)
        assert file.read() == OLD.encode()


def test_a_mapping_keeps_its_version(source: Source) -> None:
    """change-3: A memory mapping of a file keeps its version, even after the file has been closed."""
    path = appear(source, "mapped", OLD)
    with path.open("rb") as file:
        memory = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    with memory:
        source.put("mapped", NEW)
        wait_until(lambda: path.read_text() == NEW)
        assert memory[:] == OLD.encode()


def test_inode_numbers(source: Source) -> None:
    """change-4: A new value has a new inode number; a value that stays equal, even if rewritten, keeps its number."""
    path = appear(source, "inode", OLD)
    with path.open("rb"):  # an open file is not forgotten when the kernel drops its caches, as other tests have it do
        before = path.stat()
        source.put("inode", OLD)
        wait_for(time.monotonic() + 2 * TTL)
        assert path.stat() == before
    assert path.read_text() == OLD
    assert path.stat().st_ino == before.st_ino
    source.put("inode", NEW)
    wait_until(lambda: path.read_text() == NEW)
    assert path.stat().st_ino != before.st_ino


def has_size(path: Path, size: int) -> bool:
    return path.stat().st_size == size


def test_freshness(source: Source) -> None:
    """fresh-1: A change is visible at most `ttl` after it was made, and `stat` is enough to see it."""
    path = appear(source, "fresh", OLD)
    for value in (NEW, OLD, NEW):
        path.read_bytes()
        source.put("fresh", value)
        wait_until(partial(has_size, path, len(value)), within=SOON)
        assert path.read_text() == value


def test_deletion(source: Source) -> None:
    """fresh-2: A deleted secret is ENOENT, and no longer listed, at most `ttl` after it was deleted."""
    path = appear(source, "deleted", OLD)
    top = path.parent if path.name == "deleted" else path.parent.parent
    source.delete("deleted")
    wait_until(lambda: errno_of(path.stat) == "ENOENT", within=SOON)
    assert errno_of(path.read_bytes) == "ENOENT"
    wait_until(lambda: "deleted" not in lines("ls", top), within=SOON)


def test_a_new_secret(source: Source) -> None:
    """fresh-3: A new secret is there and listed at most `ttl` after it was created, even if it was looked up before."""
    path = source.path("newborn")
    assert errno_of(path.stat) == "ENOENT"
    source.put("newborn", OLD)
    wait_until(lambda: there(path), within=SOON)
    assert path.read_text() == OLD
    top = path.parent if path.name == "newborn" else path.parent.parent
    wait_until(lambda: "newborn" in lines("ls", top), within=SOON)


def test_a_new_secret_in_a_folder_that_was_just_listed(scratch: Path, own_server: OpenBao) -> None:
    """fresh-7: A name that a listing lacks is looked for in a new one after `secretfs/negative-ttl` (5 s default)."""
    folder = Folder(own_server, "negative")
    folder.put("team/old", {"key": OLD})
    annotations = {"secretfs/ttl": "1h", "secretfs/negative-ttl": "200ms"}
    component(scratch / "negative", "vault", "hashicorp.vault", folder.metadata(), annotations=annotations)
    with mounted(scratch / "negative") as mount:
        new = mount.path / "vault/team/new/key"
        assert lines("ls", mount.path / "vault/team") == ["old"]
        assert errno_of(new.read_bytes) == "ENOENT"
        folder.put("team/new", {"key": NEW})
        wait_until(lambda: errno_of(new.stat) == "")
        assert new.read_text() == NEW
        assert lines("ls", mount.path / "vault/team") == ["new", "old"]


def test_one_key_of_several(scratch: Path, own_server: OpenBao) -> None:
    """change-5: When one key of a secret changes, the files of its other keys do not."""
    folder = Folder(own_server, "keys")
    folder.put("db", {"user": "joe", "password": OLD})
    component(scratch / "keys", "vault", "hashicorp.vault", folder.metadata(), annotations={"secretfs/ttl": "100ms"})
    with mounted(scratch / "keys") as mount:
        secret_directory = mount.path / "vault/db"
        user = (secret_directory / "user").stat()
        folder.put("db", {"user": "joe", "password": NEW})
        wait_until(lambda: (secret_directory / "password").read_text() == NEW)
        assert (secret_directory / "user").stat() == user
        folder.put("db", {"password": NEW})
        wait_until(lambda: lines("ls", secret_directory) == ["password"])
        wait_until(lambda: errno_of((secret_directory / "user").stat) == "ENOENT")


def test_times(scratch: Path, own_server: OpenBao) -> None:
    """change-6: The modification time of a file is when its value was written in the store, if the store reports it."""
    folder = Folder(own_server, "times")
    before = time.time()
    folder.put("db", {"key": OLD})
    after = time.time()
    component(scratch / "times", "vault", "hashicorp.vault", folder.metadata())
    with mounted(scratch / "times") as mount:
        assert before - 0.01 <= (mount.path / "vault/db/key").stat().st_mtime <= after + 0.01


def test_a_secrets_file(tmp_path: Path) -> None:
    """fresh-5: A change of a secrets file of `local.file` is visible within a second, whatever `ttl` is."""
    file = SecretsFile(tmp_path / "secrets.json")
    file.put("kept", OLD)
    file.put("rotated", OLD)
    properties = {"secretsFile": file.path}
    component(tmp_path / "components", "file", "local.file", properties, annotations={"secretfs/ttl": "1h"})
    with mounted(tmp_path / "components") as mount:
        store = mount.path / "file"
        assert [path.read_text() for path in sorted(store.iterdir())] == [OLD, OLD]
        file.secrets |= {"rotated": NEW, "added": NEW}
        file.put("kept", OLD)
        wait_until(lambda: (store / "rotated").read_text() == NEW, within=SOON)
        wait_until(lambda: lines("ls", store) == ["added", "kept", "rotated"], within=SOON)
        file.delete("rotated")
        wait_until(lambda: not there(store / "rotated"), within=SOON)
        assert (store / "kept").read_text() == OLD
