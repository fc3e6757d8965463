"""The files of the control directory ``.secretfs/``, one class each.

A `RenderedFile` can be read, a `RequestFile` can be written to. In a read-only mount a `Link` leads to it. Their modes
are in `secretfs.fs.attributes`.
"""

import json
import logging
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import trio

import secretfs
from secretfs.cache.deadlines import shared_deadline
from secretfs.cache.health import Failure, Kind, State, Statistics
from secretfs.cache.turns import NO_APP
from secretfs.errors import AccessDenied, ConfigurationError, NoSuchEntry, SecretFSError, SecretNotFound, TooLarge
from secretfs.fs.kernel import WarmReads
from secretfs.fs.keys import Control, ControlKey
from secretfs.fs.names import encode
from secretfs.fs.requests import Work
from secretfs.fs.view import StoreView
from secretfs.linux.confinement import protections

LISTED: Final = {b"refresh": Control.REFRESH, b"reload": Control.RELOAD, b"status.json": Control.STATUS}
"""What is in the directory of a mount that can be written to, by path segment."""
LISTED_READ_ONLY: Final = {**LISTED, b"refresh": Control.REFRESH_LINK, b"reload": Control.RELOAD_LINK}
"""What is in that of a read-only one."""
BEHIND_LINKS: Final = {b".refresh": Control.REFRESH, b".reload": Control.RELOAD}
"""What the links lead to, and what is not listed."""
METRICS: Final = {b"metrics": Control.METRICS}
"""Where there are metrics, this can be found. It is not listed, as it takes a moment to make."""
LINKS: Final = {Control.REFRESH_LINK: b".refresh", Control.RELOAD_LINK: b".reload"}

LARGEST_REQUEST: Final = 65536
"""Bytes of one write(2). The kernel splits a larger one, into pieces of at least this size."""

log = logging.getLogger(__name__)

Path = tuple[bytes, ...]
"""The segments of a path below the mount point."""


class RenderedFile(ABC):
    """A control file whose content is made each time that it is looked up."""

    async def prepare(self) -> None:  # noqa: B027 - most have nothing to do
        """Do what takes time before a look-up is answered with `render`."""

    @abstractmethod
    def render(self) -> bytes:
        """Return the content as of now."""


class Link:
    """A name in a read-only mount that leads to a `RequestFile`, where it can be written to."""


class RequestFile(ABC):
    """A control file that takes requests. Each write(2) is one request and gets its own errno."""

    @abstractmethod
    async def write(self, text: bytes) -> None:
        """Do what is requested. Raises the error that the writer gets."""


ControlFile = RenderedFile | RequestFile | Link


class MountStatus(NamedTuple):
    """The mount as a whole."""

    app_id: str
    pid: int
    started: float
    """Seconds since the epoch."""
    inodes: int
    takeovers: int
    """How many processes have served the mount before this one."""
    requests: Mapping[str, Work]
    """The kernel's requests that wait, by app, or by user where there are no apps and others may enter."""
    all_requests: Work
    """All of them, in any mount."""
    warm_reads: WarmReads
    """Who answers them."""


@dataclass(frozen=True, slots=True)
class DeclarationStatus:
    """What is declared, and how the last attempt to read it anew ended. Times are seconds since the epoch."""

    apps: Sequence[str] | None = None
    """The apps that have a directory; None in a mount for a single app."""
    app_directories: Sequence[str] = ()
    """Where apps are declared."""
    reloaded: float | None = None
    error: str = ""
    """Why the last reload has changed nothing; empty if it took effect."""


class Declared:
    """What is declared, as control files show it and have it read again. This one never changes."""

    def status(self) -> DeclarationStatus:
        """Return how it stands."""
        return DeclarationStatus()

    async def reload(self) -> None:
        """Read everything again and serve it; `status` says whether a mistake kept all as it was."""


UNDECLARED: Final = Declared()


