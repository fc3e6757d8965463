"""What listings said before the store refused to list a folder. Pure."""

from collections.abc import Callable

from secretfs.errors import StoreError
from secretfs.store import Names


class WithheldNames:
    """The last listings of folders whose listing is refused by now."""

    def __init__(self) -> None:
        self._names: dict[str, Names] = {}

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, folder: str) -> bool:
        return folder in self._names

    def changed(self, folder: str, before: Names | StoreError | None, now: Names | StoreError) -> frozenset[str]:
        """Return the names that are new or gone since the last listing, which may lie before a time of refusals."""
        last = before if isinstance(before, Names) else self._names.get(folder)
        if not isinstance(now, Names):
            if last is not None:
                self._names[folder] = last
            return frozenset()
        self._names.pop(folder, None)
        if last is None or last is now:
            return frozenset()
        return (last.secrets ^ now.secrets) | (last.folders ^ now.folders)

    def update(self, other: "WithheldNames") -> None:
        """Take over what another cache has."""
        self._names.update(other._names)  # noqa: SLF001 - one class

    def retain(self, is_known: Callable[[str], bool]) -> None:
        """Forget the other folders."""
        self._names = {folder: names for folder, names in self._names.items() if is_known(folder)}
