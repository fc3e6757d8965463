"""Who keeps the mount alive while the process that serves it is replaced: systemd, our own supervisor, or nobody."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from secretfs.daemon.supervisor import CHANNEL
from secretfs.errors import JournalUnreadable, MountError
from secretfs.fs.journal import Journal
from secretfs.fuse.connection import Connection, has_ended
from secretfs.linux.log import printable
from secretfs.linux.mountinfo import is_mounted, secretfs_at
from secretfs.linux.mountpoint import is_dead
from secretfs.linux.sd_notify import ServiceManager, service_manager, stored_descriptors

CONNECTION: Final = "connection"
JOURNAL: Final = "journal"

_PATIENCE: Final = 10.0  # seconds

log = logging.getLogger(__name__)


class Handover:
    """What this process tells whoever has started it, and what it got from its predecessor."""

    def __init__(
        self, manager: ServiceManager | None = None, kept: dict[str, int] | None = None, *, supervised: bool = False
    ) -> None:
        self._manager = manager
        self._supervised = supervised  # by a supervisor of our own, which is there for one mount and ends with it
        self._kept = kept or {}
        self._parent = os.getppid()
        self.inherited: Connection | None = None
        """The mount that our predecessor has left us; see `inherit`."""
        self.takes_over = CONNECTION in self._kept
        """Whether there was one before us."""

    @classmethod
    def from_environment(cls, *, foreground: bool) -> "Handover | None":
        """Find out who keeps the mount; None if nobody does. Takes what it reads out of the environment.

        A service manager does if it wants to be notified. In the background it is not us whom it has started: then the
        only one to listen to is our own supervisor.
        """
        kept = stored_descriptors()
        channel = kept.pop(CHANNEL, None)
        manager = service_manager(channel=channel)
        supervised = channel is not None
        if manager is None or not (supervised or foreground):
            return None
        return cls(manager, kept, supervised=supervised)

    @property
    def outlives_us(self) -> bool:
        """Whether a mount that we leave behind goes on to live: then we do not unmount when we are asked to end."""
        return self._manager is not None and os.getppid() == self._parent

    @property
    def watchdog(self) -> float | None:
        """Seconds after which we are killed if nobody has heard from us."""
        return self._manager.watchdog if self._manager else None

    def inherit(self, path: Path, *, allow_other: bool) -> bool:
        """Take what our predecessor has left us of the mount at ``path``, if it can be taken over.

        One that cannot be is dead from now on, and the log says why: who has a file open in it loses that. It stays
        where it is until another one takes its place, for ENOTCONN does not look like "no secrets". Returns whether
        there is something to serve: not if somebody has unmounted it, and may have mounted another one by now.
        """
        descriptor, file = self._kept.pop(CONNECTION, None), self._kept.pop(JOURNAL, None)
        if descriptor is None:
            return True
        try:
            connection = Connection(descriptor, _journal(file))
            reason = connection.obstacle or _other_options(path, allow_other=allow_other)
        except (JournalUnreadable, MountError) as error:
            reason = str(error)
        else:
            if not reason:
                self.inherited = connection
                return True
        left = _is_left_at(path, ended=has_ended(descriptor))
        self.release()
        os.close(descriptor)  # the last one: the kernel ends the connection, and nobody waits any more
        if left:
            log.warning("%s cannot be taken over: %s; mounting anew, what is open in it is lost", path, reason)
            _wait_until_dead(path)
        elif self._supervised:
            log.info("%s was unmounted", path)
            return False
        return True

    def keep(self, connection: Connection) -> None:
        """Have a mount kept for our successor."""
        if self._manager is not None:
            self._manager.store(JOURNAL, connection.journal.file)
            self._manager.store(CONNECTION, connection.descriptor)  # last: it is of no use without its journal

    def release(self) -> None:
        """Have it kept no more: it is not mounted any more."""
        for name in (CONNECTION, JOURNAL):  # in this order: half of it is never taken for the whole
            if self._manager is not None:
                with _listening_or_not():
                    self._manager.remove(name)

    def notify(self, **state: object) -> None:
        """Say how we do: ``READY=1``, ``WATCHDOG=1``, ``STATUS="..."``."""
        if self._manager is not None:
            with _listening_or_not():
                self._manager.notify(**{name: printable(str(value)) for name, value in state.items()})


@contextmanager
def _listening_or_not() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        log.debug("whoever started us does not listen: %s", error.strerror)


def _journal(file: int | None) -> Journal:
    if file is None:
        raise JournalUnreadable("its journal was not kept")
    return Journal(file)


def _other_options(path: Path, *, allow_other: bool) -> str:
    """Return how what is mounted differs from what is asked for now, where a mount cannot be changed; else nothing."""
    there = secretfs_at(path)
    if there is None or there.allow_other == allow_other:
        return ""
    return f"it was mounted {'with' if there.allow_other else 'without'} --allow-other"


def _wait_until_dead(path: Path) -> None:
    """Wait for whoever keeps the connection to close it as well. Raises `MountError` if that does not happen."""
    end = time.monotonic() + _PATIENCE
    while is_mounted(path):
        with suppress(MountError):  # it hangs: not closed yet
            if is_dead(path):
                return
        if time.monotonic() > end:
            raise MountError(f"{path} is still connected", f"secretfs unmount --force {path}")


def _is_left_at(path: Path, *, ended: bool) -> bool:
    """Whether what is mounted at ``path`` is what our predecessor has left, and not another secretfs.

    Ours is dead if the kernel has ended it, and else nobody answers.
    """
    if not is_mounted(path):
        return False
    try:
        return is_dead(path) and ended
    except MountError:
        return not ended
