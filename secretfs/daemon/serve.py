"""Serve one mount, from the opened stores to the unmount."""

import logging
import math
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import trio

from secretfs.api.address import Listener
from secretfs.cache.change import Change
from secretfs.daemon.audience import permissions_of
from secretfs.daemon.auditing import MountAudit
from secretfs.daemon.files import shown_files
from secretfs.daemon.handover import Handover
from secretfs.daemon.measuring import Measurer
from secretfs.daemon.metrics_outputs import MetricsOutputs
from secretfs.daemon.processes import set_process_name
from secretfs.daemon.reload import Reloader
from secretfs.daemon.request import MountOptions
from secretfs.daemon.store_records import edited_stores, record_stores, replaced_stores
from secretfs.dapr.declaration import Declaration
from secretfs.dapr.load import ConfigSource
from secretfs.errors import MountError, log_defect
from secretfs.fs.catch_up import catch_up
from secretfs.fs.content import views_of
from secretfs.fs.journal import Journal
from secretfs.fs.publish import Publisher
from secretfs.fs.rendered_set import RenderedSet
from secretfs.fs.vfs import SecretVFS
from secretfs.fuse import session
from secretfs.fuse.connection import Connection
from secretfs.fuse.control_mount import ControlMount
from secretfs.fuse.expiry import Expiry
from secretfs.fuse.fair_share import FairShare
from secretfs.fuse.open_events import OpenEvents
from secretfs.fuse.opens import Opens, OpenWatcher
from secretfs.fuse.operations import SecretOperations
from secretfs.fuse.witness import Witness
from secretfs.linux.mounter import HelperProcesses, Mounter
from secretfs.linux.mountinfo import read_only_secretfs, secretfs_at
from secretfs.linux.mountpoint import clear
from secretfs.linux.process import set_name
from secretfs.linux.syscall_helper import SyscallHelper
from secretfs.observe.audit import AuditLog
from secretfs.registry.opening import Registry
from secretfs.registry.store_set import ReloadResult, StoreSet
from secretfs.store import LeasingStore

EVICT_EVERY = 2.0
"""Seconds."""

NEXT_STARTS = 10.0
"""Seconds that we serve on after SIGTERM, until the process that is to be the next has started."""
ASK_AGAIN = 1.0
"""Seconds before a new mount that did not answer is asked again."""

