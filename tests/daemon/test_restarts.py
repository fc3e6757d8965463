"""What an end of a worker counts for, and when the next one is started."""

import signal

import pytest

from secretfs.daemon.restarts import EARLY, FAILURES, PAUSES, RETRIES, End, Restarts

KILLED = End(-signal.SIGKILL)
CRASHED = End(-signal.SIGSEGV)
MISTAKEN = End(2)


def after(*ends: End) -> Restarts:
    restarts = Restarts()
    for end in ends:
        restarts.count(end)
    return restarts


@pytest.mark.parametrize(
    "end",
    [
        End(-signal.SIGKILL, 0.01),
        End(-signal.SIGTERM, 0.01),
        End(-signal.SIGSEGV, EARLY),
        End(1, EARLY),
        End(0, EARLY),
        End(-signal.SIGKILL, 3600.0, hung=True),
    ],
    ids=str,
)
def test_the_successor_of_one_that_served_starts_at_once(end: End) -> None:
    assert after(*[end] * 100).pause == 0
    assert not after(*[end] * 100).given_up
    assert after(*[MISTAKEN] * (FAILURES - 1), end).pause == 0
    assert not after(*[MISTAKEN] * (FAILURES - 1), end, MISTAKEN).given_up


def test_those_killed_from_outside_before_they_serve_get_pauses_and_are_never_given_up() -> None:
    assert [after(*[KILLED] * count).pause for count in range(8)] == [*PAUSES, 2.0, 2.0]
    assert not after(*[KILLED] * 100).given_up


def test_a_kill_does_not_make_up_for_a_defect() -> None:
    ends = [MISTAKEN, KILLED] * FAILURES
    assert not after(*ends[:-2]).given_up
    assert after(*ends).given_up


@pytest.mark.parametrize(
    "end",
    [
        MISTAKEN,
        CRASHED,
        End(0),
        End(-signal.SIGKILL, hung=True),
        End(-signal.SIGSEGV, EARLY / 2),
    ],
    ids=str,
)
def test_those_that_end_by_themselves_again_and_again_are_given_up(end: End) -> None:
    assert not after(*[end] * (FAILURES - 1)).given_up
    assert after(*[end] * FAILURES).given_up


def test_after_giving_up_the_pauses_are_long_and_double() -> None:
    pauses = [after(*[MISTAKEN] * (FAILURES + count)).pause for count in range(6)]
    assert pauses == [30, 60, 120, 240, 300, 300]
    assert (pauses[0], pauses[-1]) == RETRIES


def test_one_that_serves_after_all_makes_up_for_everything() -> None:
    restarts = after(*[MISTAKEN] * (FAILURES + 3), End(-signal.SIGKILL, 0.5))
    assert not restarts.given_up
    assert restarts.pause == 0
