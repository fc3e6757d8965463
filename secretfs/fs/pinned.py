"""Directories of one version of a secret, ``..data``: what is in them, and which inodes there are. Pure.

A secret with two keys is two files, and a program that reads one after the other may get two versions. In ``..data``
both are of one version: the directory belongs to that version, and the next one has another directory. Which version
that is, a keyed digest of all its values says, so that the process after us recognises it.
"""

import hashlib
from collections import defaultdict

from secretfs.cache.ttl_cache import CachedAnswer
from secretfs.fs.inode import Inode, Version
from secretfs.fs.keys import PIN, PinnedSecretKey, PinnedValueKey, SecretKey
from secretfs.store import Secret


class PinnedSecrets:
    """The versions of secrets that the kernel has a directory of, with their values."""

    def __init__(self, digest_key: bytes) -> None:
        self._digest_key = digest_key
        self._kept: dict[PinnedSecretKey, CachedAnswer[Secret]] = {}
        self._last: dict[SecretKey, tuple[int, PinnedSecretKey]] = {}
        """The serial of the last answer that was pinned of each secret, and where it is."""

    def key_of(self, secret: SecretKey, answer: CachedAnswer[Secret]) -> PinnedSecretKey:
        """Return the place of the version that an answer holds."""
        serial, key = self._last.get(secret, (0, None))
        if key is None or serial != answer.serial:
            key = PinnedSecretKey(secret.component, secret.name, self._digest(answer.value))
        return key

    def keep(self, secret: SecretKey, answer: CachedAnswer[Secret]) -> PinnedSecretKey:
        """Keep the version that an answer holds until it is forgotten. Returns its place."""
        key = self.key_of(secret, answer)
        self._kept[key] = answer
        self._last[secret] = answer.serial, key
        return key

    def get(self, key: PinnedSecretKey) -> CachedAnswer[Secret] | None:
        """Return a version that is kept; None if the process that kept it has ended."""
        return self._kept.get(key)

    def forget(self, key: PinnedSecretKey) -> None:
        """Forget a version: the kernel has no directory of it any more."""
        self._kept.pop(key, None)
        if self._last.get(key.secret, (0, None))[1] == key:
            del self._last[key.secret]

    def _digest(self, secret: Secret) -> bytes:
        digest = hashlib.blake2b(key=self._digest_key, digest_size=PIN)
        for name, value in sorted(secret.values.items()):
            for part in (name.encode("utf-8", "surrogatepass"), value):
                digest.update(len(part).to_bytes(8, "big") + part)
        return digest.digest()


class PinnedInodes:
    """The inodes of single versions, by the secret: of their directories, and of the files in those."""

    def __init__(self) -> None:
        self._inodes: defaultdict[SecretKey, set[Inode]] = defaultdict(set)

    def add(self, inode: Inode) -> None:
        """Take note of an inode. One that is not pinned does not count, here as below."""
        if isinstance(inode.key, PinnedSecretKey | PinnedValueKey):
            self._inodes[SecretKey(inode.key.component, inode.key.name)].add(inode)

    def discard(self, inode: Inode) -> None:
        """Drop an inode."""
        if isinstance(inode.key, PinnedSecretKey | PinnedValueKey):
            secret = SecretKey(inode.key.component, inode.key.name)
            self._inodes[secret].discard(inode)
            if not self._inodes[secret]:
                del self._inodes[secret]

    def versions(self, secret: SecretKey) -> list[PinnedSecretKey]:
        """Return the versions of a secret that there are directories of, or files from them."""
        places = (inode.key for inode in self._inodes.get(secret, ()))
        return list({key.directory for key in places if isinstance(key, PinnedSecretKey | PinnedValueKey)})

    def files(self, secret: SecretKey) -> list[tuple[PinnedSecretKey, Version]]:
        """Return the files of all versions of a secret, each with its directory's place."""
        return [
            (inode.key.directory, inode)
            for inode in self._inodes.get(secret, ())
            if isinstance(inode, Version) and isinstance(inode.key, PinnedValueKey)
        ]
