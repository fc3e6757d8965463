"""Secrets as environment variables, read from the files of a mount: scopes, freshness and errors are those of files."""

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

from secretfs.errors import ConfigurationError, MountError, NotRepresentable, SecretFSError, StoreError
from secretfs.settings import nearest_name

LONGEST: Final = 32 * 4096
"""Bytes of ``NAME=value`` with a NUL behind it that Linux takes (MAX_ARG_STRLEN in linux/binfmts.h)."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_ONE_VERSION = "..data"


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable, and where its value is: a path below the mount point."""

    name: str
    path: str


@dataclass(frozen=True, slots=True)
class Variables:
    """What a command gets as environment variables."""

    single: tuple[Variable, ...] = ()
    directories: tuple[str, ...] = ()
    """Paths of directories below the mount point: each file in them is a variable."""
    prefix: str = ""
    """What the names of the variables from directories begin with."""

    def __bool__(self) -> bool:
        return bool(self.single or self.directories)

    def read(self, mountpoint: Path) -> dict[bytes, bytes]:
        """Read the values. Keys of one secret are of one version.

        Raises `ConfigurationError` for what is not there, or has no name that a variable can have; `NotRepresentable`
        for a value that no variable can hold; another `StoreError` if a file cannot be read; `MountError` if the mount
        is dead.
        """
        values: dict[bytes, bytes] = {}
        flags: dict[str, str] = {"SECRETFS": "secretfs run itself"}
        with ExitStack() as stack:
            files = _Files(mountpoint, stack)
            for flag, name, path in self._wanted(files):
                if name in flags:
                    raise ConfigurationError(f"{flag}: the variable {name} is already set by {flags[name]}")
                flags[name] = flag
                values[name.encode()] = _checked(flag, name, path, files.read(flag, path))
        return values

    def _wanted(self, files: "_Files") -> Iterator[tuple[str, str, str]]:
        """Yield the flag, the name and the path of each variable."""
        for variable in self.single:
            yield f"--env {variable.name}={variable.path}", variable.name, variable.path
        for directory in self.directories:
            flag = f"--env-from {directory}"
            for key in files.names(flag, directory):
                name = self.prefix + key
                if not is_name(name):
                    raise ConfigurationError(
                        f"{flag}: {name!r} cannot be the name of a variable; use --env NAME={directory}/{key}"
                    )
                yield flag, name, f"{directory}/{key}"


def is_name(text: str) -> bool:
    """Whether a shell can use a variable of this name."""
    return bool(_NAME.fullmatch(text))


def is_path(text: str) -> bool:
    """Whether this is a path below the mount point, as people write it."""
    return bool(text) and not text.startswith("/") and not {"", ".", ".."} & set(text.split("/"))


def _checked(flag: str, name: str, path: str, value: bytes) -> bytes:
    if b"\0" in value:
        raise NotRepresentable(f"{flag}: {path} contains a NUL byte, which no variable can hold; read the file")
    if len(name) + len(value) + 2 > LONGEST:
        raise NotRepresentable(f"{flag}: {path} is longer than Linux lets a variable be, 128 KiB; read the file")
    return value


@dataclass
class _Files:
    """Files of a mount. Directories stay open, so that keys of one secret are read of one version."""

    mountpoint: Path
    stack: ExitStack
    opened: dict[str, int] = field(default_factory=dict)

    def names(self, flag: str, directory: str) -> list[str]:
        """List a directory, in order."""
        try:
            return sorted(os.listdir(self._directory(directory)))  # noqa: PTH208 - a descriptor
        except OSError as error:
            raise self._explained(flag, directory, error) from None

    def read(self, flag: str, path: str) -> bytes:
        """Read a file."""
        parent, _, name = path.rpartition("/")
        try:
            try:
                number = os.open(name, os.O_RDONLY, dir_fd=self._directory(parent))
            except FileNotFoundError:  # it may be beside the keys, such as .bulk.json
                number = os.open(self.mountpoint / path, os.O_RDONLY)
            with open(number, "rb") as file:  # noqa: PTH123 - a descriptor
                return file.read()
        except OSError as error:
            raise self._explained(flag, path, error) from None

    def _directory(self, path: str) -> int:
        """Open a directory; of a secret that has versions, the current one."""
        if path not in self.opened:
            flags = os.O_RDONLY | os.O_DIRECTORY
            place = self.mountpoint / path
            try:
                number = os.open(place / _ONE_VERSION, flags)
            except FileNotFoundError:
                number = os.open(place, flags)
            self.stack.callback(os.close, number)
            self.opened[path] = number
        return self.opened[path]

    def _explained(self, flag: str, path: str, error: OSError) -> SecretFSError:
        if error.errno == errno.ENOENT:
            return ConfigurationError(f"{flag}: there is no {path}{self._hint(path)}")
        if error.errno == errno.ENOTDIR:
            return ConfigurationError(f"{flag}: {self._first_file(path)} is a file, no directory")
        if error.errno == errno.EISDIR:
            return ConfigurationError(f"{flag}: {path} is a directory, no file; its files are set by --env-from {path}")
        if error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
            return MountError(f"{flag}: the mount is dead")
        return StoreError(f"{flag}: cannot read {path}: {error.strerror}")

    def _first_file(self, path: str) -> PurePosixPath:
        """Return the first part of a path that is no directory."""
        whole = PurePosixPath(path)
        for part in (*reversed(whole.parents), whole):
            try:
                if not stat.S_ISDIR((self.mountpoint / part).stat().st_mode):
                    return part
            except OSError:
                break
        return whole

    def _hint(self, path: str) -> str:
        """Name what is most like the first part of a path that is not there."""
        parent = PurePosixPath()
        for name in PurePosixPath(path).parts:
            try:
                names = os.listdir(self.mountpoint / parent)  # noqa: PTH208 - names
            except OSError:
                return ""
            if name not in names:
                known = nearest_name(name, names)
                return f" (did you mean {parent / known}?)" if known else ""
            parent /= name
        return ""
