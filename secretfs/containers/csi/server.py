"""The gRPC servers of the driver, at Unix sockets where the kubelet looks for them, and the life of its process."""

import logging
import os
import signal
import socket
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import grpc

from secretfs.containers.csi.failures import code_of
from secretfs.containers.csi.measures import Measures
from secretfs.containers.csi.services import Method, Service
from secretfs.errors import ConfigurationError, MountError, SecretFSError, log_defect
from secretfs.observe.address import remove_dead

THREADS: Final = 16
"""Calls at once. Others wait."""
GRACE: Final = 10.0
"""Seconds that calls under way have when the driver is asked to end."""

log = logging.getLogger(__name__)


def run(sockets: Mapping[Path, Mapping[str, Service]], measures: Measures) -> None:
    """Serve at each socket its services, by name, until SIGTERM or SIGINT. Raises `MountError` if others do.

    ``measures`` has each call in the end.
    """
    signals, wakeup = socket.socketpair()  # a lock would miss a signal that comes just before the wait for it
    wakeup.settimeout(0)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    with signals, wakeup, ExitStack() as stack:
        signal.set_wakeup_fd(wakeup.fileno())
        stack.callback(signal.set_wakeup_fd, -1)
        for path, services in sockets.items():
            stack.enter_context(_serving(path, services, measures))
        log.info("serving volumes at %s", next(iter(sockets)))
        signals.recv(1)


@contextmanager
def _serving(path: Path, services: Mapping[str, Service], measures: Measures) -> Iterator[None]:
    """Serve at a socket for this user alone, in the place of a driver that was killed."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        remove_dead(path)
    except OSError as error:
        raise MountError(f"cannot listen at {path}: {error.strerror}") from None
    server = grpc.server(ThreadPoolExecutor(THREADS), options=[("grpc.so_reuseport", 0)])
    for name, service in services.items():
        handlers = {method: _handler(name, method, answer, measures) for method, answer in service.items()}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))
    before = os.umask(0o177)  # the socket gets the mode 0600 with its name
    try:
        server.add_insecure_port(f"unix:{quote(str(path))}")
        server.start()
    except RuntimeError:
        raise ConfigurationError(f"cannot listen at {path}") from None
    finally:
        os.umask(before)
    inode = path.stat().st_ino
    try:
        yield
    finally:
        server.stop(GRACE).wait()
        with suppress(OSError):
            if path.stat().st_ino == inode:  # else it belongs to the next driver
                path.unlink()


def _handler(service: str, name: str, method: Method, measures: Measures) -> grpc.RpcMethodHandler:
    return grpc.unary_unary_rpc_method_handler(partial(_answer, service, name, method, measures))


def _answer(service: str, name: str, method: Method, measures: Measures, message: bytes, context: Any) -> bytes:
    """Answer a call. What goes wrong is its status. Nothing quotes a request, which may hold tokens."""
    with measures.call(name) as call:
        try:
            return method(message)
        except SecretFSError as error:
            log.warning("%s/%s: %s", service, name, error)
            call.code, reason = code_of(error), str(error)
        except Exception as error:  # noqa: BLE001 - a defect costs this call only
            log_defect(log, error)
            call.code, reason = "INTERNAL", "a defect in secretfs; the log of its driver has the place"
    context.set_code(grpc.StatusCode[call.code])
    context.set_details(reason)
    return b""
