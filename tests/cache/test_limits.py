"""What is beyond a limit: an error for all of an answer, or a name that is left out; both are counted."""

import pytest
import trio

from secretfs.cache.client import StoreClient
from secretfs.cache.freshness import Freshness
from secretfs.cache.limits import DEEPEST, LONGEST_NAME, Limits, StoreLimits
from secretfs.cache.listing_budget import ListingBudget
from secretfs.cache.store_cache import CachedStore
from secretfs.cache.ttl_cache import CachedAnswer, TTLCache
from secretfs.errors import MalformedAnswer
from secretfs.store import Names, Secret
from tests.conftest import ExpectLog
from tests.support.memory_store import MemoryStore

LEFT_OUT = "vault: %d names are left out, which are longer than 4096 bytes or deeper than 64 folders"
DEEP = "a/" * DEEPEST + "a"


def limits(names: int = 10, size: int = 100) -> StoreLimits:
    return StoreLimits("vault", Limits(names, size))


def names(number: int) -> frozenset[str]:
    return frozenset(map(str, range(number)))


def test_as_many_names_as_are_allowed() -> None:
    answer = Names(names(7), frozenset({"a", "b", "c"}))
    assert limits().names(answer) is answer


def test_more_names_are_malformed() -> None:
    held = limits()
    with pytest.raises(MalformedAnswer, match=r"^11 names are listed: secretfs/max-names of vault allows 10$"):
        held.names(Names(names(8), frozenset({"a", "b", "c"})))
    assert held.exceeded == {"names": 1, "keys": 0, "size": 0, "name": 0}


def test_more_keys_are_malformed() -> None:
    held = limits()
    held.secret(Secret(dict.fromkeys(names(10), b"")))
    with pytest.raises(MalformedAnswer, match=r"^it has 11 keys: secretfs/max-names of vault allows 10$"):
        held.secret(Secret(dict.fromkeys(names(11), b"")))
    assert held.exceeded["keys"] == 1


def test_larger_secrets_are_malformed() -> None:
    held = limits()
    held.secret(Secret({"a": bytes(50), "b": bytes(50)}))
    with pytest.raises(MalformedAnswer, match=r"^it has 101 bytes: secretfs/max-size of vault allows 100$"):
        held.secret(Secret({"a": bytes(50), "b": bytes(51)}))
    assert held.exceeded["size"] == 1


@pytest.mark.parametrize("modified", [float("nan"), float("inf"), float("-inf"), 1e300, -1e13])
def test_a_time_that_is_none_is_not_known(modified: float) -> None:
    assert limits().secret(Secret({"a": b"x"}, "7", modified)) == Secret({"a": b"x"}, "7")


@pytest.mark.parametrize("modified", [None, 0.0, -1.0, 253402300799.0])
def test_a_time(modified: float | None) -> None:
    answer = Secret({"a": b"x"}, modified=modified)
    assert limits().secret(answer) is answer


