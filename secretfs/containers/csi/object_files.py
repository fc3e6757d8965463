"""Dapr's objects of a namespace as files that a mount reads, ``KIND.NAME.yaml``, for root alone.

Who writes objects of a namespace fills memory of the node, so there are limits for each namespace: for its components,
and as much again for its configurations.
"""

import json
import logging
import os
import re
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from secretfs.containers.csi.failures import Unavailable
from secretfs.dapr.app import is_app_name
from secretfs.dapr.component import API_VERSION

MOST: Final = 500
"""Files of one kind in a namespace."""
LARGEST_SUM: Final = 1 << 20
"""Bytes that they have together."""

_LONGEST_NAME: Final = 200
"""Bytes of the name of an object, which becomes a part of the name of a file."""
_LAST_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"
"""The annotation with the whole object again, as kubectl writes it."""
_SHOWN: Final = ("spec", "auth", "scopes")
"""What an object says besides its metadata."""

log = logging.getLogger(__name__)


class Closed(Exception):
    """Nothing is written any more."""


class ObjectFiles:
    """The files of one kind in the directory of a namespace, which exists. One thread writes; any thread may close."""

    def __init__(self, directory: Path, kind: str) -> None:
        self._directory = directory
        self._kind = kind
        self._lock = threading.Lock()
        self._closed = False
        self._left_out: set[str] = set()
        self._sizes = {
            path.name[len(kind) + 1 : -len(".yaml")]: path.stat().st_size for path in directory.glob(f"{kind}.*.yaml")
        }

    def put(self, item: Mapping[str, Any]) -> str:
        """Write an object as the API server says it, unless it has no place, which is logged. Returns its name.

        Raises `Closed`, and OSError if it cannot be written.
        """
        name = name_of(item)
        text = _document(self._kind, item)
        with self._writing():
            reason = self._no_place_for(name, len(text))
            if reason:
                if name not in self._left_out:
                    log.warning("%s %s of %s is left out: %s", self._kind, name, self._directory.name, reason)
                self._left_out.add(name)
                return name
            self._left_out.discard(name)
            path = self._path(name)
            if name not in self._sizes or not path.exists() or path.read_bytes() != text:
                new = self._directory / f".{path.name}.new"  # which a mount passes over
                with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:  # noqa: PTH123 - a descriptor
                    file.write(text)
                new.replace(path)
                self._sizes[name] = len(text)
        return name

    def remove(self, name: str) -> bool:
        """Remove an object that is gone. Returns whether there may be a place now for one that is left out."""
        with self._writing():
            self._left_out.discard(name)
            if name not in self._sizes:
                return False
            self._path(name).unlink(missing_ok=True)
            del self._sizes[name]
            return bool(self._left_out)

    def keep_only(self, names: Collection[str]) -> bool:
        """Remove all objects but these, as `remove` does."""
        others = (self._sizes.keys() | self._left_out) - set(names)
        return sum(map(self.remove, others)) > 0

    def close(self) -> None:
        """Let nothing be written any more. The files stay."""
        with self._lock:
            self._closed = True

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with self._lock:
            if self._closed:
                raise Closed
            yield

    def _no_place_for(self, name: str, size: int) -> str:
        """Return why an object cannot be a file; empty if it can."""
        others = self._sizes.keys() - {name}
        if not is_app_name(name) or len(name.encode()) > _LONGEST_NAME:
            return f"its name is longer than {_LONGEST_NAME} bytes, or cannot be that of a file"
        if len(others) >= MOST:
            return f"a namespace has at most {MOST}"
        if sum(self._sizes[other] for other in others) + size > LARGEST_SUM:
            return f"those of a namespace have at most {LARGEST_SUM >> 10} KiB together"
        return ""

    def _path(self, name: str) -> Path:
        return self._directory / f"{self._kind}.{name}.yaml"


def name_of(item: Mapping[str, Any]) -> str:
    """Return the name of an object. Raises `Unavailable` if the API server says none."""
    try:
        name = item["metadata"]["name"]
    except (LookupError, TypeError):
        name = None
    if not isinstance(name, str) or not name:
        raise Unavailable("the API server sends an object without a name")
    return name


def _document(kind: str, item: Mapping[str, Any]) -> bytes:
    """Return an object as YAML in ASCII: JSON in one line, but for characters that mean something to YAML alone.

    It has what people write, so that it stays the same while only the API server's part changes.
    """
    given = item["metadata"]
    metadata = {name: given[name] for name in ("name", "namespace") if name in given}
    if annotations := given.get("annotations"):
        metadata["annotations"] = {name: text for name, text in annotations.items() if name != _LAST_APPLIED}
    said = {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata}
    text = json.dumps(said | {name: item[name] for name in _SHOWN if name in item}, ensure_ascii=False)
    return re.sub(r"[^ -~]", lambda match: _escaped(ord(match[0])), text).encode("ascii")


def _escaped(code: int) -> str:
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
