"""Where a read-only mount takes requests: another, writable mount of its control directory, which has no place.

A helper holds it, and the links ``refresh`` and ``reload`` lead to it through /proc. It is held while somebody may be
on the way there; an open file keeps it by itself. As long as there is a mount of a file system, the kernel does not end
its connection, so it is let go when the mount that programs see is gone.
"""

import logging
import os
from pathlib import Path
from typing import Final

import trio

from secretfs.errors import ReadOnly
from secretfs.fs.names import CONTROL
from secretfs.linux.mountinfo import mounts
from secretfs.linux.syscall_helper import Start, SyscallHelper
from secretfs.linux.syscall_server import HELD

HOLD: Final = 10.0
"""Seconds for which the mount is held for somebody who has read a link. Requests do not tell who has arrived: one open
file takes any number of them."""
LOOK_EVERY: Final = 0.1
"""Seconds between two looks at whether the mount that programs see is there."""

log = logging.getLogger(__name__)


class ControlMount:
    """A writable mount of the control directory, made when somebody follows a link there.

    ``device`` is the minor number of the mount. When nothing is mounted with that number any more, all is let go.
    ``start`` starts the helper, which has the right to mount.
    """

    def __init__(self, mountpoint: Path, device: int, nursery: trio.Nursery, start: Start) -> None:
        self._directory = os.path.join(os.fsencode(mountpoint), CONTROL)  # noqa: PTH118 - bytes
        self._device = device
        self._nursery = nursery
        self._helper = SyscallHelper.started_when_needed(start)
        self._lock = trio.Lock()
        self._held = False
        self._until = 0.0

    async def path(self) -> bytes:
        """Return a path of the directory by which its files can be written to. Raises `ReadOnly` if there is none."""
        async with self._lock:
            try:
                await self._helper.call("hold_writable", self._directory, device=self._device)
            except OSError as error:
                log.warning("requests cannot be taken: %s", error.strerror)
                raise ReadOnly("no writable mount") from None
            self._until = trio.current_time() + HOLD
            if not self._held:
                self._held = True
                self._nursery.start_soon(self._release)
        return b"/proc/%d/fd/%d" % (self._helper.pid, HELD)

    @property
    def helper(self) -> int:
        """The process that holds the mount."""
        return self._helper.pid

    async def _release(self) -> None:
        """Let the mount go when nobody is on the way any more."""
        while self._held:
            await trio.sleep(LOOK_EVERY)
            # In a thread: the table of mounts is locked for seconds where many containers start at once.
            is_mounted = await trio.to_thread.run_sync(self._is_mounted, abandon_on_cancel=True)
            async with self._lock:
                if trio.current_time() >= self._until or not is_mounted:
                    await self._helper.call("release")
                    self._held = False

    def _is_mounted(self) -> bool:
        return any(mount.minor == self._device for mount in mounts())

    def close(self) -> None:
        """Let the helper end."""
        self._helper.close()
