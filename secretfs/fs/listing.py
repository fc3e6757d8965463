"""Listings of directories: names arranged in folders, in order, without ever blocking the loop for long.

A store may have 100,000 names. What takes time in proportion to their number is done once for each answer of the
store and in slices, between which other tasks run. No request waits for more than one slice of another.
"""

import hashlib
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import merge
from typing import Final, TypeVar

import trio

from secretfs.cache.ttl_cache import CachedAnswer
from secretfs.fs.keys import DirectoryKey, FolderKey, LeafKey, SecretKey, ValueKey
from secretfs.fs.names import encode, split
from secretfs.store import Names

Name = TypeVar("Name", str, bytes)

SLICE: Final = 500
"""Names that are worked on between two checkpoints. That takes a few milliseconds."""
KEYS_KEPT: Final = 2000
"""Names of a folder up to which the keys of its entries are kept between listings."""

Key = DirectoryKey | LeafKey
Entry = FolderKey | SecretKey | ValueKey
"""What is in the directory of a store."""
Path = tuple[str, ...]
"""The segments of a folder's name, as `split` gives them; none for the store itself."""


class Slices:
    """Counts the work of a task and lets other tasks run after each slice of it."""

    __slots__ = ("_done",)

    def __init__(self) -> None:
        self._done = 0

    async def step(self) -> None:
        """Count one name. A checkpoint after each `SLICE` of them."""
        self._done += 1
        if self._done % SLICE == 0:
            await trio.lowlevel.checkpoint()


class Listing(Mapping[bytes, Key]):
    """The entries of a directory by path segment, in order. Immutable, and shared by all who list the directory."""

    def __init__(self, entries: Mapping[bytes, Key], order: Sequence[bytes], digest: int) -> None:
        self._entries = entries
        self._order = order
        self.digest = digest
        """24 bits of a hash of the segments: the same names have the same digest, also in another process."""

    def __getitem__(self, segment: bytes) -> Key:
        return self._entries[segment]

    def __contains__(self, segment: object) -> bool:
        return segment in self._entries

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._order)

    def __len__(self) -> int:
        return len(self._order)

    def starting_at(self, place: int) -> Iterator[tuple[int, bytes, Key]]:
        """Return the place after it, segment and key of each entry from a place on, which is counted from 0."""
        segment, places = self._order.__getitem__, range(place, len(self._order))
        keys = map(self._entries.__getitem__, map(segment, places))
        return zip(range(place + 1, len(self._order) + 1), map(segment, places), keys, strict=True)

    def place(self, segment: bytes) -> int:
        """Return the place of an entry."""
        return bisect_left(self._order, segment)

    def keys_at(self, start: int, end: int) -> list[Key]:
        """Return the keys of the entries from one place on, before another."""
        return [self._entries[segment] for segment in self._order[start:end]]

    async def without(self, unwanted: Callable[[str], bool]) -> "Listing":
        """Return the same listing without the values of secrets that are ``unwanted``, by name."""
        kept = {at: key for at, key in self.items() if not (isinstance(key, ValueKey) and unwanted(key.name))}
        return self if len(kept) == len(self) else await make_listing(kept)


EMPTY: Final = Listing({}, (), 0)


class _Folder(Mapping[bytes, Entry]):
    """The entries of a folder, in no order.

    The keys of secrets are made when they are asked for, and kept in a folder of ordinary size. In a larger one the
    garbage collector would look at each of 100,000 of them again and again.
    """

    def __init__(self, key_of: Callable[[str], SecretKey | ValueKey]) -> None:
        self._key_of = key_of
        self.names: dict[bytes, str | FolderKey] = {}
        self._keys: dict[bytes, Entry] = {}

    def __getitem__(self, segment: bytes) -> Entry:
        key = self._keys.get(segment)
        if key is None:
            entry = self.names[segment]
            key = self._key_of(entry) if isinstance(entry, str) else entry
            if len(self.names) <= KEYS_KEPT:
                self._keys[segment] = key
        return key

    def __contains__(self, segment: object) -> bool:
        return segment in self.names

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


