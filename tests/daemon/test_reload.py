"""When configuration is read again, and what comes of it in the file system; without a kernel."""

import math
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import cast

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from secretfs.cache.change import Change, discard
from secretfs.cache.freshness import Freshness
from secretfs.daemon.reload import CHECK_EVERY, Reloader
from secretfs.dapr.declaration import Declaration, load
from secretfs.dapr.load import ConfigSource, Fingerprint, fingerprint, working_directory
from secretfs.errors import ConfigurationError, NoSuchEntry, Superseded
from secretfs.fs.attributes import PermissionPolicy
from secretfs.fs.content import views_of
from secretfs.fs.inodes import ROOT_INODE
from secretfs.registry.opening import open_registry
from secretfs.registry.store_set import ReloadResult, StoreSet
from tests.conftest import ExpectLog
from tests.support import fake_type
from tests.support.canary import secret
from tests.support.fake_type import Fakes, FakeStore
from tests.support.manifests import configuration, scope
from tests.support.recording_vfs import RecordingVFS
from tests.support.until import until


class TestFingerprint:
    @pytest.fixture
    def directory(self, tmp_path: Path) -> Path:
        """A directory as Kubernetes mounts a ConfigMap."""
        for version in ("1", "2"):
            (tmp_path / "map" / version).mkdir(parents=True)
            (tmp_path / "map" / version / "a.yaml").write_text("same", encoding="utf-8")
        (tmp_path / "map/..data").symlink_to("1")
        (tmp_path / "map/a.yaml").symlink_to("..data/a.yaml")
        (tmp_path / "map/b.YML").write_text("text", encoding="utf-8")
        (tmp_path / "map/other.json").write_text("text", encoding="utf-8")
        return tmp_path / "map"

    def edit_in_place(self, directory: Path) -> None:
        """Keep size and modification time, as no editor does."""
        path = directory / "b.YML"
        status = path.stat()
        before = status.st_ctime_ns
        while path.stat().st_ctime_ns == before:  # the clock of the file system ticks every few milliseconds
            path.write_text("TEXT", encoding="utf-8")
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    def edit_by_rename(self, directory: Path) -> None:
        path = directory / "b.YML"
        status = path.stat()
        (directory / "new").write_text("TEXT", encoding="utf-8")
        os.utime(directory / "new", ns=(status.st_atime_ns, status.st_mtime_ns))
        (directory / "new").rename(path)

    def swap_the_link(self, directory: Path) -> None:
        (directory / "..new").symlink_to("2")
        (directory / "..new").rename(directory / "..data")

    def add(self, directory: Path) -> None:
        (directory / "c.yaml").touch()

    def remove(self, directory: Path) -> None:
        (directory / "b.YML").unlink()

    def break_the_link(self, directory: Path) -> None:
        (directory / "..data").unlink()

    def remove_all(self, directory: Path) -> None:
        directory.rename(directory.with_name("elsewhere"))

    def write_the_configuration(self, directory: Path) -> None:
        (directory.parent / "config").write_text("more", encoding="utf-8")

    @pytest.mark.parametrize(
        "edit",
        [
            edit_in_place, edit_by_rename, swap_the_link, add, remove, break_the_link, remove_all,
            write_the_configuration,
        ],
    )  # fmt: skip
    def test_it_sees(self, directory: Path, edit: Callable[["TestFingerprint", Path], None]) -> None:
        config = directory.parent / "config"
        config.write_text("text", encoding="utf-8")
        before = fingerprint([directory, config])
        edit(self, directory)
        assert fingerprint([directory, config]) != before

    def test_it_does_not_mind_what_is_no_manifest(self, directory: Path) -> None:
        before = fingerprint([directory])
        (directory / "other.json").write_text("a secret, say", encoding="utf-8")
        (directory / "new.log").touch()
        assert fingerprint([directory]) == before

    def test_what_is_not_there_may_come(self, tmp_path: Path) -> None:
        before = fingerprint([tmp_path / "config"])
        assert before == fingerprint([tmp_path / "config"])
        (tmp_path / "config").touch()
        assert fingerprint([tmp_path / "config"]) != before

    def test_what_may_not_be_read_is_no_end(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        before = fingerprint([directory])

        def refuse(_: object) -> list[str]:
            raise PermissionError(13, "no")

        with monkeypatch.context() as patch:
            patch.setattr(os, "listdir", refuse)
            assert fingerprint([directory]) == ((str(directory), 13),)
        assert fingerprint([directory]) == before


class FakeOrigin:
    """Files whose content is a number, and a declaration that says which it was read from."""

    directory: Path | None = None
    apps: tuple[Path, ...] = ()

    def __init__(self) -> None:
        self.content = 0
        self.looks = 0
        self.reads: list[int] = []
        self.loaded: Fingerprint = ((0,),)
        self.fail: Exception | None = None

    def fingerprint(self) -> Fingerprint:
        self.looks += 1
        return ((self.content,),)

    def read(self) -> Declaration:
        self.reads.append(self.content)
        if self.fail is not None:
            raise self.fail
        return load([], [], str(self.content), {})


class FakeStores:
    """Stores that take their time."""

    def __init__(self) -> None:
        self.replaced: list[str] = []
        self.waiting = 0
        self.gate = trio.Event()
        self.gate.set()
        self.incomplete = False

    async def replace(self, declaration: Declaration, *, again: bool = False) -> ReloadResult:
        self.replaced.append(declaration.context.app_id)
        self.waiting += 1
        await self.gate.wait()
        self.waiting -= 1
        return ReloadResult({}, (), frozenset())


class Watched:
    """A `Reloader` on fakes."""

    def __init__(self, clock: MockClock) -> None:
        self.clock = clock
        self.origin = FakeOrigin()
        self.stores = FakeStores()
        self.reloader = Reloader(
            cast("ConfigSource", self.origin), cast("StoreSet", self.stores), lambda *_: frozenset(), discard
        )

    async def look(self, content: int | None = None) -> list[int]:
        """Let the reloader look once, after an edit. Returns what has been read so far."""
        await self.asleep()
        if content is not None:
            self.origin.content = content
        self.clock.jump(CHECK_EVERY)
        await wait_all_tasks_blocked()
        await self.asleep()
        return self.origin.reads

    def has_replaced(self, content: str) -> bool:
        return self.stores.replaced[-1:] == [content]

    async def asleep(self) -> None:
        """Wait until it waits for nothing but the time for the next look."""
        await until(lambda: trio.lowlevel.current_statistics().seconds_to_next_deadline < math.inf)


class TestWhen:
    @pytest.fixture
    def watched(self, mock_clock: MockClock) -> Watched:
        return Watched(mock_clock)

    @pytest.fixture
    async def looking(self, watched: Watched, nursery: trio.Nursery) -> Watched:
        nursery.start_soon(watched.reloader.on_change)
        return watched

    async def test_a_change_counts_when_it_has_settled(self, looking: Watched, mock_clock: MockClock) -> None:
        for content in (1, 2, 3):
            assert await looking.look(content) == []
        assert await looking.look() == [3]
        assert await looking.look() == [3]
        assert looking.stores.replaced == ["3"]

    async def test_nothing_is_read_while_nothing_changes(self, looking: Watched, mock_clock: MockClock) -> None:
        for _ in range(10):
            assert await looking.look() == []
        assert looking.origin.looks == 10

    async def test_a_change_that_was_taken_back_is_none(self, looking: Watched, mock_clock: MockClock) -> None:
        assert await looking.look(1) == []
        assert await looking.look(0) == []
        assert await looking.look() == []

    async def test_a_change_while_it_mounted_counts(self, looking: Watched, mock_clock: MockClock) -> None:
        looking.origin.loaded = ((0,),)
        looking.origin.content = 1
        await looking.look()
        assert await looking.look() == [1]

    async def test_a_change_that_a_signal_has_brought_is_not_read_again(
        self, looking: Watched, mock_clock: MockClock
    ) -> None:
        looking.origin.content = 1
        await looking.reloader.reload()
        for _ in range(5):
            assert await looking.look() == [1]

    async def test_what_does_not_answer_is_tried_again_later_and_later(
        self, looking: Watched, mock_clock: MockClock
    ) -> None:
        looking.stores.incomplete = True
        await looking.look(1)
        await looking.look()
        when: list[int] = []
        for second in range(1, 60):
            if len(await looking.look()) > len(when) + 1:
                when.append(second)
        assert when == [5, 15, 35]
        looking.stores.incomplete = False
        for _ in range(60):
            await looking.look()
        assert looking.origin.reads == [1] * 5

    async def test_a_mistake_is_not_read_again_and_again(
        self, looking: Watched, mock_clock: MockClock, expect_log: ExpectLog
    ) -> None:
        expect_log("a mistake; nothing is changed")
        looking.stores.incomplete = True
        await looking.look(1)
        await looking.look()
        looking.origin.fail = ConfigurationError("a mistake")
        for _ in range(60):
            await looking.look()
        assert looking.origin.reads == [1, 1]

    async def test_a_defect_costs_nobody_the_mount(
        self, looking: Watched, mock_clock: MockClock, expect_log: ExpectLog
    ) -> None:
        expect_log("a defect in secretfs or in a store")
        looking.origin.fail = ValueError(secret("in-an-error"))
        await looking.look(1)
        assert await looking.look() == [1]
        assert await looking.look() == [1]
        looking.origin.fail = None
        await looking.look(2)
        assert await looking.look() == [1, 2]
        assert looking.stores.replaced == ["2"]

    async def test_a_signal_reloads_at_once(self, mock_clock: MockClock, nursery: trio.Nursery) -> None:
        watched = Watched(mock_clock)
        nursery.start_soon(watched.reloader.on_signal)
        await wait_all_tasks_blocked()
        for number in range(1, 4):
            watched.origin.content = number
            os.kill(os.getpid(), signal.SIGHUP)
            await until(partial(watched.has_replaced, str(number)))

    async def test_one_reload_at_a_time(self, mock_clock: MockClock) -> None:
        watched = Watched(mock_clock)
        stores = watched.stores
        stores.gate = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watched.reloader.reload)
            await until(lambda: stores.waiting)
            watched.origin.content = 1
            nursery.start_soon(watched.reloader.reload)
            await wait_all_tasks_blocked()
            assert (stores.replaced, watched.origin.reads, stores.waiting) == (["0"], [0], 1)
            stores.gate.set()
        assert stores.replaced == ["0", "1"]

    async def test_relative_paths_mean_what_they_meant(
        self, mock_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "home").mkdir()
        (tmp_path / "root").mkdir()
        monkeypatch.chdir(tmp_path / "root")
        watched = Watched(mock_clock)
        seen: list[Path | None] = []
        watched.origin.directory = tmp_path / "home"

        def read() -> Declaration:
            seen.append(working_directory())
            return load([], [], "", {})

        monkeypatch.setattr(watched.origin, "read", read)
        await watched.reloader.reload()
        (tmp_path / "home").rmdir()
        await watched.reloader.reload()
        assert seen == [tmp_path / "home", tmp_path / "root"]
        assert Path.cwd() == tmp_path / "root"


