"""A file system that records the changes for its publisher, and the poll waiters that it wakes."""

from collections.abc import Callable, Mapping

import trio

from secretfs.cache.change import Announce, Change
from secretfs.fs.attributes import PermissionPolicy
from secretfs.fs.kernel import Kernel
from secretfs.fs.vfs import SecretVFS
from secretfs.fs.view import StoreView


class RecordingKernel(Kernel):
    """Records the waiters that it should wake, and the inodes whose attributes it should forget."""

    def __init__(self, woken: list[bytes]) -> None:
        self._woken = woken
        self.forgotten: list[int] = []

    def forget_attributes(self, inode: int) -> None:
        """Take note."""
        self.forgotten.append(inode)

    def wake(self, waiter: bytes) -> None:
        """Take note."""
        self._woken.append(waiter)


class RecordingVFS(SecretVFS):
    """A `SecretVFS` of views that ``make_views`` makes, given where their stores announce changes."""

    def __init__(
        self,
        make_views: Callable[[Announce], Mapping[str, StoreView]],
        permissions: PermissionPolicy,
        nursery: trio.Nursery,
        app_id: str = "",
    ) -> None:
        self.announced: list[Change] = []
        """The changes that this app may see."""
        self.woken: list[bytes] = []
        self.kernel = RecordingKernel(self.woken)
        super().__init__(make_views(self.record), permissions, nursery, app_id, kernel=self.kernel)

    def record(self, change: Change) -> None:
        """Record what is announced, as far as this app may see it."""
        visible = self.observe(change)
        if visible:
            self.announced.append(visible)