@pytest.mark.parametrize("name", ["x" * LONGEST_NAME, "\U0001f600" * (LONGEST_NAME // 4), DEEP, "", "\0", "a\nb"])
def test_a_name_that_a_path_can_carry(name: str) -> None:
    answer = Names(frozenset({name}), frozenset({name}))
    assert limits().names(answer) is answer


@pytest.mark.parametrize(
    "name", ["x" * (LONGEST_NAME + 1), "\ud800" * (LONGEST_NAME // 3 + 1), f"a/{DEEP}", "/" * 10**6]
)
def test_a_name_that_none_can_carry_is_left_out(name: str, expect_log: ExpectLog) -> None:
    expect_log(LEFT_OUT % 2)
    held = limits()
    assert held.names(Names(frozenset({name, "db"}), frozenset({name, "team"}))) == Names(
        frozenset({"db"}), frozenset({"team"})
    )
    assert held.exceeded["name"] == 2


def test_the_log_has_them_when_their_number_changes(expect_log: ExpectLog, caplog: pytest.LogCaptureFixture) -> None:
    expect_log(LEFT_OUT % 1)
    expect_log(LEFT_OUT % 2)
    held = limits()
    for more in (0, 0, 1, 1, 0):
        held.names(Names(frozenset({f"{DEEP}/{number}" for number in range(1 + more)})))
    assert [record.message.split()[1] for record in caplog.records] == ["1", "2", "1"]
    assert DEEP not in caplog.text


async def test_a_client_holds_every_answer_to_them(expect_log: ExpectLog) -> None:
    expect_log("MalformedAnswer|11 names are listed|it has 101 bytes")
    store = MemoryStore({name: {"key": b""} for name in names(11)})
    store.put("0", {"key": bytes(101)})
    client = StoreClient("vault", store, ttl=60, deadline=5, limits=Limits(names=10, size=100))
    with pytest.raises(MalformedAnswer):
        await client.names("")
    with pytest.raises(MalformedAnswer):
        await client.fetch("0")
    assert client.limits.exceeded == {"names": 1, "keys": 0, "size": 1, "name": 0}


@pytest.mark.parametrize("names", [{1}, {b"db"}, {None}, {"db", ("a", "b")}])
def test_a_name_that_is_no_text(names: set[object]) -> None:
    with pytest.raises(MalformedAnswer, match="a name is listed that is no text"):
        limits().names(Names(frozenset(names)))  # type: ignore[arg-type]


class Listings:
    """A cache of listings, and a budget for it."""

    def __init__(self, nursery: trio.Nursery, limits: StoreLimits) -> None:
        self.cache = TTLCache[str, Names](self._load, nursery)
        self.budget = ListingBudget("vault", limits)

    async def _load(self, folder: str) -> CachedAnswer[Names]:
        raise NotImplementedError

    def list(self, folder: str, number: int) -> None:
        now = trio.current_time()
        self.cache.keep(folder, CachedAnswer(Names(names(number)), now, now + 60, 0.0))
        self.budget.loaded(self.cache, folder)


async def test_folders_without_end_are_forgotten_the_oldest_first(
    nursery: trio.Nursery,
    autojump_clock: trio.testing.MockClock,
    expect_log: ExpectLog,
    caplog: pytest.LogCaptureFixture,
) -> None:
    expect_log("vault: its folders have more names than secretfs/max-names allows, 100: not all are kept in memory")
    held = limits(names=100)
    listings = Listings(nursery, held)
    for number in range(50):
        listings.list(f"folder-{number}", 10)
        await trio.sleep(1)
        listings.cache.access("folder-0")
        assert 1 <= len(listings.cache) <= 10
    assert "folder-0" in listings.cache
    assert "folder-49" in listings.cache
    assert "folder-1" not in listings.cache
    assert held.exceeded["names"] >= 4
    assert caplog.text.count("max-names") == 1


async def test_one_listing_may_have_as_many_as_are_allowed(nursery: trio.Nursery) -> None:
    held = limits(names=100)
    listings = Listings(nursery, held)
    listings.list("", 100)
    listings.list("", 100)
    assert len(listings.cache) == 1
    assert held.exceeded["names"] == 0


async def test_what_was_dropped_meanwhile_does_not_count(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    held = limits(names=100)
    listings = Listings(nursery, held)
    for number in range(50):
        listings.list(f"folder-{number}", 10)
        listings.list(f"folder-{number}", 10)  # the same once more
        await trio.sleep(10)
        listings.cache.drop_idle(50)
    assert len(listings.cache) == 4
    assert held.exceeded["names"] == 0


async def test_a_store_of_folders_without_end(nursery: trio.Nursery, expect_log: ExpectLog) -> None:
    expect_log("more names than secretfs/max-names allows, 20")

    class Endless(MemoryStore):
        def names(self, folder: str) -> Names:
            return Names(folders=frozenset({f"{folder}/{name}".lstrip("/") for name in "abc"}))

    client = StoreClient("vault", Endless(), ttl=60, deadline=5, limits=Limits(names=20))
    cached, folders = CachedStore(client, Freshness(), nursery), [""]
    for folder in folders:
        folders += (await cached.names(folder)).value.folders
        if len(folders) > 100:
            break
    assert len(cached._names) <= 6
