"""A live copy of the secrets in one list: listed once, page by page, then kept up to date by a watch.

While the watch is connected, reads are answered from the copy. Otherwise they go to the server, and a thread restores
the copy: from its last resourceVersion or, when the server no longer has that, from a new list.
"""

import logging
import math
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from secretfs.errors import AccessDenied, MalformedAnswer, SecretNotFound, StoreError, StoreUnavailable
from secretfs.store import CachedRead, Secret
from secretfs.stores.kubernetes.http import Api, Expired, Stream
from secretfs.stores.kubernetes.objects import ListScope, list_pages, metadata_of, secret_of, version_of

_LARGEST_COPY = 64 << 20  # bytes of values; those that do not fit are read when they are asked for
_WATCH = 120  # seconds; a server that hangs without closing the connection is noticed after that
_FIRST_DELAY, _LONGEST_DELAY = 0.2, 30.0
_STARTING = 5.0  # seconds; an API server that has just started refuses everybody until it has read its roles
_AT_LEAST = 1.0  # seconds between attempts, and that a watch lasts which is one
_SETTLING = 0.2  # seconds for the server to send what was missed, or that it has forgotten
_MOST_ASKED = 10_000  # names; ttl takes care of the others

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Entry:
    """A secret in the copy, or only its version when its values do not fit."""

    version: str
    secret: Secret | None = field(repr=False)
    size: int

    def is_version_of(self, secret: Secret) -> bool:
        return secret.version != "" and secret.version == self.version


