"""One mount, from opened stores to the last unmount."""

import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pyfuse3
import trio

from secretfs.cache import Freshness
from secretfs.declaration import Declaration
from secretfs.errors import MountError, Notice
from secretfs.fuse import SecretOperations
from secretfs.hand import Hand
from secretfs.mountpoint import FSTYPE, clear
from secretfs.publish import Publisher
from secretfs.registry import Registry
from secretfs.reload import Origin, Reloader
from secretfs.serving import Stores
from secretfs.vfs import Modes, SecretVFS

REQUESTS = 10_000
"""Kernel requests served at once. Each costs a task; a wait for one store must never keep another's readers out."""

TIDY_EVERY = 2.0
"""Seconds."""

_FLAGS = frozenset({"nosuid", "nodev", "noexec"})
_STOPPING = (signal.SIGTERM, signal.SIGINT)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MountOptions:
    """Where to mount, and for whom. Ids are the host's."""

    mountpoint: Path
    allow_other: bool = False
    uid: int | None = None
    gid: int | None = None
    modes: Modes = field(default_factory=Modes)

    @property
    def notices(self) -> list[Notice]:
        """What a user might have meant otherwise."""
        if self.uid in (None, os.getuid()) or self.allow_other:
            return []
        return [Notice(f"user {self.uid} owns the files and cannot get at them without --allow-other")]


@dataclass(frozen=True, slots=True)
class Observer:
    """Who is told how a mount does."""

    ready: Callable[[], None]
    """The mount answers."""
    changed: Callable[[], None] = lambda: None
    """A value that was read has changed, or something that was listed has come or gone, and the files show it."""


async def serve(
    registry: Registry,
    declaration: Declaration,
    origin: Origin,
    options: MountOptions,
    default: Freshness,
    hand: Hand,
    observer: Observer,
) -> None:
    """Mount, tell ``observer`` once the mount answers, and serve until it is unmounted or a signal asks to stop.

    On a fatal error the mount stays behind, dead: ENOTCONN tells readers the truth, while an empty directory would look
    like "no secrets". The next start replaces a dead mount.
    """
    async with trio.open_nursery() as nursery:
        stores = Stores(registry, default, nursery)
        vfs = SecretVFS(await stores.serve(declaration), options.modes, nursery, declaration.surroundings.app_id)
        publisher = Publisher(vfs, options.mountpoint, hand, observer.changed)
        reloader = Reloader(origin, stores, vfs, publisher)
        async with _mounted(vfs, publisher, options):
            for task in (publisher.run, reloader.on_change, reloader.on_signal, _stop_on_signal):
                nursery.start_soon(task)
            nursery.start_soon(_tidy, vfs)
            nursery.start_soon(_announce, options.mountpoint, hand, observer.ready)
            await pyfuse3.main(max_tasks=REQUESTS)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def _mounted(vfs: SecretVFS, publisher: Publisher, options: MountOptions) -> AsyncIterator[None]:
    uid = os.getuid() if options.uid is None else options.uid
    gid = os.getgid() if options.gid is None else options.gid
    flags = {*pyfuse3.default_options, *_FLAGS, "fsname=secretfs", f"subtype={FSTYPE.removeprefix('fuse.')}"}
    if options.allow_other:
        flags.add("allow_other")
    clear(options.mountpoint)
    with _what_libfuse_says() as said:
        try:
            pyfuse3.init(SecretOperations(vfs, publisher, uid, gid), str(options.mountpoint), flags)
        except RuntimeError:
            reason = said() or "libfuse gives no reason"
            raise MountError(f"cannot mount at {options.mountpoint}: {reason}") from None
    clean = False
    try:
        yield
        clean = True
    finally:
        pyfuse3.close(unmount=clean)


@contextmanager
def _what_libfuse_says() -> Iterator[Callable[[], str]]:
    """Catch standard error: libfuse gives its reasons there and nowhere else."""
    said, terminal = os.memfd_create("libfuse"), os.dup(2)
    os.dup2(said, 2)
    try:
        yield lambda: os.pread(said, 4096, 0).decode(errors="replace").strip().replace("\n", "; ")
    finally:
        os.dup2(terminal, 2)
        os.close(said)
        os.close(terminal)


async def _stop_on_signal() -> None:
    with trio.open_signal_receiver(*_STOPPING) as signals:
        async for number in signals:
            log.info("unmounting after %s", signal.Signals(number).name)
            pyfuse3.terminate()


async def _tidy(vfs: SecretVFS) -> None:
    while True:
        await trio.sleep(TIDY_EVERY)
        vfs.tidy()


async def _announce(mountpoint: Path, hand: Hand, ready: Callable[[], None]) -> None:
    """Ask the mount a question through the kernel, as its users will. Unmounted before it answers, it is not ready."""
    try:
        await hand.call("statvfs", os.fsencode(mountpoint))
    except OSError as error:
        log.info("ended before the mount answered: %s", error.strerror)
        return
    ready()
    log.info("mounted at %s", mountpoint)
