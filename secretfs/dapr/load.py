"""What is declared in the files that the flags name, and how to tell that they changed."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from stat import S_ISDIR
from typing import Final, NamedTuple

from secretfs.dapr.app_views import load_for_apps
from secretfs.dapr.component import load_manifests
from secretfs.dapr.declaration import Declaration, load
from secretfs.dapr.memo import forget_undeclared
from secretfs.dapr.sources import Sources
from secretfs.errors import ConfigurationError

Fingerprint = tuple[tuple[object, ...], ...]

_NOTHING: Final = "no document there has kind: Component and a spec.type secretstores.*"


class ConfigSource(NamedTuple):
    """Where the declaration came from, and how to read it again."""

    read: Callable[[], Declaration]
    paths: Sequence[Path]
    """Directories of manifests and apps, and configuration files; absolute."""
    loaded: Fingerprint
    """What `fingerprint` returned before everything was read for the first time."""
    apps: Sequence[Path] = ()
    """Directories of apps; absolute."""
    directory: Path | None = None
    """Where relative paths in manifests start; None leaves the working directory as it is."""
    set_paths: Sequence[Path] = ()
    """Directories below which sets are; absolute."""

    def fingerprint(self) -> Fingerprint:
        """Return something that differs when what `read` would read may differ."""
        return fingerprint(self.paths, self.set_paths)


def declare(sources: Sources) -> tuple[Declaration, ConfigSource]:
    """Read what is declared, and say how to read it again. Raises `ConfigurationError`."""
    named = sources.with_defaults()
    absolute = named.absolute()
    loaded = fingerprint(absolute.paths, absolute.set_paths)
    declaration = load_declaration(named)
    again = partial(load_declaration, absolute)
    return declaration, ConfigSource(
        again, absolute.paths, loaded, absolute.apps, working_directory(), absolute.set_paths
    )


def load_declaration(sources: Sources) -> Declaration:
    """Read what is declared, for one app or for many.

    Raises `ConfigurationError`, also if there is no store at all for the one app.
    """
    declaration = _load(sources.with_defaults(), os.environ)  # no copy: there may be credentials in it
    forget_undeclared()
    return declaration


def _load(named: Sources, environ: Mapping[str, str]) -> Declaration:
    if named.apps:
        return load_for_apps(
            named.resources, named.configs, named.apps, environ,
            builtin=named.builtin, app_resources=named.app_resources, app_objects=named.app_objects,
        )  # fmt: skip
    declaration = load(named.resources, named.configs, named.app_id, environ, builtin=named.builtin)
    if not declaration.components:
        where = ", ".join(map(str, named.resources))
        whom = f"app id {named.app_id}" if named.app_id else "an app without an id (--app-id)"
        others = _others(named.resources, environ.get("NAMESPACE", ""))
        reasons = "".join(f"; {notice}" for notice in declaration.notices)  # one of them may be why
        raise ConfigurationError(f"no secret store for {whom} in {where}: {others or _NOTHING}{reasons}")
    return declaration


def _others(resources: Sequence[Path], namespace: str) -> str:
    """Say which secret stores there are for other apps, or other than those that a configuration denies."""
    there = [component for component, _ in load_manifests(resources, namespace=namespace).components]
    stores = [component for component in there if component.is_secret_store]
    return ", ".join(f"{c.name} is {f'scoped to {_enumerated(c.scopes)}' if c.scopes else 'denied'}" for c in stores)


def _enumerated(names: Sequence[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def working_directory() -> Path | None:
    """Return the working directory, if it is still there."""
    try:
        return Path.cwd()
    except OSError:
        return None


def fingerprint(paths: Iterable[Path], set_paths: Iterable[Path] = ()) -> Fingerprint:
    """Return something that differs when manifests in these directories, or these files, may differ.

    Of ``set_paths`` all directories below count as well.
    """
    directories = (directory for path in set_paths for directory in _directories(path, set()))
    return tuple(part for path in (*paths, *directories) for part in _fingerprint(path))


def _directories(path: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
    """Yield a directory and all below that can be part of the name of a set, each once: a link may lead anywhere."""
    yield path
    try:
        with os.scandir(path) as entries:
            below = [entry for entry in entries if not entry.name.startswith(".") and entry.is_dir()]
        found = [(Path(entry.path), entry.stat()) for entry in below]
    except OSError:  # gone meanwhile, or not there yet
        return
    for directory, status in sorted(found):
        identity = (status.st_dev, status.st_ino)
        if identity not in seen:
            seen.add(identity)
            yield from _directories(directory, seen)


def _fingerprint(path: Path) -> list[tuple[object, ...]]:
    try:
        status = path.stat()
        if not S_ISDIR(status.st_mode):
            return [(str(path), status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size)]
        names = sorted(os.listdir(path))  # noqa: PTH208 - names are all it takes
    except OSError as error:
        return [(str(path), error.errno)]
    # Not the directory's own times: they change with every file that comes and goes in it, such as a log.
    manifests = (path / name for name in names if name.lower().endswith((".yaml", ".yml")))
    return [(str(path),), *(part for manifest in manifests for part in _fingerprint(manifest))]
