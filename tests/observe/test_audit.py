"""The audit log: what a record says, what becomes of records that cannot be written, and who waits for what."""

import errno
import json
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from secretfs.errors import ConfigurationError, RecordLost
from secretfs.observe import audit
from secretfs.observe.audit import KeptAuditLog, audit_log, hash_of_name, id_of_key
from secretfs.observe.audit_options import AuditMode, AuditOptions
from secretfs.observe.audit_sinks import Sink
from tests.conftest import ExpectLog
from tests.support.until import until
from tests.support.waiting import wait_until

ME = (os.getuid(), os.getgid(), os.getpid())
OBSERVE, STRICT = AuditOptions(AuditMode.OBSERVE, "-"), AuditOptions(AuditMode.STRICT, "-")
CLOSED = AuditOptions(AuditMode.STRICT, "-", fail_closed=True)
KEY = b"k" * 32


class ListSink(Sink):
    """Keeps records, unless it is told to fail or not to read."""

    name = "a list"

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.error: OSError | None = None
        self.reads = threading.Event()
        self.reads.set()

    def open(self) -> None:
        if self.error:
            raise self.error

    def write(self, record: Mapping[str, object], line: bytes, patience: float) -> None:
        if not self.reads.wait(patience):
            raise BlockingIOError
        if self.error:
            raise self.error
        assert line.count(b"\n") == 1
        assert line.endswith(b"\n")
        assert json.loads(line) == record
        self.records.append(dict(record))

    def close(self) -> None:
        """Keep what there is."""

    def of(self, event: str) -> list[dict[str, Any]]:
        return [record for record in self.records if record["event"] == event]


@pytest.fixture
def sink() -> ListSink:
    return ListSink()


@contextmanager
def kept(options: AuditOptions, sink: Sink) -> Iterator[KeptAuditLog]:
    log = KeptAuditLog(options, sink, Path("/mnt/secrets"))
    log.start(KEY)
    try:
        yield log
    finally:
        log.close()


class TestRecords:
    def test_say_who_and_what(self, sink: ListSink) -> None:
        with kept(OBSERVE, sink) as log:
            log.note("open", {"component": "vault", "secret": "db", "version": "7", "app": "", "none": None}, ME)
        (record,) = sink.records
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", record.pop("time"))
        assert record.pop("cgroup")
        assert record.pop("executable") == str(Path("/proc/self/exe").readlink())
        assert record.pop("command")
        for name in ("unit", "container", "pod"):  # of whatever runs the tests
            record.pop(name, None)
        assert record == {
            "v": 1,
            "event": "open",
            "mount": "/mnt/secrets",
            "component": "vault",
            "secret": "db",
            "version": "7",
            "uid": os.getuid(),
            "gid": os.getgid(),
            "pid": os.getpid(),
        }

    def test_of_events_without_a_process_name_none(self, sink: ListSink) -> None:
        with kept(OBSERVE, sink) as log:
            log.note("mount", {"components": ["b", "a"]})
        assert sink.records[0].keys() == {"v", "time", "event", "mount", "components"}
        assert sink.records[0]["components"] == ["a", "b"]

    def test_are_one_line_whatever_a_name_holds(self, sink: ListSink) -> None:
        name = "line\nfeed \x1b[31m \u202e \udcff \0"
        with kept(OBSERVE, sink) as log:
            log.note("refused", {"path": name})
        assert sink.records[0]["path"] == name

    def test_have_no_name_without_end(self, sink: ListSink) -> None:
        with kept(OBSERVE, sink) as log:
            log.note("refused", {"path": "x" * 1_000_000})
        assert len(sink.records[0]["path"]) == audit.LONGEST + 3

    def test_have_hashes_in_the_place_of_names(self, sink: ListSink) -> None:
        options = AuditOptions(AuditMode.OBSERVE, "-", hash_names=True)
        with kept(options, sink) as log:
            log.note("open", {"component": "vault", "secret": "db", "key": "password", "version": "7"})
            log.note("rotation", {"component": "vault", "secret": "db", "keys": ["password"]})
            log.note("refused", {"component": "vault", "path": "db"})
            log.note("request", {"paths": ["vault/db"]})
        opened, rotated, refused, requested = sink.records
        assert opened["secret"] == rotated["secret"] == refused["path"] == hash_of_name(KEY, "db")
        assert rotated["keys"] == [opened["key"]]
        assert requested["paths"] == [hash_of_name(KEY, "vault/db")]
        assert (opened["component"], opened["version"]) == ("vault", "7")
        assert hash_of_name(b"another", "db") != hash_of_name(KEY, "db")
        assert id_of_key(KEY) != id_of_key(b"another")


