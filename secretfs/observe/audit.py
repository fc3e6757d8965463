"""The audit log: who opened which secret, when, and what else became of the mount.

What happens is put into a queue in the thread of trio. A thread of its own finds out who the processes are, and writes
the records: neither a slow disk nor a journal that hangs takes the loop. docs/audit.md has the schema.
"""

import hashlib
import hmac
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import trio

from secretfs.errors import ConfigurationError, RecordLost
from secretfs.linux.process_identity import ProcessIdentity, identify
from secretfs.observe.audit_options import AuditMode, AuditOptions
from secretfs.observe.audit_sinks import Sink, sink_for

SCHEMA: Final = 1
"""Version of the records. A new field is no new version; another meaning is."""
QUEUE: Final = 10_000
"""Records that wait for the thread at most. A record of ordinary length takes 1 KB."""
PATIENCE: Final = 5.0
"""Seconds for which somebody who opens a file waits for its record, and an end for all that are left."""
LONGEST: Final = 4096
"""Characters of a name in a record; the rest is left out."""

_SLICE: Final = 0.2  # seconds that the thread waits for a sink before it looks whether anybody still wants that
_HANGS: Final = 5.0  # seconds after which an end does not wait for a disk that hangs
_HIDDEN: Final = frozenset({"secret", "key", "keys", "path", "paths", "lease"})
_HASH: Final = 32  # hexadecimal digits of the hash of a name
_PROCESS: Final = ("uid", "gid", "pid", "executable", "command", "cgroup", "unit", "container", "pod")

Asker = tuple[int, int, int]
"""User, group and thread, as the kernel names them with a request; -1 is unknown."""
NOBODY: Final[Asker] = (-1, -1, 0)
Fields = Mapping[str, Any]
"""What a record says besides: texts, numbers and lists of texts. What is empty or None is left out."""

log = logging.getLogger(__name__)


class AuditCounts(NamedTuple):
    """What has become of all records since the process began."""

    written: int
    merged: int
    """Records that were equal to one that waited to be written."""
    lost: int
    waiting: int


@dataclass(slots=True, eq=False)
class _Entry:
    """Something that happened."""

    event: str
    fields: Fields
    asker: Asker = NOBODY
    time: float = field(default_factory=time.time)
    count: int = 1
    done: Callable[[], None] | None = None
    """Called in the thread when it is written, or cannot be; None if nobody waits."""
    written: bool = False
    abandoned: bool = False
    """Whether whoever waited for it has given up."""


class AuditLog:
    """Writes records. This one keeps none: see `KeptAuditLog`."""

    kept = False
    """Whether records are kept."""
    strict = False
    """Whether those who open a file wait for its record."""

    def note(self, event: str, fields: Fields, asker: Asker = NOBODY) -> None:
        """Take note of something. Never waits: a record that there is no room for is counted as lost."""

    async def witness(self, event: str, fields: Fields, asker: Asker) -> None:
        """Take note of what a process does that waits for us; in strict mode, wait until that is written.

        Raises `RecordLost` if it cannot be, and those who open a file shall be refused then.
        """

    def counts(self) -> AuditCounts:
        """Return what has become of all records."""
        return AuditCounts(0, 0, 0, 0)

    def require(self) -> None:
        """Make sure that records can be written. Raises `ConfigurationError`."""

    def start(self, names_key: bytes = b"") -> None:
        """Start to write, with ``names_key`` for hashes of names. Call it when nothing is forked any more."""

    def close(self) -> None:
        """Write what waits, in a bounded time."""


