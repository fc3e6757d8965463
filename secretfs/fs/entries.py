"""What is in a directory: a name that somebody looks up, and all that is listed.

Names come from the listings of stores, and the names of keys from the value of their secret. Control names are found
and never listed.
"""

from collections.abc import Mapping
from typing import TypeVar

import trio

from secretfs.errors import NoSuchEntry
from secretfs.fs.attributes import FOREVER
from secretfs.fs.content import Contents
from secretfs.fs.control_files import ControlDirectory
from secretfs.fs.inode import DIRECTORY_TIMEOUT
from secretfs.fs.keys import (
    AppKey,
    BulkKey,
    ControlKey,
    ControlsKey,
    DirectoryKey,
    FolderKey,
    LeafKey,
    PinnedSecretKey,
    PinnedValueKey,
    RootKey,
    SecretBulkKey,
    SecretKey,
    VersionKey,
    VersionsKey,
    VersionValueKey,
)
from secretfs.fs.listing import Listing, make_listing
from secretfs.fs.names import BULK_FORMS, CONTROL, DATA, VERSIONS, decode, encode, is_probe

K = TypeVar("K", bound=DirectoryKey | LeafKey)


async def find(
    contents: Contents, controls: ControlDirectory, parent: DirectoryKey, segment: bytes
) -> tuple[DirectoryKey | LeafKey, float]:
    """Return what is at this segment of a directory, and for how many seconds that holds. Raises `NoSuchEntry`."""
    match parent:
        case RootKey() | AppKey():
            return _find_top(contents, parent, segment), DIRECTORY_TIMEOUT
        case ControlsKey():
            if segment not in controls.names:
                raise NoSuchEntry(segment.decode(errors="replace"))
            return ControlKey(controls.names[segment]), DIRECTORY_TIMEOUT
        case FolderKey(component, ()) if segment in BULK_FORMS:
            return BulkKey(component, BULK_FORMS[segment]), DIRECTORY_TIMEOUT
        case FolderKey(component, segments):
            return await contents.recall_or_ask(
                component,
                lambda view: view.recall_entry(segments, segment),
                lambda view: view.entry(segments, segment),
            )
        case SecretKey():
            return await _find_in_secret(contents, parent, segment)
        case PinnedSecretKey() | VersionsKey() | VersionKey():
            return await _find_in_version(contents, parent, segment)


async def _find_in_secret(
    contents: Contents, parent: SecretKey, segment: bytes
) -> tuple[DirectoryKey | LeafKey, float]:
    component, name = parent.component, parent.name
    if segment == DATA:
        return await contents.pin(parent), 0.0  # no rename tells the kernel that another version is there
    if segment == VERSIONS:
        if not contents.view(component).versions.exist_of(name):
            raise NoSuchEntry("..versions")
        return VersionsKey(component, name), DIRECTORY_TIMEOUT
    if segment in BULK_FORMS:
        secret = await contents.ask(component, lambda view: view.secret(name))
        return SecretBulkKey(component, name, BULK_FORMS[segment]), secret.remaining
    return await contents.recall_or_ask(
        component, lambda view: view.recall_value(name, segment), lambda view: view.value(name, segment)
    )


async def _find_in_version(
    contents: Contents, parent: PinnedSecretKey | VersionsKey | VersionKey, segment: bytes
) -> tuple[DirectoryKey | LeafKey, float]:
    match parent:
        case PinnedSecretKey():
            return _entry(await _pinned_values(contents, parent), segment), FOREVER
        case VersionsKey():
            return await _find_version(contents, parent, segment)
    found, remaining = await _values_of_version(contents, parent)
    return _entry(found, segment), remaining


async def _pinned_values(contents: Contents, directory: PinnedSecretKey) -> Mapping[bytes, PinnedValueKey]:
    """Return what is in the directory of one version of a secret."""
    secret = await contents.pinned(directory)
    at = (directory.component, directory.name, directory.pin)
    return {encode(key): PinnedValueKey(*at, key) for key in secret.value.values}


async def _find_version(contents: Contents, parent: VersionsKey, segment: bytes) -> tuple[VersionKey, float]:
    version = decode(segment)
    if version is None or is_probe(segment):
        raise NoSuchEntry(segment.decode(errors="replace"))
    key = VersionKey(parent.component, parent.name, version)
    return key, (await contents.version(key)).remaining


async def _values_of_version(
    contents: Contents, directory: VersionKey
) -> tuple[Mapping[bytes, VersionValueKey], float]:
    """Return what is in the directory of a version, and for how many seconds it holds: the version may be deleted."""
    secret = await contents.version(directory)
    at = (directory.component, directory.name, directory.version)
    return {encode(key): VersionValueKey(*at, key) for key in secret.value.values}, secret.remaining


def _entry(entries: Mapping[bytes, K], segment: bytes) -> K:
    found = entries.get(segment)
    if found is None:
        raise NoSuchEntry(segment.decode(errors="replace"))
    return found


def _find_top(contents: Contents, parent: RootKey | AppKey, segment: bytes) -> DirectoryKey:
    if segment == CONTROL and isinstance(parent, RootKey):
        return ControlsKey()
    return _entry(contents.top(parent), segment)


async def list_directory(
    contents: Contents, controls: ControlDirectory, directory: DirectoryKey
) -> tuple[Listing, float]:
    """Return what is listed in a directory, and until when that holds, on trio's clock."""
    found: Mapping[bytes, DirectoryKey | LeafKey] = {}
    remaining = DIRECTORY_TIMEOUT
    match directory:
        case RootKey() | AppKey():
            found = contents.top(directory)
        case FolderKey(component, segments):
            listing, remaining = await contents.ask(component, lambda view: view.listing(segments))
            return listing, trio.current_time() + remaining
        case ControlsKey():
            found = {name: ControlKey(control) for name, control in controls.listed.items()}
        case PinnedSecretKey():
            found = await _pinned_values(contents, directory)
        case VersionKey():
            found, remaining = await _values_of_version(contents, directory)
        case SecretKey(component, name):
            found, remaining = await contents.ask(component, lambda view: view.values(name))
    expires = trio.current_time() + remaining
    return await make_listing(found), expires