class TestObserve:
    def test_equal_records_that_wait_are_one(self, sink: ListSink) -> None:
        sink.reads.clear()
        with kept(OBSERVE, sink) as log:
            log.note("open", {"secret": "first"}, ME)
            wait_until(lambda: not log.counts().waiting)  # the thread has it
            for _ in range(5):
                log.note("open", {"secret": "a"}, ME)
                log.note("open", {"secret": "b"}, ME)
            log.note("open", {"secret": "a"})
            assert log.counts() == (0, 8, 0, 3)
            sink.reads.set()
        assert [(record["secret"], record.get("count"), "pid" in record) for record in sink.records] == [
            ("first", None, True),
            ("a", 5, True),
            ("b", 5, True),
            ("a", None, False),
        ]

    def test_what_there_is_no_room_for_is_counted(self, sink: ListSink) -> None:
        sink.reads.clear()
        with kept(OBSERVE, sink) as log:
            log.note("open", {"number": -1})
            wait_until(lambda: not log.counts().waiting)
            for number in range(audit.QUEUE + 7):
                log.note("open", {"number": number})
            assert log.counts()[2:] == (7, audit.QUEUE)
            sink.reads.set()
        assert [record["lost"] for record in sink.of("lost")] == [7]
        assert [record["number"] for record in sink.of("open")] == list(range(-1, audit.QUEUE))
        assert log.counts() == (audit.QUEUE + 2, 0, 7, 0)

    def test_what_cannot_be_written_is_counted(self, sink: ListSink, expect_log: ExpectLog) -> None:
        expect_log(r"audit records are lost: a list: No space left on device")
        expect_log(r"audit records are written again; lost since the daemon began: 3")
        sink.error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with kept(OBSERVE, sink) as log:
            for number in range(3):
                log.note("open", {"number": number})
            wait_until(lambda: log.counts().lost == 3)
            sink.error = None
            log.note("open", {"number": 3})
        assert [(record["event"], record.get("lost"), record.get("number")) for record in sink.records] == [
            ("lost", 3, None),
            ("open", None, 3),
        ]

    async def test_nobody_waits(self, sink: ListSink) -> None:
        sink.reads.clear()
        with kept(OBSERVE, sink) as log:
            await log.witness("open", {}, ME)
            sink.reads.set()
        assert len(sink.records) == 1

    def test_an_end_waits_for_what_is_left_and_not_for_ever(
        self, sink: ListSink, monkeypatch: pytest.MonkeyPatch, expect_log: ExpectLog
    ) -> None:
        expect_log("audit records are lost: a list: nobody reads")
        monkeypatch.setattr(audit, "PATIENCE", 0.1)
        sink.reads.clear()
        with kept(OBSERVE, sink) as log:
            log.note("open", {"number": 1})
            log.note("open", {"number": 2})
        assert (sink.records, log.counts().lost) == ([], 2)
        log.note("open", {"number": 3})
        assert log.counts().lost == 3


