"""What an inode is: a directory, or one version of the content of a file. Pure."""

from dataclasses import dataclass, field
from typing import Final

from secretfs.errors import AppRemoved
from secretfs.fs.keys import AppKey, ControlKey, ControlsKey, DirectoryKey, LeafKey, RootKey

DIRECTORY_TIMEOUT: Final = 60.0
"""Seconds for which the kernel may keep the attributes of a directory, and entries that do not expire by themselves."""

_TICK: Final = 1e-6  # seconds: what makes a time another one, and is still different in a float of this century


@dataclass(slots=True, eq=False)
class Directory:
    """A directory inode.

    Where the kernel opens directories by itself, it keeps what it has listed, until it finds that the directory has
    another modification time. It asks for that when the attributes expire. So they are good for no longer than what was
    listed, and the time is another one then. Moments are on the owner's clock, ``modified`` is since the epoch.
    """

    number: int
    key: DirectoryKey
    lookups: int = 0
    outdated: bool = False
    """Belongs to a store that has gone; another directory comes to its place."""
    revoked: bool = False
    """Whether it belongs to an app that has been removed: nobody may read what is in it any more."""
    evicting: bool = False
    """Whether the kernel has been asked to forget it, for nobody seems to use it."""
    slot: int = 0
    """Where the journal has it; 0 until the kernel hears of it."""
    modified: float = 0.0
    """Seconds since the epoch; 0 stands for the birth of the mount."""
    listed: int | None = None
    """Digest of the names that the kernel may keep; None if it keeps none with this modification time."""
    listed_until: float = 0.0
    """Until when they hold."""
    known_until: float = 0.0
    """Until when the kernel may take the attributes for right."""

    def tell(self, now: float, born: float) -> float:
        """Return for how many seconds the kernel may keep the attributes, and take note that it does."""
        timeout = DIRECTORY_TIMEOUT
        if self.listed is not None:
            if self.listed_until <= now:
                self.expire(born)
            else:
                timeout = min(timeout, self.listed_until - now)
        self.known_until = max(self.known_until, now + timeout)
        return timeout

    def expire(self, born: float) -> None:
        """Have what the kernel has listed no longer count. The names may be the same, so the time hardly changes."""
        self.modified = (self.modified or born) + _TICK
        self.listed = None

    def change(self, time: float, born: float) -> None:
        """Take note that the names may be others, at a time since the epoch."""
        self.expire(born)
        self.modified = max(self.modified, time)


@dataclass(slots=True, eq=False)
class Version:
    """A file inode: one immutable version of the content at a place, unbound until that content is first seen."""

    number: int
    key: LeafKey
    lookups: int = 0
    digest: bytes = b""
    """Identity of the content; empty while unbound. Keyed, so that it tells nothing about the content."""
    answer: int = 0
    """Serial of the newest answer that was found to have this content."""
    label: str = ""
    """What the store calls the version of the secret, in the newest answer that had this content."""
    size: int = 0
    modified: float = 0.0
    """Seconds since the epoch."""
    content: bytes | None = field(default=None, repr=False)
    """Kept from when it is bound until the kernel forgets the inode."""
    kept: bool = False
    """Whether the next process will find the content as well."""
    in_doubt: bool = False
    """Whether it may be opened only when the store says that it still has this content."""
    opened: bool = False
    """Whether a program has opened it, and may have seen its bytes."""
    used: float = 0.0
    """When we last heard that somebody uses it, on the owner's clock."""
    cached: bool = False
    """Whether the kernel may have its bytes, and can let programs use it without telling us."""
    outdated: bool = False
    """Whether a newer version of its secret has been published: of what is pinned, which stays at its path."""
    revoked: bool = False
    """Whether it belongs to an app that has been removed: nobody may read it any more."""
    evicting: bool = False
    """Whether the kernel has been asked to forget it, for nobody seems to use it."""
    entry_expires: float = 0.0
    """When the kernel asks again where the path leads, on the owner's clock."""
    linked: bool = True
    """Whether the kernel still has it at its path, as far as we have told: no rename has replaced it, no unlink removed
    it."""
    slot: int = 0
    """Where the journal has it; 0 until the kernel hears of it."""


Inode = Directory | Version


def is_known(inode: Inode) -> bool:
    """Whether the kernel holds a reference. It does for as long as the inode is open, mapped or watched."""
    return inode.lookups > 0


def require_app(inode: Inode) -> None:
    """Raise `AppRemoved` for what belongs to an app that has been removed."""
    if inode.revoked:
        raise AppRemoved(f"inode {inode.number} belongs to an app that has been removed")


def is_of(component: str, key: DirectoryKey | LeafKey) -> bool:
    """Whether a place is in the directory of a store, or that directory itself."""
    return not isinstance(key, RootKey | AppKey | ControlsKey | ControlKey) and key.component == component
