"""Whether a store is worth asking."""

import pytest

from secretfs.cache.health import FAILURES, LONGEST, SHORTEST, CircuitBreaker
from secretfs.errors import StoreUnavailable

DOWN = StoreUnavailable("down")


def opened(failures: int = FAILURES) -> CircuitBreaker:
    """Fail so often, each time after the last failure was known."""
    breaker = CircuitBreaker()
    for number in range(failures):
        breaker.failed(DOWN, float(number), float(number))
    return breaker


def test_a_few_failures_in_a_row_open_it() -> None:
    assert not opened(FAILURES - 1).open
    assert opened(FAILURES - 1).in_doubt
    assert opened().open
    breaker = opened(0)
    assert [breaker.failed(DOWN, float(number)) for number in range(FAILURES + 2)].index(True) == FAILURES - 1


@pytest.mark.parametrize("trials", range(8))
def test_each_trial_that_fails_makes_the_pause_longer(trials: int) -> None:
    expected = min(LONGEST, SHORTEST * 2.0 ** max(0, trials - 1))  # the first trial comes at once
    assert 0.75 * expected <= opened(FAILURES + trials).pause <= 1.25 * expected


def test_calls_that_were_under_way_when_it_opened_do_not() -> None:
    breaker = opened()
    retry_at = breaker.retry_at
    for number in range(20):
        breaker.failed(StoreUnavailable("still down"), 10.0 + number, 1.0)
    assert breaker.retry_at == retry_at
    assert str(breaker.error) == "still down"
    breaker.failed(DOWN, 40.0, 35.0)
    assert 0.75 * SHORTEST <= breaker.retry_at - 40 <= 1.25 * SHORTEST


def test_an_answer_closes_it() -> None:
    breaker = opened()
    assert breaker.answered()
    assert not breaker.in_doubt
    assert not breaker.answered()
