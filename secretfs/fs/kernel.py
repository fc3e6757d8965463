"""What the file system tells the kernel of its own accord. `secretfs.fuse.connection` sends it."""


class Kernel:
    """What the file system has to say to the kernel of its own accord: to nobody, unless a connection says it."""

    def wake(self, waiter: bytes) -> None:
        """Wake a waiter that `SecretVFS.poll` was given. Those in the journal are woken at once."""

    def forget_attributes(self, inode: int) -> None:
        """Have it ask for the attributes of an inode again."""
