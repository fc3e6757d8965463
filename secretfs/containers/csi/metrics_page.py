"""The metrics of a node at one address: those of the driver, and those of its mount, which outlives it.

The processes of the mount have no address of their own: while one follows the other, it would be in use.
"""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Final

import trio
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families

import secretfs
from secretfs.containers.csi.measures import Measures
from secretfs.containers.csi.volumes import Volumes
from secretfs.errors import MountError
from secretfs.observe import families
from secretfs.observe.endpoint import serve_pages
from secretfs.observe.measures import Format

_DRIVER: Final = ("driver",)


class MetricsServer:
    """A thread that answers at a socket, as a context. ``render`` makes the page, and may wait."""

    def __init__(self, opened: socket.socket, render: Callable[[Format], bytes]) -> None:
        self._opened = opened
        self._render = render
        self._begun = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._run,), name="metrics")

    def __enter__(self) -> None:
        self._thread.start()
        self._begun.wait()

    def __exit__(self, *_: object) -> None:
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._scope.cancel)
        self._thread.join()

    async def _run(self) -> None:
        self._token, self._scope = trio.lowlevel.current_trio_token(), trio.CancelScope()
        self._begun.set()
        with self._scope:
            await serve_pages(trio.SocketListener(trio.socket.from_stdlib_socket(self._opened)), self._page)

    async def _page(self, form: Format) -> bytes:
        return await trio.to_thread.run_sync(self._render, form, abandon_on_cancel=True)


def page(name: str, measures: Measures, volumes: Volumes, form: Format) -> bytes:
    """Return the page of a driver of this name."""
    try:
        text = volumes.metrics_of_mount()
    except MountError:  # the reason is what a probe says
        text = ""
    return families.page(partial(_families, name, measures, volumes, text), form)


def _families(name: str, measures: Measures, volumes: Volumes, of_mount: str) -> Iterator[Metric]:
    at = (name,)
    calls, running, reviews = measures.now()
    version = [(at, {"version": secretfs.__version__})]
    yield families.info("csi_build", "The version of the driver.", _DRIVER, version)
    yield families.gauge("csi_mount_up", "1 if the mount has given its metrics.", _DRIVER, [(at, bool(of_mount))])
    text = "Volumes that are published on the node."
    yield families.gauge("csi_volumes", text, _DRIVER, [(at, volumes.published())])
    watched, behind = volumes.watched_namespaces()
    text = "Namespaces whose objects of Dapr are watched."
    yield families.gauge("csi_watched_namespaces", text, _DRIVER, [(at, watched)])
    text = "Those of them whose objects may be behind the API server, as it does not answer."
    yield families.gauge("csi_watched_namespaces_behind", text, _DRIVER, [(at, behind)])
    yield families.gauge("csi_calls_running", "Calls of the kubelet under way.", _DRIVER, [(at, running)])
    durations = {(name, *labels): each for labels, each in calls.items()}
    text = "How long calls of the kubelet took."
    yield families.histogram("csi_call_duration_seconds", text, (*_DRIVER, "method", "code"), durations)
    results = [((name, result), count) for result, count in sorted(reviews.items())]
    text = "Tokens of pods that the API server was asked about."
    yield families.counter("csi_token_reviews", text, (*_DRIVER, "result"), results)
    if of_mount:
        yield from text_string_to_metric_families(of_mount)  # type: ignore[no-untyped-call]
