"""Stores that are replaced while they are served: what is kept, opened, closed and never mixed up."""

import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from secretfs.cache.change import Change
from secretfs.cache.freshness import Freshness
from secretfs.dapr.component import Component
from secretfs.dapr.declaration import Declaration, DeclaredStore, load
from secretfs.dapr.references import TemplateContext
from secretfs.errors import ConfigurationError, DeadlineExceeded, NoSuchEntry, StoreError, StoreUnavailable
from secretfs.fs.content import views_of
from secretfs.registry.opening import KnownStore, OpenedStore, Registry, open_registry
from secretfs.registry.store_set import ReloadResult, RunningStore, ScopedStore, StoreSet
from tests.conftest import ExpectLog
from tests.support import fake_type
from tests.support.canary import secret
from tests.support.fake_type import Fakes, FakeStore, reference
from tests.support.manifests import configuration, scope
from tests.support.memory_store import WatchingMemoryStore
from tests.support.until import until

DEADLINE = Freshness().deadline
IGNORED = {"ignoreErrors": True}


@pytest.fixture
def fakes(tmp_path: Path) -> Iterator[Fakes]:
    with fake_type.installed(tmp_path / "site") as site:
        yield Fakes(tmp_path / "components", site)


def holding(**secrets: str) -> dict[str, object]:
    """Make the value of ``secrets``: each with one marked value for the key ``k``."""
    return {"value": {name: {"k": secret(value)} for name, value in secrets.items()}}


class Running:
    """Stores that are served, and the directory that declares them."""

    def __init__(
        self, stores: StoreSet, fakes: Fakes, configs: list[Path], scoped: Mapping[str, ScopedStore], told: list[Change]
    ) -> None:
        self.stores = stores
        self.views = views_of(scoped)
        self.told = told
        self._fakes = fakes
        self._configs = configs

    async def reload(self, *configs: Path, again: bool = False) -> ReloadResult | None:
        declaration = load([self._fakes.directory], configs or self._configs, "", {})
        replacement = await self.stores.replace(declaration, again=again)
        if replacement is not None:
            self.views = views_of(replacement.stores)
        return replacement

    def is_unanswered(self) -> bool:
        return self.stores.incomplete

    def served(self, name: str) -> RunningStore:
        return self.stores._running[name]

    def store(self, name: str) -> FakeStore:
        store = self.served(name).opened.store
        return store if isinstance(store, FakeStore) else store._current.store  # type: ignore[attr-defined]

    async def read(self, store: str, name: str) -> str:
        return (await self.views[store].secret(name)).value.values["k"].decode()

    async def names(self, store: str) -> list[bytes]:
        return list((await self.views[store].entries(()))[0])


@asynccontextmanager
async def serving(
    fakes: Fakes, *configs: Path, known: Mapping[str, KnownStore] | None = None
) -> AsyncIterator[Running]:
    declaration = load([fakes.directory], configs, "", {})
    async with (
        open_registry(declaration.components, declaration.context, Freshness(), known=known or {}) as registry,
        trio.open_nursery() as nursery,
    ):
        if known is None:
            registry.require()
        told: list[Change] = []
        stores = StoreSet(registry, Freshness(), nursery, told.append)
        yield Running(stores, fakes, list(configs), await stores.start(declaration), told)
        nursery.cancel_scope.cancel()


async def later(clock: MockClock, seconds: float) -> None:
    """Let time pass for all who wait for it."""
    await wait_all_tasks_blocked()
    clock.jump(seconds)


def happened(kind: str) -> list[str]:
    return [event.split()[1] for event in fake_type.events if event.startswith(kind)]


