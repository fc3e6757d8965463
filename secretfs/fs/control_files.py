"""What is in ``.secretfs/``: the text of ``status.json``, and what happens when somebody writes to ``refresh``."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import trio

import secretfs
from secretfs.cache.health import Kind, State, Statistics
from secretfs.errors import AccessDenied, NoSuchEntry, SecretFSError, SecretNotFound, TooLarge
from secretfs.fs.keys import Control
from secretfs.fs.view import StoreView

FILES: Final = {b"refresh": Control.REFRESH, b"status.json": Control.STATUS}

MODES: Final = {Control.REFRESH: 0o200, Control.STATUS: 0o400}
DIRECTORY_MODE: Final = 0o500

Path = tuple[bytes, ...]
"""The segments of a path below the mount point."""

LARGEST_REQUEST: Final = 65536
"""Bytes of one write(2). The kernel cuts a larger one up, at least so large a piece at a time."""


@dataclass(frozen=True, slots=True)
class MountStatus:
    """The mount as a whole."""

    app_id: str
    pid: int
    started: float
    inodes: int
    open_files: int
    takeovers: int
    """How many processes have served it before this one."""


def status(mount: MountStatus, stores: Mapping[str, Statistics]) -> bytes:
    """Render ``status.json``. While nothing happens it stays the same: it says when things were, not how long ago."""
    document = {
        "mount": {
            "version": secretfs.__version__,
            "app_id": mount.app_id,
            "pid": mount.pid,
            "started": _moment(mount.started),
            "inodes": mount.inodes,
            "open_files": mount.open_files,
            "takeovers": mount.takeovers,
        },
        "stores": {name: _store(statistics) for name, statistics in sorted(stores.items())},
    }
    return json.dumps(document, indent=2).encode() + b"\n"


def requested(text: bytes) -> list[Path]:
    """Read what was written to ``refresh``: paths below the mount point, by segment; an empty one means everything."""
    if len(text) > LARGEST_REQUEST:
        raise TooLarge(f"more than {LARGEST_REQUEST} bytes in one request to refresh")
    lines = text.removesuffix(b"\n").split(b"\n")
    paths = (() if line.strip() == b"*" else tuple(filter(None, line.split(b"/"))) for line in lines)
    return list(dict.fromkeys(paths))


async def refresh(views: Mapping[bytes, StoreView], paths: Sequence[Path]) -> None:
    """Refresh paths below the mount point, of several stores side by side. Raises the first error when all is done."""
    errors: dict[Path, SecretFSError] = {path: NoSuchEntry() for path in paths if path and path[0] not in views}

    async def refresh_one(root: bytes) -> None:
        for path in paths:
            try:
                if path[:1] in ((), (root,)):
                    await views[root].refresh(path[1:])
            except (NoSuchEntry, SecretNotFound, AccessDenied) as error:
                errors.setdefault(path, error)
            except SecretFSError as error:
                errors.setdefault(path, error)
                return  # the rest would end the same way, and each after a deadline

    async with trio.open_nursery() as nursery:
        for root in views:
            nursery.start_soon(refresh_one, root)
    for path in paths:
        if path in errors:
            raise errors[path]


def _store(statistics: Statistics) -> dict[str, Any]:
    error = statistics.last_error
    return {
        "type": statistics.store_type,
        "state": statistics.state.value,
        "last_success": _moment(statistics.last_success),
        "last_error": error and {"at": _moment(error.at), "class": error.error, "message": error.message},
        "names": statistics.names,
        "cached_values": statistics.cached,
        "stale_values": statistics.stale,
        "breaker": {"open": statistics.state is State.DOWN, "next_try": _moment(statistics.next_try)},
        "calls": {
            kind.value: {"made": statistics.asked.get(kind, 0), "failed": statistics.failed.get(kind, 0)}
            for kind in Kind
        },
    }


def _moment(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