_STOPPING = (signal.SIGTERM, signal.SIGINT)
"""SIGTERM ends the process: a supervised mount stays, for a successor. SIGINT ends the mount."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Observer:
    """Callbacks for the life of a mount."""

    ready: Callable[[], None]
    """Called when the mount answers."""
    changed: Callable[[], None] = lambda: None
    """Called when the files show a change: of a value that was read, or of a name that was listed."""
    audit: AuditLog = field(default_factory=AuditLog)
    """Told who opens what, and what becomes of the mount."""


async def serve(
    registry: Registry,
    declaration: Declaration,
    origin: ConfigSource,
    options: MountOptions,
    helpers: HelperProcesses,
    handover: Handover,
    observer: Observer,
) -> None:
    """Mount, or take over an inherited mount; serve it until it is unmounted or a signal asks to stop.

    On SIGTERM a supervised mount stays for the next worker, with what the stores have been lent. Any other is
    unmounted, and the stores give back what they were lent when nobody is left to wait for it. After a fatal error the
    mount stays in any case, dead without a supervisor: ENOTCONN is the truth, while an empty directory would look like
    "no secrets". The next start replaces a dead mount.
    """
    inherited = handover.inherited
    registry.hands_over = inherited is not None
    journal = _journal(inherited)
    memory = handover.memory(journal)
    async with trio.open_nursery() as nursery:
        changes, announced = trio.open_memory_channel[Change](math.inf)  # emptied at once, into queues with a limit
        files = RenderedSet(nursery, changes.send_nowait, options.default.idle)
        stores = StoreSet(registry, options.default, nursery, files.announcing, memory)
        started = await stores.start(declaration)
        outputs = MetricsOutputs(options, takes_over=inherited is not None)
        connection = inherited or _mount(options, journal, helpers.mounter)
        if not inherited:
            handover.keep(connection)
        registry.hands_over, apps = handover.outlives_us, declaration.apps

        def show(declared: Declaration, result: ReloadResult) -> frozenset[str]:
            changed = vfs.replace(
                files.beside(views_of(result.stores, vfs.views), shown_files(declared)),
                result.replaced, declared.apps, permissions_of(options, declared),
            )  # fmt: skip
            record_stores(journal, stores.shown)
            return changed

        async def shown() -> None:
            await expiry.run()

        audit = MountAudit(observer.audit, helpers)
        reloader = Reloader(origin, stores, show, files.announcing, apps, shown, audit.reloaded)
        read_only = read_only_secretfs(options.mountpoint)
        vfs = SecretVFS(
            files.beside(views_of(started), shown_files(declaration)), permissions_of(options, declaration),
            nursery, declaration.context.app_id, journal,
            kernel=connection, memory=memory, apps=apps, declared=reloader, read_only=read_only is not None,
            metrics=outputs.page if outputs.is_available else None,
        )  # fmt: skip
        audit.begin(vfs, journal, options, declaration.context.app_id)
        expiry = Expiry(connection, helpers.publishing, vfs.changes, vfs.uses)
        publisher = Publisher(
            vfs, options.mountpoint, helpers.publishing, announced, observer.changed, audit.changed, expiry.expire,
            device=read_only,
        )  # fmt: skip
        vfs.doubt(edited_stores(journal, stores.shown) if inherited else ())
        replaced = replaced_stores(journal, stores.shown) if inherited else frozenset[str]()
        for component in sorted(show(declaration, ReloadResult(started, (), replaced))):
            changes.send_nowait(Change(component, whole=True))
        device = _take_name(options.mountpoint)
        requests = (
            None
            if read_only is None
            else ControlMount(options.mountpoint, read_only, nursery, helpers.mounter.start_helper)
        )
        witness = audit.witness(requests, journal)
        opens = await _watch_opens(vfs, connection, options.mountpoint, helpers.asking, handover, witness, nursery)
        operations = SecretOperations(
            vfs, publisher, connection, opens, requests,
            _share(vfs, connection, nursery, by_several=apps is not None or options.allow_other), witness,
        )  # fmt: skip
        session.begin(connection, operations)
        ready = _Ready(options.mountpoint, _whose(declaration), expiry.done, observer.ready)
        _start_all(
            nursery, publisher.run, publisher.evict_idle, reloader.on_change, reloader.on_signal, expiry.run,
            expiry.confirm_uses,
            partial(_evict_idle, vfs), files.drop_idle, partial(catch_up, vfs.changes, files.announcing),
            partial(_serve_api, handover.api, vfs, declaration.context.app_id, stores, observer.audit),
            partial(_announce, ready, helpers.asking, handover), helpers.mounter.ended,
        )  # fmt: skip
        outputs.begin(
            Measurer(options.mountpoint, vfs, stores, publisher, operations.messages, reloader, observer.audit), nursery
        )
        stop = await _until_unmounted_or_asked_to_stop(handover, supervised=registry.hands_over)
        session.end()
        registry.hands_over = stop is signal.SIGTERM and handover.outlives_us
        _let_go(registry, options.mountpoint, handover, stop, device, helpers.mounter)
        nursery.cancel_scope.cancel()
    if not registry.hands_over:
        outputs.end()
        observer.audit.note("unmount", {"daemon": os.getpid()})
        handover.stop_listening()
        memory.close()
        connection.close()


def _take_name(mountpoint: Path) -> int | None:
    """Name this process after the mount. Returns its minor device number."""
    with suppress(MountError):  # covered, or detached and in use: it is served all the same
        return set_process_name(mountpoint)
    return None


def _start_all(nursery: trio.Nursery, *tasks: Callable[[], Awaitable[object]]) -> None:
    for task in tasks:
        nursery.start_soon(task)


def _let_go(
    registry: Registry,
    mountpoint: Path,
    handover: Handover,
    stop: signal.Signals | None,
    device: int | None,
    mounter: Mounter,
) -> None:
    """Unmount, unless the mount is gone or somebody takes it over."""
    if stop is None:
        log.info("unmounted %s", mountpoint, extra={"mountpoint": mountpoint})
    elif not registry.hands_over and (there := secretfs_at(mountpoint)) and there.minor == device:
        mounter.unmount()
    if not registry.hands_over and (stop is None or device is not None):  # else only the supervisor knows the mount
        _leave(handover, leased=any(isinstance(opened.store, LeasingStore) for opened in registry.open))


def _leave(handover: Handover, *, leased: bool) -> None:
    """Let nobody wait for us: the mount is gone, and what is left to do is to give back what stores were lent."""
    handover.release()
    if leased:
        set_name("secretfs")  # we do not serve any more: see `daemon_pids`
        handover.notify(STOPPING=1)


def _journal(inherited: Connection | None) -> Journal:
    """Begin a journal, or another generation in that of our predecessor."""
    if inherited is None:
        return Journal()
    inherited.journal.begin_generation()
    return inherited.journal


def _mount(options: MountOptions, journal: Journal, mounter: Mounter) -> Connection:
    clear(options.mountpoint, mounter.unmount)
    descriptor, notice = mounter.mount(options.source, allow_other=options.allow_other)
    if notice:
        log.info("%s", notice)
    return Connection(descriptor, journal, kernel_answers=options.kernel_answers)


def _share(vfs: SecretVFS, connection: Connection, nursery: trio.Nursery, *, by_several: bool) -> FairShare | None:
    """Share a mount out among apps and users, where there may be several."""
    if not by_several:
        return None
    share = FairShare(vfs.request, connection.has_requests)
    nursery.start_soon(share.run)
    return share


async def _serve_api(listener: Listener | None, vfs: SecretVFS, app_id: str, stores: StoreSet, audit: AuditLog) -> None:
    """Serve the Secrets API, where it is asked for. What it needs is loaded in a thread: the files do not wait."""
    if listener is None:
        return
    try:
        api = await trio.to_thread.run_sync(_load_api)
        await trio.lowlevel.checkpoint()  # the mount may have ended by now
        await api.serve_secrets(vfs.secrets, app_id, stores, audit, listener.socket)
    except Exception as error:  # noqa: BLE001 - a defect here must not cost anybody the mount
        log_defect(log, error)


def _load_api() -> ModuleType:
    from secretfs.daemon import api  # noqa: PLC0415 - with libraries that only it needs

    return api


async def _watch_opens(
    vfs: SecretVFS,
    connection: Connection,
    mountpoint: Path,
    helper: SyscallHelper,
    handover: Handover,
    witness: Witness,
    nursery: trio.Nursery,
) -> Opens:
    """Have the kernel report opens to an audit log, where it may open files by itself. Elsewhere it asks us at each."""
    if not connection.kernel_may_open or not witness.hears_reports:
        handover.drop_opens()
        return Opens()
    inherited = handover.opens is not None
    group = await handover.watch_opens(helper)
    if group is None:
        return Opens()
    opens = OpenWatcher(vfs.changes, OpenEvents(group, witness.reported), mountpoint, helper, nursery)
    nursery.start_soon(partial(opens.run, inherited=inherited))
    return opens


async def _until_unmounted_or_asked_to_stop(handover: Handover, *, supervised: bool) -> signal.Signals | None:
    """Serve requests until the mount is gone (None) or a signal asks to stop; the next worker answers pending ones.

    At SIGTERM our own supervisor first starts the next worker, so that readers need not wait for that; then it asks
    again.
    """
    asked: signal.Signals | None = None
    early: list[int] = []
    for number in _STOPPING if supervised else ():
        signal.signal(number, lambda number, _: early.append(number))  # before and after what is received below

    async def stop_on_signal() -> None:
        nonlocal asked
        with trio.open_signal_receiver(*_STOPPING) as signals:
            asked = signal.Signals(early[0] if early else await anext(signals))
            if asked is signal.SIGTERM and handover.name_modules(renew=True):
                with trio.move_on_after(NEXT_STARTS):
                    asked = signal.Signals(await anext(signals))
            log.info("ending after %s", asked.name, extra={"signal": asked.name})
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stop_on_signal)
        await session.serve_requests()
        nursery.cancel_scope.cancel()
    return asked


async def _evict_idle(vfs: SecretVFS) -> None:
    while True:
        await trio.sleep(EVICT_EVERY)
        vfs.evict_idle()


def _whose(declaration: Declaration) -> str:
    """Say whom a mount is for."""
    if declaration.apps is not None:
        return f"{len(declaration.apps)} apps"
    app_id = declaration.context.app_id
    return f"app id {app_id}" if app_id else "no app id"


class _Ready(NamedTuple):
    """What is said when a mount is ready."""

    mountpoint: Path
    whose: str
    expired: trio.Event
    """Set when the kernel knows nothing any more that is to be confirmed."""
    tell: Callable[[], None]


async def _announce(ready: _Ready, helper: SyscallHelper, handover: Handover) -> None:
    """Say that the mount is ready when it answers through the kernel, as to its users; then feed the watchdog.

    The question is statvfs(2), which needs no store: it finds out whether we serve. Runs until the mount is gone.
    """
    with trio.move_on_after(ASK_AGAIN):  # a program that waits for a store may be in the way
        await ready.expired.wait()
    while not await _answers(ready.mountpoint, helper):  # noqa: ASYNC110 - nothing tells when
        await trio.sleep(ASK_AGAIN)
    ready.tell()
    handover.notify(READY=1, STATUS=f"serves {ready.mountpoint}")
    how = "took over the mount at" if handover.inherited else "mounted at"
    context = {"mountpoint": ready.mountpoint, "worker": os.getpid()}
    log.info("%s %s: %s, process %d", how, ready.mountpoint, ready.whose, os.getpid(), extra=context)
    standby = False
    while handover.watchdog is not None:
        await trio.sleep(handover.watchdog / 4)
        if await _answers(ready.mountpoint, helper):
            handover.notify(WATCHDOG=1)
        standby = standby or handover.name_modules()  # not before: a mount that starts needs the processor itself


async def _answers(mountpoint: Path, helper: SyscallHelper) -> bool:
    try:
        await helper.call("statvfs", os.fsencode(mountpoint))
    except OSError as error:
        log.info("the mount does not answer: %s", error.strerror)
        return False
    return True
