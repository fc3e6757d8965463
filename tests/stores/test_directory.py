"""``secretstores.secretfs.directory``."""

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from secretfs.errors import AccessDenied, ConfigurationError, SecretNotFound
from secretfs.store import Names, SecretStore, StoreContext, WatchingStore
from secretfs.stores.directory import Settings, open_store
from secretfs.testing import Seed, StoreContract
from tests.support.canary import CANARY, secret
from tests.support.opened import opened
from tests.support.waiting import PATIENCE

NOBODY = 65534
HERE = Path("/proc/self/cwd")
"""The working directory, also for a user to whom the directories above it are closed."""


def serving(path: Path, *, multi_valued: bool = False) -> AbstractContextManager[SecretStore]:
    return opened("secretstores.secretfs.directory", {"path": str(path), "multiValued": str(multi_valued)})


def put(path: Path, value: bytes) -> None:
    """Replace a file as programs do that write secrets."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name("..new")
    new.write_bytes(value)
    new.replace(path)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    tree.mkdir()
    return tree


class TestContract(StoreContract):
    multi_valued = False
    mark = CANARY
    has_versions = False
    counts_reads = False  # nobody answers who could count

    @pytest.fixture
    def store(self, tree: Path) -> Iterator[SecretStore]:
        with serving(tree, multi_valued=self.multi_valued) as store:
            yield store

    @pytest.fixture
    def seed(self, tree: Path) -> Seed:
        def seed(name: str, values: Mapping[str, bytes]) -> None:
            for key, value in values.items():
                put(tree / name / key if self.multi_valued else tree / name, value)

        return seed

    @pytest.fixture
    def denied(self, tree: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[SecretStore, str]]:
        """Read as a user who may not."""
        path = tree / "closed/key"
        put(path, secret("closed").encode())
        path.chmod(0)
        tree.chmod(0o755)
        monkeypatch.chdir(tree)
        before = os.geteuid()
        with serving(HERE, multi_valued=self.multi_valued) as store:
            if before == 0:
                os.seteuid(NOBODY)
            try:
                yield store, "closed" if self.multi_valued else "closed/key"
            finally:
                os.seteuid(before)

    @pytest.fixture
    def unreachable(self, tree: Path) -> Iterator[SecretStore]:
        with serving(tree, multi_valued=self.multi_valued) as store:
            tree.rmdir()
            yield store

    def can_hold(self, name: str) -> bool:
        parts = name.split("/")
        return not any(part.startswith("..") or len(part.encode()) > 255 for part in parts)

    def test_a_folder_and_a_secret_of_one_name(self, store: SecretStore, seed: Seed) -> None:
        """A file system cannot have both where a secret is a file."""
        if not self.multi_valued:
            pytest.skip("no directory has the name of a file")
        super().test_a_folder_and_a_secret_of_one_name(store, seed)


class TestMultiValuedContract(TestContract):
    multi_valued = True


# --- what is a secret ---


def test_files_are_secrets_and_directories_folders(tree: Path) -> None:
    for name in ("a", "team/db/password", "team/db/user", ".dockerconfigjson"):
        put(tree / name, name.encode())
    (tree / "empty").mkdir()
    os.mkfifo(tree / "pipe")
    with serving(tree) as store:
        assert store.names("") == Names(frozenset({"a", "team/db/password", "team/db/user", ".dockerconfigjson"}))
        assert store.names("team").secrets == {"team/db/password", "team/db/user"}
        for name in ("pipe", "empty", "team", "team/db"):
            with pytest.raises(SecretNotFound):
                store.fetch(name)


def test_multi_valued_each_directory_with_files_is_a_secret(tree: Path) -> None:
    for name in ("a", "db/password", "db/user", "team/web/key"):
        put(tree / name, name.encode())
    with serving(tree, multi_valued=True) as store:
        assert store.names("").secrets == {"a", "db", "team/web"}
        assert store.fetch("db").values == {"password": b"db/password", "user": b"db/user"}
        assert store.fetch("a").values == {"a": b"a"}
        for name in ("team", "db/user", "team/web/key"):
            with pytest.raises(SecretNotFound):
                store.fetch(name)


def test_a_name_that_is_not_utf_8_is_none(tree: Path) -> None:
    (tree / os.fsdecode(b"\xff")).write_bytes(b"x")
    put(tree / "good", b"x")
    with serving(tree) as store:
        assert store.names("").secrets == {"good"}


# --- links ---


def test_a_link_out_of_the_tree_is_no_secret(tree: Path, tmp_path: Path) -> None:
    """Whoever may write into the tree must not have another file of this machine read."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/shadow").write_text(secret("outside"))
    (tree / "direct").symlink_to(tmp_path / "outside/shadow")
    (tree / "relative").symlink_to("../outside/shadow")
    (tree / "folder").symlink_to("../outside")
    (tree / "beside").symlink_to(f"{tree}/../outside/shadow")
    (tree / "self").symlink_to("self")
    for multi_valued in (False, True):
        with serving(tree, multi_valued=multi_valued) as store:
            assert store.names("") == Names()
            assert store.names("folder") == Names()
            for name in ("direct", "relative", "folder", "folder/shadow", "beside", "self"):
                with pytest.raises(SecretNotFound):
                    store.fetch(name)


def test_a_tree_whose_name_begins_like_another_is_another(tree: Path) -> None:
    beside = tree.with_name("tree-of-others")
    put(beside / "a", secret().encode())
    (tree / "a").symlink_to(beside / "a")
    with serving(tree) as store, pytest.raises(SecretNotFound):
        store.fetch("a")


