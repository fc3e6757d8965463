"""What places are called in the audit log: the app, the component, the secret and its key."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import groupby
from operator import itemgetter
from typing import Final

from secretfs.cache.change import Change
from secretfs.errors import NoSuchEntry
from secretfs.fs.content import Contents
from secretfs.fs.control_files import LISTED, LISTED_READ_ONLY, METRICS
from secretfs.fs.inode import Version
from secretfs.fs.inodes import Tree
from secretfs.fs.keys import (
    AppKey,
    BulkKey,
    Control,
    ControlKey,
    ControlsKey,
    DirectoryKey,
    FolderKey,
    LeafKey,
    PinnedSecretKey,
    RootKey,
    SecretBulkKey,
    VersionKey,
    VersionsKey,
    VersionValueKey,
)
from secretfs.fs.names import CONTROL, DATA, VERSIONS, display_name

Description = Mapping[str, object]
"""Field to value. What does not apply is left out."""

CONTROL_FILES: Final = {
    control: f"{CONTROL.decode()}/{name.decode()}"
    for names in (LISTED, LISTED_READ_ONLY, METRICS)
    for name, control in names.items()
}
"""The path of each control file, by which programs ask for it."""


class Descriptions:
    """Describes files, directories and changes of one mount."""

    def __init__(self, tree: Tree, contents: Contents, app_id: str) -> None:
        self._tree = tree
        self._contents = contents
        self._app_id = app_id

    def opened(self, number: int) -> tuple[str, Description] | None:
        """Describe a file that is opened, and say what that is: ``open`` for a value, ``bulk``, or ``control``.

        None for what is not known any more, and for a directory. Only reads, so any thread may call it.
        """
        try:
            version = self._tree.inode(number)
        except KeyError:
            return None
        if not isinstance(version, Version):
            return None
        if isinstance(version.key, ControlKey):
            return "control", self._place(version.key)
        fields = {**self._place(version.key), "version": _label(version), "inode": number}
        return "bulk" if isinstance(version.key, BulkKey | SecretBulkKey) else "open", fields

    def recall(self, number: int) -> None:
        """Find out again which version a file has that was known before a takeover, if the cache still knows it."""
        version = self._tree.inode(number) if number in self._tree else None
        if not isinstance(version, Version) or version.label or isinstance(version.key, ControlKey):
            return
        with suppress(NoSuchEntry):
            content = self._contents.peek(version.key)
            if content is not None and content.data == version.content:
                version.label = content.label

    def asked_for(self, number: int, segment: bytes | None = None) -> Description:
        """Describe what a request is about that was refused: an inode, or a name in a directory."""
        if number not in self._tree:
            return {}
        key = self._tree.inode(number).key
        if segment is None and not isinstance(key, DirectoryKey):
            return self._place(key)
        fields, segments = self._directory(key) if isinstance(key, DirectoryKey) else (self._place(key), ())
        names = [*segments, *([] if segment is None else [display_name(segment)])]
        return {**fields, "path": "/".join(names)}

    def requested(self, number: int, text: bytes) -> Description:
        """Describe what is written to a control file: each line is a path, of those that are to be refreshed."""
        lines = text.decode("utf-8", "surrogateescape").removesuffix("\n").split("\n")
        key = self._tree.inode(number).key
        refreshes = isinstance(key, ControlKey) and key.control is Control.REFRESH
        return {**self.asked_for(number), "paths": [line or "*" for line in lines] if refreshes else None}

    def rotated(self, change: Change) -> Iterator[Description]:
        """Describe which secrets have other values now, each with the keys that are different and its version."""
        for name, values in groupby(sorted(change.values), key=itemgetter(0)):
            view = self._contents.views.get(change.component)
            answer = None
            with suppress(NoSuchEntry):
                answer = view.peek(name) if view else None
            fields = {**self._store(change.component), "secret": name, "keys": [key for _, key in values]}
            yield {**fields, "version": answer.value.version} if answer else fields

    def _place(self, key: LeafKey) -> dict[str, object]:
        if isinstance(key, ControlKey):
            return {"file": CONTROL_FILES[key.control]}
        fields = self._store(key.component)
        if isinstance(key, BulkKey):
            return {**fields, "file": f".bulk.{key.form.value}"}
        if isinstance(key, SecretBulkKey):
            return {**fields, "secret": key.name, "file": f".bulk.{key.form.value}"}
        return {**fields, "secret": key.name, "key": key.key}

    def _directory(self, key: DirectoryKey) -> tuple[dict[str, object], tuple[str, ...]]:
        """Describe a directory: by its store, and the names from there on."""
        if isinstance(key, ControlsKey):
            return {}, (CONTROL.decode(),)
        if isinstance(key, RootKey | AppKey):
            return {"app": key.app if isinstance(key, AppKey) else self._app_id}, ()
        if isinstance(key, FolderKey):
            return self._store(key.component), key.segments
        names = [key.name]
        if isinstance(key, PinnedSecretKey):
            names += [DATA.decode()]
        elif isinstance(key, VersionsKey | VersionKey):
            names += [VERSIONS.decode(), *([key.version] if isinstance(key, VersionKey) else [])]
        return self._store(key.component), tuple(names)

    def _store(self, component: str) -> dict[str, object]:
        app, slash, own = component.partition("/")
        return {"app": app, "component": own} if slash else {"app": self._app_id, "component": component}


def _label(version: Version) -> str:
    return version.key.version if isinstance(version.key, VersionValueKey) else version.label
