"""Messages of protocol buffers as bytes, for protocols that have little more than strings and maps of strings.

Neither generated code nor a library is needed for them. The encoding is described at
https://protobuf.dev/programming-guides/encoding/. What a newer version adds is passed over, as it demands; groups,
which nobody sends any more, are refused.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import Final

_VARINT: Final = 0
_LENGTH_DELIMITED: Final = 2
_FIXED: Final = {1: 8, 5: 4}
"""Sizes in bytes, by wire type."""
_LONGEST_VARINT: Final = 10  # bytes
_LARGEST_NUMBER: Final = 2**29 - 1


class Message:
    """The fields of a message. Every method raises `ValueError` for what is no message, and its text shows none of it.

    A field that is left out is empty, and the last of several counts. One of another wire type is another field.
    """

    def __init__(self, encoded: bytes) -> None:
        self._delimited: defaultdict[int, list[bytes]] = defaultdict(list)
        self._numbers: dict[int, int] = {}
        self._read(encoded)

    def all(self, number: int) -> list[bytes]:
        """Return the content of each field of a number that has bytes."""
        return self._delimited.get(number, [])

    def last(self, number: int) -> bytes:
        """Return the bytes of a field."""
        return self.all(number)[-1] if number in self._delimited else b""

    def text(self, number: int) -> str:
        """Return the text of a field."""
        return as_text(self.last(number)).decode()

    def number(self, number: int) -> int:
        """Return the number in a field; 0 if it is left out."""
        return self._numbers.get(number, 0)

    def within(self, number: int) -> "Message":
        """Return the message in a field."""
        return Message(self.last(number))

    def entries(self, number: int) -> dict[str, bytes]:
        """Return a map with texts as keys."""
        entries = map(Message, self.all(number))
        return {entry.text(1): entry.last(2) for entry in entries}

    def texts(self, number: int) -> dict[str, str]:
        """Return a map of texts."""
        return {key: as_text(value).decode() for key, value in self.entries(number).items()}

    def __contains__(self, number: int) -> bool:
        return number in self._delimited

    def _read(self, encoded: bytes) -> None:
        at = 0
        while at < len(encoded):
            tag, at = _read_varint(encoded, at)
            number, kind = tag >> 3, tag & 7
            if not 0 < number <= _LARGEST_NUMBER:
                raise ValueError(f"a field has the number {number}")
            if kind == _VARINT:
                self._numbers[number], at = _read_varint(encoded, at)
                continue
            if kind == _LENGTH_DELIMITED:
                size, at = _read_varint(encoded, at)
            elif kind in _FIXED:
                size = _FIXED[kind]
            else:
                raise ValueError(f"a field has the wire type {kind}")
            if at + size > len(encoded):
                raise ValueError("a field is cut short")
            if kind == _LENGTH_DELIMITED:
                self._delimited[number].append(encoded[at : at + size])
            at += size


def as_text(encoded: bytes) -> bytes:
    """Return text as it is. Raises `ValueError` if it is not UTF-8."""
    try:
        encoded.decode()
    except UnicodeDecodeError:
        raise ValueError("a text is not UTF-8") from None
    return encoded


def field(number: int, content: bytes) -> bytes:
    """Encode a field that has bytes."""
    return _varint(number << 3 | _LENGTH_DELIMITED) + _varint(len(content)) + content


def text(number: int, content: str) -> bytes:
    """Encode a field with a text; one that is empty is left out."""
    return field(number, content.encode()) if content else b""


def varint(number: int, content: int) -> bytes:
    """Encode a field with a number that is not negative."""
    return _varint(number << 3 | _VARINT) + _varint(content)


def texts(number: int, mapping: Mapping[str, str]) -> bytes:
    """Encode a map of texts."""
    return entries(number, {key: value.encode() for key, value in mapping.items()})


def entries(number: int, mapping: Mapping[str, bytes]) -> bytes:
    """Encode a map with texts as keys."""
    return b"".join(field(number, field(1, key.encode()) + field(2, value)) for key, value in mapping.items())


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _read_varint(encoded: bytes, at: int) -> tuple[int, int]:
    """Read a number. Returns it, and where it ends."""
    number = 0
    for place, byte in enumerate(encoded[at : at + _LONGEST_VARINT]):
        number |= (byte & 127) << 7 * place
        if byte < 128:
            return number, at + place + 1
    raise ValueError("a number is cut short")
