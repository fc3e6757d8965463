"""Places for the kernel's requests: an app takes no more than it leaves free."""

import pytest
import trio.testing

from secretfs.errors import TooManyRequests
from secretfs.fs.keys import AppKey, RootKey, ValueKey
from secretfs.fs.requests import REMIND, RequestPlaces, Work
from tests.conftest import ExpectLog


def of(app: str) -> ValueKey:
    return ValueKey(f"{app}/vault", "db", "password")


async def test_an_app_leaves_half_to_the_others(expect_log: ExpectLog) -> None:
    expect_log("app orders: 5 requests wait, and more fail with EAGAIN")
    expect_log("app billing: 3 requests wait, and more fail with EAGAIN")
    places = RequestPlaces(10)
    for _ in range(5):
        places.of(of("orders")).__enter__()
    with pytest.raises(TooManyRequests), places.of(of("orders")):
        pass
    for _ in range(3):  # of the five that are left
        places.of(of("billing")).__enter__()
    with pytest.raises(TooManyRequests), places.of(of("billing")):
        pass
    with places.of(of("third")):
        assert places.work == {"app billing": Work(3, 1), "app orders": Work(5, 1), "app third": Work(1, 0)}


async def test_what_has_an_answer_gives_its_place_back(expect_log: ExpectLog) -> None:
    expect_log("app orders: 1 requests wait, and more fail with EAGAIN")
    places = RequestPlaces(2)
    for _ in range(10):
        with pytest.raises(KeyError), places.of(of("orders")):
            raise KeyError
    assert places.work == {}
    with places.of(of("orders")), pytest.raises(TooManyRequests), places.of(of("orders")):
        pass
    with places.of(of("orders")):
        pass
    assert places.work == {"app orders": Work(0, 1)}


@pytest.mark.parametrize("key", [RootKey(), AppKey("orders"), ValueKey("vault", "db", "password")])
async def test_what_is_in_no_app_is_not_refused(key: RootKey | AppKey | ValueKey) -> None:
    places = RequestPlaces(2)
    for _ in range(5):
        places.of(key).__enter__()
    assert places.work == {}


async def test_the_log_has_it_once_a_minute(
    caplog: pytest.LogCaptureFixture, mock_clock: trio.testing.MockClock, expect_log: ExpectLog
) -> None:
    expect_log("and more fail with EAGAIN")
    places = RequestPlaces(0)

    def refused() -> int:
        with pytest.raises(TooManyRequests), places.of(of("orders")):
            pass
        return caplog.text.count("EAGAIN")

    assert [refused() for _ in range(3)] == [1, 1, 1]
    mock_clock.jump(REMIND)
    assert [refused() for _ in range(2)] == [2, 2]


async def test_where_there_are_no_apps_it_is_the_user_who_counts(expect_log: ExpectLog) -> None:
    expect_log("user 1000: 5 requests wait, and more fail with EAGAIN")
    key, places = ValueKey("vault", "db", "password"), RequestPlaces(10)
    for _ in range(5):
        places.of(key, 1000).__enter__()
    with pytest.raises(TooManyRequests, match="user 1000 has 5"), places.of(key, 1000):
        pass
    with places.of(key, 1001) as asker:
        assert asker == "user 1001"
        assert places.work == {"user 1000": Work(5, 1), "user 1001": Work(1, 0)}


async def test_users_are_forgotten_who_ask_for_nothing() -> None:
    key, places = ValueKey("vault", "db", "password"), RequestPlaces(10)
    held = places.of(key, 0)
    held.__enter__()
    for uid in range(1, 100):
        with places.of(key, uid):
            pass
    places.forget_idle()
    assert list(places._askers) == ["user 0"]
    held.__exit__(None, None, None)
    assert places.total == Work(0, 0)