class WatchCache:
    """A copy of ``scope``. ``changed`` is called from its thread, with names, after the copy has changed."""

    def __init__(self, component: str, api: Api, scope: ListScope, changed: Callable[[frozenset[str]], None]) -> None:
        self._component = component
        self._api = api
        self._scope = scope
        self._changed = changed
        self._lock = threading.Lock()
        self._secrets: dict[str, _Entry] = {}
        self._size = 0
        self._live_from = math.inf  # on the monotonic clock
        self._asked_meanwhile: set[str] = set()  # names that the server was asked for while there was no copy to ask
        self._version = ""  # of the state from which to go on; empty when there is none
        self._stream: Stream | None = None
        self._closing = threading.Event()
        self._again = threading.Event()
        self._failure = ""
        self._denied_since = 0.0
        self._delay = _FIRST_DELAY
        self._thread = threading.Thread(target=self._run, name=f"{component}: watch of {scope}", daemon=True)
        self._thread.start()

    @property
    def live(self) -> bool:
        """Whether the copy is up to date."""
        return time.monotonic() >= self._live_from

    # --- what readers ask, from any thread ---

    def fetch(self, name: str, read: Callable[[], Secret]) -> Secret:
        """Return a secret from the copy, else call ``read``."""
        with self._lock:
            if self.live:
                entry = self._secrets.get(name)
                if entry is None:
                    raise SecretNotFound("not found")
                if entry.secret is not None:
                    return entry.secret
            self._note_asked({name})
        secret = read()
        self._again.set()  # the server is back
        return secret

    def names(self, read: Callable[[], frozenset[str]]) -> frozenset[str]:
        """Return all names from the copy, else call ``read``."""
        with self._lock:
            if self.live:
                return frozenset(self._secrets)
        names = read()
        self._again.set()
        with self._lock:
            self._note_asked(names)
        return names

    def unchanged(self, known: Mapping[str, CachedRead]) -> frozenset[str]:
        """Name the secrets whose version is still the one that is known; none while the copy is not live."""
        with self._lock:
            entry = self._secrets if self.live else {}
            return frozenset(
                name for name, it in known.items() if name in entry and entry[name].is_version_of(it.secret)
            )

    def stop(self) -> None:
        """Ask the thread to end."""
        with self._lock:
            self._closing.set()
            if self._stream is not None:
                self._stream.stop()
        self._again.set()

    def close(self) -> None:
        """Wait up to a second for the thread to end; a request may keep it longer."""
        self.stop()
        self._thread.join(timeout=1)

    def _note_asked(self, names: frozenset[str] | set[str]) -> None:
        if len(self._asked_meanwhile) < _MOST_ASKED:
            self._asked_meanwhile |= names

    # --- what the thread does ---

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                self._work()
            except StoreError as error:
                delay = self._disconnected(error)
            except Exception as error:  # noqa: BLE001 - the copy must come back; the text may quote a value
                delay = self._disconnected(MalformedAnswer(f"unexpected {type(error).__name__}"))
            else:
                continue
            if not self._closing.wait(min(delay, _AT_LEAST)):
                self._again.clear()
                self._again.wait(max(0.0, delay - _AT_LEAST))

    def _work(self) -> None:
        """List if there is no resourceVersion to continue from, then watch until the server ends the watch."""
        if not self._version:
            self._list()
        began = time.monotonic()
        timeout = _WATCH + self._api.deadline
        options = [("watch", "true"), ("allowWatchBookmarks", "true"), ("timeoutSeconds", str(_WATCH))]
        start = ("resourceVersion", self._version)
        stream = self._api.watch(self._scope.path, [*self._scope.query, *options, start], timeout)
        try:
            with self._lock:
                if self._closing.is_set():
                    return
                self._stream = stream
                if math.isinf(self._live_from):
                    self._live_from = time.monotonic() + _SETTLING
            self._connected()
            for events in stream.batches():
                self._apply(events)
        finally:
            with self._lock:
                self._stream = None
            stream.close()
        if time.monotonic() < began + _AT_LEAST:
            raise StoreUnavailable("the server ends the watch at once")

    def _list(self) -> None:
        listed, version = list_pages(self._api, self._scope, lambda item: (self._scope.name_of(item), secret_of(item)))
        with self._lock:
            before = {name: entry.version for name, entry in self._secrets.items()}
            self._secrets.clear()
            self._size = 0
            for name, secret in listed:
                self._put(name, secret)
            after = {name: entry.version for name, entry in self._secrets.items()}
            changed = self._asked_meanwhile | {
                name for name in before.keys() | after if before.get(name) != after.get(name)
            }
            self._asked_meanwhile = set()
            self._version = version
            self._live_from = time.monotonic()
        self._report(changed)

    def _apply(self, events: list[dict[str, Any]]) -> None:
        changed: set[str] = set()
        try:
            for event in events:
                with self._lock:
                    self._take(event, changed)
        finally:
            self._report(changed)

    def _take(self, event: dict[str, Any], changed: set[str]) -> None:
        kind, item = event.get("type"), event.get("object")
        if not isinstance(item, dict):
            raise MalformedAnswer("an event without an object")
        if kind == "ERROR":
            code = item.get("code")
            raise (Expired if code == 410 else StoreUnavailable)(f"the server ends the watch ({code})")
        if kind in ("ADDED", "MODIFIED", "DELETED"):
            metadata_of(item)
            name = self._scope.name_of(item)
            if kind == "DELETED":
                self._drop(name)
            else:
                self._put(name, secret_of(item))
            changed.add(name)
        self._version = version_of(item)

    def _put(self, name: str, secret: Secret) -> None:
        self._drop(name)
        size = sum(map(len, secret.values.values()))
        fits = self._size + size <= _LARGEST_COPY
        entry = self._secrets[name] = _Entry(secret.version, secret if fits else None, size if fits else 0)
        self._size += entry.size

    def _drop(self, name: str) -> None:
        entry = self._secrets.pop(name, None)
        self._size -= entry.size if entry else 0

    def _report(self, changed: set[str]) -> None:
        if changed:
            self._changed(frozenset(changed))

    def _connected(self) -> None:
        self._delay = _FIRST_DELAY
        self._denied_since = 0.0
        if self._failure:
            logger.info("%s: %s: the watch is back", self._component, self._scope)
        self._failure = ""

    def _disconnected(self, error: StoreError) -> float:
        """Stop answering from the copy. Returns the seconds to wait before the next attempt."""
        denied = isinstance(error, AccessDenied)
        changed = set[str]()
        with self._lock:
            self._live_from = math.inf
            if denied or isinstance(error, Expired | MalformedAnswer):
                self._version = ""
            if denied:
                changed |= self._secrets.keys()
                self._secrets.clear()
                self._size = 0
        self._report(changed)
        if not self._closing.is_set():
            self._say(error, denied=denied)
        delay = self._delay
        self._delay = min(2 * delay, _LONGEST_DELAY)
        return random.uniform(0.5, 1.0) * delay  # noqa: S311 - spreads load, hides nothing

    def _say(self, error: StoreError, *, denied: bool) -> None:
        """Log a failure once; as a warning if it lasts and needs somebody to repair it."""
        now = time.monotonic()
        self._denied_since = (self._denied_since or now) if denied else 0.0
        lasting = denied and now - self._denied_since >= _STARTING
        text = f"{'lasting ' if lasting else ''}{error}"
        if text != self._failure:
            self._failure = text
            level = logging.WARNING if lasting else logging.INFO
            logger.log(level, "%s: %s: changes show after ttl for now: %s", self._component, self._scope, error)