def test_a_link_to_a_directory_above_ends(tree: Path) -> None:
    put(tree / "a", b"x")
    (tree / "loop").symlink_to(".")
    (tree / "deeper").mkdir()
    (tree / "deeper/up").symlink_to("..")
    with serving(tree) as store:
        assert "a" in store.names("").secrets
        assert store.fetch("deeper/up/a").values == {"deeper/up/a": b"x"}


class Volume:
    """A volume as the kubelet writes it: versions in directories, a link to the newest, links to its entries."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._version = 0

    def write(self, files: Mapping[str, bytes]) -> None:
        self._version += 1
        version = self.path / f"..2026_{self._version}"
        for name, value in files.items():
            put(version / name, value)
        (self.path / "..data_tmp").symlink_to(version.name)
        (self.path / "..data_tmp").replace(self.path / "..data")
        for first in {name.split("/")[0] for name in files}:
            if not (self.path / first).is_symlink():
                (self.path / first).symlink_to(f"..data/{first}")


def test_a_kubernetes_volume(tree: Path) -> None:
    volume = Volume(tree)
    volume.write({"user": b"app", "tls/key": b"1"})
    with serving(tree) as store:
        assert store.names("").secrets == {"user", "tls/key"}
        assert store.fetch("tls/key").values == {"tls/key": b"1"}
        volume.write({"user": b"app", "tls/key": b"2"})
        assert store.fetch("tls/key").values == {"tls/key": b"2"}
        for name in ("..data", "..data/user", "..2026_2/user"):
            with pytest.raises(SecretNotFound):
                store.fetch(name)


def test_the_keys_of_a_secret_are_of_one_version(tree: Path) -> None:
    """While a volume is swapped again and again: once beside each read."""
    volume = Volume(tree / "db")
    volume.write(dict.fromkeys("abcdef", b"0"))
    with serving(tree, multi_valued=True) as store, ThreadPoolExecutor(1) as pool:
        for number in range(1, 201):
            swapping = pool.submit(volume.write, dict.fromkeys("abcdef", str(number).encode()))
            values = store.fetch("db").values
            swapping.result()
            assert len(set(values.values())) == 1


# --- changes ---


@pytest.mark.parametrize("multi_valued", [False, True])
def test_changes_are_reported(tree: Path, *, multi_valued: bool) -> None:
    put(tree / "db/password", b"old")
    put(tree / "other/x", b"same")
    heard: list[frozenset[str]] = []
    news = threading.Condition()

    def hear(names: frozenset[str]) -> None:
        with news:
            heard.append(names)
            news.notify()

    def expect(change: Callable[[], object], *names: str) -> None:
        change()
        with news:
            assert news.wait_for(lambda: heard and frozenset().union(*heard) >= set(names), PATIENCE)
            assert frozenset().union(*heard) == set(names)
            heard.clear()

    changed = "db" if multi_valued else "db/password"
    with serving(tree, multi_valued=multi_valued) as store:
        assert isinstance(store, WatchingStore)
        store.watch(hear)
        expect(lambda: put(tree / "db/password", b"new"), changed)
        expect(lambda: (tree / "db/password").write_bytes(b"abc"), changed)
        expect(lambda: put(tree / "new/y", b"1"), "new" if multi_valued else "new/y")
        expect((tree / "db/password").unlink, changed)


def test_a_tree_that_vanishes_is_no_change(tree: Path) -> None:
    """It is an outage, in which known values are served."""
    put(tree / "a", b"x")
    heard: list[frozenset[str]] = []
    with serving(tree) as store:
        assert isinstance(store, WatchingStore)
        looked = threading.Semaphore(0)
        look = store._changed_since  # type: ignore[attr-defined]

        def count(before: object) -> object:
            found = look(before)
            looked.release()
            return found

        store._changed_since = count  # type: ignore[attr-defined]
        store.watch(heard.append)
        tree.rename(tree.with_name("away"))
        for _ in range(3):
            assert looked.acquire(timeout=PATIENCE)
        tree.with_name("away").rename(tree)
        assert heard == []


# --- errors ---


def test_a_folder_that_may_not_be_listed_is_refused_alone(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tree / "open/a", b"x")
    put(tree / "closed/b", secret().encode())
    tree.chmod(0o755)
    (tree / "closed").chmod(0)
    monkeypatch.chdir(tree)
    before = os.geteuid()
    with serving(HERE) as store:
        if before == 0:
            os.seteuid(NOBODY)
        try:
            assert store.names("") == Names(frozenset({"open/a"}), frozenset({"closed"}))
            with pytest.raises(AccessDenied, match="closed"):
                store.names("closed")
            with pytest.raises(AccessDenied):
                store.fetch("closed/b")
        finally:
            os.seteuid(before)
            (tree / "closed").chmod(0o700)


def test_a_directory_that_is_not_there_is_not_opened(tree: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"my-store: path: /nowhere: No such file or directory"):
        open_store(Settings("/nowhere"), StoreContext("my-store"))
    put(tree / "file", b"x")
    with pytest.raises(ConfigurationError, match="Not a directory"):
        open_store(Settings(str(tree / "file")), StoreContext("my-store"))


def test_the_path_is_required() -> None:
    with pytest.raises(ConfigurationError, match="path is required"), opened("secretstores.secretfs.directory", {}):
        pass


def test_a_replaced_directory_is_followed(tree: Path) -> None:
    put(tree / "a", b"old")
    with serving(tree) as store:
        tree.rename(tree.with_name("old"))
        put(tree / "a", b"new")
        assert store.fetch("a").values == {"a": b"new"}
