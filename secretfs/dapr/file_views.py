"""Which app has which rendered files, and whether they can be what they are declared to be."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from secretfs.dapr.app import App
from secretfs.dapr.rendered_file import RenderedFile, load_files
from secretfs.errors import ConfigurationError, Notice
from secretfs.rendering.check import check_templates, installed
from secretfs.rendering.job import Checked, Reference
from secretfs.settings import nearest

_checked: dict[str, Checked] = {}
"""By its text, what is known of each template that is declared: most are as they were at the last reload."""


@dataclass(frozen=True, slots=True)
class DeclaredFile:
    """A rendered file that an app has."""

    file: RenderedFile
    stores: frozenset[str]
    """The stores that it asks, by component name, as far as they are written down."""
    asks_others: bool
    """Whether it may ask another store, too: one whose name a template computes."""
    prefix: str = ""
    """``APP/`` in a mount for many apps: what is before its path, and before the names of its stores."""

    @property
    def directory(self) -> str:
        """Where the directory is shown that it is in."""
        return self.prefix + self.file.directory

    @property
    def shown(self) -> str:
        """Where it is shown itself."""
        return self.prefix + "/".join(self.file.path)


def load_file_views(
    directories: Mapping[str, Sequence[Path]],
    shown: Iterable[str],
    apps: Mapping[str, App] | None,
    app_id: str,
    notices: list[Notice],
) -> dict[str, DeclaredFile]:
    """Load the rendered files, by where they are shown: ``PATH``, and in a mount for many apps ``APP/PATH``.

    ``directories`` are those that declare the files of an app; "" is the only one. ``shown`` are the stores, by where
    they are shown. Raises `ConfigurationError` for the first thing that is wrong.
    """
    groups = {app: tuple(dict.fromkeys(paths)) for app, paths in directories.items()}
    loaded = {paths: load_files(paths) for paths in dict.fromkeys(groups.values())}
    checked = _check([file for files in loaded.values() for file in files])
    if not checked:
        return {}
    by_scope = defaultdict[tuple[tuple[Path, ...], str | None], list[DeclaredFile]](list)  # None: of all
    for paths, files in loaded.items():
        for file in files:
            for scope in dict.fromkeys(file.scopes) or (None,):
                by_scope[paths, scope].append(checked[id(file)])
    stores = defaultdict[str, set[str]](set)
    for name in shown:
        app, _, store = ("", "", name) if apps is None else name.partition("/")
        stores[app].add(store)
    views: dict[str, DeclaredFile] = {}
    ids = {"": app_id} if apps is None else {name: app.app_id or name for name, app in apps.items()}
    for app, own_id in ids.items():
        prefix = f"{app}/" if app else ""
        paths = groups[app]
        mine = [replace(one, prefix=prefix) for one in (*by_scope[paths, None], *by_scope[paths, own_id])]
        _refuse_clashes([one.file for one in mine], stores[app])
        for one in mine:
            views[one.shown] = one
            notices += _unseen(one, stores[app], app)
    return views


def _check(files: Sequence[RenderedFile]) -> dict[int, DeclaredFile]:
    """Check all templates. Returns what each of the files is, by its identity."""
    if not files:
        _checked.clear()
        return {}
    _require_packages(files)
    texts = list(dict.fromkeys(template.text for file in files for _, template in file.job.templates))
    fresh = [text for text in texts if text not in _checked]
    try:
        found = _checked | dict(zip(fresh, check_templates(fresh), strict=True))
    except OSError as error:
        raise ConfigurationError(f"templates cannot be checked: {error.strerror or error}", files[0].source) from None
    _checked.clear()
    _checked.update((text, found[text]) for text in texts)
    return {id(file): _declared(file, found) for file in files}


def _require_packages(files: Sequence[RenderedFile]) -> None:
    """Refuse files that take a package which is not there."""
    with_cryptography = next((file for file in files if file.job.takes_cryptography), None)
    for package, file in (("jinja2", files[0]), ("cryptography", with_cryptography)):
        if file is not None and not installed(package):
            reason = f"file {file.name} needs the package {package}: pip install secretfs-fuse[files]"
            raise ConfigurationError(reason, file.source)


def _declared(file: RenderedFile, checked: Mapping[str, Checked]) -> DeclaredFile:
    stores = {value.store for _, value in file.job.values if isinstance(value, Reference)}
    others = False
    for field, template in file.job.templates:
        found = checked[template.text]
        if found.fault is not None:
            line = f" line {found.fault.line}" if found.fault.line else ""
            raise ConfigurationError(f"{field}{line}: {found.fault.message}", file.source)
        stores.update(found.stores)
        others = others or found.asks_others
    return DeclaredFile(file, frozenset(stores), others)


def _refuse_clashes(files: Sequence[RenderedFile], stores: set[str]) -> None:
    """Refuse what would be at one place: two files, a file and a folder, or a directory of files and a store."""
    places: dict[tuple[str, ...], RenderedFile] = {}
    for file in files:
        if file.directory in stores:
            reason = f"spec.path: {file.directory} is the directory of a store; files need one of their own"
            raise ConfigurationError(reason, file.source)
        earlier = places.setdefault(file.path, file)
        if earlier is not file:
            raise ConfigurationError(f"spec.path: file {earlier.name} is there, too: {earlier.source}", file.source)
    for file in files:
        for depth in range(2, len(file.path)):
            above = places.get(file.path[:depth])
            if above is not None:
                raise ConfigurationError(f"spec.path: {'/'.join(above.path)} is a file: {above.source}", file.source)


def _unseen(one: DeclaredFile, stores: set[str], app: str) -> list[Notice]:
    whom = f"app {app}" if app else "this app"
    return [
        Notice(
            f"file {one.file.name} asks the store {store}, which {whom} does not see{nearest(store, tuple(stores))}",
            one.file.source,
        )
        for store in sorted(one.stores - stores)
    ]
