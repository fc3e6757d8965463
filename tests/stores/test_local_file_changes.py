"""``secretstores.local.file``: files that change."""

import contextlib
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from secretfs.errors import MalformedAnswer, StoreUnavailable
from secretfs.store import Names
from secretfs.stores.local_file import FileStore
from tests.support.canary import secret
from tests.support.opened import opened
from tests.support.secrets_file import SecretsFile, file
from tests.support.waiting import PATIENCE

__all__ = ["file"]

TYPE = "secretstores.local.file"


def test_a_relative_path_starts_at_the_working_directory_of_the_start(
    file: SecretsFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write({"a": secret()})
    monkeypatch.chdir(tmp_path)
    with opened(TYPE, {"secretsFile": "secrets.json"}) as store:
        monkeypatch.chdir("/")
        file.write({"b": secret()})
        assert store.names("").secrets == {"b"}


def test_a_file_that_vanishes_is_an_outage_until_it_is_back(file: SecretsFile) -> None:
    file.write({"a": secret()})
    with file.store() as store:
        file.path.unlink()
        for call in (lambda: store.fetch("a"), lambda: store.names(""), store.check):
            with pytest.raises(StoreUnavailable, match="No such file"):
                call()
        file.write({"a": secret()})
        assert store.fetch("a").values == {"a": secret().encode()}


def test_an_edit_in_place_shows(file: SecretsFile) -> None:
    file.write({"a": "old"})
    with file.store() as store:
        file.path.write_text('{"a": "new one"}', encoding="utf-8")
        assert store.fetch("a").values == {"a": b"new one"}


def test_a_replaced_file_of_the_same_size_and_time_shows(file: SecretsFile) -> None:
    file.write({"a": "old"})
    before = file.path.stat()
    with file.store() as store:
        file.write({"a": "new"})
        os.utime(file.path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert store.fetch("a").values == {"a": b"new"}


def test_a_kubernetes_volume_is_followed(tmp_path: Path) -> None:
    """A projected volume is a symbolic link to a directory that is swapped."""
    for version in ("1", "2"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "secrets.json").write_text(json.dumps({"a": version}), encoding="utf-8")
    (tmp_path / "..data").symlink_to("1")
    (tmp_path / "secrets.json").symlink_to("..data/secrets.json")
    with opened(TYPE, {"secretsFile": str(tmp_path / "secrets.json")}) as store:
        assert store.fetch("a").values == {"a": b"1"}
        (tmp_path / "..new").symlink_to("2")
        (tmp_path / "..new").replace(tmp_path / "..data")
        assert store.fetch("a").values == {"a": b"2"}


def test_an_unchanged_file_is_not_read_again(file: SecretsFile, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write({"a": secret()})
    with file.store() as store:
        monkeypatch.setattr(FileStore, "_load", lambda _: pytest.fail("read again"))
        assert store.names("") == Names(frozenset({"a"}))
        assert store.fetch("a").values == {"a": secret().encode()}


def test_a_change_that_many_notice_at_once_is_read_once(file: SecretsFile, monkeypatch: pytest.MonkeyPatch) -> None:
    readers = 8
    loads: list[int] = []
    load = FileStore._load
    all_at_once = threading.Barrier(readers)

    def load_slowly(store: FileStore) -> object:
        loads.append(1)
        with contextlib.suppress(threading.BrokenBarrierError):
            all_at_once.wait(0.2)  # long enough for all the others to be here, if they come
        return load(store)

    file.write({"a": "1"})
    with file.store() as store, ThreadPoolExecutor(readers) as threads:
        file.write({"a": "2"})
        monkeypatch.setattr(FileStore, "_load", load_slowly)
        assert {secret.values["a"] for secret in threads.map(store.fetch, ["a"] * readers)} == {b"2"}
    assert len(loads) == 1


def test_a_thread_that_hangs_while_it_reads_does_not_keep_the_others_for_ever(
    file: SecretsFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secretfs.stores.local_file._PATIENCE", 0.01)
    hangs, released, load = threading.Event(), threading.Event(), FileStore._load

    def hang_first(store: FileStore) -> object:
        if not hangs.is_set():
            hangs.set()
            released.wait(PATIENCE)
        return load(store)

    file.write({"a": "1"})
    with file.store() as store, ThreadPoolExecutor(1) as thread:
        file.write({"a": "2"})
        monkeypatch.setattr(FileStore, "_load", hang_first)
        try:
            hanging = thread.submit(store.fetch, "a")
            assert hangs.wait(PATIENCE)
            assert store.fetch("a").values == {"a": b"2"}
            assert not hanging.done()
        finally:
            released.set()
        assert hanging.result().values == {"a": b"2"}


def test_modified_is_the_time_of_the_file(file: SecretsFile) -> None:
    file.write({"a": secret()})
    os.utime(file.path, (1_000_000, 1_700_000_000.5))
    with file.store() as store:
        assert store.fetch("a").modified == 1_700_000_000.5


def test_readers_never_see_half_a_file(file: SecretsFile) -> None:
    """One thread rewrites the file, in place and by rename; what others read is always one whole version."""
    versions = [{"first": f"{n}" * 2000, "second": f"{n}" * 2000} for n in range(4)]
    file.write(versions[0])
    done = threading.Event()

    def rewrite() -> None:
        for turn in range(200):
            text = json.dumps(versions[turn % 4]).encode()
            file.write_text(text) if turn % 2 else file.path.write_bytes(text)
        done.set()

    with file.store() as store:
        writer = threading.Thread(target=rewrite)
        writer.start()
        while not done.is_set():
            try:
                value = store.fetch("first").values["first"].decode()
            except (MalformedAnswer, StoreUnavailable):
                continue
            assert value in [version["first"] for version in versions]
        writer.join()
        assert store.fetch("second").values == {"second": versions[3]["second"].encode()}


def test_a_file_that_is_replaced_whenever_it_is_read_is_no_outage(
    file: SecretsFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a rename has replaced is whole: a program that saves all the time makes no reader fail."""
    versions = iter(range(1000))
    look = os.fstat

    def replace_and_look(descriptor: int) -> os.stat_result:
        status = look(descriptor)
        file.write({"a": str(next(versions))})
        return status

    file.write({"a": "at first"})
    with file.store() as store:
        file.write({"a": "the next"})
        monkeypatch.setattr(os, "fstat", replace_and_look)
        assert store.fetch("a").values == {"a": b"the next"}
        later = store.fetch("a").values["a"]
        monkeypatch.undo()
        assert int(later) < int(store.fetch("a").values["a"]) == next(versions) - 1


def test_a_file_that_never_holds_still_is_an_outage(file: SecretsFile, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write({"a": secret()})
    with file.store() as store:
        ticks = iter(range(1000, 2000))
        monkeypatch.setattr(
            "secretfs.stores.local_file.FileIdentity.of", classmethod(lambda *_: next(ticks)), raising=True
        )
        with pytest.raises(StoreUnavailable, match="changes faster than it can be read"):
            store.fetch("a")