@pytest.fixture
def fakes(tmp_path: Path) -> Iterator[Fakes]:
    with fake_type.installed(tmp_path / "site") as site:
        yield Fakes(tmp_path / "components", site)


class App:
    """What `secretfs.daemon.serve.serve` composes, without the kernel: this plays its part."""

    def __init__(self, reloader: Reloader, stores: StoreSet, vfs: RecordingVFS) -> None:
        self.reload = reloader.reload
        self.stores = stores
        self.vfs = vfs
        self.announced = vfs.announced

    def store(self, name: str) -> FakeStore:
        store = self.stores._running[name].opened.store
        assert isinstance(store, FakeStore)
        return store

    async def inode(self, path: str) -> int:
        number = ROOT_INODE
        for segment in path.split("/"):
            number = (await self.vfs.lookup(number, segment.encode())).inode
        return number

    async def open(self, path: str) -> int:
        try:
            return await self.vfs.open(await self.inode(path))
        except Superseded:  # Linux looks the path up again, once
            return await self.vfs.open(await self.inode(path))

    async def read(self, path: str) -> str:
        return await self.content(await self.open(path))

    async def content(self, handle: int) -> str:
        return (await self.vfs.read(handle, 0, 999)).decode()

    async def names(self, path: str) -> list[str]:
        handle = await self.vfs.open_directory(await self.inode(path) if path else ROOT_INODE)
        names = [segment.decode() for _, segment, _ in await self.vfs.read_directory(handle, 0)]
        self.vfs.close_directory(handle)
        return names


