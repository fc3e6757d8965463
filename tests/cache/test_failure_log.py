"""What the log is told of the trouble of a store."""

import logging

import pytest

from secretfs.cache.health import REMEMBERED, FailureLog
from secretfs.errors import AccessDenied, StoreUnavailable
from tests.conftest import ExpectLog

DB, OTHER, CHECK = ("fetch", "db"), ("fetch", "other"), ("check", "")


@pytest.fixture
def failures() -> FailureLog:
    return FailureLog("vault")


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture, expect_log: ExpectLog) -> pytest.LogCaptureFixture:
    expect_log("vault: ")
    caplog.set_level(logging.INFO, "secretfs.cache.health")
    return caplog


def texts(told: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in told.records]


def test_an_outage_is_told_once_whatever_is_asked(failures: FailureLog, told: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        for kind, name in (DB, OTHER):
            failures.failed((kind, name), StoreUnavailable(f"{name}: connection refused"))
    failures.failed(CHECK, StoreUnavailable("engine secret: connection refused"))
    failures.failed(CHECK, StoreUnavailable("timed out"))
    failures.over()
    failures.over()
    assert texts(told) == ["vault: db: connection refused", "vault: timed out", "vault: answers again"]


def test_the_next_outage_is_told_again(failures: FailureLog, told: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        failures.failed(DB, StoreUnavailable("down"))
        failures.answered(DB)
        failures.over()
    assert texts(told) == ["vault: down", "vault: answers again"] * 2


def test_a_question_that_alone_fails_is_told_once(failures: FailureLog, told: pytest.LogCaptureFixture) -> None:
    for _ in range(5):
        failures.failed(DB, StoreUnavailable("db: 500"))
        failures.answered(OTHER)
        failures.over()
    assert texts(told) == ["vault: db: 500", "vault: answers again"]
    failures.failed(CHECK, StoreUnavailable("db: 500"))  # now it is the store
    assert texts(told)[2:] == ["vault: db: 500"]


def test_a_refusal_is_told_until_it_ends(failures: FailureLog, told: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        failures.refused(DB, AccessDenied("no"))
        failures.refused(DB, AccessDenied("no"))
        failures.answered(DB)
    assert texts(told) == ["vault: no"] * 2


def test_not_more_than_so_many_are_remembered(failures: FailureLog, told: pytest.LogCaptureFixture) -> None:
    for number in range(REMEMBERED + 1):
        failures.refused(("fetch", str(number)), AccessDenied("no"))
    told.clear()
    failures.refused(("fetch", str(REMEMBERED)), AccessDenied("no"))
    assert texts(told) == []
    failures.refused(("fetch", "0"), AccessDenied("no"))
    assert texts(told) == ["vault: no"]
