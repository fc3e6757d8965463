"""What the files of all contestants are called and hold."""

from collections.abc import Iterator

STORE = "store"
"""The one directory, so that paths are equally deep everywhere."""


def file_names(count: int) -> Iterator[str]:
    """Yield the names of the files in `STORE`."""
    return (f"secret-{index:04}" for index in range(count))


def value(index: int) -> bytes:
    """Return the content of a file: 64 bytes."""
    return b"%064d" % index