class FolderTree:
    """Names arranged in folders: what one answer of a store says of the folder asked for and of all below it."""

    def __init__(self, component: str, key_of: Callable[[str], SecretKey | ValueKey]) -> None:
        self._component = component
        self._key_of = key_of
        self._folders: dict[Path, _Folder] = {(): _Folder(key_of)}
        self._listings: dict[Path, Listing] = {}
        self._lock = trio.Lock()
        self.shadowed: list[str] = []
        """Names of secrets that nobody sees, because a folder has the same name."""

    def __len__(self) -> int:
        return len(self._folders[()])

    def add_secret(self, name: str) -> None:
        """Add a secret and the folders on the way to it. A folder of the same name wins."""
        *above, own = split(name)
        names = self._folder(tuple(above)).names
        segment = encode(own)
        if isinstance(names.get(segment), FolderKey):
            self.shadowed.append(name)
        else:
            names[segment] = name

    def add_folder(self, name: str) -> None:
        """Add a folder and those on the way to it."""
        self._folder(split(name))

    def get(self, path: Path, segment: bytes) -> Entry | None:
        """Return one entry of a folder, if there is one."""
        folder = self._folders.get(path)
        return None if folder is None else folder.get(segment)

    async def make_listing(self, path: Path) -> Listing:
        """Return the listing of a folder. Nothing may be added any more."""
        if path not in self._folders:
            return EMPTY
        if path not in self._listings:
            async with self._lock:  # one task sorts a large folder, the others wait for it
                if path not in self._listings:
                    self._listings[path] = await make_listing(self._folders[path])
        return self._listings[path]

    def _folder(self, path: Path) -> _Folder:
        depth = len(path)
        while path[:depth] not in self._folders:
            depth -= 1
        for end in range(depth + 1, len(path) + 1):
            segment, above = encode(path[end - 1]), self._folders[path[: end - 1]].names
            if segment in above:
                self.shadowed.append("/".join(path[:end]))
            above[segment] = FolderKey(self._component, path[:end])
            self._folders[path[:end]] = _Folder(self._key_of)
        return self._folders[path]


@dataclass(slots=True)
class Arranged:
    """The last answer of a store about one folder, arranged. One task at a time arranges it."""

    tree: FolderTree
    answer: CachedAnswer[Names] | None = None
    lock: trio.Lock = field(default_factory=trio.Lock)


async def make_listing(entries: Mapping[bytes, Key]) -> Listing:
    """Put the entries of a directory in order, in slices. ``entries`` must not change any more."""
    order = await in_order(entries)
    digest = hashlib.blake2b(digest_size=3)
    for start in range(0, len(order), SLICE):
        digest.update((b"/" if start else b"") + b"/".join(order[start : start + SLICE]))
        if start:
            await trio.lowlevel.checkpoint()
    return Listing(entries, order, int.from_bytes(digest.digest(), "big"))


async def make_keys(component: str, name: str, keys: Iterable[str]) -> Mapping[bytes, ValueKey]:
    """Return the entries of a multi-valued secret, made in slices, in no order."""
    entries: dict[bytes, ValueKey] = {}
    slices = Slices()
    for key in keys:
        entries[encode(key)] = ValueKey(component, name, key)
        await slices.step()
    return entries


async def select(names: Iterable[str], wanted: Callable[[str], bool]) -> list[str]:
    """Return the names that are wanted, in slices."""
    found = []
    slices = Slices()
    for name in names:
        if wanted(name):
            found.append(name)
        await slices.step()
    return found


async def in_order(items: Collection[Name]) -> list[Name]:
    """Sort in slices: `sorted` holds the interpreter until it has sorted them all. ``items`` must not change."""
    if len(items) <= SLICE:
        return sorted(items)
    runs: list[list[Name]] = [[]]
    slices = Slices()
    for item in items:
        if len(runs[-1]) == SLICE:
            runs[-1].sort()
            runs.append([])
        runs[-1].append(item)
        await slices.step()
    runs[-1].sort()
    ordered: list[Name] = []
    for item in merge(*runs):
        ordered.append(item)
        await slices.step()
    return ordered
