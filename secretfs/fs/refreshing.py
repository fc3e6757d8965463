"""What a write to ``.secretfs/refresh`` has fetched again: a secret, a folder or a whole store."""

from typing import TYPE_CHECKING

from secretfs.cache.ttl_cache import CachedAnswer
from secretfs.errors import NoSuchEntry, SecretNotFound
from secretfs.fs.keys import FolderKey, ValueKey
from secretfs.fs.listing import Entry
from secretfs.fs.names import DATA, VERSIONS, ancestors, display_name, encode, split
from secretfs.fs.shown_store import ShownStore
from secretfs.store import Secret

if TYPE_CHECKING:
    from secretfs.fs.view import StoreView


async def refresh(view: "StoreView", store: ShownStore, path: tuple[bytes, ...]) -> None:
    """Carry out `StoreView.refresh` for a view of a store."""
    if not path:
        await store.refresh()
        return
    try:
        entry, below = await _follow(view, path)
    except NoSuchEntry:  # it may be newer than our listing
        await store.list_anew(ancestors(list(map(display_name, path))))
        entry, below = await _follow(view, path)
    if isinstance(entry, FolderKey):
        name = "/".join(entry.segments)
        above = ancestors(entry.segments)
        await store.refresh(lambda known: known == name or known in above or known.startswith(name + "/"))
        return
    if view.reads_have_effects:  # the next user of the secret has it fetched
        await store.refresh(lambda known: known in {entry.name, *ancestors(split(entry.name))})
        return
    store.versions.expire(lambda known: known == entry.name)
    if below[:1] == (VERSIONS,):
        secret, below = await _version(view, entry.name, below[1:])
    else:
        try:
            secret = await store.fetch_anew(entry.name)
        except SecretNotFound:
            await store.list_anew(ancestors(split(entry.name)))
            raise
        below = below[1:] if below[:1] == (DATA,) else below
    if below and (secret is None or below not in [(encode(key),) for key in secret.value.values]):
        raise NoSuchEntry("/".join(map(display_name, path)))


async def _version(
    view: "StoreView", name: str, below: tuple[bytes, ...]
) -> tuple[CachedAnswer[Secret] | None, tuple[bytes, ...]]:
    """Fetch the version that a path below ``..versions`` leads to, if it does; with what is left of the path."""
    if not view.versions.exist_of(name):
        raise NoSuchEntry(f"{name}: it has no versions")
    if not below:
        return None, ()
    return await view.versions.get(name, display_name(below[0])), below[1:]


async def _follow(view: "StoreView", path: tuple[bytes, ...]) -> tuple[Entry, tuple[bytes, ...]]:
    """Return the folder that a path leads to, or the secret and the part of the path below it."""
    segments: tuple[str, ...] = ()
    for depth, segment in enumerate(path, 1):
        entry, _ = await view.entry(segments, segment)
        if not isinstance(entry, FolderKey):
            if isinstance(entry, ValueKey) and path[depth:]:
                raise NoSuchEntry("/".join(map(display_name, path)))
            return entry, path[depth:]
        segments = entry.segments
    return FolderKey(view.component, segments), ()
