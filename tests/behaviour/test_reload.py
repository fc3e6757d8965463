"""Manifests and configuration that are edited while the mount is in use."""

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from tests.behaviour.test_rotation import by_poll, look_at
from tests.support.canary import secret
from tests.support.command import background
from tests.support.manifests import component, configuration, scope
from tests.support.mounted import Mounted, mounted
from tests.support.shell import errno_of, wait_until, ways_to_ask
from tests.support.values import sealed, unsealed
from tests.support.waiting import PATIENCE
from tests.support.watching import watching

pytestmark = pytest.mark.mount

OLD, NEW = secret("old"), secret("new, and longer")
EDITS = 50


class Setup:
    """What a user edits: stores on files, and a configuration."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.components = directory / "components"
        self.config = configuration(directory)
        self._files = 0

    def store(self, name: str, secrets: object, ttl: str = "1m", **properties: object) -> Path:
        """Declare a store that has these secrets."""
        self._files += 1
        path = self.directory / f"{name}-{self._files}.json"
        path.write_text(json.dumps(secrets))
        annotations = {"secretfs/ttl": ttl}
        return component(
            self.components, name, "local.file", {"secretsFile": path, **properties}, annotations=annotations
        )

    def scopes(self, *scopes: dict[str, object]) -> None:
        configuration(self.directory, *scopes)

    @contextmanager
    def mounted(self, *expect_log: str) -> Iterator[Mounted]:
        with mounted(self.components, config=[self.config], expect_log=expect_log) as mount:
            yield mount


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(tmp_path)


def reload(mount: Mounted) -> None:
    """Have everything read again; returns when that is done."""
    with suppress(OSError):  # a mistake is an error of the write, too
        (mount.path / ".secretfs/reload").write_text("*")


def names(path: Path) -> list[str]:
    return sorted(os.listdir(path))  # noqa: PTH208


def test_by_themselves(setup: Setup, tmp_path: Path) -> None:
    """reload-1: An edit takes effect within seconds, without a remount; so does the swapped link of a ConfigMap."""
    setup.store("store", {"a": OLD})
    for version in ("1", "2"):
        setup.components = tmp_path / version
        setup.store("mapped", {version: OLD})
    links = tmp_path / "map"
    links.mkdir()
    (links / "..data").symlink_to("../1")
    (links / "mapped.yaml").symlink_to("..data/mapped.yaml")
    setup.components = tmp_path / "components"
    with mounted(setup.components, links, config=[setup.config]) as mount:
        assert names(mount.path / "mapped") == ["1"]
        (links / "..new").symlink_to("../2")
        (links / "..new").rename(links / "..data")
        setup.store("other", {"b": NEW})
        setup.scopes(scope("store", default="deny"))
        wait_until(lambda: names(mount.path) == ["mapped", "other", "store"])
        wait_until(lambda: names(mount.path / "mapped") == ["2"])
        assert names(mount.path / "store") == []
        assert mount.process.poll() is None


def test_a_signal(setup: Setup) -> None:
    """reload-2: SIGHUP makes the daemon read everything again at once."""
    setup.store("store", {"a": OLD})
    with setup.mounted() as mount:
        for number in range(3):
            mount.process.send_signal(signal.SIGHUP)
            mount.said("INFO serving ", number + 1)  # though no file has changed
        setup.store("other", {"b": NEW})
        mount.process.send_signal(signal.SIGHUP)
        wait_until(lambda: names(mount.path) == ["other", "store"])


def test_stores(setup: Setup) -> None:
    """reload-3: When stores are added, changed, renamed or removed in the manifests, the mount follows."""
    setup.store("stays", {"a": OLD})
    renamed, removed = setup.store("before", {"b": OLD}), setup.store("removed", {"c": OLD})
    setup.store("changed", {"d": OLD, "gone": OLD})
    with setup.mounted() as mount:
        look_at(mount.path)
        renamed.unlink()
        removed.unlink()
        setup.store("after", {"b": OLD})
        setup.store("changed", {"d": NEW, "more": NEW})
        setup.store("added", {"e": NEW})
        reload(mount)
        assert names(mount.path) == ["added", "after", "changed", "stays"]
        assert (mount.path / "added/e").read_text() == NEW
        assert (mount.path / "after/b").read_text() == OLD
        assert (mount.path / "changed/d").read_text() == NEW
        wait_until(lambda: ways_to_ask(mount.path / "changed/gone") == ways_to_ask(mount.path / "changed/never-was"))
        assert names(mount.path / "changed") == ["d", "more"]
        for path in ("before", "before/b", "removed", "removed/c"):
            wait_until(lambda path=path: set(ways_to_ask(mount.path / path)) == {"ENOENT"})  # type: ignore[misc]
        setup.store("removed", {"c": NEW})
        reload(mount)
        assert (mount.path / "removed/c").read_text() == NEW


def test_several_in_one_file(setup: Setup) -> None:
    """Stores that share a file change one by one, and move without a change (reload-3)."""
    first, second = setup.store("first", {"a": OLD}), setup.store("second", {"b": OLD})
    with setup.mounted() as mount:
        look_at(mount.path)
        inode = (mount.path / "first/a").stat().st_ino
        setup.store("second", {"b": NEW})
        both = f"# two\n---\n{second.read_text()}\n---\n{first.read_text()}"
        second.unlink()
        first.write_text(both)
        reload(mount)
        assert (mount.path / "second/b").read_text() == NEW
        assert (mount.path / "first/a").stat().st_ino == inode


def test_scopes(setup: Setup) -> None:
    """reload-4: A change of scope shows and hides secrets; no store is opened or asked again for that."""
    setup.store("store", {"a": OLD, "b": OLD, "c": OLD})
    setup.scopes(scope("store", default="deny", allowed=["a", "b"]))
    with setup.mounted() as mount:
        look_at(mount.path)
        calls = fetches(mount, "store")
        setup.scopes(scope("store", default="deny", allowed=["b", "c"]))
        reload(mount)
        assert names(mount.path / "store") == ["b", "c"]
        assert (mount.path / "store/b").read_text() == OLD
        assert fetches(mount, "store") == calls
        assert (mount.path / "store/c").read_text() == OLD
        wait_until(lambda: set(ways_to_ask(mount.path / "store/a")) == {"ENOENT"})
        assert json.loads((mount.path / "store/.bulk.json").read_text()).keys() == {"b", "c"}
        setup.scopes()
        reload(mount)
        assert names(mount.path / "store") == ["a", "b", "c"]


def fetches(mount: Mounted, store: str) -> dict[str, object]:
    """Say what a store has been asked since it was opened."""
    status = json.loads((mount.path / ".secretfs/status.json").read_text())
    calls: dict[str, object] = status["stores"][store]["calls"]
    return calls


def test_a_watcher_of_the_root(setup: Setup, tmp_path: Path) -> None:
    """reload-5: When a store comes or goes, inotify watchers of the root get IN_CREATE or IN_DELETE."""
    setup.store("stays", {"a": OLD})
    path = setup.store("goes", {"b": OLD})
    with setup.mounted() as mount:
        look_at(mount.path)
        with watching(tmp_path / "log", mount.path) as watch:
            path.unlink()
            setup.store("comes", {"c": NEW})
            reload(mount)
            watch.wait_for(f"goes DELETE,ISDIR {mount.path}/", f"comes CREATE,ISDIR {mount.path}/")
            setup.store("goes", {"b": NEW})
            reload(mount)
            watch.wait_for(f"goes CREATE,ISDIR {mount.path}/")
            assert len(watch.events()) == 3
        assert (mount.path / "goes/b").read_text() == NEW


def test_a_watcher_of_a_directory(setup: Setup, tmp_path: Path) -> None:
    """reload-6: When a scope shows or hides a secret, watchers of its directory see it as created or deleted."""
    setup.store("store", {"a": OLD, "b": OLD, "team": {"c": OLD}}, nestedSeparator="/")
    setup.scopes(scope("store", denied=["b"]))
    with setup.mounted() as mount:
        store = mount.path / "store"
        look_at(store)
        with watching(tmp_path / "log", store) as watch:
            setup.scopes(scope("store", denied=["a", "team/c"]))
            reload(mount)
            watch.wait_for(f"a DELETE {store}/", f"b MOVED_TO {store}/", f"team DELETE,ISDIR {store}/")
            assert len(watch.events()) == 3
        assert names(store) == ["b"]


def test_a_watcher_of_a_changed_store(setup: Setup, tmp_path: Path) -> None:
    """Watchers of a changed store get events for each difference, and none for what is equal (reload-3)."""
    setup.store("store", {"same": OLD, "other": OLD, "gone": OLD})
    with setup.mounted() as mount:
        store = mount.path / "store"
        look_at(store)
        inode = (store / "same").stat().st_ino
        with watching(tmp_path / "log", store) as watch:
            setup.store("store", {"same": OLD, "other": NEW, "more": NEW})
            reload(mount)
            watch.wait_for(f"other MOVED_TO {store}/", f"more MOVED_TO {store}/", f"gone DELETE {store}/")
            assert not any(event.startswith("same") for event in watch.events())
        assert (store / "same").stat().st_ino == inode


def test_open_files(setup: Setup) -> None:
    """reload-7: An open file stays readable when its store is removed or its scope hides it."""
    setup.store("stays", {"a": OLD})
    path = setup.store("goes", {"b": OLD})
    with setup.mounted() as mount, (mount.path / "stays/a").open() as hidden, (mount.path / "goes/b").open() as gone:
        path.unlink()
        setup.scopes(scope("stays", default="deny"))
        reload(mount)
        assert by_poll(gone.fileno(), PATIENCE)
        wait_until(lambda: errno_of((mount.path / "stays/a").stat) == "ENOENT")
        for file in (hidden, gone):
            assert os.fstat(file.fileno()).st_size == len(OLD)
            assert file.read() == OLD


class Reader(threading.Thread):
    """Reads, lists and looks at a store over and over again."""

    def __init__(self, store: Path) -> None:
        super().__init__()
        self.rounds = 0
        self.failed: BaseException | None = None
        self._store = store
        self._stop_reading = threading.Event()

    def run(self) -> None:
        try:
            while not self._stop_reading.is_set():
                assert names(self._store) == ["a", "b"]
                assert unsealed((self._store / "a").read_bytes()) == 1
                assert unsealed((self._store / "b").read_bytes()) == 25
                assert (self._store / "b").stat().st_size == len(sealed(25))
                assert json.loads((self._store / ".bulk.json").read_bytes()).keys() == {"a", "b"}
                self.rounds += 1
        except BaseException as error:  # noqa: BLE001 - for `stop`
            self.failed = error

    def stop(self) -> None:
        """Stop, and raise what went wrong."""
        self._stop_reading.set()
        self.join()
        if self.failed is not None:
            raise self.failed


def have_read(readers: Sequence[Reader], before: Sequence[int]) -> bool:
    """Whether each reader has gone on since, or has failed."""
    return all(reader.failed or reader.rounds > rounds for reader, rounds in zip(readers, before, strict=True))


def edits(setup: Setup) -> list[Callable[[], object]]:
    """List what may happen to everything but the store ``steady``."""
    return [
        lambda: setup.store("other", {"x": OLD}),
        lambda: setup.store("other", {"x": NEW, "y": NEW}),
        lambda: setup.scopes(scope("other", denied=["x"])),
        lambda: (setup.components / "broken.yaml").write_text("kind: Component\nmetadata: [\n"),
        (setup.components / "broken.yaml").unlink,
        lambda: setup.store("other", {"x": {"k": OLD}}, multiValued="true"),
        lambda: component(setup.components, "other", "local.env"),
        lambda: setup.config.write_text("kind: Configuration\nspec: 7\n"),
        setup.scopes,
        (setup.components / "other.yaml").unlink,
    ]


def test_under_load(setup: Setup) -> None:
    """reload-8: Readers of a store that did not change see no error and no wrong byte, whatever else is edited."""
    setup.store("steady", {"a": sealed(1), "b": sealed(25)}, ttl="1h")
    with setup.mounted("; nothing is changed", "no matching secret store") as mount:
        look_at(mount.path)
        readers = [Reader(mount.path / "steady") for _ in range(3)]
        for reader in readers:
            reader.start()
        try:
            todo = edits(setup)
            for number in range(EDITS):
                before = [reader.rounds for reader in readers]
                todo[number % len(todo)]()
                reload(mount)
                wait_until(partial(have_read, readers, before))
        finally:
            for reader in readers:
                reader.stop()
        assert fetches(mount, "steady")["fetch"] == {"made": 2, "failed": 0}


@pytest.mark.parametrize("what", ["components/store.yaml", "appconfig.yaml"])
def test_a_mistake(setup: Setup, what: str) -> None:
    """reload-9: A mistake in any file changes nothing, and the log names file and line."""
    setup.store("store", {"a": OLD})
    path = setup.directory / what
    with setup.mounted("; nothing is changed") as mount:
        good = path.read_text()
        path.write_text(f"{good}}}\n")
        setup.store("other", {"b": NEW})
        reload(mount)
        assert names(mount.path) == ["store"]
        assert (mount.path / "store/a").read_text() == OLD
        mount.said(f"ERROR {path}:{good.count(chr(10)) + 1}: ")
        path.write_text(good)
        reload(mount)
        assert names(mount.path) == ["other", "store"]


def test_no_store_left(setup: Setup) -> None:
    """An empty directory would look like no secrets: when every manifest is gone, nothing changes (reload-9)."""
    path = setup.store("store", {"a": OLD})
    with setup.mounted("no secret store .*; nothing is changed") as mount:
        path.unlink()
        reload(mount)
        assert (mount.path / "store/a").read_text() == OLD


def test_a_reference_that_leads_nowhere(setup: Setup) -> None:
    """A mistake that shows only in several files together counts, too (reload-9)."""
    path = setup.store("store", {"a": OLD})
    taker = {"secretsFile": {"secretKeyRef": {"name": "a"}}}
    with setup.mounted("no secret store elsewhere .*; nothing is changed") as mount:
        component(setup.components, "taker", "local.file", taker, secret_store="elsewhere")
        setup.store("store", {"a": NEW})
        reload(mount)
        assert (mount.path / "store/a").read_text() == OLD
        mount.said(f"ERROR {path.with_name('taker.yaml')}:")


def test_a_store_that_cannot_be_opened(setup: Setup) -> None:
    """reload-10: If a changed store cannot be opened, it goes on as before, the others change, and the log says so."""
    setup.store("store", {"a": OLD})
    setup.store("other", {"b": OLD})
    with setup.mounted(r"store.yaml:1: .*\(component store\); it goes on as it was") as mount:
        look_at(mount.path)
        component(setup.components, "store", "local.file", {"secretsFile": "/nowhere.json"})
        setup.store("other", {"b": NEW})
        reload(mount)
        assert (mount.path / "store/a").read_text() == OLD
        assert (mount.path / "other/b").read_text() == NEW
        setup.store("store", {"a": NEW})
        reload(mount)
        assert (mount.path / "store/a").read_text() == NEW


def test_another_store(setup: Setup) -> None:
    """reload-11: Nothing of the previous store is served as the new one's: not a name, not a value, not a size."""
    setup.store("store", {"a": OLD, "b": OLD})
    with setup.mounted() as mount:
        store = mount.path / "store"
        for secrets, multi_valued in (
            ({"a": NEW}, False),
            ({"a": {"k": OLD}}, True),
            ({"a": {"k": NEW, "j": NEW}}, True),
            ({"a": OLD, "b": NEW}, False),
        ):
            look_at(store)
            setup.store("store", secrets, multiValued=str(multi_valued).lower())
            reload(mount)
            wait_until(partial(shows, store, secrets))


