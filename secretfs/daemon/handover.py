"""The handover of a live mount from one worker to the next, through systemd or our own supervisor.

It stores descriptors between two workers: that of the kernel's FUSE connection, those of the memory with the journal,
the leases and values, what reports opens, and the socket of the Secrets API. Without a supervisor, as in ``secretfs
run``, nothing is stored and the mount ends with its process.
"""

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from secretfs.api.address import Listener
from secretfs.cache.arena import Arena, Storage
from secretfs.cache.warm_restart import WarmMemory
from secretfs.daemon.request import MountOptions
from secretfs.daemon.stored import API, CONNECTION, JOURNAL, LEASES, MODULES, OPENS, VALUES
from secretfs.errors import ConfigurationError, JournalUnreadable, MountError
from secretfs.fs.journal import Journal
from secretfs.fuse.connection import Connection, has_ended
from secretfs.fuse.opens import group_for_opens
from secretfs.linux import secret_memory
from secretfs.linux.log import printable
from secretfs.linux.mountinfo import is_mounted, secretfs_at
from secretfs.linux.mountpoint import is_dead
from secretfs.linux.sd_notify import ServiceManager
from secretfs.linux.syscall_helper import SyscallHelper
from secretfs.registry.lease_file import LeaseFile

_PATIENCE: Final = 10.0  # seconds

log = logging.getLogger(__name__)


class Handover:
    """What this worker got from its predecessor, and what it leaves to its successor."""

    def __init__(
        self, manager: ServiceManager | None = None, stored: dict[str, int] | None = None, *, supervised: bool = False
    ) -> None:
        self._manager = manager
        self._supervised = supervised  # by our own supervisor, which exists for one mount and ends with it
        self._stored = stored or {}
        self._parent = os.getppid()
        self._has_leases = LEASES in self._stored
        self.leases = LeaseFile(self._stored.pop(LEASES, None))
        """What the stores have been lent, by us or by our predecessor."""
        self.opens: int | None = self._stored.pop(OPENS, None)
        """What tells of opens: see `secretfs.fuse.opens`."""
        self.inherited: Connection | None = None
        """The mount of our predecessor, if it is taken over; see `inherit`."""
        api = self._stored.pop(API, None)
        self.api: Listener | None = None if api is None else Listener.inherit(api)
        """Where clients of the Secrets API connect; see `listen`."""
        self.takes_over = CONNECTION in self._stored
        """Whether there was a worker before this one."""
        self._is_kept = False  # our mount, by the supervisor

    @property
    def outlives_us(self) -> bool:
        """Whether a supervisor keeps the mount alive when this process ends: then SIGTERM does not unmount."""
        return self._manager is not None and os.getppid() == self._parent

    @property
    def mount_outlives_us(self) -> bool:
        """Whether there is a mount that goes on when this process ends."""
        return self.outlives_us and self._is_kept

    @property
    def watchdog(self) -> float | None:
        """Seconds without a ``WATCHDOG=1`` after which this process is killed."""
        return self._manager.watchdog if self._manager else None

    def inherit(self, path: Path, *, allow_other: bool, every_open: bool = False) -> bool:
        """Take over the mount of our predecessor at ``path``, if that is possible.

        With ``every_open`` the kernel has to ask at each open of a file.

        If it is not, the log says why, the mount is dead from now on and its open files are lost. The dead mount stays
        until a new one replaces it, because ENOTCONN does not look like "no secrets". Returns whether there is
        something to serve: not if the mount was unmounted, and another one may have taken its place.
        """
        descriptor, file = self._stored.pop(CONNECTION, None), self._stored.pop(JOURNAL, None)
        if descriptor is None:
            self.drop_opens()  # of a mount that was given up: a group cannot have marks on two
            return True
        try:
            connection = Connection(descriptor, _journal(file))
            reason = connection.obstacle or _other_options(path, allow_other=allow_other)
            if every_open and connection.journal.kernel_opens:
                reason = reason or "the kernel opens its files by itself, and --audit=strict needs to be asked"
        except (JournalUnreadable, MountError) as error:
            reason = str(error)
        else:
            if not reason:
                self.inherited = connection
                self._is_kept = True
                if self._manager is not None and not self._has_leases:  # of a version that kept none
                    self._manager.store(LEASES, self.leases.file)
                return True
        self.drop_opens()
        left = _is_left_at(path, ended=has_ended(descriptor))
        self.release()
        os.close(descriptor)  # the last one: the kernel ends the connection, and no reader waits any longer
        if left:
            log.warning("%s cannot be taken over: %s; mounting anew, what is open in it is lost", path, reason)
            _wait_until_dead(path)
        elif self._supervised:
            log.info("%s was unmounted", path)
            self.stop_listening()
            return False
        return True

    def listen(self, options: MountOptions) -> None:
        """Listen for clients of the Secrets API, where the options say, or go on with what our predecessor began.

        Raises `ConfigurationError` if that cannot be; at a takeover the log has it, and the mount goes on without.
        """
        if self.api is not None and self.api.address != options.api:
            self.stop_listening()
        if self.api is not None or options.api is None:
            return
        try:
            self.api = Listener.open(options.api, options.uid, options.gid)
        except ConfigurationError as error:
            if not self.takes_over:
                raise
            log.error("%s; the Secrets API is not served", error)  # noqa: TRY400 - not a defect
            return
        if self._manager is not None:
            self._manager.store(API, self.api.socket.fileno())

    def stop_listening(self) -> None:
        """End the Secrets API: its clients are refused at once."""
        if self.api is None:
            return
        if self._manager is not None:
            with _if_it_listens():
                self._manager.remove(API)
        self.api.remove()
        self.api = None

    def memory(self, journal: Journal) -> WarmMemory:
        """Return what is kept in memory for our successor, with what our predecessor kept of an inherited mount."""
        segments = {
            int(name.removeprefix(VALUES)): self._stored.pop(name)
            for name in list(self._stored)
            if name.startswith(VALUES)
        }
        if self._manager is None:
            return WarmMemory(journal.digest_key)
        storage = _KeptByManager(self._manager)
        if self.inherited is None:  # of a mount that is no more, and whose journal had the key
            for number, descriptor in segments.items():
                os.close(descriptor)
                storage.drop(number)
            segments = {}
        return WarmMemory(journal.digest_key, Arena(journal.digest_key, storage, segments))

    def keep(self, connection: Connection) -> None:
        """Have the supervisor store a mount for our successor."""
        self._is_kept = True
        if self._manager is not None:
            self._manager.store(LEASES, self.leases.file)
            self._manager.store(JOURNAL, connection.journal.file)
            self._manager.store(CONNECTION, connection.descriptor)  # last: it is of no use without its journal

    async def watch_opens(self, helper: SyscallHelper) -> int | None:
        """Return what tells an audit log of opens, that of our predecessor or a new one; None where there is none."""
        if self.opens is None:
            self.opens = await group_for_opens(helper)
            if self.opens is not None and self._manager is not None:
                self._manager.store(OPENS, self.opens)
        return self.opens

    def release(self) -> None:
        """Have the supervisor drop a mount that is unmounted."""
        self._is_kept = False
        for name in (CONNECTION, JOURNAL, LEASES, OPENS):  # in this order: a journal alone is never taken for a mount
            if self._manager is not None:
                with _if_it_listens():
                    self._manager.remove(name)

    def name_modules(self, *, renew: bool = False) -> bool:
        """Have our own supervisor start a process that imports what we have, and stands by to be the next worker.

        With ``renew`` even if there is one; the supervisor sends SIGTERM when the new one has imported all. Returns
        whether the supervisor has been asked.
        """
        if self._manager is None or not self._supervised:
            return False
        names = [name for name, module in list(sys.modules.items()) if getattr(module, "__spec__", None)]
        try:
            with open(os.memfd_create(MODULES), "w", encoding="utf-8") as file:  # noqa: PTH123 - a descriptor
                file.write("\n".join(names))
                file.flush()
                self._manager.notify(file.fileno(), FDNAME=MODULES, **({"RENEW": 1} if renew else {}))
        except OSError as error:
            log.debug("no process stands by: %s", error.strerror)
            return False
        return True

    def drop_opens(self) -> None:
        """Have nothing tell of opens any more, if something does for our predecessor."""
        if self.opens is not None:
            os.close(self.opens)
            self.opens = None
            if self._manager is not None:
                with _if_it_listens():
                    self._manager.remove(OPENS)

    def notify(self, **state: object) -> None:
        """Send states to the supervisor: ``READY=1``, ``WATCHDOG=1``, ``STATUS="..."``."""
        if self._manager is not None:
            with _if_it_listens():
                self._manager.notify(**{name: printable(str(value)) for name, value in state.items()})


