"""Rendered files as a store: what a reload in the middle of a rendering changes, and what many apps cost."""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from secretfs.cache.change import Change, discard
from secretfs.cache.freshness import Freshness
from secretfs.cache.ttl_cache import CachedAnswer
from secretfs.errors import PartMissing, RenderingFailed
from secretfs.fs import rendered_files, rendered_set
from secretfs.fs.keys import app_of
from secretfs.fs.rendered_files import FileToRender, RenderedFiles
from secretfs.fs.rendered_set import RenderedSet, ShownFile
from secretfs.fs.rendering_parts import Parts
from secretfs.fs.view import StoreView
from secretfs.rendering.conversation import Asked
from secretfs.rendering.job import Format, Job, Mode, Template
from secretfs.rendering.renderer import Renderer
from secretfs.scopes import ALLOW_ALL
from secretfs.store import Secret
from tests.conftest import ExpectLog
from tests.support.cached import Cached
from tests.support.memory_store import MemoryStore

IDLE = 60.0


class InThisProcess(Renderer):
    """Makes each file of its template as it is, while ``gate`` is open; ``asking`` asks for secrets before."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = trio.Event()
        self.gate.set()
        self.asking: Callable[[Asked], Awaitable[object]] | None = None

    async def render(self, job: Job, asked: Asked, mode: Mode = Mode.RENDER) -> bytes:
        assert job.template is not None
        if self.asking is not None:
            await self.asking(asked)
        await self.gate.wait()
        return job.template.text.encode()


@pytest.fixture
def renderer(mock_clock: MockClock) -> InThisProcess:
    return InThisProcess()


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore({f"team/{number}": {"k": b"v"} for number in range(10)})


@pytest.fixture
def turn(renderer: InThisProcess) -> trio.Lock:
    return trio.Lock()


@pytest.fixture
def files(renderer: InThisProcess, store: MemoryStore, turn: trio.Lock, nursery: trio.Nursery) -> RenderedFiles:
    parts = Parts()
    parts.show({"vault": StoreView(Cached("vault", store, Freshness(), nursery), ALLOW_ALL)})
    return RenderedFiles("files", parts, renderer, nursery, discard, turn, IDLE)


def nobody(part: object) -> bool:
    return False


def of(template: str) -> dict[str, FileToRender]:
    return {"f": FileToRender(Job(Format.TEXT, Template(template)))}


def text(answer: CachedAnswer[Secret]) -> bytes:
    return answer.value.values["f"]


async def test_a_reload_during_the_first_rendering(renderer: InThisProcess, files: RenderedFiles) -> None:
    """A reader who waits, and everybody after him, gets the file as it is declared by then."""
    files.replace(of("old"), nobody)
    renderer.gate = trio.Event()
    read: list[bytes] = []

    async def reader() -> None:
        read.append(text(await files.fetch("f")))

    async with trio.open_nursery() as readers:
        readers.start_soon(reader)
        await wait_all_tasks_blocked()
        files.replace(of("new"), nobody)
        renderer.gate.set()
    assert read == [b"new"]
    assert text(await files.fetch("f")) == b"new"


async def test_a_reload_before_the_turn_for_the_first_rendering(files: RenderedFiles, turn: trio.Lock) -> None:
    files.replace(of("old"), nobody)
    read: list[bytes] = []

    async def reader() -> None:
        read.append(text(await files.fetch("f")))

    async with trio.open_nursery() as readers, turn:
        readers.start_soon(reader)
        await wait_all_tasks_blocked()
        files.replace(of("new"), nobody)
    assert read == [b"new"]


async def test_a_reload_during_a_rendering_for_which_nobody_waits(
    renderer: InThisProcess, files: RenderedFiles
) -> None:
    files.replace(of("old"), nobody)
    renderer.gate = trio.Event()
    async with trio.open_nursery() as readers:
        readers.start_soon(files.fetch, "f")
        await wait_all_tasks_blocked()
        readers.cancel_scope.cancel()
    files.replace(of("new"), nobody)
    renderer.gate.set()
    await wait_all_tasks_blocked()
    assert text(await files.fetch("f")) == b"new"


async def test_a_reload_that_changes_no_file_announces_nothing(
    renderer: InThisProcess, turn: trio.Lock, nursery: trio.Nursery
) -> None:
    announced: list[Change] = []
    files = RenderedFiles("files", Parts(), renderer, nursery, announced.append, turn, IDLE)
    for template in ("x", "x"):
        files.replace(of(template), nobody)
    await files.fetch("f")
    assert announced == []


@pytest.mark.parametrize("secrets", [9, 10])
async def test_a_folder_with_too_many_secrets_is_refused_before_one_is_fetched(
    renderer: InThisProcess,
    files: RenderedFiles,
    store: MemoryStore,
    monkeypatch: pytest.MonkeyPatch,
    expect_log: ExpectLog,
    secrets: int,
) -> None:
    """The folder itself counts: of ten parts, nine may be secrets."""
    monkeypatch.setattr(rendered_files, "MOST_PARTS", 10)
    if secrets == 9:
        store.delete("team/0")
    files.replace(of("x"), nobody)
    renderer.asking = lambda asked: asked.folder("vault", "team")
    if secrets == 9:
        await files.fetch("f")
    else:
        expect_log("files/f cannot be rendered: it asks for more than 10 secrets")
        with pytest.raises(RenderingFailed, match="it asks for more than 10 secrets"):
            await files.fetch("f")
    fetched = sum(count for call, count in store.calls.items() if call.startswith("fetch"))
    assert fetched == (9 if secrets == 9 else 0)


async def test_how_files_are_is_known_of_those_that_were_read(
    renderer: InThisProcess, files: RenderedFiles, mock_clock: MockClock, expect_log: ExpectLog
) -> None:
    """When each was rendered, and why it fails, without what its secret is called; until nobody has tried for long."""
    expect_log("files/g cannot be rendered: a secret of the store vault that it asks for is not there, or hidden")
    files.replace({**of("x"), "g": of("y")["f"], "unread": of("z")["f"]}, nobody)
    assert files.statistics().files == {}
    await files.fetch("f")
    rendered = files.statistics().files["f"].rendered
    renderer.asking = lambda asked: asked.secret("vault", "nowhere")
    with pytest.raises(PartMissing):
        await files.fetch("g")
    found = files.statistics()
    failure = found.files["g"].failure
    assert failure is not None
    assert (failure.error, failure.message) == ("PartMissing", "a secret that a file asks for is not there, or hidden")
    assert found.files == {"f": (rendered, None), "g": (None, failure)}
    assert rendered is not None
    assert (found.names, found.cached, found.stale) == (3, 1, 1)
    mock_clock.jump(IDLE)
    files.drop_idle()
    assert files.statistics().files == {}


async def test_a_file_that_fails_was_rendered_before(
    renderer: InThisProcess, files: RenderedFiles, expect_log: ExpectLog
) -> None:
    expect_log("files/f cannot be rendered: no")
    files.replace(of("x"), nobody)
    await files.fetch("f")
    before = files.statistics().files["f"]

    async def refuse(asked: Asked) -> None:
        raise RenderingFailed("no")

    renderer.asking = refuse
    with pytest.raises(RenderingFailed):
        await files.fetch_anew("f")
    now = files.statistics().files["f"]
    assert (now.rendered, now.failure is None) == (before.rendered, False)
    renderer.asking = None
    await files.fetch_anew("f")
    assert files.statistics().files["f"].failure is None


class Walked(Mapping[str, StoreView]):
    """Views, which counts how many are looked at one after the other."""

    def __init__(self, views: Mapping[str, StoreView]) -> None:
        self._views = views
        self.seen = 0

    def __getitem__(self, component: str) -> StoreView:
        return self._views[component]

    def __len__(self) -> int:
        return len(self._views)

    def __iter__(self) -> Iterator[str]:
        for component in self._views:
            self.seen += 1
            yield component


APPS = 50


@pytest.fixture
def shown(nursery: trio.Nursery, mock_clock: MockClock) -> tuple[RenderedSet, Walked, dict[str, StoreView]]:
    """Give the files of many apps, each with a template that may ask any store; the views of stores; and all views."""
    files = RenderedSet(nursery, discard, IDLE)
    opened = Cached("vault", MemoryStore(), Freshness(), nursery)
    views = Walked({f"app{app}/vault": StoreView(opened, ALLOW_ALL, f"app{app}/vault") for app in range(APPS)})
    job = Job(Format.TEXT, Template("x"))
    shown = (ShownFile(f"app{app}/files", "f", FileToRender(job, asks_others=True)) for app in range(APPS))
    return files, views, files.beside(views, shown)


async def test_a_change_concerns_the_files_of_one_app_and_looks_at_no_other(
    shown: tuple[RenderedSet, Walked, dict[str, StoreView]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that a thousand apps see has a thousand changes at once, and each app has its files."""
    calls = Counter[str]()

    def counted(component: str) -> str | None:
        calls["app_of"] += 1
        return app_of(component)

    monkeypatch.setattr(rendered_set, "app_of", counted)
    for app in range(APPS):
        shown[0].announcing(Change(f"app{app}/vault", names=frozenset({"db"})))
    assert calls["app_of"] <= APPS


async def test_whether_a_file_may_issue_is_known_without_looking_at_other_apps(
    shown: tuple[RenderedSet, Walked, dict[str, StoreView]],
) -> None:
    _, stores, views = shown
    stores.seen = 0
    assert not any(views[f"app{app}/files"].issues("f") for app in range(APPS))
    assert stores.seen == 0