class TestWhatChanges:
    async def test_a_store_is_added(self, fakes: Fakes) -> None:
        fakes.add("a", secrets=holding(x="a"))
        async with serving(fakes) as running:
            before = running.served("a")
            fakes.add("b", secrets=holding(x="b"))
            result = await running.reload()
            assert result is not None
            assert (result.changes, result.replaced) == ([], frozenset())
            assert list(running.views) == ["a", "b"]
            assert (await running.read("a", "x"), await running.read("b", "x")) == (secret("a"), secret("b"))
            assert running.served("a") is before
            assert happened("open") == ["a", "b"]

    async def test_a_store_is_changed(self, fakes: Fakes, mock_clock: MockClock) -> None:
        fakes.add("a", secrets=holding(x="old"))
        async with serving(fakes) as running:
            assert await running.read("a", "x") == secret("old")
            fakes.add("a", secrets=holding(x="new"))
            await running.reload()
            assert await running.read("a", "x") == secret("new")
            assert happened("open") == ["a", "a"]
            assert happened("close") == []
            await later(mock_clock, DEADLINE)
            await until(lambda: happened("close") == ["a"])

    async def test_a_store_is_removed(self, fakes: Fakes, mock_clock: MockClock) -> None:
        fakes.add("a")
        path = fakes.add("b")
        async with serving(fakes) as running:
            path.unlink()
            replacement = await running.reload()
            assert replacement is not None
            assert list(replacement.stores) == ["a"]
            assert replacement.replaced == frozenset()
            await later(mock_clock, DEADLINE)
            await until(lambda: happened("close") == ["b"])

    async def test_a_store_is_renamed(self, fakes: Fakes, mock_clock: MockClock) -> None:
        path = fakes.add("a", secrets=holding(x="x"))
        async with serving(fakes) as running:
            path.unlink()
            fakes.add("b", secrets=holding(x="x"))
            await running.reload()
            assert list(running.views) == ["b"]
            assert await running.read("b", "x") == secret("x")
            await later(mock_clock, DEADLINE)
            await until(lambda: happened("close") == ["a"])

    async def test_a_store_is_removed_and_made_again(self, fakes: Fakes) -> None:
        fakes.add("a")
        path = fakes.add("b", secrets=holding(x="old"))
        async with serving(fakes) as running:
            path.unlink()
            await running.reload()
            fakes.add("b", secrets=holding(x="new"))
            await running.reload()
            assert await running.read("b", "x") == secret("new")

    async def test_its_type_is_another_one(self, fakes: Fakes, tmp_path: Path) -> None:
        (tmp_path / "s.json").write_text(json.dumps({"x": secret("file")}), encoding="utf-8")
        fakes.add("a", secrets=holding(x="fake"))
        async with serving(fakes) as running:
            assert await running.read("a", "x") == secret("fake")
            fakes.add("a", {"secretsFile": tmp_path / "s.json"}, type="local.file")
            replacement = await running.reload()
            assert replacement is not None
            assert replacement.replaced == {"a"}
            assert running.views["a"].peek("x") is None
            assert (await running.views["a"].secret("x")).value.values == {"x": secret("file").encode()}

    async def test_its_secrets_are_files_now(self, fakes: Fakes) -> None:
        fakes.add("a", secrets=holding(x="x"))
        async with serving(fakes) as running:
            fakes.add("a", secrets={"value": {"x": {"x": secret("x")}}}, multiValued="false")
            replacement = await running.reload()
            assert replacement is not None
            assert replacement.replaced == {"a"}
            assert not replacement.stores["a"].store.multi_valued

    async def test_annotations_count(self, fakes: Fakes) -> None:
        fakes.add("a", annotations={"secretfs/deadline": "7s"})
        async with serving(fakes) as running:
            fakes.add("a", annotations={"secretfs/deadline": "8s"})
            await running.reload()
            assert running.served("a").opened.freshness.deadline == 8


