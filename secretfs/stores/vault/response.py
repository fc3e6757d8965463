"""What the answers of Vault hold: JSON, with the data of a secret, a token or a lease in it. No I/O here."""

import json
import re
from dataclasses import dataclass, field
from typing import Any, Self

from secretfs.errors import MalformedAnswer
from secretfs.stores._http.body import parse_json

_BETWEEN = re.compile(r"[ \t\r\n:,]*")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_DECODER = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class Response:
    """The body of a good answer. It holds secrets, so ``repr`` does not show it."""

    text: str = field(repr=False)
    top: dict[str, Any] = field(repr=False)

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Read a body. Raises `MalformedAnswer`."""
        try:
            text = body.decode()
            top = parse_json(text)
        except (ValueError, RecursionError):
            # from None: the error carries the whole document.
            raise MalformedAnswer("the answer is not JSON") from None
        if _SURROGATE.search(text) and not _is_unicode(top):
            raise MalformedAnswer("the answer is not Unicode")
        if not isinstance(top, dict):
            raise MalformedAnswer("the answer is not an object")
        return cls(text, top)

    @property
    def data(self) -> dict[str, Any]:
        """The object under ``data``, where Vault puts what was asked for. Raises `MalformedAnswer`."""
        return self._object("data")

    @property
    def auth(self) -> dict[str, Any]:
        """The object under ``auth``, where Vault puts a token that it gives. Raises `MalformedAnswer`."""
        return self._object("auth")

    def raw(self, *path: str) -> str:
        """Return the JSON text of a nested member exactly as the server wrote it. It must be there: see `data`."""
        start, end = 0, len(self.text)
        for name in path:
            start, end = _member(self.text, start, name)
        return self.text[start:end]

    def values(self, *path: str) -> dict[str, bytes]:
        """Return the members of a nested object, each as the content of its file. Raises `MalformedAnswer`."""
        members: Any = self.top
        for name in path:
            members = members.get(name) if isinstance(members, dict) else None
        if not isinstance(members, dict):
            raise MalformedAnswer("the answer has no data")
        return {key: _bytes(value) for key, value in members.items()}

    def keys(self) -> list[str]:
        """Return what a LIST found. Raises `MalformedAnswer`."""
        keys = self.data.get("keys")
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise MalformedAnswer("the answer has no list of keys")
        return keys

    def _object(self, name: str) -> dict[str, Any]:
        member = self.top.get(name)
        if not isinstance(member, dict):
            raise MalformedAnswer(f"the answer has no {name}")
        return member


def addressable(name: str) -> bool:
    """Tell whether an engine can hold ``name``.

    The server resolves empty segments, "." and "..", which would read outside the prefix.
    """
    if any(segment in ("", ".", "..") for segment in name.split("/")):
        return False
    return not any("\ud800" <= character <= "\udfff" for character in name)  # halves of surrogate pairs


def _bytes(value: Any) -> bytes:
    """Return a string as it is, null as nothing (as Go does), anything else as its JSON text."""
    if value is None:
        return b""
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return text.encode()


def _is_unicode(value: Any) -> bool:
    """Tell whether no string in a JSON value holds half of a surrogate pair, which has no UTF-8."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _member(text: str, start: int, name: str) -> tuple[int, int]:
    """Find a member of the JSON object that starts at ``start``; of one name twice the last counts, as in json."""
    found = None
    at = _skip(text, text.index("{", start) + 1)
    while text[at] != "}":
        key, at = _DECODER.raw_decode(text, at)
        at = _skip(text, at)
        _, end = _DECODER.raw_decode(text, at)
        if key == name:
            found = at, end
        at = _skip(text, end)
    if found is None:
        raise MalformedAnswer(f"the answer has no {name}")
    return found


def _skip(text: str, at: int) -> int:
    between = _BETWEEN.match(text, at)
    return between.end() if between else at