class _KeptByManager(Storage):
    """Secret memory, of which the supervisor keeps the descriptors."""

    def __init__(self, manager: ServiceManager) -> None:
        self._manager = manager

    def create(self, size: int) -> int:
        return secret_memory.create(size)

    def keep(self, number: int, descriptor: int) -> None:
        self._manager.store(f"{VALUES}{number}", descriptor)

    def drop(self, number: int) -> None:
        with _if_it_listens():
            self._manager.remove(f"{VALUES}{number}")


@contextmanager
def _if_it_listens() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        log.debug("the supervisor does not listen: %s", error.strerror)


def _journal(file: int | None) -> Journal:
    if file is None:
        raise JournalUnreadable("its journal was not stored")
    return Journal(file)


def _other_options(path: Path, *, allow_other: bool) -> str:
    """Return how the mount differs from the options, where a live mount cannot be changed; empty if it does not."""
    there = secretfs_at(path)
    if there is None or there.allow_other == allow_other:
        return ""
    return f"it was mounted {'with' if there.allow_other else 'without'} --allow-other"


def _wait_until_dead(path: Path) -> None:
    """Wait until the supervisor, too, has closed the connection. Raises `MountError` if it does not."""
    end = time.monotonic() + _PATIENCE
    while is_mounted(path):
        with suppress(MountError):  # it hangs, so it is not closed yet
            if is_dead(path):
                return
        if time.monotonic() > end:
            raise MountError(f"{path} is still connected", f"secretfs unmount --force {path}")


def _is_left_at(path: Path, *, ended: bool) -> bool:
    """Whether the mount at ``path`` is our predecessor's, and not another secretfs.

    Our predecessor's is dead if the kernel has ``ended`` it; otherwise it does not answer.
    """
    if not is_mounted(path):
        return False
    try:
        return is_dead(path) and ended
    except MountError:
        return not ended
