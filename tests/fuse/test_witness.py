"""What the audit log is told of requests, and of opens that the kernel reports."""

from collections.abc import Mapping
from typing import Any, cast

import pytest

from secretfs.errors import AccessDenied, NoSuchAttribute, NoSuchEntry, RecordLost, Superseded
from secretfs.fs.caller import Caller
from secretfs.fs.descriptions import Descriptions
from secretfs.fuse.witness import AuditWitness, Witness
from secretfs.linux.fanotify import OVERFLOW, Open
from secretfs.observe.audit import NOBODY, Asker, AuditLog

SOMEBODY, HELPER = Caller(1000, 1000, 42), Caller(0, 0, 7)
FILE, CONTROL, GONE = 2, 3, 4


class Log(AuditLog):
    """Keeps what it is told."""

    kept = True

    def __init__(self, *, strict: bool = False) -> None:
        self.strict = strict
        self.told: list[tuple[str, dict[str, Any], Asker]] = []
        self.error: RecordLost | None = None

    def note(self, event: str, fields: Mapping[str, Any], asker: Asker = NOBODY) -> None:
        self.told.append((event, dict(fields), asker))

    async def witness(self, event: str, fields: Mapping[str, Any], asker: Asker) -> None:
        self.note(event, fields, asker)
        if self.error:
            raise self.error


class Described:
    """Stands for `Descriptions`."""

    def __init__(self) -> None:
        self.recalled: list[int] = []

    def recall(self, number: int) -> None:
        self.recalled.append(number)

    def opened(self, number: int) -> tuple[str, dict[str, object]] | None:
        known: dict[int, tuple[str, dict[str, object]]] = {
            FILE: ("open", {"secret": "a"}),
            CONTROL: ("control", {"file": "refresh"}),
        }
        return known.get(number)

    def asked_for(self, number: int, segment: bytes | None = None) -> dict[str, object]:
        return {"path": segment.decode()} if segment else {"secret": "a"}

    def requested(self, number: int, text: bytes) -> dict[str, object]:
        return {"file": "refresh", "paths": [text.decode()]}


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def witness(log: Log) -> AuditWitness:
    return witness_for(log)


def witness_for(log: Log, *, unasked: bool = True) -> AuditWitness:
    return AuditWitness(log, cast("Descriptions", Described()), lambda: {HELPER.pid}, lambda: unasked)


async def test_an_open_is_told(witness: AuditWitness, log: Log) -> None:
    await witness.opened(FILE, SOMEBODY)
    assert log.told == [("open", {"secret": "a", "result": "ok"}, SOMEBODY)]


async def test_what_our_own_processes_do_is_not(witness: AuditWitness, log: Log) -> None:
    await witness.opened(FILE, HELPER)
    await witness.refused("lookup", FILE, b"x", HELPER, NoSuchEntry("x"))
    await witness.opened(GONE, SOMEBODY)
    assert log.told == []


async def test_an_open_without_a_record_is_refused(witness: AuditWitness, log: Log) -> None:
    log.error = RecordLost("open")
    with pytest.raises(RecordLost):
        await witness.opened(FILE, SOMEBODY)
    await witness.refused("lookup", 1, b"x", SOMEBODY, NoSuchEntry("x"))  # is refused with its own error


async def test_a_refusal_is_told_with_its_errno(witness: AuditWitness, log: Log) -> None:
    await witness.refused("lookup", 1, b"x", SOMEBODY, NoSuchEntry("x"))
    await witness.refused("getattr", FILE, None, SOMEBODY, AccessDenied("no"))
    assert log.told == [
        ("refused", {"request": "lookup", "path": "x", "result": "ENOENT"}, SOMEBODY),
        ("refused", {"request": "getattr", "secret": "a", "result": "EACCES"}, SOMEBODY),
    ]


@pytest.mark.parametrize("error", [NoSuchAttribute("user.x"), Superseded("again"), RecordLost("open")])
async def test_what_is_no_refusal(witness: AuditWitness, log: Log, error: Any) -> None:
    await witness.refused("open", FILE, None, SOMEBODY, error)
    assert log.told == []


async def test_a_request_is_told_with_who_has_opened_the_file(witness: AuditWitness, log: Log) -> None:
    await witness.opened(CONTROL, SOMEBODY)
    await witness.written(CONTROL, b"vault")
    witness.forget(CONTROL)
    await witness.written(CONTROL, b"vault")
    assert log.told[1:] == [
        ("request", {"file": "refresh", "paths": ["vault"]}, SOMEBODY),
        ("request", {"file": "refresh", "paths": ["vault"]}, NOBODY),
    ]


async def test_a_request_through_a_file_that_the_kernel_has_opened_is_told_with_who_has_found_it(
    witness: AuditWitness, log: Log
) -> None:
    witness.found(CONTROL, SOMEBODY)
    await witness.written(CONTROL, b"vault")
    assert log.told == [("request", {"file": "refresh", "paths": ["vault"]}, SOMEBODY)]


async def test_who_was_refused_a_control_file_is_not_kept_in_mind(witness: AuditWitness, log: Log) -> None:
    log.error = RecordLost("control")
    with pytest.raises(RecordLost):
        await witness.opened(CONTROL, SOMEBODY)
    log.error = None
    await witness.written(CONTROL, b"vault")
    assert log.told[-1][2] is NOBODY


def test_an_open_that_the_kernel_reports(log: Log) -> None:
    report = witness_for(log).reported
    for opened in (Open(FILE, 42), Open(FILE, HELPER.pid), Open(GONE, 42), Open(OVERFLOW, 0)):
        report(opened)
    assert log.told == [("open", {"secret": "a", "result": "ok"}, (-1, -1, 42)), ("overflow", {}, NOBODY)]


def test_one_that_was_a_request_as_well_is_told_once(log: Log) -> None:
    witness_for(log, unasked=False).reported(Open(FILE, 42))
    assert log.told == []


async def test_in_strict_mode_each_open_is_a_request() -> None:
    witness = witness_for(Log(strict=True))
    assert witness.strict
    assert not witness.hears_reports


async def test_without_an_audit_log_nobody_is_told() -> None:
    witness = Witness()
    assert not witness.hears_reports
    await witness.opened(FILE, SOMEBODY)
    await witness.written(FILE, b"x")
    await witness.refused("open", FILE, None, SOMEBODY, NoSuchEntry("x"))
    witness.found(CONTROL, SOMEBODY)
    witness.forget(FILE)
    assert not witness.strict
