"""A file system that records the changes for its publisher, and the poll waiters that it wakes."""

from collections.abc import Callable, Mapping

import trio

from secretfs.cache.change import Announce, Change
from secretfs.fs.attributes import PermissionPolicy
from secretfs.fs.vfs import Kernel, SecretVFS
from secretfs.fs.view import StoreView


class Told(Kernel):
    """A kernel that is told to wake waiters."""

    def __init__(self, woken: list[bytes]) -> None:
        self._woken = woken

    def wake(self, waiter: bytes) -> None:
        """Take note."""
        self._woken.append(waiter)


class HeardVFS(SecretVFS):
    """A `SecretVFS` of views that ``make_views`` makes, given where their stores announce changes."""

    def __init__(
        self,
        make_views: Callable[[Announce], Mapping[str, StoreView]],
        permissions: PermissionPolicy,
        nursery: trio.Nursery,
        app_id: str = "",
    ) -> None:
        self.told: list[Change] = []
        """The changes that this app may see."""
        self.woken: list[bytes] = []
        super().__init__(make_views(self.hear), permissions, nursery, app_id, kernel=Told(self.woken))

    def hear(self, change: Change) -> None:
        """Take what is announced."""
        visible = self.observe(change)
        if visible:
            self.told.append(visible)
