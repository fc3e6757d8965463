"""The server of the volume plug-in: its socket, which systemd may have opened, and its life from start to signal."""

import logging
import os
import signal
import socket
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final, cast

import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from hypercorn.typing import ASGIFramework

from secretfs.containers.volume_plugin import VolumePlugin
from secretfs.containers.volumes import Volumes
from secretfs.errors import ConfigurationError, MountError
from secretfs.linux.sd_notify import service_manager, stored_descriptors

FROM_SYSTEMD: Final = "volume-plugin"
"""The name that the socket unit gives the socket (``FileDescriptorName=``)."""

log = logging.getLogger(__name__)


def run(volumes: Volumes, path: Path) -> None:
    """Serve at a Unix socket until SIGTERM or SIGINT. Raises `MountError` if another plug-in serves there."""
    manager = service_manager()
    with _listening(path) as descriptor:

        async def until_signal() -> None:
            with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
                log.info("serving volumes at %s", path)
                if manager:
                    manager.notify(READY=1)
                async for _ in signals:
                    return

        config = Config()
        config.bind = [f"fd://{descriptor}"]
        config.errorlog = logging.getLogger("hypercorn")
        config.errorlog.setLevel(logging.WARNING)  # that it runs, and how to end it, is for people at a terminal
        app = cast("ASGIFramework", VolumePlugin(volumes))
        trio.run(partial(serve, app, config, shutdown_trigger=until_signal, mode="asgi"))


@contextmanager
def _listening(path: Path) -> Iterator[int]:
    """Yield the socket that systemd has opened, or one at ``path`` that is gone in the end."""
    inherited = stored_descriptors().get(FROM_SYSTEMD)
    if inherited is not None:
        yield inherited
        return
    listener = _bind(path)
    inode = path.stat().st_ino
    try:
        yield listener.detach()
    finally:
        with suppress(OSError):
            if path.stat().st_ino == inode:  # else it belongs to the next plug-in
                path.unlink()


def _bind(path: Path) -> socket.socket:
    """Listen at ``path`` for this user alone, in the place of a plug-in that was killed."""
    listener = socket.socket(socket.AF_UNIX)
    try:
        _clear(path)
        os.fchmod(listener.fileno(), 0o600)  # before it has a name: the file gets this mode
        listener.bind(str(path))
        listener.listen()
    except OSError as error:
        listener.close()
        raise ConfigurationError(f"cannot listen at {path}: {error.strerror or error}") from None
    except MountError:
        listener.close()
        raise
    return listener


def _clear(path: Path) -> None:
    """Make room for a socket. Raises `MountError` if somebody listens there, OSError if it cannot be made."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ConfigurationError(f"{path} is there, and is no socket")
    except FileNotFoundError:
        return
    with closing(socket.socket(socket.AF_UNIX)) as probe, suppress(ConnectionRefusedError):
        probe.connect(str(path))
        raise MountError(f"a volume plug-in serves at {path} already", "stop it, or name another socket: --socket")
    path.unlink()
