"""Where audit records go: what each sink makes of a record, and how it fails."""

import errno
import os
import select
import socket
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from secretfs.observe.audit_sinks import File, Journal, Sink, StandardOutput, Syslog, describe, sink_for

RECORD: dict[str, Any] = {
    "v": 1,
    "event": "open",
    "component": "vault",
    "secret": "team/db",
    "key": "password",
    "result": "ok",
    "uid": 1000,
    "pid": 42,
}
LINE = b'{"event": "open"}\n'


def write(sink: Sink, line: bytes = LINE, record: dict[str, Any] = RECORD, patience: float = 0.0) -> None:
    sink.write(record, line, patience)


@pytest.mark.parametrize(
    ("to", "kind"), [("-", StandardOutput), ("journal", Journal), ("syslog", Syslog), ("journal.log", File)]
)
def test_sinks_are_named(to: str, kind: type[Sink]) -> None:
    assert type(sink_for(to)) is kind


def written() -> int:
    """Return how often this thread has called write(2) (proc_pid_io(5))."""
    lines = Path("/proc/thread-self/io").read_text(encoding="ascii").splitlines()
    return next(int(line.removeprefix("syscw: ")) for line in lines if line.startswith("syscw"))


class TestFile:
    def test_belongs_to_nobody_else(self, tmp_path: Path) -> None:
        sink = File(str(tmp_path / "log"))
        write(sink)
        write(sink)
        sink.close()
        assert (tmp_path / "log").read_bytes() == 2 * LINE
        assert stat.S_IMODE((tmp_path / "log").stat().st_mode) == 0o600

    def test_is_appended_to(self, tmp_path: Path) -> None:
        (tmp_path / "log").write_bytes(b"before\n")
        sink = File(str(tmp_path / "log"))
        write(sink)
        sink.close()
        assert (tmp_path / "log").read_bytes() == b"before\n" + LINE

    def test_gets_a_record_by_one_write_however_long(self, tmp_path: Path) -> None:
        """Nothing of another daemon comes between, and a kill leaves all of it or nothing."""
        sink, line = File(str(tmp_path / "log")), b"x" * 100_000 + b"\n"
        sink.open()
        before = written()
        sink.write({}, line, 1.0)
        assert written() - before == 1
        sink.close()
        assert (tmp_path / "log").read_bytes() == line

    @pytest.mark.parametrize("way", ["moved", "deleted", "replaced"])
    def test_is_made_anew_when_it_is_gone(self, tmp_path: Path, way: str) -> None:
        path, old = tmp_path / "log", tmp_path / "log.1"
        sink = File(str(path))
        write(sink)
        if way == "deleted":
            path.unlink()
        else:
            path.rename(old)
        if way == "replaced":
            path.touch(mode=0o640)
        write(sink)
        sink.close()
        assert path.read_bytes() == LINE
        assert not old.exists() or old.read_bytes() == LINE

    def test_fails_where_it_cannot_be_made_anew(self, tmp_path: Path) -> None:
        directory = tmp_path / "directory"
        directory.mkdir()
        sink = File(str(directory / "log"))
        write(sink)
        (directory / "log").unlink()
        directory.rmdir()
        with pytest.raises(FileNotFoundError):
            write(sink)
        directory.mkdir()
        write(sink)
        sink.close()
        assert (directory / "log").read_bytes() == LINE

    def test_is_no_fifo_and_no_device(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "fifo")
        for path in (tmp_path / "fifo", Path("/dev/full")):
            with pytest.raises(OSError, match="not a regular file"):
                File(str(path)).open()


@contextmanager
def stdout_read() -> Iterator[int]:
    """Have descriptor 1 be a pipe, and put back what was there. Gives the end to read."""
    before = os.dup(1)
    read, end = os.pipe()
    os.dup2(end, 1)
    os.close(end)
    try:
        yield read
    finally:
        os.dup2(before, 1)
        os.close(before)
        os.close(read)