class StatusFile(RenderedFile):
    """``status.json``: the health of the mount and of its stores."""

    def __init__(
        self,
        mount: Callable[[], MountStatus],
        views: Callable[[], Mapping[str, StoreView]],
        declared: Callable[[], DeclarationStatus],
    ) -> None:
        self._mount = mount
        self._views = views
        self._declared = declared

    def render(self) -> bytes:
        """Render the status. It tells times, not ages, so it stays the same while nothing happens."""
        mount, declared = self._mount(), self._declared()
        stores = self._statistics(declared)
        document = {
            "mount": {
                "version": secretfs.__version__,
                "app_id": mount.app_id,
                "pid": mount.pid,
                "started": _timestamp(mount.started),
                "inodes": mount.inodes,
                "takeovers": mount.takeovers,
                "warm_reads": {
                    "answered_by": "kernel" if mount.warm_reads.by_kernel else "secretfs",
                    "reason": mount.warm_reads.reason,
                },
                "protections": {name: {"holds": holds, "how": how} for name, holds, how in protections()},
            },
            "declaration": {
                "apps": declared.apps,
                "app_directories": declared.app_directories,
                "reloaded": _timestamp(declared.reloaded),
                "error": declared.error or None,
            },
            "calls": _calls(stores.values(), mount.app_id),
            "requests": {asker.removeprefix("app "): work._asdict() for asker, work in mount.requests.items()},
            "stores": {name: _store(statistics) for name, statistics in sorted(stores.items())},
            "files": {name: _files(view.statistics()) for name, view in sorted(self._views().items()) if view.rendered},
        }
        return json.dumps(document, indent=2).encode() + b"\n"

    def _statistics(self, declared: DeclarationStatus) -> dict[str, Statistics]:
        """Return the health of each store, once: a thousand apps may see the same."""
        views = {name: view for name, view in self._views().items() if not view.rendered}
        if declared.apps is None:
            return {name: view.statistics() for name, view in views.items()}
        stores = {view.store_name: view for view in views.values()}
        return {name: view.store_statistics() for name, view in stores.items()}


class MetricsFile(RenderedFile):
    """``metrics``: numbers for Prometheus."""

    def __init__(self, page: Callable[[], Awaitable[bytes]]) -> None:
        self._make_page = page
        self._page = b""

    async def prepare(self) -> None:
        """Make the page."""
        self._page = await self._make_page()

    def render(self) -> bytes:
        """Return the page that was made last."""
        return self._page


class ControlDirectory:
    """The control files of a mount. In one that is ``read_only``, links lead to those that take requests."""

    def __init__(
        self,
        mount: Callable[[], MountStatus],
        views: Callable[[], Mapping[str, StoreView]],
        declared: Declared,
        *,
        read_only: bool = False,
        metrics: Callable[[], Awaitable[bytes]] | None = None,
    ) -> None:
        self._files: dict[Control, ControlFile] = {
            Control.STATUS: StatusFile(mount, views, declared.status),
            Control.RELOAD: ReloadFile(declared),
            Control.REFRESH: RefreshFile(views),
            **dict.fromkeys(LINKS, Link()),
        }
        self.listed: Mapping[bytes, Control] = LISTED_READ_ONLY if read_only else LISTED
        """What is listed, by path segment."""
        self.names: dict[bytes, Control] = {**self.listed, **BEHIND_LINKS} if read_only else dict(LISTED)
        """What can be found, by path segment."""
        if metrics is not None:
            self._files[Control.METRICS] = MetricsFile(metrics)
            self.names.update(METRICS)

    def __getitem__(self, control: Control) -> ControlFile:
        if control not in self._files:
            raise NoSuchEntry(control.value)
        return self._files[control]

    async def prepare(self, control: Control) -> None:
        """Do what a file has to do before it is looked up."""
        file = self._files.get(control)
        if isinstance(file, RenderedFile):
            await file.prepare()

    def request_file(self, key: object) -> RequestFile | None:
        """Return the file at a place, if it takes requests."""
        file = self._files.get(key.control) if isinstance(key, ControlKey) else None
        return file if isinstance(file, RequestFile) else None

    def link_target(self, key: object) -> bytes:
        """Return the name that the link at a place leads to. Raises `NoSuchEntry` for anything else."""
        if not isinstance(key, ControlKey) or key.control not in LINKS:
            raise NoSuchEntry("a link")
        return LINKS[key.control]


class RefreshFile(RequestFile):
    """``refresh``: ask the stores again, now, for the paths that are written, one a line."""

    def __init__(self, views: Callable[[], Mapping[str, StoreView]]) -> None:
        self._views = views

    async def write(self, text: bytes) -> None:
        """Refresh the paths, of several stores side by side. Raises the first error when all is done."""
        views, paths = dict(self._views()), parse_request(text)
        roots = {tuple(map(encode, component.split("/"))): view for component, view in views.items()}
        concerned = sorted(view.component for root, view in roots.items() if any(_meet(root, path) for path in paths))
        log.info("a refresh is asked for: %s", ", ".join(concerned) or "of no store that is here")
        with shared_deadline(bulk=True):
            await _refresh(roots, paths)