class TestStrict:
    async def test_a_record_is_written_when_the_wait_is_over(self, sink: ListSink) -> None:
        with kept(STRICT, sink) as log:
            for number in range(3):
                await log.witness("open", {"number": number}, ME)
                assert sink.records[-1]["number"] == number

    async def test_equal_records_are_as_many_as_there_were_opens(self, sink: ListSink) -> None:
        sink.reads.clear()
        with kept(STRICT, sink) as log:
            async with trio.open_nursery() as nursery:
                for _ in range(10):
                    nursery.start_soon(log.witness, "open", {"secret": "a"}, ME)
                await until(lambda: log.counts().waiting == 9)
                sink.reads.set()
        assert len(sink.records) == 10
        assert log.counts() == (10, 0, 0, 0)

    async def test_what_cannot_be_written_is_no_reason_to_refuse(self, sink: ListSink, expect_log: ExpectLog) -> None:
        expect_log("audit records are lost")
        sink.error = OSError(errno.ENOSPC, "full")
        with kept(STRICT, sink) as log:
            await log.witness("open", {}, ME)
        assert log.counts().lost == 1

    async def test_unless_that_is_asked_for(self, sink: ListSink, expect_log: ExpectLog) -> None:
        expect_log("audit records are lost")
        expect_log("written again")
        sink.error = OSError(errno.ENOSPC, "full")
        with kept(CLOSED, sink) as log:
            with pytest.raises(RecordLost):
                await log.witness("open", {}, ME)
            sink.error = None
            await log.witness("open", {}, ME)
        assert [record["event"] for record in sink.records] == ["lost", "open"]

    async def test_who_waits_gives_up(
        self, sink: ListSink, monkeypatch: pytest.MonkeyPatch, expect_log: ExpectLog
    ) -> None:
        expect_log("audit records are lost: a list: nobody reads")
        expect_log("written again")
        monkeypatch.setattr(audit, "PATIENCE", 0.1)
        sink.reads.clear()
        with kept(CLOSED, sink) as log:
            with pytest.raises(RecordLost):
                await log.witness("open", {"number": 1}, ME)
            await until(lambda: log.counts().lost == 1)
            sink.reads.set()
            log.note("open", {"number": 2})
        assert [(record["event"], record.get("number")) for record in sink.records] == [("lost", None), ("open", 2)]


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (AuditOptions(to="journal"), "add --audit=observe"),
            (AuditOptions(fail_closed=True), "add --audit=observe"),
            (AuditOptions(hash_names=True), "add --audit=observe"),
            (AuditOptions(AuditMode.STRICT), "--audit=strict needs a place"),
            (AuditOptions(AuditMode.OBSERVE, "-"), "in the background"),
            (AuditOptions(AuditMode.OBSERVE, "journal", fail_closed=True), "needs --audit=strict"),
        ],
    )
    def test_that_do_not_fit_together_are_refused(self, options: AuditOptions, message: str) -> None:
        with pytest.raises(ConfigurationError, match=message):
            options.require(foreground=False)

    def test_that_fit_are_taken(self) -> None:
        AuditOptions().require(foreground=False)
        AuditOptions(AuditMode.OBSERVE, "-").require(foreground=True)
        AuditOptions(AuditMode.STRICT, "/var/log/secretfs", fail_closed=True, hash_names=True).require(foreground=False)

    def test_a_place_that_cannot_be_written_to_is_a_mistake(self, tmp_path: Path) -> None:
        log = audit_log(AuditOptions(AuditMode.OBSERVE, str(tmp_path / "missing/log")), Path("/mnt"))
        with pytest.raises(ConfigurationError, match=r"missing/log: No such file"):
            log.require()

    async def test_without_an_audit_log_nothing_is_kept(self) -> None:
        log = audit_log(AuditOptions(), Path("/mnt"))
        log.require()
        log.start()
        log.note("open", {})
        await log.witness("open", {}, ME)
        log.close()
        assert (log.kept, log.counts()) == (False, (0, 0, 0, 0))
