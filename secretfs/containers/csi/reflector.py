"""Dapr's objects of one kind in one namespace: listed once, page by page, then watched; each is a file at any time.

While the API server is down, or refuses, files stay as they are. A thread asks again with an exponential back-off, and
goes on from the last resourceVersion or, when the API server no longer has that, from a new list.
"""

import json
import logging
import random
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote, urlencode

from secretfs.containers.csi.api_server import PATIENCE, ApiServer, Stream
from secretfs.containers.csi.failures import CallFailure, FailedPrecondition, Unavailable
from secretfs.containers.csi.object_files import Closed, ObjectFiles, name_of
from secretfs.dapr.component import API_VERSION
from secretfs.errors import log_defect

WATCH: Final = 120.0
"""Seconds; a server that hangs without closing the connection is noticed after that."""

_PAGE: Final = 20
_LARGEST_PAGE: Final = 32 << 20
_LARGEST_EVENT: Final = 4 << 20
"""Bytes. etcd takes 1.5 MiB of an object at most."""
_FIRST_DELAY, _LONGEST_DELAY = 0.2, 30.0
_SHORTEST_WATCH: Final = 1.0
"""Seconds. A shorter one without an event is a failure."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Resource:
    """A resource of Dapr's in the API."""

    plural: str
    kind: str


COMPONENTS: Final = Resource("components", "Component")
CONFIGURATIONS: Final = Resource("configurations", "Configuration")


class _Expired(Exception):
    """The API server no longer has the resourceVersion to go on from, or there is a place for what was left out."""