class ReloadFile(RequestFile):
    """``reload``: read manifests, configuration and apps again, whatever is written."""

    def __init__(self, declared: Declared) -> None:
        self._declared = declared

    async def write(self, text: bytes) -> None:
        """Return when what is declared now is shown. Raises `ConfigurationError` if a mistake kept all as it was."""
        await self._declared.reload()
        error = self._declared.status().error
        if error:
            raise ConfigurationError(error)


def parse_request(text: bytes) -> list[Path]:
    """Parse what is written to ``refresh``: paths below the mount point; an empty one, or ``*``, means everything."""
    if len(text) > LARGEST_REQUEST:
        raise TooLarge(f"more than {LARGEST_REQUEST} bytes in one request to refresh")
    lines = text.removesuffix(b"\n").split(b"\n")
    paths = (() if line.strip() == b"*" else tuple(filter(None, line.split(b"/"))) for line in lines)
    return list(dict.fromkeys(paths))


async def _refresh(roots: Mapping[Path, StoreView], paths: Sequence[Path]) -> None:
    """Refresh what is at, above and below the roots of stores. A store that many apps see is refreshed once."""
    errors: dict[Path, SecretFSError] = {
        path: NoSuchEntry() for path in paths if path and not any(_meet(root, path) for root in roots)
    }
    refreshed: set[str] = set()

    async def refresh_one(root: Path) -> None:
        view = roots[root]
        for path in paths:
            below = path[len(root) :]
            if not _meet(root, path) or (not below and view.store_name in refreshed):
                continue
            if not below:
                refreshed.add(view.store_name)
            try:
                await view.refresh(below)
            except (NoSuchEntry, SecretNotFound, AccessDenied) as error:
                errors.setdefault(path, error)
            except SecretFSError as error:
                errors.setdefault(path, error)
                return  # the rest would end the same way, each after a deadline

    async with trio.open_nursery() as nursery:
        for root in roots:
            nursery.start_soon(refresh_one, root)
    for path in paths:
        if path in errors:
            raise errors[path]


def _meet(root: Path, path: Path) -> bool:
    """Whether one of two paths leads to the other or through it."""
    shorter = min(len(root), len(path))
    return root[:shorter] == path[:shorter]


def _calls(stores: Iterable[Statistics], only_app: str) -> dict[str, Any]:
    """Return how many calls wait and run, over all stores: of each app that has any, and in the background."""
    work: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for store in stores:
        for app, count in store.work.items():
            work[app] += Counter(waiting=count.waiting, running=count.running)
    shown = {app: {"waiting": count["waiting"], "running": count["running"]} for app, count in work.items()}
    background = shown.pop(NO_APP, {"waiting": 0, "running": 0})
    return {"apps": {app or only_app: count for app, count in sorted(shown.items())}, "background": background}


def _store(statistics: Statistics) -> dict[str, Any]:
    readers = statistics.readers
    return {
        "type": statistics.store_type,
        "state": statistics.state.value,
        "last_success": _timestamp(statistics.last_success),
        "last_error": _failure(statistics.last_error),
        "names": statistics.names,
        "cached_values": statistics.cached,
        "stale_values": statistics.stale,
        "breaker": {"open": statistics.state is State.DOWN, "next_try": _timestamp(statistics.next_try)},
        "readers": {"hits": readers.hits, "waits": readers.waits, "waiting": readers.waiting},
        "rotations": {"values": readers.rotated, "last": _timestamp(readers.last_rotation)},
        "calls": {
            kind.value: {"made": statistics.asked.get(kind, 0), "failed": statistics.failed.get(kind, 0)}
            for kind in Kind
        },
    }


def _files(statistics: Statistics) -> dict[str, Any]:
    """Return how the rendered files of a directory are: ``failing`` could not be rendered when that was last tried."""
    return {
        "declared": statistics.names,
        "rendered": statistics.cached,
        "failing": statistics.stale,
        "last_error": _failure(statistics.last_error),
        "known": {
            name: {"rendered": _timestamp(file.rendered), "error": _failure(file.failure)}
            for name, file in sorted(statistics.files.items())
        },
    }


def _failure(failure: Failure | None) -> dict[str, Any] | None:
    return failure and {"at": _timestamp(failure.at), "class": failure.error, "message": failure.message}


def _timestamp(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
