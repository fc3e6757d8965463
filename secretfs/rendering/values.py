"""Secrets as templates see them. Pure.

A secret of a multi-valued store is a map of texts; one of a single-valued store is its text, as its path is a file.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

MASK: Final = "********"
"""Stands for a value that is not to be seen."""


class NotText(ValueError):
    """A value that is used as text, and is none."""


class Binary:
    """A value that is not UTF-8. What takes bytes can use it; as text it is an error."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __str__(self) -> str:
        raise NotText("a value is not UTF-8 text; use the filter b64encode")

    __repr__ = __str__


class SecretMap(Mapping[str, Any]):
    """The values of one secret, by key. ``{{ secret(...).user }}`` finds a key before a method."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __str__(self) -> str:
        raise NotText("a secret with several keys is used as text; say which key: secret(STORE, NAME).KEY")

    __repr__ = __str__


class Placeholder(str):
    """Stands for a value, or for a whole secret, while it is found out what a template needs. Has every key."""

    _place: tuple[str, ...]
    _needed: dict[tuple[str, ...], None]

    def __new__(cls, place: tuple[str, ...], needed: dict[tuple[str, ...], None]) -> "Placeholder":
        """Make one, and note that it is needed: store, secret, and maybe key."""
        made = super().__new__(cls, MASK)
        made._place, made._needed = place, needed
        needed[place] = None
        return made

    def key(self, name: str) -> "Placeholder":
        """Return the placeholder of a key: so it is the key that is needed."""
        if len(self._place) > 2:
            return self
        self._needed.pop(self._place, None)
        return Placeholder((*self._place, name), self._needed)


def shown(values: Mapping[str, bytes], name: str) -> Any:
    """Return a secret as a template sees it. One whose only key is its own name is of a single-valued store."""
    if list(values) == [name]:
        return text(values[name])
    return SecretMap({key: text(value) for key, value in values.items()})


def masked(values: Mapping[str, bytes], name: str) -> Any:
    """Return `shown`, with every value hidden."""
    return shown(dict.fromkeys(values, MASK.encode()), name)


def text(value: bytes) -> str | Binary:
    """Return a value as text, if it is."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return Binary(value)


def data(value: object) -> bytes:
    """Return the bytes of a value, or of anything else as text."""
    return value.data if isinstance(value, Binary) else str(value).encode()
