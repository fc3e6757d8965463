"""A tree of names as tree(1) draws it. Values are never read for it, nor what is part of one: the keys of a secret."""

from collections import Counter
from collections.abc import Iterator, Mapping

from secretfs.errors import AccessDenied, NoSuchEntry
from secretfs.fs.keys import FolderKey, ValueKey
from secretfs.fs.view import StoreView

Branch = Mapping[str, "Branch | None"]
"""A directory as it is shown: entries by name, None for a file."""


async def names_below(view: StoreView, segments: tuple[str, ...], unlistable: list[str]) -> Branch:
    """Return all names from a folder down. A folder that may not be listed shows as empty, and is noted.

    Raises `MalformedAnswer` for more names than the store may have: there may be folders without end.
    """
    return await _below(view, segments, unlistable, Counter())


async def _below(view: StoreView, segments: tuple[str, ...], unlistable: list[str], found: Counter[str]) -> Branch:
    branch: dict[str, Branch | None] = {}
    try:
        entries, _ = await view.entries(segments)
    except AccessDenied:
        unlistable.append("/".join((view.component, *segments)))
        return branch
    except NoSuchEntry:  # gone since its parent was listed
        return branch
    found["names"] += len(entries)
    view.limits.require_names(found["names"])
    for segment, entry in sorted(entries.items(), key=lambda item: item[0]):
        shown = segment.decode(errors="backslashreplace")
        if isinstance(entry, FolderKey):
            branch[shown] = await _below(view, entry.segments, unlistable, found)
        else:
            branch[shown] = None if isinstance(entry, ValueKey) else {}
    return branch


def draw(branch: Branch, failed: frozenset[str] = frozenset(), place: str = "", indent: str = "") -> Iterator[str]:
    """Draw a tree, a "/" after what is a directory. Mark the stores that ``failed``, by their paths."""
    for number, (name, below) in enumerate(branch.items(), 1):
        last = number == len(branch)
        mark = "  (cannot be read, see below)" if place + name in failed else ""
        yield f"{indent}{'└── ' if last else '├── '}{name}{'' if below is None else '/'}{mark}"
        yield from draw(below or {}, failed, f"{place}{name}/", indent + ("    " if last else "│   "))
