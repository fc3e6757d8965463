"""The reload of configuration: when a file changes, and on SIGHUP.

Files are checked once a second with stat(2), which also sees what inotify does not, such as the link that a Kubernetes
ConfigMap swaps, or a file on NFS. A change takes effect when two checks in a row see the same. A mistake is logged and
changes nothing. A store that does not answer when it is opened is tried again later, with exponential back-off.
"""

import logging
import math
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

import trio

from secretfs.cache.change import Announce, Change
from secretfs.dapr.declaration import Declaration
from secretfs.dapr.load import ConfigSource, working_directory
from secretfs.errors import SecretFSError, log_defect
from secretfs.fs.control_files import DeclarationStatus, Declared
from secretfs.registry.store_set import ReloadResult, StoreSet

CHECK_EVERY: Final = 1.0
"""Seconds."""
RETRY: Final = (5.0, 60.0)
"""Seconds before stores that could not be opened are tried again: the first pause, and the longest. It doubles."""

log = logging.getLogger(__name__)


Show = Callable[[Declaration, ReloadResult], frozenset[str]]
"""Shows from now on what is declared, with these stores.

Returns the stores that came or went, or are another store now."""


class Reloader(Declared):
    """Serves what is declared now in the place of what was declared before."""

    def __init__(
        self,
        origin: ConfigSource,
        stores: StoreSet,
        show: Show,
        announce: Announce,
        apps: Collection[str] | None = None,
        shown: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint,
        ended: Callable[[Collection[str], str], None] = lambda _changed, _error: None,
    ) -> None:
        """``apps`` are those that are shown so far; None in a mount for a single app.

        ``shown`` is called when something else is shown, and a reload ends when it has returned. ``ended`` is called
        at the end of each, with the stores that came or went, or the mistake.
        """
        self._origin = origin
        self._stores = stores
        self._show = show
        self._announce = announce
        self._shown = shown
        self._ended = ended
        self._reloading = trio.Lock()
        self._loaded = origin.loaded
        self._pause = 0.0
        self._retry_at = math.inf
        self._status = DeclarationStatus(_names(apps), tuple(map(str, origin.apps)))
        self._schedule_retry()

    async def on_change(self) -> None:
        """Reload whenever the files have changed. Runs forever."""
        seen = self._loaded
        while True:
            await trio.sleep(CHECK_EVERY)
            now = await trio.to_thread.run_sync(self._origin.fingerprint)
            if now == seen != self._loaded:
                await self.reload()
            elif trio.current_time() >= self._retry_at:
                await self._reload_or_log(again=True)
            seen = now

    async def on_signal(self) -> None:
        """Reload on SIGHUP. Runs forever."""
        with trio.open_signal_receiver(signal.SIGHUP) as signals:
            async for _ in signals:
                await self.reload()

    def status(self) -> DeclarationStatus:
        """Return what is declared, and how the last reload ended."""
        return self._status

    async def reload(self) -> None:
        """Read everything again and serve it, or log why not; `status` has the reason too."""
        await self._reload_or_log(again=False)

    async def _reload_or_log(self, *, again: bool) -> None:
        async with self._reloading:
            reason, changed = "", frozenset[str]()
            try:
                async with _working_in(self._origin.directory):
                    changed = await self._reload(again=again)
            except SecretFSError as error:
                reason = str(error)
                log.error("%s; nothing is changed", error)  # noqa: TRY400 - a mistake of a user, not of ours
            except Exception as error:  # noqa: BLE001 - a defect here must not cost everybody the mount
                reason = f"unexpected {type(error).__name__}; the log has the place"
                log_defect(log, error)
            self._status = replace(self._status, reloaded=time.time(), error=reason)
            self._ended(changed, reason)

    async def _reload(self, *, again: bool) -> frozenset[str]:
        """Read everything again and serve it. Returns the stores that came or went."""
        self._retry_at = math.inf
        self._loaded = await trio.to_thread.run_sync(self._origin.fingerprint)
        declaration = await trio.to_thread.run_sync(self._origin.read)
        replacement = await self._stores.replace(declaration, again=again)
        for notice in declaration.notices if not again else ():
            notice.log_to(log)
        self._schedule_retry()
        changed = self._show(declaration, replacement)
        for component in sorted(changed):
            self._announce(Change(component, whole=True))
        for change in replacement.changes:
            self._announce(change)
        await self._shown()
        self._status = replace(self._status, apps=_names(declaration.apps))
        return changed

    def _schedule_retry(self) -> None:
        """Schedule the next attempt for stores that did not answer."""
        shortest, longest = RETRY
        self._pause = min(longest, max(shortest, 2 * self._pause)) if self._stores.incomplete else 0.0
        self._retry_at = trio.current_time() + self._pause if self._pause else math.inf


def _names(apps: Collection[str] | None) -> tuple[str, ...] | None:
    return None if apps is None else tuple(sorted(apps))


@asynccontextmanager
async def _working_in(directory: Path | None) -> AsyncIterator[None]:
    """Work in a directory, if it still exists. Enters it in a thread, because it may be in our own mount."""
    before = working_directory()
    if directory in (None, before):
        yield
        return
    with suppress(OSError):
        await trio.to_thread.run_sync(os.chdir, directory)
    try:
        yield
    finally:
        os.chdir(before or "/")