class Reflector:
    """Keeps ``files`` as the API server says, in a thread of its own, until it is closed."""

    def __init__(self, api: ApiServer, namespace: str, resource: Resource, files: ObjectFiles) -> None:
        self._api = api
        self._namespace = namespace
        self._resource = resource
        self._files = files
        self._state = threading.Condition()
        """Held while what follows changes."""
        self._version = ""
        """Up to which files are as the API server says; empty if it has to list. Only the thread uses it."""
        self._listed = False
        self._attempts = 0
        self._failure: CallFailure | None = None
        """Why the last attempt has failed; None while it has not."""
        self._stream: Stream | None = None
        self._closed = False
        self._again = threading.Event()
        self._delay = _FIRST_DELAY
        self._thread = threading.Thread(target=self._run, name=f"{resource.plural} of {namespace}", daemon=True)

    def start(self) -> None:
        """Begin to list."""
        self._thread.start()

    def wait(self, seconds: float) -> None:
        """Wait until all objects are files. Raises `CallFailure` with what is in the way."""
        with self._state:
            before = self._attempts
            self._again.set()
            self._state.wait_for(lambda: self._listed or self._attempts > before, seconds)
            if not self._listed:
                raise self._failure or Unavailable(f"the API server takes long to list {self}; this goes on")

    @property
    def is_watching(self) -> bool:
        """Whether files are as the API server says, as far as it has said so."""
        with self._state:
            return self._listed and self._failure is None

    def close(self) -> None:
        """Write nothing any more, and end. The files stay."""
        self._files.close()
        with self._state:
            self._closed = True
            if self._stream is not None:
                self._stream.stop()
        self._again.set()

    def __str__(self) -> str:
        return f"{self._resource.plural} of namespace {self._namespace}"

    # --- the thread ---

    def _run(self) -> None:
        while not self._closed:
            try:
                if not self._version:
                    self._list()
                self._watch()
            except Closed:
                return
            except _Expired:
                self._version = ""
                self._pause()
            except CallFailure as error:
                self._failed(error)
            except OSError as error:
                self._version = ""
                self._failed(Unavailable(f"cannot write {self}: {error.strerror}"))
            except Exception as error:  # noqa: BLE001 - a defect must not end the watch for good
                self._version = ""
                log_defect(log, error)
                self._failed(Unavailable(f"a defect in secretfs keeps the driver from reading {self}"))

    def _list(self) -> None:
        """Make files of all objects, and of no others."""
        names, rest = set[str](), ""
        while True:
            query = {"limit": str(_PAGE)} | ({"continue": rest} if rest else {})
            status, body = self._api.call("GET", self._path(query), largest=_LARGEST_PAGE)
            self._require(status)
            page = _object(body)
            names.update(map(self._files.put, page.get("items") or ()))
            version, rest = _version_of(page), page["metadata"].get("continue") or ""
            if not rest:
                break
        if self._files.keep_only(names):
            raise _Expired
        self._version = version
        self._succeeded()

    def _watch(self) -> None:
        """Follow what changes, until the server ends that, as it is asked to after a while."""
        seconds = WATCH * random.uniform(0.75, 1.25)  # noqa: S311 - spreads load, hides nothing
        query = {
            "watch": "1", "allowWatchBookmarks": "true", "resourceVersion": self._version,
            "timeoutSeconds": f"{seconds:.0f}",
        }  # fmt: skip
        began, heard = time.monotonic(), False
        with self._api.stream(self._path(query), seconds + PATIENCE) as stream, self._stoppable(stream):
            self._require(stream.status)
            self._succeeded()
            for line in stream.lines(_LARGEST_EVENT):
                self._take(_object(line))
                self._delay, heard = _FIRST_DELAY, True
        if not heard and time.monotonic() - began < _SHORTEST_WATCH:
            raise Unavailable(f"the API server ends the watch of {self} at once")
        self._delay = _FIRST_DELAY

    def _take(self, event: Mapping[str, Any]) -> None:
        kind, item = event.get("type"), event.get("object")
        if kind == "ERROR":
            code = item.get("code") if isinstance(item, dict) else None
            if code == HTTPStatus.GONE:
                raise _Expired
            self._version = ""
            raise Unavailable(f"the API server ends the watch of {self} with status {code}")
        if not isinstance(item, dict):
            raise _no_answer()
        if kind in ("ADDED", "MODIFIED"):
            self._files.put(item)
        elif kind == "DELETED" and self._files.remove(name_of(item)):
            raise _Expired
        self._version = _version_of(item)

    def _path(self, query: Mapping[str, str]) -> str:
        namespace = quote(self._namespace, safe="")
        return f"/apis/{API_VERSION}/namespaces/{namespace}/{self._resource.plural}?{urlencode(query)}"

    def _require(self, status: int) -> None:
        """Raise what a status other than 200 means."""
        if status == HTTPStatus.GONE:
            raise _Expired
        if status in (401, 403):
            raise FailedPrecondition(
                f"the API server does not let the driver read {self} ({status}): its service account needs the rights "
                f"to list and watch {self._resource.plural} of dapr.io"
            )
        if status == HTTPStatus.NOT_FOUND:
            raise FailedPrecondition(
                f"the cluster does not know {self._resource.plural}.dapr.io (404): install Dapr, or its "
                "custom resource definitions"
            )
        if status != HTTPStatus.OK:
            raise Unavailable(f"cannot read {self}: the API server answers with status {status}")

    @contextmanager
    def _stoppable(self, stream: Stream) -> Iterator[None]:
        with self._state:
            if self._closed:
                raise Closed
            self._stream = stream
        try:
            yield
        finally:
            with self._state:
                self._stream = None

    def _succeeded(self) -> None:
        with self._state:
            if self._failure is not None:
                log.info("%s are read again", self)
            self._listed, self._failure = True, None
            self._state.notify_all()

    def _failed(self, error: CallFailure) -> None:
        """Say so, once, and wait before the next attempt."""
        with self._state:
            if self._closed:
                return
            if str(error) != str(self._failure):
                log.warning("%s%s", error, "; what is known of them stays" if self._listed else "")
            self._failure = error
            self._attempts += 1
            self._state.notify_all()
        self._pause()

    def _pause(self) -> None:
        self._again.wait(random.uniform(0.5, 1.0) * self._delay)  # noqa: S311 - spreads load, hides nothing
        self._again.clear()
        self._delay = min(2 * self._delay, _LONGEST_DELAY)


def _object(text: bytes) -> dict[str, Any]:
    """Read an object as the API server sends it. Raises `Unavailable` for what is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise _no_answer()
    return value


def _version_of(item: Mapping[str, Any]) -> str:
    try:
        version = item["metadata"]["resourceVersion"]
    except (LookupError, TypeError):
        version = None
    if not isinstance(version, str) or not version:
        raise _no_answer()
    return version


def _no_answer() -> Unavailable:
    return Unavailable("the answer of the API server is none")
