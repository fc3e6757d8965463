"""What rendered files are made of: the secrets and folders that the view of their app shows."""

import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import trio

from secretfs.cache.client import CONCURRENCY
from secretfs.cache.parallel import in_parallel
from secretfs.cache.ttl_cache import CachedAnswer
from secretfs.errors import NoSuchEntry, PartMissing, SecretFSError, SecretNotFound
from secretfs.fs.keys import SecretKey, ValueKey, app_of
from secretfs.fs.listing import in_order
from secretfs.fs.names import encode, split
from secretfs.fs.view import StoreView
from secretfs.store import Secret


class Part(NamedTuple):
    """A secret, or a folder with the names in it."""

    component: str
    """Where the store is shown: ``COMPONENT``, and in a mount for many apps ``APP/COMPONENT``."""
    name: str
    is_folder: bool = False


@dataclass(frozen=True, slots=True)
class PartValue:
    """What a part is. Two are equal when a file that is made of them is the same."""

    values: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    """Of a secret."""
    names: tuple[str, ...] = ()
    """Of the secrets in a folder."""
    modified: float | None = field(default=None, compare=False)
    """When a secret was written or first seen, in seconds since the epoch."""


class Parts:
    """The stores of a mount, as far as files are made of what is in them."""

    def __init__(self) -> None:
        self.show({})

    def show(self, views: Mapping[str, StoreView]) -> None:
        """Have files made of what these views show from now on. They are given by where they are shown."""
        self.views = views
        self._by_app = defaultdict[str | None, list[StoreView]](list)
        for component, view in views.items():
            self._by_app[app_of(component)].append(view)

    async def get(self, part: Part) -> CachedAnswer[PartValue]:
        """Return a part, fresh. Raises `PartMissing` for one that is not there or hidden, which looks the same."""
        view = self._view(part)
        try:
            if part.is_folder:
                return await self._names(view, part.name)
            return _values(await view.secret(part.name))
        except (NoSuchEntry, SecretNotFound):
            raise _missing(part) from None

    def peek(self, part: Part) -> CachedAnswer[PartValue] | None:
        """Return a part that may be served without waiting; of a folder that is never known."""
        view = self.views.get(part.component)
        answer = None if view is None or part.is_folder else view.peek(part.name)
        return None if answer is None else _values(answer)

    def issues(self, component: str) -> bool:
        """Whether reading secrets of a store may issue credentials."""
        view = self.views.get(component)
        return view is not None and view.reads_have_effects

    def any_issues(self, app: str | None) -> bool:
        """Whether reading secrets of some store that an app sees may; None is the app of a mount for a single one."""
        return any(view.reads_have_effects for view in self._by_app.get(app, ()))

    def use(self, part: Part, until: float) -> None:
        """Take note that a part is in use, or may be ``until``, so that it is kept fresh."""
        view = self.views.get(part.component)
        if view is not None and not part.is_folder:
            view.use(part.name, until)

    async def refresh(self, part: Part) -> None:
        """Have the store asked again, now. Raises as `StoreView.refresh` does."""
        if not part.is_folder:
            await self._view(part).refresh(tuple(map(encode, split(part.name))))

    async def fetch_ahead(self, component: str, names: tuple[str, ...]) -> None:
        """Fetch secrets that are about to be asked for one by one. What fails is found out then."""
        waiting = iter(names)

        async def fetch() -> None:
            for name in waiting:
                try:
                    await self.get(Part(component, name))
                except SecretFSError:
                    return

        await in_parallel(fetch, min(CONCURRENCY, len(names)))

    def _view(self, part: Part) -> StoreView:
        view = self.views.get(part.component)
        if view is None:
            raise _missing(part)
        return view

    async def _names(self, view: StoreView, folder: str) -> CachedAnswer[PartValue]:
        """List the secrets in a folder, without those in folders below it."""
        listing, remaining = await view.entries(split(folder) if folder else ())
        found = [key.name for key in listing.values() if isinstance(key, SecretKey | ValueKey)]
        now = trio.current_time()
        return CachedAnswer(PartValue(names=tuple(await in_order(found))), now, now + remaining, time.time())


def _values(answer: CachedAnswer[Secret]) -> CachedAnswer[PartValue]:
    secret = answer.value
    return answer.with_value(PartValue(secret.values, modified=secret.modified or answer.fetched_at))


def _missing(part: Part) -> PartMissing:
    """Say what is not there, without its name: it may be hidden."""
    store = part.component.rpartition("/")[2]
    what = "a folder" if part.is_folder else "a secret"
    return PartMissing(f"{what} of the store {store} that it asks for is not there, or hidden")
