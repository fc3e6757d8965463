"""What reads bytes that somebody else has written. A target returns, or raises what its callers expect; all else fails.

Each has a folder of seeds in ``corpus``: inputs that get far, and those that once found a defect.
"""

import json
import os
import struct
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from secretfs.api.messages import read_bulk_request, read_secret_request
from secretfs.cache.answers import checked
from secretfs.cache.health import Kind
from secretfs.cache.limits import DEFAULT, StoreLimits
from secretfs.dapr.app import apps_in_text
from secretfs.dapr.component import load_manifests
from secretfs.dapr.configuration import load_configuration
from secretfs.dapr.goyaml import parse, split_documents
from secretfs.errors import ConfigurationError, JournalUnreadable, MalformedAnswer, StoreError
from secretfs.fs.inodes import Tree
from secretfs.fs.journal import Journal
from secretfs.fs.keys import key_from_text, key_to_text
from secretfs.fs.names import decode, encode, split
from secretfs.fuse import handshake
from secretfs.observe.audit import KeptAuditLog
from secretfs.observe.audit_options import AuditMode, AuditOptions
from secretfs.observe.audit_sinks import Sink
from secretfs.store import Names, Secret
from secretfs.stores.kubernetes.objects import metadata_of, secret_of
from secretfs.stores.pluggable import messages
from secretfs.stores.vault.response import Response

Target = Callable[[bytes], None]

CORPUS: Final = Path(__file__).with_name("corpus")
_SIZE: Final = 256 << 10  # bytes of a journal


def journal(data: bytes) -> None:
    """Go on with a journal whose beginning is this: whatever is believed must be usable."""
    file = os.memfd_create("fuzz")
    try:
        os.ftruncate(file, _SIZE)
        os.pwrite(file, data[:_SIZE], 0)
        with suppress(JournalUnreadable):
            found = Journal(os.dup(file))
            tree = Tree(found)
            for record in found.records():
                assert record.number > 0
                if record.number in tree:
                    key = tree.inode(record.number).key
                    assert key_from_text(key_to_text(key), key.pin) == key
            assert all(isinstance(name, str) for name in found.stores)
            handshake.knows_resend(found.init)
            found.take_waiters()
    finally:
        os.close(file)


def journal_records(data: bytes) -> None:
    """Go on with a journal that is sound but for its records, which are this."""
    sound = Journal()
    head = os.pread(sound.file, 43 * 8, 0)
    words = len(data) // 8
    used = struct.pack("<Q", 43 + words)
    journal(head[:16] + used + head[24:] + data[: 8 * words])


def key(data: bytes) -> None:
    """Read a key of the journal."""
    with suppress(ValueError, TypeError, KeyError, RecursionError):
        found = key_from_text(data)
        assert key_from_text(key_to_text(found)) == found


def names(data: bytes) -> None:
    """Make paths of a name, and a name of a path segment."""
    name = data.decode("utf-8", "surrogateescape")
    for segment in split(name):
        encoded = encode(segment)
        assert 0 < len(encoded) <= 255
        assert encoded not in (b".", b"..")
        assert not {0, 0x2F} & {*encoded}
        assert decode(encoded) in (segment, None)
    decode(data)


def secret_request(data: bytes) -> None:
    """Read what a client of the Secrets API asks."""
    for read in (read_secret_request, read_bulk_request):
        with suppress(ValueError):
            read(data)


def plug_in(data: bytes) -> None:
    """Read what a plug-in answers."""
    readers: tuple[Callable[[bytes], Any], ...] = (
        messages.features,
        messages.values,
        messages.secrets,
        messages.services,
    )
    for read in readers:
        with suppress(MalformedAnswer):
            _hold(read(data))


def vault(data: bytes) -> None:
    """Read what Vault answers."""
    with suppress(MalformedAnswer):
        answer = Response.parse(data)
        for read in (
            answer.keys,
            lambda: _hold(answer.values("data", "data")),
            lambda: _hold(answer.values("data")),
            lambda: answer.raw("data"),
            lambda: answer.raw("data", "data"),
            lambda: answer.auth,
        ):
            with suppress(MalformedAnswer):
                read()


def kubernetes(data: bytes) -> None:
    """Read a Secret of Kubernetes."""
    try:
        item = json.loads(data)
    except (ValueError, RecursionError):
        return
    if isinstance(item, dict):
        with suppress(MalformedAnswer):
            metadata_of(item)
            checked(Kind.FETCH, secret_of(item), StoreLimits("kubernetes", DEFAULT))


def manifest(data: bytes) -> None:
    """Read a component manifest."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "component.yaml").write_bytes(data)
        with suppress(ConfigurationError):
            load_manifests([Path(directory)], namespace="").visible_to("app")


def configuration(data: bytes) -> None:
    """Read a Dapr Configuration."""
    with tempfile.NamedTemporaryFile(suffix=".yaml") as file:
        file.write(data)
        file.flush()
        with suppress(ConfigurationError):
            load_configuration([Path(file.name)], {})


def app(data: bytes) -> None:
    """Read the documents of apps."""
    text = data.decode("utf-8", "replace")
    with suppress(ConfigurationError):
        for line, document in split_documents(text):
            parse(document, "apps.yaml", line)
            tuple(apps_in_text(document, "apps.yaml", line))


class _Lines(Sink):
    """A sink that keeps lines."""

    name = "lines"

    def __init__(self) -> None:
        self.lines: list[bytes] = []

    def open(self) -> None:
        """Nothing to open."""

    def write(self, record: Mapping[str, object], line: bytes, patience: float) -> None:
        """Keep a line."""
        self.lines.append(line)

    def close(self) -> None:
        """Nothing to close."""


def audit(data: bytes) -> None:
    """Write a record of what has any name: it is one line of JSON, in ASCII."""
    text = data.decode("utf-8", "surrogateescape")
    sink = _Lines()
    log = KeptAuditLog(AuditOptions(AuditMode.OBSERVE), sink, Path("/mnt"))
    log.note("open", {"secret": text, "key": text, "keys": [text], "version": text})
    log.start(b"key")
    log.close()
    (line,) = sink.lines
    assert line.endswith(b"\n")
    assert line.isascii()
    assert line.count(b"\n") == 1
    assert not any(byte < 0x20 or byte == 0x7F for byte in line[:-1])
    record = json.loads(line)
    assert record["event"] == "open"
    assert record["secret"][:4096] == text[:4096] if text else "secret" not in record


def _hold(answer: Any) -> None:
    """Hold an answer to its limits, as the cache does."""
    limits = StoreLimits("fuzz", DEFAULT)
    with suppress(StoreError):
        if isinstance(answer, frozenset):
            checked(Kind.NAMES, Names(answer), limits)
        elif all(isinstance(value, bytes) for value in answer.values()):
            checked(Kind.FETCH, Secret(answer), limits)


TARGETS: Final[dict[str, Target]] = {
    target.__name__: target
    for target in (
        app,
        audit,
        configuration,
        journal,
        journal_records,
        key,
        kubernetes,
        manifest,
        names,
        plug_in,
        secret_request,
        vault,
    )
}
