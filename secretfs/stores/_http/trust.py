"""Which servers are trusted and which certificate is shown, read again when a file changes."""

import logging
import ssl
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from secretfs.errors import ConfigurationError, StoreUnavailable

Identity = tuple[int, int, int, int, int]

logger = logging.getLogger(__name__)


def file_identity(path: str | Path) -> Identity | None:
    """Return what changes when a file is edited or replaced; None when there is none. Follows links."""
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def system_identity() -> object:
    """Return what changes when the system's authorities do: OpenSSL's bundle and the entries of its folder."""
    paths = ssl.get_default_verify_paths()
    return tuple((path, file_identity(path)) for path in (paths.cafile, paths.capath) if path)


def tls_context(authorities: Iterable[str] | None, *, verify: bool = True) -> ssl.SSLContext:
    """Trust exactly the given PEM texts, or the system's authorities for None. Raises `ConfigurationError`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.hostname_checks_common_name = False
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    if authorities is None:
        context.load_default_certs()
        return context
    # As in Go, every given certificate is an anchor, also an intermediate one or the server's own.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    for pem in authorities:
        try:
            context.load_verify_locations(cadata=pem)
        except (ssl.SSLError, ValueError):
            raise ConfigurationError("couldn't read PEM: there is no certificate in it") from None
    return context


class Trust:
    """The TLS context for new connections: made again when a file that it was made from has changed. Thread-safe.

    ``make`` reads the files; ``identity`` returns what changes with them, and is asked before each connection. While
    the files cannot be used, as in the middle of their replacement, there are no new connections.
    """

    def __init__(
        self, owner: str, make: Callable[[], ssl.SSLContext], identity: Callable[[], object] = lambda: None
    ) -> None:
        self._owner = owner
        self._make = make
        self._identity = identity
        self._lock = threading.Lock()
        self._seen = identity()
        self._context = make()

    def context(self) -> ssl.SSLContext:
        """Return the context for a connection that begins now. Raises `StoreUnavailable`."""
        with self._lock:
            seen = self._identity()
            if seen != self._seen:
                try:
                    self._context = self._make()
                except ConfigurationError as error:
                    raise StoreUnavailable(str(error)) from None
                self._seen = seen
                logger.info("%s: the certificates have changed and were read again", self._owner)
            return self._context


def system_trust(owner: str) -> Trust:
    """Trust the system's authorities, as they are at each new connection."""
    return Trust(owner, lambda: tls_context(None), system_identity)
