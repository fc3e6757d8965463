"""Names of secrets as paths, and back. Pure.

A "/" in a name makes folders. A segment is percent-encoded only where a path cannot carry it: "%" itself, NUL, the
segments "." and "..", the names that this file system reserves, and a "/" that would leave an empty segment. The
mapping is injective: two names never share a path. A segment over 255 bytes (NAME_MAX) is shortened and ends in a hash;
only such a segment cannot be decoded.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from urllib.parse import unquote_to_bytes

from secretfs.fs.keys import Bulk

NAME_MAX = 255
"""Bytes of one path segment: NAME_MAX of every Linux file system."""

BULK_FORMS = {form.segment: form for form in Bulk}
"""The files that hold a whole store, or all keys of one secret."""
DATA = b"..data"
"""In the directory of a multi-valued secret: its keys, of one version. Named as in a Kubernetes volume."""
VERSIONS = b"..versions"
"""In the directory of a multi-valued secret: a directory for each version that its store still has."""
CONTROL = b".secretfs"

_HASH = b"%~"
_HASH_LENGTH = 40  # hex digits: 160 bits of SHA-256
_UNCARRIED = re.compile(rb"[%\0/]")
_WHOLE_ESCAPES = re.compile(rb"(?:[^%]|%[0-9A-F]{2})*")


def is_reserved(segment: bytes) -> bool:
    """Whether secretfs reserves a path segment, in every directory."""
    return segment in BULK_FORMS or segment in (DATA, VERSIONS) or segment.startswith(CONTROL)


def is_probe(segment: bytes) -> bool:
    """Whether programs look for a name in every directory: dot files, and the tag by which backups skip a cache."""
    return segment.startswith(b".") or segment == b"CACHEDIR.TAG"


def split(name: str) -> tuple[str, ...]:
    """Split a name at each "/" but never into an empty segment: ``"/".join(split(name)) == name``.

    A "/" next to another one, at the start or at the end stays inside its segment: ``split("a//b") == ("a", "/b")``.
    """
    segments: list[str] = []
    parts = iter(name.split("/"))
    for part in parts:
        if part == "":
            following = next(parts, None)
            if following is None and segments:
                segments[-1] += "/"
                continue
            part = "" if following is None else "/" + following  # noqa: PLW2901 - the two are one segment
        segments.append(part)
    return tuple(segments)


def encode(segment: str) -> bytes:
    """Encode one segment of a name (as `split` gives it) as a path segment of at most `NAME_MAX` bytes."""
    encoded = _UNCARRIED.sub(_escape, _to_bytes(segment))
    if encoded in (b"", b".", b".."):
        encoded = {b"": b"%", b".": b"%2E", b"..": b"%2E%2E"}[encoded]
    elif is_reserved(encoded):
        encoded = b"%2E" + encoded[1:]
    return encoded if len(encoded) <= NAME_MAX else _shorten(encoded)


def decode(encoded: bytes) -> str | None:
    """Return the segment that `encode` turns into ``encoded``; None if there is none or its tail is a hash."""
    segment = "" if encoded == b"%" else unquote_to_bytes(encoded).decode("utf-8", "surrogateescape")
    return segment if encode(segment) == encoded else None


def folders_of(names: Iterable[str]) -> frozenset[str]:
    """Return the names of all folders on the way to these secrets."""
    return frozenset(name[: match.start()] for name in names for match in re.finditer("/", name))


def ancestors(segments: Sequence[str]) -> frozenset[str]:
    """Return the names of the folders on the way to a path, with that of the store itself."""
    return frozenset("/".join(segments[:depth]) for depth in range(len(segments)))


def display_name(segment: bytes) -> str:
    """Return a path segment for a message: decoded, where that is possible."""
    return decode(segment) or segment.decode(errors="replace")


def _to_bytes(segment: str) -> bytes:
    """Return UTF-8; the bytes of a name that is not UTF-8 (surrogateescape, as in os.environ) stay as they were."""
    try:
        return segment.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half of a surrogate pair: JSON can carry one, UTF-8 cannot
        return segment.encode("utf-8", "surrogatepass")


def _escape(match: re.Match[bytes]) -> bytes:
    return b"%%%02X" % match[0][0]


def _shorten(encoded: bytes) -> bytes:
    head = encoded[: NAME_MAX - len(_HASH) - _HASH_LENGTH]
    head = head.decode("utf-8", "ignore").encode() if _is_utf8(encoded) else head  # cut between characters
    whole = _WHOLE_ESCAPES.match(head)
    digest = hashlib.sha256(encoded).hexdigest()[:_HASH_LENGTH].encode()
    return (whole[0] if whole else b"") + _HASH + digest


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