class TestStandardOutput:
    def test_gets_lines(self) -> None:
        with stdout_read() as stdout:
            write(StandardOutput())
            assert os.read(stdout, 1 << 16) == LINE

    def test_gets_whole_lines_after_a_pipe_was_full(self) -> None:
        sink, line, text = StandardOutput(), b"x" * 3000 + b"\n", b""
        with stdout_read() as stdout:
            with pytest.raises(BlockingIOError):  # noqa: PT012 - one of them does
                for _ in range(1000):
                    write(sink, line)
            while select.select([stdout], [], [], 0)[0]:
                text += os.read(stdout, 1 << 20)
            write(sink, LINE)
            text += os.read(stdout, 1 << 20)
        *whole, last = text.splitlines(keepends=True)
        assert last == LINE
        assert set(whole) <= {line, b"\n"} | {whole[-1]}

    def test_fails_where_the_disk_is_full(self) -> None:
        with stdout_read(), Path("/dev/full").open("wb") as full:
            os.dup2(full.fileno(), 1)
            with pytest.raises(OSError, match="No space left") as failed:
                write(StandardOutput())
        assert failed.value.errno == errno.ENOSPC


class TestDatagrams:
    @pytest.fixture
    def address(self, tmp_path: Path) -> str:
        return str(tmp_path / "socket")

    def listen(self, address: str) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        listener.bind(address)
        listener.settimeout(10)
        return listener

    def test_syslog_gets_the_line(self, address: str) -> None:
        with self.listen(address) as listener:
            sink = Syslog(address)
            write(sink)
            assert listener.recv(1 << 16) == b"<86>secretfs[%d]: " % os.getpid() + LINE.rstrip()
            sink.close()

    def test_the_journal_gets_native_fields(self, address: str) -> None:
        with self.listen(address) as listener:
            sink = Journal(address)
            write(sink, record={**RECORD, "secret": "two\nlines", "keys": ["a", "b"]})
            fields = parse(listener.recv(1 << 16))
            sink.close()
        assert fields["MESSAGE"] == "open vault/two\nlines/password: result ok, uid 1000, pid 42"
        assert fields["OBJECT_PID"] == "42"
        assert fields["SYSLOG_IDENTIFIER"] == "secretfs"
        assert fields["SECRETFS_SECRET"] == "two\nlines"
        assert fields["SECRETFS_KEYS"] == "a b"
        assert fields["SECRETFS_UID"] == "1000"
        assert fields["SECRETFS_V"] == "1"

    def test_a_name_that_is_no_text_is_escaped(self, address: str) -> None:
        with self.listen(address) as listener:
            sink = Journal(address)
            write(sink, record={**RECORD, "secret": "\udcff\ud800"})
            assert parse(listener.recv(1 << 16))["SECRETFS_SECRET"] == r"\udcff\ud800"
            sink.close()

    def test_a_reader_that_does_not_read_is_waited_for_in_vain(self, address: str) -> None:
        with self.listen(address):
            sink = Syslog(address)
            with pytest.raises(BlockingIOError):  # noqa: PT012 - one of them does
                for _ in range(10_000):
                    write(sink)
            sink.close()

    def test_a_reader_that_was_restarted_is_found(self, address: str) -> None:
        sink = Syslog(address)
        with self.listen(address):
            write(sink)
        with pytest.raises(ConnectionRefusedError):
            write(sink)
        Path(address).unlink()
        with self.listen(address) as listener:
            write(sink)
            assert listener.recv(1 << 16).endswith(LINE.rstrip())
        sink.close()

    def test_without_a_reader_it_cannot_be_opened(self, address: str) -> None:
        with pytest.raises(FileNotFoundError):
            Journal(address).open()


def parse(entry: bytes) -> dict[str, str]:
    """Parse an entry as journald does."""
    fields = {}
    while entry:
        head, _, entry = entry.partition(b"\n")
        name, equals, value = head.partition(b"=")
        if not equals:
            (length,) = struct.unpack_from("<Q", entry)
            value, entry = entry[8 : 8 + length], entry[9 + length :]
        fields[name.decode()] = value.decode()
    return fields


def test_a_record_can_be_read_by_people() -> None:
    assert describe({"event": "mount"}) == "mount"
    assert describe({"event": "refused", "component": "vault", "path": "zz", "result": "ENOENT"}) == (
        "refused vault/zz: result ENOENT"
    )
