"""``secretstores.local.file``: the secrets in a JSON file.

Names and shapes are Dapr's. Three things differ, because Dapr's way helps nobody: numbers, booleans and null are their
JSON text (Dapr serves ``%!s(float64=42)``), two entries that flatten to one name are an error (Dapr drops one of them
by chance), and an edited file is read again (Dapr reads it once).

A snapshot of the file is immutable and replaced as a whole. When several threads notice a change at the same time, one
reads the file and the others wait for it, so that a large file is in memory once. They wait for a bounded time, because
the file system may hang.
"""

import codecs
import contextlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from secretfs.errors import ConfigurationError, MalformedAnswer, SecretNotFound, StoreError, StoreUnavailable
from secretfs.gojson import unicode
from secretfs.settings import setting, truthy
from secretfs.store import CachedRead, Names, Secret, StoreContext
from secretfs.stores._files import FileIdentity, read_file

_LOOK_EVERY = 0.5  # seconds
_PATIENCE = 5.0  # seconds
_LARGEST = 256 << 20  # bytes; a whole store is in the file, not one answer, and the whole file is in memory
_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "UTF-8",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def nested_separator() -> Any:
    """Declare the property ``nestedSeparator``."""
    return setting(
        "nestedSeparator",
        "Joins the names of nested entries to one name. Empty means the default.",
        default=":",
        parse=lambda text: text or ":",
    )


def multi_valued() -> Any:
    """Declare the property ``multiValued``."""
    return setting(
        "multiValued",
        "Each entry of the top level is a secret, and what is nested in it are the secret's keys.",
        default=False,
        parse=truthy,
    )


@dataclass(frozen=True, slots=True)
class Settings:
    """The properties of a ``secretstores.local.file`` component."""

    secrets_file: str = setting(
        "secretsFile", "Path of the JSON file. A relative path starts at the working directory.", required=True
    )
    nested_separator: str = nested_separator()
    multi_valued: bool = multi_valued()


Read = Callable[[], tuple[FileIdentity, bytes]]
"""Returns the JSON object, with what the file was when it held it. Raises `StoreError` and OSError."""


@dataclass(frozen=True, slots=True)
class _Snapshot:
    identity: FileIdentity
    secrets: Mapping[str, Secret]


class FileStore:
    """Serves the current content of the file: every call first checks whether the file has changed."""

    def __init__(self, path: Path, separator: str, *, multi_valued: bool, read: Read | None = None) -> None:
        self.multi_valued = multi_valued
        self._path = path
        self._separator = separator
        self._read = read or partial(read_file, path, _LARGEST)
        self._snapshot = self._load()
        self._reading = threading.Lock()
        self._closed = threading.Event()

    def check(self) -> None:
        """Read the file if it has changed."""
        self._current()

    def names(self, folder: str) -> Names:
        """List the secrets. Names may hold "/"; the store itself has no folders."""
        return Names() if folder else Names(frozenset(self._current()))

    def fetch(self, name: str) -> Secret:
        """Read one secret."""
        try:
            return self._current()[name]
        except KeyError:
            raise SecretNotFound(f"secret {name} not found") from None

    def unchanged(self, known: Mapping[str, CachedRead]) -> frozenset[str]:
        """Compare with the file as it is now."""
        now = self._current()
        return frozenset(name for name, it in known.items() if now.get(name) == it.secret)

    def watch(self, changed: Callable[[frozenset[str]], None]) -> None:
        """Check the file twice a second: inotify reports neither a swapped symlink nor an edit on NFS.

        What is there at first is reported, too: it may be different from what a process before this one has read.
        """
        arguments = (changed, self._snapshot)
        threading.Thread(target=self._watch, args=arguments, name=f"watch of {self._path}", daemon=True).start()

    def close(self) -> None:
        """Forget the secrets."""
        self._closed.set()
        self._snapshot = _Snapshot(self._snapshot.identity, {})

    def _watch(self, changed: Callable[[frozenset[str]], None], seen: _Snapshot) -> None:
        if seen.secrets:
            changed(frozenset(seen.secrets))
        while not self._closed.wait(_LOOK_EVERY):
            with contextlib.suppress(StoreError):  # a reader will get the error
                self._current()
            now = self._snapshot
            if now is not seen and not self._closed.is_set():
                before, after = seen.secrets, now.secrets
                names = frozenset(name for name in {*before, *after} if _values(before, name) != _values(after, name))
                seen = now
                if names:
                    changed(names)

    def _current(self) -> Mapping[str, Secret]:
        snapshot = self._snapshot
        if self._identity() == snapshot.identity:
            return snapshot.secrets
        alone = self._reading.acquire(timeout=_PATIENCE)
        try:
            if self._identity() != self._snapshot.identity:
                self._snapshot = self._load()
            return self._snapshot.secrets
        finally:
            if alone:
                self._reading.release()

    def _identity(self) -> FileIdentity:
        try:
            return FileIdentity.of(self._path.stat())
        except OSError as error:
            raise self._unreadable(error) from None

    def _load(self) -> _Snapshot:
        try:
            identity, data = self._read()
            secrets = dict(self._secrets(_parse(data), modified=identity.mtime_ns / 1e9))
        except OSError as error:
            raise self._unreadable(error) from None
        except ValueError as error:
            # from None: a JSONDecodeError carries the whole document.
            raise MalformedAnswer(f"{self._path}: {error}") from None
        return _Snapshot(identity, secrets)

    def _secrets(self, top: Mapping[str, Any], modified: float) -> Iterator[tuple[str, Secret]]:
        if not self.multi_valued:
            for name, value in _flatten(top, self._separator).items():
                yield name, Secret({name: value}, modified=modified)
            return
        for name, entry in top.items():
            if isinstance(entry, dict):
                yield name, Secret(_flatten(entry, self._separator), modified=modified)
            elif type(entry) is str:
                yield name, Secret({name: unicode(entry).encode()}, modified=modified)
            # Dapr drops numbers, booleans, null and arrays here; so do we, for the listings to be the same.

    def _unreadable(self, error: OSError) -> StoreUnavailable:
        return StoreUnavailable(f"{self._path}: {error.strerror or error}")


