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
        assert places.work == {"billing": Work(3, 1), "orders": Work(5, 1), "third": Work(1, 0)}


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
    assert places.work == {"orders": Work(0, 1)}


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
