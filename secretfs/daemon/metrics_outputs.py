"""Where metrics go: the control file ``.secretfs/metrics``, an HTTP endpoint, and a file for node_exporter."""

import logging
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Final

import trio

from secretfs.daemon.measuring import Measurer, metrics_installed, require_metrics
from secretfs.daemon.request import MountOptions
from secretfs.errors import ConfigurationError, log_defect
from secretfs.observe.address import listen
from secretfs.observe.measures import Format

WRITE_EVERY: Final = 15.0
"""Seconds between two writes of a file. Prometheus asks as often by default, or less."""

log = logging.getLogger(__name__)


class MetricsOutputs:
    """Serves and writes the metrics of one mount."""

    def __init__(self, options: MountOptions, *, takes_over: bool) -> None:
        """Open what is asked for. Raises `ConfigurationError`; with ``takes_over`` the log has it, as readers wait."""
        self._measurer: Measurer | None = None
        self._file = options.metrics_file.absolute() if options.metrics_file else None  # we leave this directory
        self._socket: socket.socket | None = None
        self._path = options.metrics_listen.path if options.metrics_listen else None
        self._failed = False
        try:
            self._socket = self._open(options, takes_over=takes_over)
        except ConfigurationError as error:
            if not takes_over:
                raise
            self._file = self._path = None
            log.error("%s", error)  # noqa: TRY400 - a mistake of a user, not of ours

    @property
    def is_available(self) -> bool:
        """Whether there can be metrics: what makes them is installed."""
        return metrics_installed()

    async def page(self, form: Format = "openmetrics") -> bytes:
        """Return the metrics of now."""
        return b"" if self._measurer is None else await self._measurer.page(form)

    def begin(self, measurer: Measurer, nursery: trio.Nursery) -> None:
        """Serve the metrics of a mount from now on."""
        self._measurer = measurer
        if self._socket is not None:
            nursery.start_soon(self._serve, self._socket)
        if self._file is not None:
            nursery.start_soon(self._write_again_and_again, self._file)

    def end(self) -> None:
        """Remove what would look like a mount that is served: it is not any more."""
        for path in filter(None, (self._file, self._path)):
            with suppress(OSError):
                path.unlink()

    def _open(self, options: MountOptions, *, takes_over: bool) -> socket.socket | None:
        if options.metrics_file is not None:
            require_metrics("--metrics-file")
            if not takes_over:
                _try_to_write(options.metrics_file)
        if options.metrics_listen is None:
            return None
        require_metrics("--metrics-listen")
        return listen(options.metrics_listen)

    async def _serve(self, opened: socket.socket) -> None:
        from secretfs.observe.endpoint import serve_pages  # noqa: PLC0415 - who does not ask for it does not wait

        await serve_pages(trio.SocketListener(trio.socket.from_stdlib_socket(opened)), self.page)

    async def _write_again_and_again(self, path: Path) -> None:
        while True:
            try:
                page = await self.page("classic")
                await trio.to_thread.run_sync(_write, path, page, abandon_on_cancel=True)
            except OSError as error:
                if not self._failed:
                    log.warning("metrics are not written to %s: %s", path, error.strerror)
                self._failed = True
            except Exception as error:  # noqa: BLE001 - a defect here must not cost everybody the mount
                log_defect(log, error)
            else:
                self._failed = False
            await trio.sleep(WRITE_EVERY)


def _try_to_write(path: Path) -> None:
    """Find out whether a file can be written. Raises `ConfigurationError`."""
    try:
        _write(path, b"")
    except OSError as error:
        raise ConfigurationError(f"--metrics-file {path}: {error.strerror}") from None


def _write(path: Path, page: bytes) -> None:
    """Replace a file, in one step. Everybody may read it: node_exporter is another user."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o644)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o644)
            file.write(page)
        new.replace(path)
    except OSError:
        new.unlink(missing_ok=True)
        raise
