"""Reading ahead of a program that lists a directory and then reads the secrets in it, as ``ls -l`` and ``cat *`` do."""

from typing import Final

from secretfs.fs.keys import SecretKey, ValueKey
from secretfs.fs.listing import EMPTY, Entry, Key, Listing
from secretfs.fs.names import encode, split

READ_AHEAD: Final = 16
"""Secrets that are fetched ahead, of a store that reads them one by one."""
BATCHES_AHEAD: Final = 2
"""Batches that are fetched ahead, of a store that reads many at once."""


class SequentialReads:
    """A listing, and how far a program has come that reads it in order."""

    def __init__(self, listing: Listing = EMPTY) -> None:
        self.half_way: str | None = None
        """The secret whose reader shows that it is time to fetch more, also if it need not wait for it."""
        self._listing = listing
        self._read = self._fetched = -1
        """The places of the last one that was read, and of the first that was not fetched ahead."""

    def ahead_of(self, name: str, largest_batch: int = 1) -> list[str]:
        """Return the secrets to fetch ahead when one is read: none, until two have been read in a row.

        More of them when half of those are read.
        """
        if not self._listing:
            return []
        segment = encode(split(name)[-1])
        if _secret_name(self._listing.get(segment)) != name:
            self._read = self._fetched = -1  # it is somewhere else
            return []
        place = self._listing.place(segment)
        if place == self._read:
            return []
        in_a_row = self._read < place <= self._fetched
        self._read = place
        if not in_a_row:
            self._fetched, self.half_way = self._secret_from(place + 1), None
            return []
        count = max(READ_AHEAD, BATCHES_AHEAD * largest_batch)
        if name != self.half_way and place + count // 2 < self._fetched:
            return []
        start, self._fetched = max(place + 1, self._fetched), self._secret_from(place + 1 + count)
        names = [_secret_name(key) for key in self._listing.keys_at(place + 1, self._fetched)]
        self.half_way = next(filter(None, names[count // 2 - 1 :]), None)
        return [name for name in names[start - place - 1 :] if name is not None]

    def _secret_from(self, place: int) -> int:
        """Return the place of the first secret from a place on: folders may lie in between."""
        while any(_secret_name(key) is None for key in self._listing.keys_at(place, place + 1)):
            place += 1
        return place


def _secret_name(key: Key | Entry | None) -> str | None:
    return key.name if isinstance(key, SecretKey | ValueKey) else None
