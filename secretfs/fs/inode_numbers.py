"""Inode numbers that tell nothing of what others look up.

A counter for the whole mount would: who sees two numbers of its own knows how many inodes others got in between. So
each store that an app sees takes its numbers from blocks of its own, and a keyed permutation decides which block comes
next. Nobody without the key, which is in the journal, can tell which blocks are before it.

All numbers have bit 39. Those below are of versions of secretfs that counted, whose mounts are taken over and given
back, so that a number of the one is never a number of the other.
"""

import hashlib
from collections.abc import Collection
from typing import Final

from secretfs.fs.journal import Journal
from secretfs.fs.keys import DirectoryKey, LeafKey, RootKey

NUMBER_BITS: Final = 40
"""Of an inode number: what is above belongs to the handle of a directory."""

_BASE: Final = 1 << (NUMBER_BITS - 1)
_BLOCK_BITS: Final = 8
_PLACE: Final = (1 << _BLOCK_BITS) - 1
_HALF_BITS: Final = 15
"""Half of the bits of a block's number. A thousand inodes a second use up 2**30 blocks in eight years."""
_HALF: Final = (1 << _HALF_BITS) - 1
_ROUNDS: Final = 4


class InodeNumbers:
    """Issues inode numbers. None is ever issued twice in a mount, whichever process serves it."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._key = hashlib.blake2b(b"inode numbers", key=journal.digest_key, digest_size=32).digest()
        self._next: dict[str, int] = {}
        """The next number of each store that an app sees, and of each app's directory, in its last block."""

    def take(self, key: DirectoryKey | LeafKey) -> int:
        """Return the number for a new inode at a place. The first of a mount is the root's, 1."""
        number = self._next.get(key.component, 0)
        if not number & _PLACE:
            if isinstance(key, RootKey):
                return self._journal.take_number()
            number = _BASE | self._permuted(self._journal.take_number()) << _BLOCK_BITS
        self._next[key.component] = number + 1
        return number

    def age(self, number: int) -> int:
        """Return what is larger for the later of two inodes of an app."""
        if number < _BASE:
            return number << _BLOCK_BITS
        block, place = divmod(number - _BASE, 1 << _BLOCK_BITS)
        return self._permuted(block, backwards=True) << _BLOCK_BITS | place

    def forget(self, apps: Collection[str]) -> None:
        """Forget apps that have been removed."""
        self._next = {name: number for name, number in self._next.items() if name.partition("/")[0] not in apps}

    def _permuted(self, block: int, *, backwards: bool = False) -> int:
        """Return where a Feistel network takes a block, or which block it takes there."""
        left, right = block >> _HALF_BITS & _HALF, block & _HALF
        if backwards:
            for number in reversed(range(_ROUNDS)):
                left, right = right ^ self._round(number, left), left
        else:
            for number in range(_ROUNDS):
                left, right = right, left ^ self._round(number, right)
        return left << _HALF_BITS | right

    def _round(self, number: int, half: int) -> int:
        data = bytes([number]) + half.to_bytes(2, "big")
        return int.from_bytes(hashlib.blake2b(data, key=self._key, digest_size=2).digest(), "big") & _HALF