class TestWhatStays:
    async def test_an_unchanged_store_keeps_all_that_is_known_of_it(self, fakes: Fakes) -> None:
        fakes.add("a", secrets=holding(x="x"))
        async with serving(fakes) as running:
            await running.read("a", "x")
            await running.names("a")
            cached, store = running.served("a").cached, running.store("a")
            calls = store.calls.copy()
            for number in range(5):
                fakes.add("b", token=str(number))
                await running.reload()
                assert await running.read("a", "x") == secret("x")
                assert await running.names("a") == [b"x"]
            assert running.served("a").cached is cached
            assert store.calls == calls

    async def test_where_and_how_it_is_written_does_not_matter(self, fakes: Fakes) -> None:
        a, b = fakes.add("a", token="1"), fakes.add("b", token="2")
        async with serving(fakes) as running:
            before = running.served("a"), running.served("b")
            text = f"# both\n---\n{b.read_text()}\n---\n# and\n{a.read_text()}"
            a.unlink()
            b.write_text(text, encoding="utf-8")
            await running.reload()
            assert (running.served("a"), running.served("b")) == before
            b.write_text(text.replace("'1'", "'3'"), encoding="utf-8")
            await running.reload()
            assert running.served("a") is not before[0]
            assert running.served("b") is before[1]
            assert fake_type.tokens == {"a": "3", "b": "2"}


class TestScopes:
    async def test_what_it_no_longer_shows_is_told_and_not_there(self, fakes: Fakes, tmp_path: Path) -> None:
        fakes.add("a", secrets=holding(x="x", z="z"))
        async with serving(fakes) as running:
            await running.read("a", "x")
            await running.names("a")
            replacement = await running.reload(configuration(tmp_path, scope("a", denied=["x"])))
            assert replacement is not None
            assert replacement.changes == [Change("a", names=frozenset({"x"}))]
            assert await running.names("a") == [b"z"]
            assert running.views["a"].peek("x") is None
            with pytest.raises(NoSuchEntry):
                await running.read("a", "x")
            assert happened("open") == ["a"]

    async def test_what_it_shows_now_is_told_and_there(self, fakes: Fakes, tmp_path: Path) -> None:
        fakes.add("a", secrets=holding(x="x", z="z"))
        async with serving(fakes, configuration(tmp_path, scope("a", default="deny", allowed=["x"]))) as running:
            assert await running.names("a") == [b"x"]
            replacement = await running.reload(configuration(tmp_path, scope("a")))
            assert replacement is not None
            assert replacement.changes == [Change("a", names=frozenset({"z"}))]
            assert await running.read("a", "z") == secret("z")

    async def test_a_name_that_only_the_scope_knows_is_told(self, fakes: Fakes, tmp_path: Path) -> None:
        """Where the store may not be listed, the names that the scope allows are what there is to see."""
        fakes.add("a", secrets=holding(x="x", z="z"), fail="names:=AccessDenied")
        async with serving(fakes, configuration(tmp_path, scope("a", default="deny", allowed=["x"]))) as running:
            replacement = await running.reload(configuration(tmp_path, scope("a", default="deny", allowed=["x", "z"])))
            assert replacement is not None
            assert replacement.changes == [Change("a", names=frozenset({"z"}))]