def shows(store: Path, secrets: object) -> bool:
    """Whether a store shows this now. If not, it may be gone for a moment, and its open directory is empty then."""
    try:
        seen = contents(store)
        assert seen in (secrets, {})
        return seen == secrets and sizes(store) == sizes_of(secrets)
    except FileNotFoundError:
        return False


def contents(path: Path) -> object:
    if path.is_dir():
        return {name: contents(path / name) for name in names(path)}
    return path.read_text()


def sizes(path: Path) -> object:
    return {name: sizes(path / name) for name in names(path)} if path.is_dir() else path.stat().st_size


def sizes_of(tree: object) -> object:
    return {name: sizes_of(below) for name, below in tree.items()} if isinstance(tree, dict) else len(str(tree))


def test_credentials(setup: Setup) -> None:
    """reload-12: A store whose credentials come from a store that changed is opened again with the new ones."""
    for name, value in (("one", OLD), ("two", NEW)):
        (setup.directory / f"{name}.json").write_text(json.dumps({"a": value}))
    setup.store("source", {"path": str(setup.directory / "one.json")})
    taker = {"secretsFile": {"secretKeyRef": {"name": "path"}}}
    component(setup.components, "taker", "local.file", taker, secret_store="source")
    with setup.mounted() as mount:
        assert (mount.path / "taker/a").read_text() == OLD
        setup.store("source", {"path": str(setup.directory / "two.json")})
        reload(mount)
        assert (mount.path / "taker/a").read_text() == NEW


def test_relative_paths(tmp_path: Path) -> None:
    """reload-13: A relative path in a manifest keeps the meaning that it had when `secretfs mount` was called."""
    for name, value in (("one", OLD), ("two", NEW)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"a": value}))
    component(tmp_path / "components", "store", "local.file", {"secretsFile": "one.json"})
    point = tmp_path / "mnt"
    with background(point, "--resources-path", "components", cwd=tmp_path) as daemon:
        assert (point / "store/a").read_text() == OLD
        component(tmp_path / "components", "store", "local.file", {"secretsFile": "two.json"})
        os.kill(daemon, signal.SIGHUP)
        wait_until(lambda: (point / "store/a").read_text() == NEW)
        assert Path(f"/proc/{daemon}/cwd").readlink() == Path("/")