@asynccontextmanager
async def app(fakes: Fakes, config: Path | None = None) -> AsyncIterator[App]:
    configs = [config] if config else []
    paths = (fakes.directory, *configs)
    origin = ConfigSource(lambda: load([fakes.directory], configs, "", {}), paths, fingerprint(paths))
    declaration = origin.read()
    async with (
        open_registry(declaration.components, declaration.context, Freshness()) as registry,
        trio.open_nursery() as nursery,
    ):
        vfs: RecordingVFS
        stores = StoreSet(registry, Freshness(), nursery, lambda change: vfs.record(change))  # noqa: PLW0108 - not yet
        scoped = await stores.start(declaration)
        vfs = RecordingVFS(lambda _: views_of(scoped), PermissionPolicy(), nursery)
        reloader = Reloader(
            origin, stores, lambda _, new: vfs.replace(views_of(new.stores, vfs.views), new.replaced), vfs.record
        )
        yield App(reloader, stores, vfs)
        nursery.cancel_scope.cancel()


def holding(**secrets: str) -> dict[str, object]:
    return {"value": {name: {"k": secret(value)} for name, value in secrets.items()}}


class TestWhatIsSeen:
    async def test_stores_come_and_go(self, fakes: Fakes) -> None:
        path = fakes.add("a", secrets=holding(x="a"))
        async with app(fakes) as running:
            assert await running.read("a/x/k") == secret("a")
            path.unlink()
            fakes.add("b", secrets=holding(x="b"))
            await running.reload()
            assert running.announced == [Change("a", whole=True), Change("b", whole=True)]
            assert await running.names("") == ["b"]
            assert await running.read("b/x/k") == secret("b")
            with pytest.raises(NoSuchEntry):
                await running.inode("a")

    async def test_a_file_that_is_open_stays_readable_and_its_poller_wakes(self, fakes: Fakes) -> None:
        path = fakes.add("a", secrets=holding(x="a"))
        fakes.add("b")
        async with app(fakes) as running:
            handle = await running.open("a/x/k")
            assert not running.vfs.poll(handle, b"waiter")
            path.unlink()
            await running.reload()
            assert await running.content(handle) == secret("a")
            assert (await running.vfs.getattr(handle)).size == len(secret("a"))
            assert running.vfs.woken == [b"waiter"]
            assert running.vfs.poll(handle, None)
            with pytest.raises(NoSuchEntry):
                await running.vfs.open(handle)

    async def test_another_kind_of_store_has_nothing_of_the_one_before(self, fakes: Fakes) -> None:
        fakes.add("a", secrets={"value": {"k": {"k": secret("same")}}})
        async with app(fakes) as running:
            inside, folder = await running.open("a/k/k"), await running.inode("a/k")
            fakes.add("a", secrets={"value": {"k": {"k": secret("same")}}}, multiValued="false")
            await running.reload()
            assert running.announced == [Change("a", whole=True)]
            assert await running.read("a/k") == secret("same")
            assert await running.inode("a/k") not in (inside, folder)
            assert running.vfs.poll(inside, None)

    async def test_a_changed_store_gives_a_file_with_another_value_another_inode(self, fakes: Fakes) -> None:
        fakes.add("a", secrets=holding(same="1", other="2"))
        async with app(fakes) as running:
            same, other = await running.open("a/same/k"), await running.open("a/other/k")
            fakes.add("a", secrets=holding(same="1", other="two"))
            await running.reload()
            await until(lambda: running.announced == [Change("a", values=frozenset({("other", "k")}))])
            assert await running.inode("a/same/k") == same
            assert await running.inode("a/other/k") != other
            assert await running.content(other) == secret("2")
            with pytest.raises(Superseded):  # at once, although it was right a moment ago
                await running.vfs.open(other)

    async def test_a_scope_shows_more_and_less(self, fakes: Fakes, tmp_path: Path) -> None:
        fakes.add("a", secrets=holding(x="x", z="z"))
        config = configuration(tmp_path, scope("a", denied=["x"]))
        async with app(fakes, config) as running:
            assert await running.names("a") == ["z"]
            configuration(tmp_path, scope("a", denied=["z"]))
            await running.reload()
            assert running.announced == [Change("a", names=frozenset({"x", "z"}))]
            assert await running.names("a") == ["x"]
            with pytest.raises(NoSuchEntry):
                await running.inode("a/z")

    async def test_a_bulk_file_is_made_anew(self, fakes: Fakes, tmp_path: Path) -> None:
        fakes.add("a", secrets=holding(x="x", z="z"))
        config = configuration(tmp_path, scope("a"))
        async with app(fakes, config) as running:
            assert secret("z") in await running.read("a/.bulk.json")
            configuration(tmp_path, scope("a", denied=["z"]))
            await running.reload()
            assert secret("z") not in await running.read("a/.bulk.json")

    @pytest.mark.parametrize("path", ["a/x/k", "a/x", "a"])
    async def test_who_waits_for_the_old_store_gets_what_the_new_one_says(self, fakes: Fakes, path: str) -> None:
        """An answer of the old one must not be taken for the new one's, however late it comes."""
        fakes.add("a", secrets=holding(x="old"))
        seen: list[object] = []
        async with app(fakes) as running, trio.open_nursery() as nursery:
            number, old = await running.inode("a" if path == "a" else "a/x"), running.store("a")
            if path != "a/x/k":
                await running.reload()

            async def look() -> None:
                if path == "a":
                    seen.append(await running.names("a"))
                else:
                    seen.append((await running.vfs.lookup(number, b"k"), await running.read("a/x/k"))[1])

            running.stores._running["a"].cached._secrets.drop("x")
            running.stores._running["a"].cached._names.drop("")
            old.gate.clear()
            nursery.start_soon(look)
            await until(lambda: old.running)
            fakes.add("a", secrets=holding(x="new", z="z"))
            await running.reload()
            old.gate.set()
            await until(lambda: seen)
            assert seen == [["x", "z"] if path == "a" else secret("new")]


