"""``secretstores.secretfs.directory``: a directory tree whose files are secrets. Dapr has no such store.

systemd credentials, secrets that Docker or Kubernetes mount, what an agent of Vault renders: there a secret is a file.

A name that begins with ".." is never a secret: Kubernetes keeps the versions of a volume in such directories, and its
files are links into the newest. A link is followed if it stays within the tree. Where a link leads is looked up after
the file has been opened, so that nobody who may write into the tree can have another file of this machine read.
"""

import errno
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from secretfs.errors import AccessDenied, ConfigurationError, SecretNotFound, StoreError, StoreUnavailable
from secretfs.settings import setting, truthy
from secretfs.store import Names, Secret, StoreContext
from secretfs.stores._files import ATTEMPTS, FileIdentity, read_unchanging

MAX_DEPTH: Final = 32
"""Of directories: a link may lead to a directory above it."""
LOOK_EVERY: Final = 0.5
"""Seconds between two looks at the tree."""
SHARE: Final = 50
"""A look that takes long is followed by a pause this many times as long: a large tree costs 2 % of a processor."""

_NOT_THERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO})
_REFUSED = frozenset({errno.EACCES, errno.EPERM})

Identities = Mapping[str, FileIdentity]
"""By path below the root."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The properties of a ``secretstores.secretfs.directory`` component."""

    path: str = setting(
        "path", "The directory. A relative path starts at the working directory.", required=True, guards=True
    )
    multi_valued: bool = setting(
        "multiValued",
        "Each directory with files in it is a secret, and its files are the secret's keys.",
        default=False,
        parse=truthy,
    )


class DirectoryStore:
    """Reads the tree at each call. There is no state but the path."""

    def __init__(self, root: Path, *, multi_valued: bool) -> None:
        self.multi_valued = multi_valued
        self._root = root
        self._closed = threading.Event()

    def check(self) -> None:
        """List the directory."""
        with self._open_root() as root:
            os.listdir(root.descriptor)  # noqa: PTH208 - of a descriptor

    def names(self, folder: str) -> Names:
        """List all names in the tree, or below a folder. A name that is not UTF-8 is none.

        A folder that may not be listed is left for a question of its own, which is refused.
        """
        if folder and not _is_name(folder):
            return Names()
        try:
            secrets, refused = self._look(folder)
        except SecretNotFound:
            return Names()
        return Names(frozenset(secrets), frozenset(refused))

    def fetch(self, name: str) -> Secret:
        """Read one secret: a file, or with ``multiValued`` all files of a directory, of one moment."""
        if not _is_name(name):
            raise SecretNotFound(f"secret {name} not found")
        with self._open_root() as root:
            if not self.multi_valued:
                return _secret({name: root.read(name)})
            for _ in range(ATTEMPTS):
                files = root.files(name)
                read = {key: root.read(path) for key, path in files.items()}
                if {path: root.identity(path) for path in root.files(name).values()} == {
                    files[key]: identity for key, (identity, _) in read.items()
                }:
                    return _secret(read)
        raise StoreUnavailable(f"secret {name}: changes faster than it can be read")

    def watch(self, changed: Callable[[frozenset[str]], None]) -> None:
        """Look at the tree twice a second: inotify reports nothing of NFS, and nothing of a swapped link's target."""
        seen = self._changed_since({})
        threading.Thread(target=self._watch, args=(changed, seen), name=f"watch of {self._root}", daemon=True).start()

    def close(self) -> None:
        """Stop looking."""
        self._closed.set()

    def _watch(self, changed: Callable[[frozenset[str]], None], seen: Mapping[str, Identities]) -> None:
        pause = LOOK_EVERY
        while not self._closed.wait(pause):
            began = time.perf_counter()
            now = self._changed_since(seen)
            pause = max(LOOK_EVERY, SHARE * (time.perf_counter() - began))
            names = frozenset(name for name in {*seen, *now} if seen.get(name) != now.get(name))
            seen = now
            if names and not self._closed.is_set():
                changed(names)

    def _changed_since(self, before: Mapping[str, Identities]) -> Mapping[str, Identities]:
        """Return all secrets as they are now; as they were where the tree cannot be read, which a reader will hear."""
        with suppress(StoreError):
            return self._look("")[0]
        return before

    def _look(self, folder: str) -> tuple[dict[str, dict[str, FileIdentity]], list[str]]:
        """Return the secrets below a folder, each with its files and what they are now; and folders that refuse."""
        secrets: dict[str, dict[str, FileIdentity]] = {}
        refused: list[str] = []
        with self._open_root() as root:
            for path, identity in root.walk(folder):
                if identity is None:
                    refused.append(path)
                    continue
                parent, _, key = path.rpartition("/")
                secrets.setdefault(parent or key if self.multi_valued else path, {})[path] = identity
        return secrets, refused

    @contextmanager
    def _open_root(self) -> Iterator["_Root"]:
        """Open the directory for one call: it may be replaced by another at any time."""
        try:
            descriptor = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise StoreUnavailable(f"{self._root}: {error.strerror}") from None
        try:
            yield _Root(descriptor)
        except OSError as error:
            kind = AccessDenied if error.errno in _REFUSED else StoreUnavailable
            raise kind(f"{self._root}: {error.strerror}") from None
        finally:
            os.close(descriptor)