class KeptAuditLog(AuditLog):
    """Writes records to a sink, in a thread."""

    kept = True

    def __init__(self, options: AuditOptions, sink: Sink, mountpoint: Path) -> None:
        self.strict = options.mode is AuditMode.STRICT
        self._fail_closed = options.fail_closed
        self._hash_names = options.hash_names
        self._names_key = b""
        self._sink = sink
        self._mount = str(mountpoint)
        self._changed = threading.Condition()
        self._waiting: dict[object, _Entry] = {}
        """In the order in which they are to be written, by what makes two of them equal."""
        self._written = self._merged = self._lost = 0
        self._untold = 0
        """How many of the lost no record tells of yet."""
        self._failing = ""
        self._closing = False
        self._give_up_at = 0.0
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)

    def require(self) -> None:
        """Make sure that records can be written. Raises `ConfigurationError`."""
        try:
            self._sink.open()
        except OSError as error:
            raise ConfigurationError(f"cannot write audit records to {self._sink.name}: {error.strerror}") from None

    def start(self, names_key: bytes = b"") -> None:
        """Start to write, with ``names_key`` for hashes of names. Call it when nothing is forked any more."""
        self._names_key = names_key
        self._thread.start()

    def counts(self) -> AuditCounts:
        """Return what has become of all records."""
        with self._changed:
            return AuditCounts(self._written, self._merged, self._lost, len(self._waiting))

    def note(self, event: str, fields: Fields, asker: Asker = NOBODY) -> None:
        """Take note of something."""
        self._put(_Entry(event, fields, asker))

    async def witness(self, event: str, fields: Fields, asker: Asker) -> None:
        """Take note of what a process does that waits for us."""
        if not self.strict:
            self.note(event, fields, asker)
            return
        written, token = trio.Event(), trio.lowlevel.current_trio_token()
        entry = _Entry(event, fields, asker, done=lambda: token.run_sync_soon(written.set))
        if self._put(entry):
            try:
                with trio.move_on_after(PATIENCE):
                    await written.wait()
            finally:
                entry.abandoned = True
        if self._fail_closed and not entry.written:
            raise RecordLost(event)

    def close(self) -> None:
        """Write what waits, in a bounded time."""
        with self._changed:
            self._closing, self._give_up_at = True, time.monotonic() + PATIENCE
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(PATIENCE + _HANGS)

    def _put(self, entry: _Entry) -> bool:
        """Put an entry into the queue. Returns False if there is no room."""
        # What waits to be written can be one with what is equal, unless somebody waits for it.
        equal = entry if self.strict else (entry.event, entry.asker, repr(entry.fields))
        with self._changed:
            before = self._waiting.get(equal)
            if before is not None:
                before.count += 1
                self._merged += 1
            elif len(self._waiting) >= QUEUE or self._closing:
                self._lose()
                return False
            else:
                self._waiting[equal] = entry
                self._changed.notify()
            return True

    # --- in the thread ---

    def _run(self) -> None:
        while (entry := self._next()) is not None:
            if entry.done is not None and entry.abandoned:
                with self._changed:
                    self._lose()
                continue
            if self._untold:
                self._tell_lost()
            entry.written = self._write(entry)
            if entry.done is not None:
                try:
                    entry.done()
                except trio.RunFinishedError:  # it waits no more
                    return
        self._sink.close()

    def _next(self) -> _Entry | None:
        """Take the next entry out of the queue; None at the end."""
        with self._changed:
            while not self._waiting:
                if self._closing:
                    return None
                self._changed.wait()
            return self._waiting.pop(next(iter(self._waiting)))

    def _write(self, entry: _Entry) -> bool:
        record = self._record(entry)
        line = json.dumps(record).encode() + b"\n"
        try:
            while not self._write_at_once(record, line):
                if entry.abandoned or self._is_late():
                    raise TimeoutError(None, "nobody reads")
        except OSError as error:
            with self._changed:
                self._lose()
            self._note_failure(error.strerror or type(error).__name__)
            return False
        with self._changed:
            self._written += 1
        self._note_failure("")
        return True

    def _write_at_once(self, record: Mapping[str, object], line: bytes) -> bool:
        """Write a record, or return False if nobody takes it for a while."""
        try:
            self._sink.write(record, line, 0.0 if self._is_late() else _SLICE)
        except BlockingIOError:
            return False
        return True

    def _is_late(self) -> bool:
        """Whether all that could not be written until now is lost."""
        return self._closing and time.monotonic() > self._give_up_at

    def _tell_lost(self) -> None:
        """Write how many records are lost of which none tells yet."""
        with self._changed:
            untold, self._untold = self._untold, 0
        if not self._write(_Entry("lost", {"lost": untold})):
            with self._changed:
                self._lost -= 1  # that was no loss by itself
                self._untold += untold - 1

    def _lose(self) -> None:
        self._lost += 1
        self._untold += 1

    def _note_failure(self, reason: str) -> None:
        """Log when records begin to be lost, when the reason changes, and the end of that."""
        if reason == self._failing:
            return
        self._failing = reason
        if reason:
            log.error("audit records are lost: %s: %s", self._sink.name, reason)
        else:
            log.warning("audit records are written again; lost since the daemon began: %d", self._lost)

    def _record(self, entry: _Entry) -> dict[str, object]:
        """Make a record of an entry. What is unknown is left out."""
        fields = {name: self._shown(name, value) for name, value in entry.fields.items() if value not in (None, "")}
        record = {"v": SCHEMA, "time": _timestamp(entry.time), "event": entry.event, "mount": self._mount, **fields}
        if entry.asker is not NOBODY:
            process = self._identify(entry)
            identity = {name: getattr(process, name) for name in _PROCESS}
            record |= {name: _cut(value) for name, value in identity.items() if value is not None}
        if entry.count > 1:
            record["count"] = entry.count
        return record

    def _identify(self, entry: _Entry) -> ProcessIdentity:
        uid, gid, thread = (None if number < 0 else number for number in entry.asker)
        waits = entry.done is not None and not entry.abandoned
        return identify(thread or 0, uid=uid, gid=gid, at=None if waits else entry.time)

    def _shown(self, name: str, value: Any) -> object:
        if isinstance(value, list | tuple | frozenset):
            return [self._shown(name, each) for each in sorted(value)]
        if self._hash_names and (name in _HIDDEN or (name == "version" and "/" in str(value))):  # that of a lease
            return hash_of_name(self._names_key, str(value))
        return _cut(value)


def audit_log(options: AuditOptions, mountpoint: Path) -> AuditLog:
    """Return the audit log that is asked for."""
    if options.mode is AuditMode.OFF:
        return AuditLog()
    return KeptAuditLog(options, sink_for(options.to), mountpoint)


def key_for_names(key: bytes) -> bytes:
    """Return the key for hashes of names that belongs to the key of a mount, of which it tells nothing."""
    return hashlib.blake2b(b"names in the audit log", key=key, digest_size=32).digest()


def id_of_key(key: bytes) -> str:
    """Return what tells keys for hashes of names apart, and nothing else of them."""
    return hash_of_name(key, "")[:8]


def hash_of_name(key: bytes, name: str) -> str:
    """Return what stands in the place of a name: HMAC-SHA-256, of which the first 32 hexadecimal digits."""
    return hmac.new(key, name.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()[:_HASH]


def _cut(value: object) -> object:
    return value[:LONGEST] + "..." if isinstance(value, str) and len(value) > LONGEST else value


def _timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
