"""One app's view of a store: what the scope hides does not exist, by any way of asking."""

from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from secretfs.cache.change import Change
from secretfs.cache.freshness import Freshness
from secretfs.errors import AccessDenied, NoSuchEntry, SecretNotFound, StoreUnavailable
from secretfs.fs.keys import FolderKey, SecretKey, ValueKey
from secretfs.fs.listing import Listing, make_listing
from secretfs.fs.read_ahead import READ_AHEAD, SequentialReads
from secretfs.fs.view import StoreView
from secretfs.scopes import ALLOW_ALL, Access, SecretScope
from tests.conftest import ExpectLog
from tests.support.at_once import AtOnce, tell
from tests.support.cached import Cached
from tests.support.memory_store import MemoryStore, WatchingMemoryStore

Make = Callable[..., StoreView]
FOLDED = {"db": {"k": b"1"}, "team/a": {"k": b"2"}, "team/b": {"k": b"3"}, "team/deep/c": {"k": b"4"}}


@pytest.fixture(params=[False, True], ids=["flat listing", "folder by folder"])
def folders(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def make(nursery: trio.Nursery, mock_clock: MockClock) -> Make:
    def make_view(store: MemoryStore, scope: SecretScope = ALLOW_ALL) -> StoreView:
        return StoreView(Cached("vault", store, Freshness(), nursery), scope)

    return make_view


async def tree(view: StoreView, segments: tuple[str, ...] = ()) -> set[str]:
    """All names below a folder, as paths."""
    found: set[str] = set()
    entries, _ = await view.entries(segments)
    for segment, entry in entries.items():
        if isinstance(entry, FolderKey):
            found |= await tree(view, entry.segments)
        else:
            found.add("/".join([*segments, segment.decode()]))
    return found


async def test_a_slash_makes_folders(make: Make, *, folders: bool) -> None:
    view = make(MemoryStore(FOLDED, folders=folders))
    root, _ = await view.entries(())
    assert root == {b"db": SecretKey("vault", "db"), b"team": FolderKey("vault", ("team",))}
    assert await tree(view) == set(FOLDED)
    assert (await view.entry(("team", "deep"), b"c"))[0] == SecretKey("vault", "team/deep/c")


async def test_a_single_valued_secret_is_a_file(make: Make) -> None:
    entries, _ = await make(MemoryStore.single(TOKEN=b"x")).entries(())
    assert entries == {b"TOKEN": ValueKey("vault", "TOKEN", "TOKEN")}


async def test_listing_reads_no_value(make: Make, *, folders: bool) -> None:
    store = MemoryStore(FOLDED, folders=folders)
    await tree(make(store))
    assert not [call for call in store.calls if call.startswith("fetch")]


async def test_a_folder_that_is_not_there(make: Make, *, folders: bool) -> None:
    view = make(MemoryStore(FOLDED, folders=folders))
    with pytest.raises(NoSuchEntry):
        await view.entries(("nope",))
    with pytest.raises(NoSuchEntry):
        await view.entry(("team",), b"nope")


async def test_of_a_folder_and_a_secret_of_one_name_the_folder_is_shown(
    make: Make, expect_log: ExpectLog, *, folders: bool
) -> None:
    expect_log("the folder db hides the secret of that name")
    store = MemoryStore({"db": {"k": b"1"}, "db/x": {"k": b"2"}}, folders=folders)
    view = make(store)
    assert (await view.entry((), b"db"))[0] == FolderKey("vault", ("db",))
    assert set((await view.every_secret()).value) == {"db", "db/x"}


SCOPES: dict[str, tuple[SecretScope, set[str]]] = {
    "allow": (SecretScope(), set(FOLDED)),
    "deny": (SecretScope(default_access=Access.DENY), set()),
    "allow but": (SecretScope(denied_secrets=frozenset({"team/a"})), {"db", "team/b", "team/deep/c"}),
    "only": (SecretScope(allowed_secrets=frozenset({"team/a", "nope"})), {"team/a"}),
    "deny but": (SecretScope(default_access=Access.DENY, allowed_secrets=frozenset({"db"})), {"db"}),
    "allowed wins": (
        SecretScope(allowed_secrets=frozenset({"db"}), denied_secrets=frozenset({"db"})),
        {"db"},
    ),
    "a whole folder denied": (
        SecretScope(denied_secrets=frozenset({"team/deep/c"})),
        {"db", "team/a", "team/b"},
    ),
    "all folders denied": (
        SecretScope(denied_secrets=frozenset({"team/a", "team/b", "team/deep/c"})),
        {"db"},
    ),
    "allowed in a folder that has only others": (SecretScope(allowed_secrets=frozenset({"team/x"})), set()),
}


@pytest.mark.parametrize("case", SCOPES)
async def test_the_scope_decides_what_exists(make: Make, case: str, *, folders: bool) -> None:
    scope, visible = SCOPES[case]
    store = MemoryStore(FOLDED, folders=folders)
    view = make(store, scope)
    assert await tree(view) == visible
    assert set((await view.every_secret()).value) == visible
    for name, values in FOLDED.items():
        if name in visible:
            assert (await view.secret(name)).value.values == values
        else:
            before = store.calls.copy()
            with pytest.raises(NoSuchEntry):
                await view.secret(name)
            assert store.calls == before  # the backend never hears of a hidden name
            assert view.peek(name) is None
    parents = {name.rpartition("/")[0] for name in visible} | {"team" for name in visible if name.startswith("team/")}
    for folder in ("team", "team/deep"):
        if folder not in parents:
            with pytest.raises(NoSuchEntry):
                await view.entries(tuple(folder.split("/")))


async def test_hidden_and_missing_look_the_same(make: Make, *, folders: bool) -> None:
    view = make(MemoryStore(FOLDED, folders=folders), SecretScope(denied_secrets=frozenset({"db"})))
    errors = []
    for name in ("db", "xx"):
        with pytest.raises(NoSuchEntry) as raised:
            await view.entry((), name.encode())
        errors.append((type(raised.value), str(raised.value).replace(name, "?")))
    assert errors[0] == errors[1]


async def test_scopes_cost_no_listing_where_there_is_no_doubt(make: Make) -> None:
    store = MemoryStore(FOLDED, folders=True)
    await make(store).entries(())
    assert store.calls == {"names:": 1}


async def test_of_values_only_visible_ones_are_told(nursery: trio.Nursery, mock_clock: MockClock) -> None:
    store = WatchingMemoryStore(FOLDED)
    announced: list[Change] = []
    cached = AtOnce("vault", store, Freshness(), nursery, announce=announced.append)
    view = StoreView(cached, SecretScope(denied_secrets=frozenset({"team/a"})))
    for name in ("db", "team/a"):
        await cached.fetch(name)
        store.put(name, {"k": b"new"})
    await tell(store, "team/a")
    assert [bool(view.visible(change)) for change in announced] == [False]
    announced.clear()
    store.put("team/a", {"k": b"newer"})
    await tell(store, "db", "team/a")
    visible = [view.visible(change) for change in announced]
    assert [change for change in visible if change] == [Change("vault", values=frozenset({("db", "k")}))]


async def test_a_change_of_names_is_told_and_the_entries_tell_what_of_it_shows(
    nursery: trio.Nursery, mock_clock: MockClock, *, folders: bool
) -> None:
    store = WatchingMemoryStore(FOLDED, folders=folders)
    heard: list[Change] = []
    cached = AtOnce("vault", store, Freshness(), nursery, announce=heard.append)
    view = StoreView(cached, SecretScope(denied_secrets=frozenset({"hidden", "new/hidden"})))
    before, _ = await view.entries(())
    store.put("hidden", {"k": b"v"})
    store.put("new/hidden", {"k": b"v"})
    await tell(store, "hidden", "new/hidden")
    assert (await view.entries(()))[0] == before
    store.put("new/seen", {"k": b"v"})
    await tell(store, "new/seen")
    assert (await view.entries(()))[0].keys() - before.keys() == {b"new"}
    assert {name for change in heard for name in change.names} >= {"new" if folders else "new/seen"}


async def test_a_name_that_is_not_there_has_its_folder_listed_again_once_it_is_a_little_older(
    make: Make, mock_clock: MockClock, *, folders: bool
) -> None:
    """The negative ttl: once for all who ask, the folder itself and none above it."""
    store = MemoryStore(FOLDED, folders=folders)
    view = make(store)
    team = "team" if folders else ""
    await view.entry(("team",), b"a")
    store.put("team/new", {"k": b"v"})
    with pytest.raises(NoSuchEntry):
        await view.entry(("team",), b"new")
    assert store.calls[f"names:{team}"] == 1
    mock_clock.jump(5.1)
    async with trio.open_nursery() as readers:
        for _ in range(10):
            readers.start_soon(view.entry, ("team",), b"new")
    assert store.calls[f"names:{team}"] == 2
    assert sum(count for call, count in store.calls.items() if call.startswith("names:")) == (3 if folders else 2)
    with pytest.raises(NoSuchEntry):
        await view.entry(("team",), b"none")
    mock_clock.jump(5.1)
    with pytest.raises(NoSuchEntry):
        await view.entry(("team",), b".git")  # programs look for such names in every directory
    assert store.calls[f"names:{team}"] == 2


async def test_a_listing_that_cannot_be_had_again_still_counts(
    make: Make, mock_clock: MockClock, expect_log: ExpectLog
) -> None:
    expect_log("vault: down")
    store = MemoryStore(FOLDED)
    view = make(store)
    await view.entries(())
    mock_clock.jump(5.1)
    store.fail_with = StoreUnavailable("down")
    for _ in range(5):
        with pytest.raises(NoSuchEntry):
            await view.entry((), b"none")
    assert store.calls["names:"] == 2


class TestWhereListingIsRefused:
    @pytest.fixture
    def store(self) -> MemoryStore:
        store = MemoryStore(FOLDED, folders=True)
        for folder in ("", "team", "team/deep"):
            store.refused[f"names:{folder}"] = AccessDenied(f"no list in {folder}")
        return store

    async def test_a_secret_is_found_by_its_name(self, make: Make, store: MemoryStore, expect_log: ExpectLog) -> None:
        expect_log("no list in ")
        view = make(store)
        with pytest.raises(AccessDenied):
            await view.entries(())
        assert (await view.entry((), b"db"))[0] == SecretKey("vault", "db")
        with pytest.raises(SecretNotFound):
            await view.entry((), b"nope")

    async def test_a_folder_further_down_that_may_be_listed_is_found(
        self, make: Make, store: MemoryStore, expect_log: ExpectLog
    ) -> None:
        expect_log("no list in ")
        del store.refused["names:team"]
        view = make(store)
        assert (await view.entry((), b"team"))[0] == FolderKey("vault", ("team",))
        assert set((await view.entries(("team",)))[0]) == {b"a", b"b", b"deep"}

    async def test_the_names_a_scope_allows_stand_in_for_the_listing(
        self, make: Make, store: MemoryStore, expect_log: ExpectLog
    ) -> None:
        expect_log("no list in ")
        view = make(store, SecretScope(allowed_secrets=frozenset({"team/a", "db"})))
        assert await tree(view) == {"team/a", "db"}
        assert set((await view.every_secret()).value) == {"team/a", "db"}

    async def test_refusals_do_not_pester_the_store(
        self, make: Make, store: MemoryStore, expect_log: ExpectLog
    ) -> None:
        expect_log("no list in ")
        view = make(store)
        for _ in range(10):
            await view.entry((), b"db")
        assert store.calls["names:"] == 1

    async def test_bulk_of_a_store_that_may_not_be_listed_is_refused(
        self, make: Make, store: MemoryStore, expect_log: ExpectLog
    ) -> None:
        expect_log("no list in ")
        with pytest.raises(AccessDenied):
            await make(store).every_secret()


class TestBulk:
    async def test_one_secret_refused_or_gone_is_left_out(
        self, make: Make, expect_log: ExpectLog, *, folders: bool
    ) -> None:
        expect_log("db is forbidden")
        store = MemoryStore(FOLDED, folders=folders)
        store.refused["fetch:db"] = AccessDenied("db is forbidden")
        store.refused["fetch:team/a"] = SecretNotFound("gone")
        assert set((await make(store).every_secret()).value) == {"team/b", "team/deep/c"}

    async def test_a_failure_of_the_store_fails_it(self, make: Make, expect_log: ExpectLog, *, folders: bool) -> None:
        expect_log("down")
        store = MemoryStore(FOLDED, folders=folders)
        store.refused["fetch:team/b"] = StoreUnavailable("down")
        with pytest.raises(StoreUnavailable):
            await make(store).every_secret()

    async def test_it_is_as_old_as_its_oldest_part(self, make: Make, mock_clock: MockClock, *, folders: bool) -> None:
        view = make(MemoryStore(FOLDED, folders=folders))
        await view.secret("db")
        mock_clock.jump(50)
        assert (await view.every_secret()).remaining == pytest.approx(10)

    async def test_what_is_known_is_not_read_again(self, make: Make, *, folders: bool) -> None:
        store = MemoryStore(FOLDED, folders=folders)
        view = make(store)
        await view.secret("db")
        await view.every_secret()
        assert store.calls["fetch:db"] == 1


NAMES = [f"secret-{number:02}" for number in range(40)]


async def listing(*folders: str) -> Listing:
    """List the names, and folders between them."""
    entries: dict[bytes, SecretKey | FolderKey] = {name.encode(): SecretKey("vault", name) for name in NAMES}
    entries |= {folder.encode(): FolderKey("vault", (folder,)) for folder in folders}
    return await make_listing(entries)


class TestReadingAhead:
    async def test_nothing_until_two_are_read_in_a_row(self) -> None:
        reads = SequentialReads(await listing())
        assert reads.ahead_of(NAMES[0]) == []
        assert reads.ahead_of(NAMES[1]) == NAMES[2 : 2 + READ_AHEAD]
        assert reads.ahead_of(NAMES[20]) == []
        assert reads.ahead_of("another") == []
        assert reads.ahead_of("another/" + NAMES[21]) == []
        assert reads.ahead_of(NAMES[38]) == []
        assert reads.ahead_of(NAMES[39]) == []

    async def test_a_folder_in_between_changes_nothing(self) -> None:
        reads = SequentialReads(await listing("secret-01-folder"))
        assert reads.ahead_of(NAMES[1]) == []
        assert reads.ahead_of(NAMES[2]) == NAMES[3 : 3 + READ_AHEAD]

    async def test_each_secret_is_read_once(self, make: Make, mock_clock: MockClock) -> None:
        store = MemoryStore({name: {"k": b"v"} for name in NAMES})
        view = make(store)
        view.note_listing(await listing())
        for name in NAMES:
            await view.secret(name)
            await wait_all_tasks_blocked()
        assert {call: number for call, number in store.calls.items() if number != 1} == {}

    async def test_who_reads_one_gets_one(self, make: Make, mock_clock: MockClock) -> None:
        store = MemoryStore({name: {"k": b"v"} for name in NAMES})
        view = make(store)
        view.note_listing(await listing())
        await view.secret(NAMES[7])
        await wait_all_tasks_blocked()
        assert store.calls == {f"fetch:{NAMES[7]}": 1}

    async def test_nothing_is_read_ahead_of_a_store_in_trouble(
        self, make: Make, mock_clock: MockClock, expect_log: ExpectLog
    ) -> None:
        expect_log("down")
        store = MemoryStore({name: {"k": b"v"} for name in NAMES})
        store.fail_with = StoreUnavailable("down")
        view = make(store)
        view.note_listing(await listing())
        for name in NAMES[:2]:
            with pytest.raises(StoreUnavailable):
                await view.secret(name)
        await wait_all_tasks_blocked()
        assert sum(store.calls.values()) == 2