class TestMistakes:
    BROKEN = (
        "kind: Component\n  what: is this",
        "\x00",
        "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: a}\nspec: {type: 7, version: [}\n",
        "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: a}\nspec: {tipe: secretstores.fake}\n",
    )

    @pytest.mark.parametrize("text", BROKEN)
    @pytest.mark.parametrize("what", ["components/a.yaml", "appconfig.yaml"])
    async def test_a_broken_file_changes_nothing_and_is_told_once(
        self, fakes: Fakes, tmp_path: Path, expect_log: ExpectLog, what: str, text: str
    ) -> None:
        if "config" in what:
            text = text.replace("Component", "Configuration").replace("tipe: secretstores.fake", "secrets: 7")
        fakes.add("a", secrets=holding(x="x"))
        config = configuration(tmp_path, scope("a"))
        good = (tmp_path / what).read_bytes()
        async with app(fakes, config) as running:
            assert await running.read("a/x/k") == secret("x")
            calls = running.store("a").calls.copy()
            (tmp_path / what).write_text(text, encoding="utf-8")
            expect_log(rf"^ERROR secretfs\.daemon\.reload: {tmp_path}/{what}:\d+: .*; nothing is changed$")
            await running.reload()
            assert await running.read("a/x/k") == secret("x")
            assert running.announced == []
            (tmp_path / what).write_bytes(good)
            await running.reload()
            assert await running.read("a/x/k") == secret("x")
            assert running.store("a").calls == calls

    async def test_files_that_are_gone_change_nothing(
        self, fakes: Fakes, tmp_path: Path, expect_log: ExpectLog
    ) -> None:
        expect_log(r"ERROR .*appconfig.yaml.*; nothing is changed")
        expect_log(r"ERROR .*components.*; nothing is changed")
        fakes.add("a", secrets=holding(x="x"))
        config = configuration(tmp_path, scope("a"))
        async with app(fakes, config) as running:
            config.rename(tmp_path / "elsewhere")
            await running.reload()
            (tmp_path / "elsewhere").rename(config)
            fakes.directory.rename(tmp_path / "elsewhere")
            await running.reload()
            assert await running.read("a/x/k") == secret("x")

    async def test_notices_are_told_and_are_no_mistakes(self, fakes: Fakes, expect_log: ExpectLog) -> None:
        expect_log("unknown property tokn is ignored")
        fakes.add("a")
        async with app(fakes) as running:
            fakes.add("b", tokn="x")
            await running.reload()
            assert await running.names("") == ["a", "b"]
