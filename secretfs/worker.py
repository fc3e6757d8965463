"""The process that serves a mount, from the flags to the last unmount; and how it gets a supervisor.

Whoever calls ``secretfs mount`` gets a supervisor, which runs the same command again as its worker. A service manager
that wants to be notified (systemd, ``Type=notify``) is one already.
"""

import logging
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from secretfs import obituary
from secretfs.daemon import leave_terminal, log_to, open_log, start_in_background
from secretfs.declaration import Declaration
from secretfs.errors import SecretFSError
from secretfs.flags import load_declaration, named_paths
from secretfs.hand import Hands
from secretfs.keeper import Keeper
from secretfs.mount import MountOptions, serve
from secretfs.mountpoint import prepare
from secretfs.process import protect_memory
from secretfs.registry import open_registry
from secretfs.reload import Origin, fingerprint, working_directory

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Request:
    """What somebody wants to be mounted, and how."""

    resources: tuple[Path, ...]
    configs: tuple[Path, ...]
    app_id: str
    builtin: bool
    options: MountOptions
    foreground: bool = False
    log_file: Path | None = None


def mount(request: Request, arguments: Sequence[str]) -> int:
    """Serve a mount, or have it served by a supervisor that is given ``arguments``. Returns an exit status.

    In the background it returns when the mount answers. Raises `SecretFSError` for whatever keeps it from that.
    """
    keeper = Keeper.from_environment(foreground=request.foreground)
    if keeper is None:
        return _supervise(request, arguments)
    return work(request, keeper)


def _supervise(request: Request, arguments: Sequence[str]) -> int:
    log_to = str(request.log_file.absolute()) if request.log_file else "-" if request.foreground else ""
    program = [sys.executable, "-P", "-m"]  # -P: not what lies in the working directory

    def command(ready: int) -> list[str]:
        supervisor = ["secretfs.supervisor", str(ready), log_to, str(request.options.mountpoint)]
        return [*program, *supervisor, *program, "secretfs", *arguments]

    if request.foreground:
        os.execv(program[0], command(-1))  # noqa: S606 - no shell
    return start_in_background(command)


def work(request: Request, keeper: Keeper) -> int:
    """Serve a mount in this process. Returns an exit status."""
    try:
        _work(request, keeper)
    except (SecretFSError, BaseExceptionGroup) as error:
        keeper.tell(STATUS=_reason(error))
        raise
    return 0


def _work(request: Request, keeper: Keeper) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until it is listened to: what it asks to be read is being read
    if keeper.takes_over:  # there is no terminal any more
        _log_as_asked(request)
    keeper.inherit(request.options.mountpoint)
    if keeper.inherited is None:
        prepare(request.options.mountpoint, allow_other=request.options.allow_other)
        obituary.remove(str(request.options.mountpoint))
    declaration, origin = _read(request)
    protect_memory()
    hands = Hands.fork()
    try:
        trio.run(partial(_serve, request, declaration, origin, keeper, hands))
    finally:
        hands.close()


def _read(request: Request) -> tuple[Declaration, Origin]:
    """Read what is declared, and note how to read it again."""
    resources, configs = named_paths(request.resources, request.configs)
    # Absolute, because a process in the background leaves the working directory.
    paths = tuple(Path.absolute(path) for path in (*resources, *configs))
    loaded = fingerprint(paths)
    load = partial(load_declaration, app_id=request.app_id, builtin=request.builtin)
    declaration = load(resources, configs)
    for notice in (*declaration.notices, *request.options.notices):
        log.warning("%s", notice)
    again = partial(load, paths[: len(resources)], paths[len(resources) :])
    return declaration, Origin(again, paths, loaded, working_directory())


async def _serve(request: Request, declaration: Declaration, origin: Origin, keeper: Keeper, hands: Hands) -> None:
    options = request.options
    known = keeper.inherited.journal.stores if keeper.inherited else {}
    components = declaration.components
    async with open_registry(components, declaration.surroundings, options.default, known=known) as registry:
        for notice in registry.notices:
            log.warning("%s", notice)
        if keeper.inherited is None:
            registry.require()
        for failure in registry.failures:
            log.warning(
                "%s (%s)",
                failure,
                "ignoreErrors" if failure.component.ignore_errors else "its files are EIO",
            )
        await serve(registry, declaration, origin, options, hands, keeper, partial(_become_ready, request))


def _become_ready(request: Request) -> None:
    """Leave the terminal, if that was asked for. Until now errors went where whoever mounts sees them."""
    _log_as_asked(request)
    if not request.foreground:
        leave_terminal()


def _log_as_asked(request: Request) -> None:
    if request.log_file or not request.foreground:
        log_to(open_log(request.log_file))


def _reason(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error) if isinstance(error, SecretFSError) else f"a defect: {type(error).__name__}"