class TestMistakes:
    async def test_a_reference_that_leads_nowhere_changes_nothing(self, fakes: Fakes) -> None:
        fakes.add("a", token="1")
        async with serving(fakes) as running:
            before = running.served("a")
            fakes.add("a", token="2")
            fakes.add("b", token=reference("x"), secret_store="gone")
            fakes.add("c")
            with pytest.raises(ConfigurationError, match=r"b\.yaml:1: b -> gone: there is no secret store gone"):
                await running.reload()
            assert list(running.stores._running) == ["a"]
            assert running.served("a") is before
            assert happened("open") == ["a"]

    async def test_a_store_is_not_lost_with_a_file_that_cannot_be_read(self, fakes: Fakes) -> None:
        """A document that names no secret store is passed over, but not where there was one."""
        path = fakes.add("a", secrets=holding(x="x"))
        fakes.add("b")
        async with serving(fakes) as running:
            path.write_text("kind: Deployment\nx: [\n")
            with pytest.raises(ConfigurationError, match=r"a\.yaml:\d: not valid YAML: .* \(it declared a\)"):
                await running.reload()
            assert await running.read("a", "x") == secret("x")
            path.with_name("c.yaml").write_text(path.read_text())
            path.unlink()
            await running.reload()
            assert list(running.views) == ["b"]

    async def test_a_circle_changes_nothing(self, fakes: Fakes, expect_log: ExpectLog) -> None:
        expect_log("b -> a -> b: .*; nothing is changed")
        fakes.add("a", secrets=holding(x="x"))
        fakes.add("b", token=reference("x", "k"), secret_store="a")
        async with serving(fakes) as running:
            fakes.add("a", token=reference("x"), secret_store="b")
            with pytest.raises(ConfigurationError, match="a -> b -> a: "):
                await running.reload()
            assert list(running.stores._running) == ["a", "b"]

    async def test_one_that_may_be_ignored_is_no_reason(self, fakes: Fakes, expect_log: ExpectLog) -> None:
        expect_log(r"b -> gone: .*; it is served when it answers \(ignoreErrors\)")
        fakes.add("a")
        fakes.add("b", token=reference("x"), secret_store="gone", spec=IGNORED)
        async with serving(fakes) as running:
            fakes.add("c")
            await running.reload()
            assert list(running.views) == ["a", "b", "c"]
            with pytest.raises(StoreError, match="there is no secret store gone"):
                await running.served("b").cached.names("")

    @pytest.mark.parametrize("fail", ["open=ConfigurationError", "open=StoreUnavailable", "check=AccessDenied"])
    async def test_what_cannot_be_opened_goes_on_as_it_was(
        self, fakes: Fakes, mock_clock: MockClock, expect_log: ExpectLog, fail: str
    ) -> None:
        expect_log(r"a\.yaml:1: .*component a.*; it goes on as it was$")
        fakes.add("a", secrets=holding(x="old"))
        async with serving(fakes) as running:
            before = running.served("a")
            fakes.add("a", secrets=holding(x="new"), fail=fail)
            fakes.add("b")
            await running.reload()
            assert list(running.views) == ["a", "b"]
            assert running.served("a") is before
            assert await running.read("a", "x") == secret("old")
            await until(lambda: happened("close") == ["a"] * fail.startswith("check"))
            await later(mock_clock, DEADLINE)
            fakes.add("a", secrets=holding(x="new"))
            await running.reload()
            assert await running.read("a", "x") == secret("new")

    async def test_a_defect_in_it_is_no_ones_else(self, fakes: Fakes, expect_log: ExpectLog) -> None:
        expect_log("a defect in secretfs or in a store")
        expect_log("unexpected ValueError; the log has the place; it goes on as it was")
        fakes.add("a", secrets=holding(x="old"))
        async with serving(fakes) as running:
            fakes.add("a", fail="open=ValueError")
            await running.reload()
            assert await running.read("a", "x") == secret("old")

    async def test_one_that_hangs_is_given_its_time(
        self, fakes: Fakes, mock_clock: MockClock, expect_log: ExpectLog
    ) -> None:
        expect_log("init timeout for component a .*; it goes on as it was")
        fakes.add("a", secrets=holding(x="old"))
        async with serving(fakes) as running, trio.open_nursery() as nursery:
            fakes.add("a", fail="open=hang", spec={"initTimeout": "3s"})
            nursery.start_soon(running.reload)
            await until(lambda: len(happened("open")) == 2)
            assert await running.read("a", "x") == secret("old")
            await later(mock_clock, 3)

    async def test_a_new_one_that_cannot_be_opened_is_not_served(self, fakes: Fakes, expect_log: ExpectLog) -> None:
        expect_log("component b: the fake says so; it is not served")
        fakes.add("a")
        async with serving(fakes) as running:
            fakes.add("b", fail="check=AccessDenied")
            await running.reload()
            assert list(running.views) == ["a"]

    async def test_it_is_served_when_it_is_tried_again_and_answers(
        self, fakes: Fakes, monkeypatch: pytest.MonkeyPatch, expect_log: ExpectLog
    ) -> None:
        expect_log("component b: the fake says so; it is not served")
        fakes.add("a")
        async with serving(fakes) as running:
            assert not running.is_unanswered()
            fakes.add("b", secrets=holding(x="b"), fail="check=StoreUnavailable")
            await running.reload()
            assert running.is_unanswered()
            monkeypatch.setattr(fake_type, "go_wrong", lambda _: None)
            await running.reload()
            assert not running.is_unanswered()
            assert await running.read("b", "x") == secret("b")

    async def test_what_could_not_be_opened_at_a_takeover_is_tried_again(
        self, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fakes.add("a", secrets=holding(x="a"), fail="open=StoreUnavailable")
        async with serving(fakes, known={"a": KnownStore(multi_valued=True)}) as running:
            assert running.is_unanswered()
            monkeypatch.setattr(fake_type, "go_wrong", lambda _: None)
            await running.reload()
            assert not running.is_unanswered()
            assert await running.read("a", "x") == secret("a")

    @pytest.mark.parametrize("fail", ["open=ConfigurationError", "open=StoreUnavailable", "open=AccessDenied"])
    async def test_ignored_and_never_opened_it_is_tried_again(
        self, fakes: Fakes, monkeypatch: pytest.MonkeyPatch, expect_log: ExpectLog, fail: str
    ) -> None:
        """A secrets file that comes later changes no manifest."""
        fakes.add("a", secrets=holding(x="a"), fail=fail, spec=IGNORED)
        async with serving(fakes) as running:
            unopened = running.served("a")
            with pytest.raises(StoreError):
                await running.names("a")
            assert running.is_unanswered()
            result = await running.reload(again=True)  # the log has the reason already
            assert running.is_unanswered()
            assert result is not None
            assert result.replaced == frozenset()
            monkeypatch.setattr(fake_type, "go_wrong", lambda _: None)
            result = await running.reload(again=True)
            assert not running.is_unanswered()
            assert await running.read("a", "x") == secret("a")
            assert result is not None
            assert result.replaced == {"a"}  # it is multi-valued, which nobody could know
            assert running.served("a") is not unopened
            opened = running.served("a")
            await running.reload(again=True)
            assert running.served("a") is opened

    async def test_another_reason_is_logged_again(
        self, fakes: Fakes, monkeypatch: pytest.MonkeyPatch, expect_log: ExpectLog
    ) -> None:
        expect_log(r"WARNING .*a\.yaml:1: component a: something else; it is served when it answers")
        fakes.add("a", fail="open=StoreUnavailable", spec=IGNORED)
        async with serving(fakes) as running:

            def otherwise(_: object) -> None:
                raise StoreUnavailable("something else")

            monkeypatch.setattr(fake_type, "go_wrong", otherwise)
            for _ in range(3):
                await running.reload(again=True)

    async def test_ignored_it_is_served_all_the_same(self, fakes: Fakes, expect_log: ExpectLog) -> None:
        expect_log(r"WARNING .*component a: the fake says so; it is served when it answers \(ignoreErrors\)")
        fakes.add("a", secrets=holding(x="old"))
        async with serving(fakes) as running:
            fakes.add("a", secrets=holding(x="new"), fail="check=StoreUnavailable", spec=IGNORED)
            await running.reload()
            assert await running.read("a", "x") == secret("new")

    async def test_ignored_and_not_to_be_opened_it_goes_on(self, fakes: Fakes, expect_log: ExpectLog) -> None:
        expect_log("token: cannot be used .*; it goes on as it was")
        fakes.add("a", secrets=holding(x="old"))
        async with serving(fakes) as running:
            fakes.add("a", fail="open=ConfigurationError", spec=IGNORED)
            await running.reload()
            assert await running.read("a", "x") == secret("old")


class TestCredentials:
    """``needy`` takes its token from ``source``."""

    @pytest.fixture(autouse=True)
    def components(self, fakes: Fakes) -> None:
        fakes.add("needy", secrets=holding(x="needy"), token=reference("token", "k"), secret_store="source")
        fakes.add("source", secrets=holding(token="old"))

    async def test_a_store_is_opened_anew_when_its_source_is(self, fakes: Fakes, mock_clock: MockClock) -> None:
        async with serving(fakes) as running:
            fakes.add("source", secrets=holding(token="new"))
            await running.reload()
            assert fake_type.tokens["needy"] == secret("new")
            assert happened("open") == ["source", "needy", "source", "needy"]
            await later(mock_clock, DEADLINE)
            await until(lambda: sorted(happened("close")) == ["needy", "source"])

    async def test_an_unchanged_source_is_asked_and_not_opened(self, fakes: Fakes) -> None:
        async with serving(fakes) as running:
            source = running.served("source")
            fakes.add("other", token=reference("token", "k"), secret_store="source")
            await running.reload()
            assert running.served("source") is source
            assert fake_type.tokens["other"] == secret("old")

    async def test_what_it_takes_is_looked_at_again_though_nothing_is_refused(
        self, fakes: Fakes, mock_clock: MockClock
    ) -> None:
        async with serving(fakes) as running:
            await running.read("needy", "x")
            running.store("source").put("token", {"k": secret("new").encode()})
            await later(mock_clock, Freshness().ttl)
            await until(lambda: fake_type.tokens["needy"] == secret("new"))
            await until(lambda: happened("close") == ["needy"])
            assert await running.read("needy", "x") == secret("needy")
            await later(mock_clock, Freshness().ttl)
            await wait_all_tasks_blocked(0.01)
            assert happened("open") == ["source", "needy", "needy"]

    async def test_a_source_that_cannot_be_opened_leaves_both(self, fakes: Fakes, expect_log: ExpectLog) -> None:
        expect_log("component source: the fake says so; it goes on as it was")
        expect_log("it takes its credentials from source, which could not be opened; it goes on as it was")
        async with serving(fakes) as running:
            before = running.served("needy"), running.served("source")
            fakes.add("source", secrets=holding(token="new"), fail="check=AccessDenied")
            await running.reload()
            assert (running.served("needy"), running.served("source")) == before
            assert fake_type.tokens["needy"] == secret("old")

    async def test_who_goes_on_with_an_old_source_keeps_it_open(
        self, fakes: Fakes, mock_clock: MockClock, expect_log: ExpectLog
    ) -> None:
        """It will be asked when the token is rotated."""
        expect_log("component needy: the fake says so; it goes on as it was")
        async with serving(fakes) as running:
            old = running.store("source")
            fakes.add("source", secrets=holding(token="new"))
            fakes.add("needy", token=reference("token", "k"), secret_store="source", fail="check=AccessDenied")
            await running.reload()
            await later(mock_clock, DEADLINE)
            await until(lambda: happened("close") == ["needy"])
            assert not old.closed
            fakes.add("needy", token=reference("token", "k"), secret_store="source")
            await running.reload()
            await later(mock_clock, DEADLINE)
            await until(lambda: sorted(happened("close")) == ["needy", "needy", "source"])
            assert old.closed

    async def test_in_the_end_that_is_closed_too(self, fakes: Fakes, expect_log: ExpectLog) -> None:
        expect_log("component needy: the fake says so; it goes on as it was")
        async with serving(fakes) as running:
            fakes.add("source", secrets=holding(token="new"))
            fakes.add("needy", token=reference("token", "k"), secret_store="source", fail="check=AccessDenied")
            await running.reload()
        assert sorted(happened("close")) == ["needy", "needy", "source", "source"]


class TestTheEndOfAStore:
    async def test_whoever_waits_for_it_is_answered_before_it_is_closed(
        self, fakes: Fakes, mock_clock: MockClock
    ) -> None:
        answers: list[str] = []
        fakes.add("a", secrets=holding(x="old"), annotations={"secretfs/deadline": "20s"})
        async with serving(fakes) as running, trio.open_nursery() as nursery:
            old, view = running.store("a"), running.views["a"]

            async def read() -> None:
                answers.append((await view.secret("x")).value.values["k"].decode())

            old.gate.clear()
            nursery.start_soon(read)
            await until(lambda: old.running)
            fakes.add("a", secrets=holding(x="new"))
            await running.reload()
            assert await running.read("a", "x") == secret("new")
            await later(mock_clock, 19)
            assert await running.read("a", "x") == secret("new")
            assert (answers, old.closed) == ([], False)
            old.gate.set()
            await until(lambda: answers == [secret("old")])
            assert not old.closed
            await later(mock_clock, 1)
            await until(lambda: old.closed)
            with pytest.raises(StoreUnavailable, match="not served any more"):
                await view.secret("y")
            assert "fetch:y" not in old.calls

    async def test_the_end_of_all_does_not_wait_for_that(self, fakes: Fakes) -> None:
        fakes.add("a", secrets=holding(x="old"))
        async with serving(fakes) as running:
            fakes.add("a", secrets=holding(x="new"))
            await running.reload()
        assert happened("close") == ["a", "a"]

    async def test_what_it_tells_after_its_end_is_heard_by_nobody(
        self, mock_clock: MockClock, nursery: trio.Nursery
    ) -> None:
        store = WatchingMemoryStore({"x": {"k": b"v"}})
        opened = OpenedStore.of(Component("a", "secretstores.fake"), store, Freshness())
        stores = StoreSet(Registry({"a": opened}), Freshness(), nursery)
        shown = Declaration((), {"a": DeclaredStore("a")}, TemplateContext({}, ""), ())
        nothing = Declaration((), {}, TemplateContext({}, ""), ())
        await (await stores.start(shown))["a"].store.fetch("x")
        await stores.replace(nothing)
        await wait_all_tasks_blocked()
        await later(mock_clock, DEADLINE)
        await until(lambda: store.closed)
        store.tell("x")
        await wait_all_tasks_blocked()
        assert store.calls == {"fetch:x": 1}


class TestNothingIsMixedUp:
    async def test_a_store_that_hangs_is_not_answered_for_by_its_predecessor(
        self, fakes: Fakes, mock_clock: MockClock, expect_log: ExpectLog
    ) -> None:
        expect_log("a: no answer within 5s")
        fakes.add("a", secrets=holding(x="old"))
        async with serving(fakes) as running, trio.open_nursery() as nursery:
            assert await running.read("a", "x") == secret("old")
            fakes.add("a", secrets=holding(x="new"), fail="fetch:x=hang")
            await running.reload()
            failed = trio.Event()

            async def read() -> None:
                with pytest.raises(DeadlineExceeded):
                    await running.read("a", "x")
                failed.set()

            nursery.start_soon(read)
            await until(lambda: running.store("a").calls["fetch:x"])
            assert running.views["a"].peek("x") is None
            await later(mock_clock, DEADLINE)
            await failed.wait()

    async def test_nor_is_one_that_is_down(self, fakes: Fakes, expect_log: ExpectLog) -> None:
        expect_log("a: the fake says so")
        fakes.add("a", secrets=holding(x="old"))
        async with serving(fakes) as running:
            assert await running.read("a", "x") == secret("old")
            assert await running.names("a") == [b"x"]
            fakes.add("a", fail="fetch:x=StoreUnavailable names:=StoreUnavailable")
            await running.reload()
            for _ in range(5):
                with pytest.raises(StoreUnavailable):
                    await running.read("a", "x")
                with pytest.raises(StoreUnavailable):
                    await running.names("a")

    async def test_how_they_differ_is_told(self, fakes: Fakes) -> None:
        fakes.add("a", secrets=holding(same="1", other="2", gone="3"))
        async with serving(fakes) as running:
            await running.names("a")
            for name in ("same", "other", "gone"):
                await running.read("a", name)
            fakes.add("a", secrets=holding(same="1", other="two", new="4"))
            await running.reload()
            expected = [
                Change("a", names=frozenset({"gone", "new"})),
                Change("a", values=frozenset({("gone", "k")})),
                Change("a", values=frozenset({("other", "k")})),
            ]
            await until(lambda: len(running.told) == 3)
            assert sorted(running.told, key=str) == sorted(expected, key=str)

    async def test_what_a_new_store_finds_is_told_however_many_there_are(self, fakes: Fakes) -> None:
        """Nobody listens before all have been started."""
        names = [f"s{number:02}" for number in range(20)]
        for name in names:
            fakes.add(name, secrets=holding(x="old"))
        async with serving(fakes) as running:
            for name in names:
                await running.read(name, "x")
                fakes.add(name, secrets=holding(x="new"))
            await running.reload()
            await until(lambda: {change.component for change in running.told} == set(names))