def _values(secrets: Mapping[str, Secret], name: str) -> Mapping[str, bytes] | None:
    return secrets[name].values if name in secrets else None


def open_store(settings: Settings, context: StoreContext) -> FileStore:
    """Open the file. Raises `ConfigurationError` when it cannot be read or is invalid."""
    path = Path(settings.secrets_file).absolute()
    try:
        return FileStore(path, settings.nested_separator, multi_valued=settings.multi_valued)
    except StoreError as error:
        raise ConfigurationError(f"{context.component}: secretsFile: {error}") from None


class _Text(str):
    """The text of a JSON number, so that no digit is lost. The type distinguishes it from a JSON string."""

    __slots__ = ()


def _parse(data: bytes) -> Mapping[str, Any]:
    """Parse a JSON object as Go's encoding/json does. Raises a ValueError that does not quote the text."""
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if data.startswith(mark):
            raise ValueError(f"it begins with a byte order mark: save it as UTF-8 without one (it is {encoding} now)")
    try:
        top = json.loads(
            # One lone surrogate for each byte that is not UTF-8; `unicode` makes it U+FFFD, as Go does.
            data.decode("utf-8", "surrogateescape"),
            object_pairs_hook=lambda pairs: {unicode(name): value for name, value in pairs},
            parse_int=_Text,
            parse_float=_Text,
            parse_constant=_refuse_constant,
        )
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg}, line {error.lineno} column {error.colno}") from None
    except RecursionError:
        raise ValueError("not JSON: nested too deeply") from None
    if top is None:
        return {}
    if not isinstance(top, dict):
        raise ValueError("the top level is not a JSON object")  # noqa: TRY004 - an error in data
    return top


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"not JSON: {name} is no JSON number")


def _flatten(entry: Mapping[str, Any], separator: str) -> dict[str, bytes]:
    """Map the joined names of all leaves to their values. Raises ValueError for a name that occurs twice."""
    flat: dict[str, bytes] = {}
    for path, leaf in _leaves(entry, ()):
        name = separator.join(path)
        if name in flat:
            raise ValueError(f"two entries have the name {name} once nested names are joined with {separator!r}")
        flat[name] = unicode(leaf if isinstance(leaf, str) else json.dumps(leaf)).encode()
    return flat


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict):
        members: Iterable[tuple[str, Any]] = value.items()
    elif isinstance(value, list):
        members = ((str(index), member) for index, member in enumerate(value))
    else:
        yield path, value
        return
    for name, member in members:
        yield from _leaves(member, (*path, name))