class _Root:
    """The open directory, and what is below it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._path = _path_of(descriptor)

    def read(self, path: str) -> tuple[FileIdentity, bytes]:
        """Read a file. Raises `StoreError`."""
        with self._opened(path) as descriptor:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise SecretNotFound(f"secret {path} not found")
            with open(descriptor, "rb", closefd=False) as file:
                return read_unchanging(file, f"secret {path}")

    def files(self, name: str) -> dict[str, str]:
        """Return the paths of the files of a multi-valued secret, by key. Raises `StoreError`."""
        with self._opened(name) as descriptor:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                if "/" in name:  # a key of the secret that is the directory around it
                    raise SecretNotFound(f"secret {name} not found")
                return {name: name}
            keys = [key for key in os.listdir(descriptor) if _is_name(key)]  # noqa: PTH208 - of a descriptor
        files = {key: path for key in sorted(keys) if self.identity(path := f"{name}/{key}") is not None}
        if not files:
            raise SecretNotFound(f"secret {name} not found")
        return files

    def identity(self, path: str) -> FileIdentity | None:
        """Return what a file is now; None if there is no regular file, or a link that leads out of the tree."""
        try:
            status = os.stat(path, dir_fd=self.descriptor, follow_symlinks=False)
            if stat.S_ISLNK(status.st_mode) and self._is_within(path):
                status = os.stat(path, dir_fd=self.descriptor)
        except OSError:
            return None
        return FileIdentity.of(status) if stat.S_ISREG(status.st_mode) else None

    def walk(self, folder: str, depth: int = 0) -> Iterator[tuple[str, FileIdentity | None]]:
        """Yield all files below a folder, and with None each folder below it that may not be listed."""
        with self._opened(folder or ".") as descriptor, os.scandir(descriptor) as entries:
            found = [(entry.name, entry.is_symlink()) for entry in entries if _is_name(entry.name)]
        for name, is_link in found:
            path = f"{folder}/{name}" if folder else name
            try:
                status = os.stat(path, dir_fd=self.descriptor)
            except OSError:  # gone, or a link that leads nowhere
                continue
            if is_link and not self._is_within(path):
                continue
            if stat.S_ISREG(status.st_mode):
                yield path, FileIdentity.of(status)
            elif stat.S_ISDIR(status.st_mode) and depth < MAX_DEPTH:
                try:
                    yield from self.walk(path, depth + 1)
                except SecretNotFound:  # gone
                    continue
                except AccessDenied:
                    yield path, None

    def _is_within(self, path: str) -> bool:
        """Tell whether a path leads to something in the tree."""
        real = os.path.realpath(os.path.join(self._path, path))  # noqa: PTH118 - a path that may be any text
        return real.startswith(f"{self._path}/")

    @contextmanager
    def _opened(self, path: str) -> Iterator[int]:
        """Open a file or a directory. Raises `StoreError`."""
        try:
            # O_NONBLOCK: a FIFO must not make us wait for a writer.
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
            descriptor = os.open(path, flags, dir_fd=self.descriptor)
        except OSError as error:
            raise _store_error(path, error) from None
        try:
            if path != "." and not _path_of(descriptor).startswith(f"{self._path}/"):
                raise SecretNotFound(f"secret {path} not found")
            yield descriptor
        except OSError as error:
            raise _store_error(path, error) from None
        finally:
            os.close(descriptor)


def _path_of(descriptor: int) -> str:
    """Return where an open file is, without links."""
    return str(Path(f"/proc/self/fd/{descriptor}").readlink()).removesuffix("/")


def _store_error(path: str, error: OSError) -> StoreError:
    if error.errno in _NOT_THERE:
        return SecretNotFound(f"secret {path} not found")
    if error.errno in _REFUSED:
        return AccessDenied(f"secret {path}: {error.strerror}")
    return StoreUnavailable(f"secret {path}: {error.strerror}")


def _is_name(name: str) -> bool:
    """Tell whether a path below the directory can be the name of a secret."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    parts = name.split("/")
    return "\0" not in name and all(part not in ("", ".") and not part.startswith("..") for part in parts)


def _secret(read: Mapping[str, tuple[FileIdentity, bytes]]) -> Secret:
    modified = max(identity.mtime_ns for identity, _ in read.values()) / 1e9
    return Secret({key: data for key, (_, data) in read.items()}, modified=modified)


def open_store(settings: Settings, context: StoreContext) -> DirectoryStore:
    """Open the directory. Raises `ConfigurationError` when it is not there or cannot be listed."""
    store = DirectoryStore(Path(settings.path).absolute(), multi_valued=settings.multi_valued)
    try:
        store.check()
    except StoreError as error:
        raise ConfigurationError(f"{context.component}: path: {error}") from None
    return store
