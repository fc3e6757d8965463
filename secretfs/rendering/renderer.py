"""Renders files in processes of their own, for the daemon: secrets in by a socket, the file out.

A template cannot hold up the daemon: it runs elsewhere, the kernel limits its processor time and its memory, and here
each wait for it has an end. A process that has ended, hangs or does what it should not is replaced.
"""

import logging
from typing import Final

import trio

from secretfs.errors import DeadlineExceeded, RenderingFailed, StoreError
from secretfs.rendering.conversation import Asked, Misbehaves
from secretfs.rendering.forker import Ended, Forker, Hangs
from secretfs.rendering.job import Job, Mode

AT_ONCE: Final = 2
"""Files that are rendered side by side."""
ATTEMPTS: Final = 2
"""Processes that are tried for a file, if they end before it is rendered."""

log = logging.getLogger(__name__)


class Renderer:
    """Renders files. Its process is started by the first, and ends when this is closed or the daemon ends."""

    def __init__(self) -> None:
        self._forker: Forker | None = None
        self._starting = trio.Lock()
        self._turns = trio.CapacityLimiter(AT_ONCE)

    @property
    def pid(self) -> int:
        """The process that renders; 0 while there is none."""
        return 0 if self._forker is None else self._forker.pid

    async def render(self, job: Job, asked: Asked, mode: Mode = Mode.RENDER) -> bytes:
        """Return the file, or with `Mode.NEEDS` a list as JSON of what it needs.

        Secrets may be asked for twice, if a process ends before its time. Raises `RenderingFailed`, which quotes no
        value, `StoreError` if no process renders, and whatever is raised on behalf of the file.
        """
        async with self._turns:
            for _ in range(ATTEMPTS):
                forker = await self._running()
                try:
                    return await forker.render(job, asked, mode)
                except Ended:
                    self._replace(forker, "has ended")
                except Hangs:
                    self._replace(forker, "hangs")
                    raise DeadlineExceeded("the process that renders does not begin") from None
                except Misbehaves:
                    self._replace(forker, "does not do what it should")
                    raise RenderingFailed("the process that renders does not do what it should") from None
            raise StoreError(f"no process renders: {ATTEMPTS} have ended")

    def close(self) -> None:
        """End the process, and those that it has forked."""
        if self._forker is not None:
            self._forker.end()
            self._forker = None

    async def _running(self) -> Forker:
        """Return the process, which may have to be started. Raises `StoreError`."""
        async with self._starting:
            if self._forker is None:
                self._forker = await Forker.start()
            return self._forker

    def _replace(self, forker: Forker, why: str) -> None:
        """Have the next file start another process. Files that others render now are rendered again by that one."""
        if self._forker is forker:  # else somebody has done so
            log.warning("the process that renders files %s: another is started", why)
            self.close()
