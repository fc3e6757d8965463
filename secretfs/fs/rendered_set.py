"""All rendered files of a mount: what is declared, as views beside those of the stores."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import trio

from secretfs.cache.change import Announce, Change
from secretfs.fs.keys import app_of
from secretfs.fs.rendered_files import FileToRender, RenderedFiles
from secretfs.fs.rendering_parts import Parts
from secretfs.fs.view import StoreView
from secretfs.rendering.renderer import Renderer
from secretfs.scopes import ALLOW_ALL

IDLE_PARTS: Final = 8
"""How often in the time after which a file leaves memory it is looked at whether it is used."""


class ShownFile(NamedTuple):
    """A rendered file, and where it is shown."""

    directory: str
    """``NAME``, and in a mount for many apps ``APP/NAME``."""
    name: str
    """Below that directory."""
    file: FileToRender


@dataclass(slots=True)
class _App:
    """The rendered files of an app, by where their directories are shown."""

    directories: dict[str, RenderedFiles] = field(default_factory=dict)
    turn: trio.Lock = field(default_factory=trio.Lock)
    """Held while one of them is rendered."""


class RenderedSet:
    """The rendered files of a mount, by directory. An app renders one file at a time, whatever the others do."""

    def __init__(self, nursery: trio.Nursery, announce: Announce, idle: float) -> None:
        self._nursery = nursery
        self._announce = announce
        self._idle = idle
        self._renderer = Renderer()
        self._parts = Parts()
        self._apps: dict[str | None, _App] = {}
        self._views: dict[str, StoreView] = {}

    def announcing(self, change: Change) -> None:
        """Announce a change of a store, and have the files rendered again that are made of what has changed."""
        self._announce(change)
        app = self._apps.get(app_of(change.component))
        for directory in app.directories.values() if app else ():
            directory.note(change)

    def beside(self, stores: Mapping[str, StoreView], files: Iterator[ShownFile]) -> dict[str, StoreView]:
        """Return views of the stores and of all files. What was shown before goes on, and changes are announced."""
        changed = {at for at in self._parts.views.keys() | stores.keys() if self._parts.views.get(at) != stores.get(at)}
        self._parts.show(stores)
        by_directory = defaultdict[str, dict[str, FileToRender]](dict)
        for shown in files:
            by_directory[shown.directory][shown.name] = shown.file
        for gone in self._views.keys() - by_directory.keys():
            self._remove(gone)
        for component, wanted in by_directory.items():
            self._directory(component).replace(wanted, lambda part: part.component in changed)
        return {**stores, **self._views}

    def _directory(self, component: str) -> RenderedFiles:
        """Return the directory that is shown at a place, which may be new."""
        app = self._apps.setdefault(app_of(component), _App())
        if component not in app.directories:
            directory = app.directories[component] = RenderedFiles(
                component, self._parts, self._renderer, self._nursery, self._announce, app.turn, self._idle
            )
            self._views[component] = StoreView(directory, ALLOW_ALL, component, directory.issues)
        return app.directories[component]

    def _remove(self, component: str) -> None:
        app = self._apps[app_of(component)]
        del app.directories[component], self._views[component]
        if not app.directories:
            del self._apps[app_of(component)]

    async def drop_idle(self) -> None:
        """Forget the files that nobody uses. Runs forever; then the process ends that renders."""
        try:
            while True:
                await trio.sleep(max(1.0, self._idle / IDLE_PARTS))
                for app in self._apps.values():
                    for directory in app.directories.values():
                        directory.drop_idle()
        finally:
            self._renderer.close()
