"""The start of ``secretfs mount``: as a worker, or as the command that starts a supervisor and waits for the mount.

The command imports no more than it takes to start a supervisor. What is read from manifests, the worker reads; until
the mount answers, it shares the terminal of the command.
"""

import os
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path

from secretfs.daemon import beginning
from secretfs.daemon.request import Request
from secretfs.daemon.stored import CHANNEL
from secretfs.errors import ConfigurationError
from secretfs.linux.daemonize import start_in_background
from secretfs.linux.log import AS_JSON
from secretfs.linux.sd_notify import service_manager, stored_descriptors


def mount(request: Request, arguments: Sequence[str]) -> int:
    """Serve a mount as a worker, or start a supervisor that runs this command again. Returns an exit status.

    ``arguments`` are those of the command. In the background it returns when the mount answers. Raises `SecretFSError`
    for what prevents that.
    """
    _require_outside(request)
    stored = stored_descriptors()
    channel = stored.pop(CHANNEL, None)
    manager = service_manager(channel=channel)
    supervised = channel is not None
    # systemd started the command that makes a background mount, not this process: it counts in the foreground only.
    if manager is None or not (supervised or request.foreground):
        return _supervise(request, arguments)
    from secretfs.daemon.handover import Handover  # noqa: PLC0415 - with libraries that only a worker needs
    from secretfs.daemon.worker import work  # noqa: PLC0415

    return work(request, Handover(manager, stored, supervised=supervised))


def _require_outside(request: Request) -> None:
    """Refuse files below the mount point: the mount hides them, and the daemon would wait for itself."""
    options = request.options
    mountpoint, addresses = options.mountpoint, filter(None, (options.metrics_listen, options.api))
    written = (request.log_file, options.audit.file, options.metrics_file, *(address.path for address in addresses))
    for path in filter(None, (*written, *request.sources.paths, *request.sources.set_paths)):
        if Path(os.path.abspath(path)).is_relative_to(mountpoint):  # noqa: PTH100 - follows no links: that could hang
            raise ConfigurationError(f"{path} is below the mount point {mountpoint}; name another place")


def _supervise(request: Request, arguments: Sequence[str]) -> int:
    log_to = str(request.log_file.absolute()) if request.log_file else "-" if request.foreground else ""
    log_to = f"{AS_JSON}{log_to}" if request.log_as_json else log_to
    program = [sys.executable, "-P", "-m"]  # -P: nothing is imported from the working directory

    def command(ready: int, *first: str) -> list[str]:
        supervisor = ["secretfs.daemon.supervisor", *first, str(ready), log_to, str(request.options.mountpoint)]
        return [*program, *supervisor, *program, "secretfs", *arguments]

    begun = beginning.begun
    ready = -1 if request.foreground else begun.ready if begun else None
    if ready is not None:
        first = begun.hand_over(pickle.dumps(request)) if begun else []
        os.execv(program[0], command(ready, *first))  # noqa: S606 - no shell
    return start_in_background(command)
