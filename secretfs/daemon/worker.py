"""The worker: the process that serves a mount, from its flags to its end.

``secretfs mount`` starts a supervisor, which runs the same command again as its worker. Under a service manager that
expects notifications (systemd, ``Type=notify``), ``secretfs mount`` is the worker itself.
"""

import logging
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import trio

from secretfs.daemon.audience import require_rights
from secretfs.daemon.auditing import tell_loan
from secretfs.daemon.handover import Handover
from secretfs.daemon.processes import clear_failure
from secretfs.daemon.request import MountOptions, Request
from secretfs.daemon.serve import Observer, serve
from secretfs.daemon.store_records import known_stores
from secretfs.dapr.declaration import Declaration
from secretfs.dapr.load import ConfigSource, declare
from secretfs.errors import ConfigurationError, SecretFSError
from secretfs.linux.confinement import CAP_DAC_READ_SEARCH, CAP_NET_BIND_SERVICE, CAP_SYS_PTRACE, confine
from secretfs.linux.daemonize import leave_terminal
from secretfs.linux.environment import hide_environment
from secretfs.linux.log import log_to
from secretfs.linux.log_destinations import log_in_thread, open_log, open_syslog
from secretfs.linux.mounter import HelperProcesses
from secretfs.linux.mountpoint import prepare
from secretfs.linux.precedence import go_first
from secretfs.linux.process import CAP_DAC_OVERRIDE, CAP_IPC_LOCK, has_capability, protect_memory
from secretfs.linux.runtime_directory import make_runtime_directory, runtime_file
from secretfs.observe.audit import audit_log
from secretfs.observe.audit_options import AuditMode
from secretfs.registry.opening import open_registry

_FIRST_FREE_PORT: Final = 1024  # net.ipv4.ip_unprivileged_port_start

log = logging.getLogger(__name__)


def work(
    request: Request,
    handover: Handover,
    observer: Observer | None = None,
    end: Callable[[], Awaitable[None]] = trio.sleep_forever,
) -> int:
    """Serve a mount in this process until it is unmounted or ``end`` returns. Returns an exit status.

    After ``end`` the mount stays, dead, for the programs that still use it.
    """
    try:
        audit = audit_log(request.options.audit, request.options.mountpoint)
        observer = replace(observer or Observer(partial(_become_ready, request, handover)), audit=audit)
        _work(request, handover, observer, end)
    except (SecretFSError, BaseExceptionGroup) as error:
        handover.notify(STATUS=_reason(error))
        raise
    return 0


def _work(request: Request, handover: Handover, observer: Observer, end: Callable[[], Awaitable[None]]) -> None:
    options = request.options
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until it is handled: all configuration is about to be read
    if handover.takes_over:  # there is no terminal any more
        with suppress(ConfigurationError):  # without its log file the mount is served all the same
            _log_as_asked(request)
    strict = options.audit.mode is AuditMode.STRICT
    if not handover.inherit(options.mountpoint, allow_other=options.allow_other, every_open=strict):
        return
    if handover.inherited is None:
        observer.audit.require()
        prepare(options.mountpoint, allow_other=options.allow_other, nonempty=options.nonempty)
    protect_memory()
    hide_environment()
    go_first()  # with its helpers: changes do not show before they have made their calls
    helpers = HelperProcesses.fork(options.mountpoint)  # before credentials are read

    async def serve_until_end(declaration: Declaration, origin: ConfigSource) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_it, declaration, origin, nursery.cancel_scope)
            await end()
            nursery.cancel_scope.cancel()

    async def serve_it(declaration: Declaration, origin: ConfigSource, scope: trio.CancelScope) -> None:
        await _serve(declaration, origin, options, helpers, handover, observer)
        scope.cancel()

    try:
        declaration, origin = declare(request.sources)
        require_rights(options, declaration)
        for notice in (*declaration.notices, *options.notices):
            notice.log_to(log)
        handover.listen(options)
        confine(_needed(options), _written(request))
        trio.run(serve_until_end, declaration, origin)
    finally:
        observer.audit.close()
        helpers.close()
        if not handover.mount_outlives_us:
            handover.stop_listening()


async def _serve(
    declaration: Declaration,
    origin: ConfigSource,
    options: MountOptions,
    helpers: HelperProcesses,
    handover: Handover,
    observer: Observer,
) -> None:
    components = declaration.components
    known = known_stores(handover.inherited.journal, declaration) if handover.inherited else {}
    async with open_registry(
        components,
        declaration.context,
        options.default,
        known=known,
        leases=handover.leases,
        tell_loan=partial(tell_loan, observer.audit),
    ) as registry:
        for notice in registry.notices:
            notice.log_to(log)
        if handover.inherited is None:
            registry.require()
        for failure in registry.failures:
            ignored = "ignoreErrors" if failure.component.ignore_errors else "its files are EIO"
            log.warning("%s (%s)", failure, ignored)
        await serve(registry, declaration, origin, options, helpers, handover, observer)


def _needed(options: MountOptions) -> set[int]:
    """Return the capabilities that a worker has a use for, if it has them: see `NAMES`."""
    needed = {CAP_DAC_OVERRIDE if has_capability(CAP_DAC_OVERRIDE) else CAP_DAC_READ_SEARCH, CAP_IPC_LOCK}
    if options.audit.mode is not AuditMode.OFF:
        needed.add(CAP_SYS_PTRACE)
    if options.metrics_listen is not None and 0 < options.metrics_listen.port < _FIRST_FREE_PORT:
        needed.add(CAP_NET_BIND_SERVICE)
    return needed


def _written(request: Request) -> set[Path]:
    """Return the directories of the files and sockets that a worker makes. That in /run has to be there."""
    options = request.options
    runtime = runtime_file(options.mountpoint)
    with suppress(OSError):  # it logs to syslog, or nowhere
        make_runtime_directory(runtime)
    sockets = [address.path for address in (options.api, options.metrics_listen) if address is not None]
    files = [path for path in (runtime, request.log_file, options.metrics_file, *sockets) if path is not None]
    return {Path(place).parent for path in files for place in (path, os.path.realpath(path))}


def _become_ready(request: Request, handover: Handover) -> None:
    """Leave the terminal, unless in the foreground. Until now the user who mounts saw the errors there."""
    clear_failure(str(request.options.mountpoint))
    if not handover.takes_over:
        _log_as_asked(request)
    log_in_thread()
    if not request.foreground:
        leave_terminal()


def _log_as_asked(request: Request) -> None:
    if request.log_file:
        log_to(open_log(request.log_file, as_json=request.log_as_json))
    elif not request.foreground:
        log_to(open_syslog(request.options.mountpoint, as_json=request.log_as_json))


def _reason(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error) if isinstance(error, SecretFSError) else f"a defect: {type(error).__name__}"
