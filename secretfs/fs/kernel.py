"""What the file system tells the kernel of its own accord. `secretfs.fuse.connection` sends it."""

from typing import NamedTuple


class WarmReads(NamedTuple):
    """Who answers a program that opens what the kernel has in its caches."""

    by_kernel: bool
    """Whether that takes no message to us."""
    reason: str
    """Why it does or does not."""


class Kernel:
    """What the file system has to say to the kernel of its own accord: to nobody, unless a connection says it."""

    @property
    def warm_reads(self) -> WarmReads:
        """Who answers warm reads and listings."""
        return WarmReads(by_kernel=False, reason="there is no connection")

    def wake(self, waiter: bytes) -> None:
        """Wake a waiter that `SecretVFS.poll` was given. Those in the journal are woken at once."""

    def forget_attributes(self, inode: int) -> None:
        """Have it ask for the attributes of an inode again."""
