"""Secrets by their names instead of their paths: for those who do not come through the kernel.

What is answered, and what is refused, is what the files show: the same views, caches, scopes and deadlines.
"""

from collections.abc import Collection, Mapping

from secretfs.cache.deadlines import shared_deadline
from secretfs.fs.content import Contents
from secretfs.fs.view import StoreView
from secretfs.store import Secret


class SecretsByName:
    """The secrets that the stores of a mount show."""

    def __init__(self, contents: Contents) -> None:
        self._contents = contents

    def stores(self) -> Collection[str]:
        """Return where the stores are shown: those that are declared, and no rendered files."""
        return [name for name, view in self._contents.views.items() if not view.rendered]

    def view(self, component: str) -> StoreView | None:
        """Return what is shown of a store that is declared; None if there is none."""
        view = self._contents.views.get(component)
        return None if view is None or view.rendered else view

    async def secret(self, component: str, name: str) -> Secret:
        """Return a secret. This is a use, like an open of its file. Raises `NoSuchEntry` for one that is hidden."""
        answer = await self._contents.recall_or_ask(
            component, lambda view: view.recall(name), lambda view: view.secret(name)
        )
        self._contents.view(component).use(name)
        return answer.value

    def has_versions(self, component: str, name: str) -> bool:
        """Whether there may be other versions of a secret than the current one. Asks nobody."""
        return self._contents.view(component).versions.exist_of(name)

    async def version(self, component: str, name: str, version: str) -> Secret:
        """Return one version of a secret, which is a use of it. Raises `NoSuchEntry` for one that is hidden."""
        answer = await self._contents.ask(component, lambda view: view.versions.get(name, version))
        self._contents.view(component).versions.use(name, version)
        return answer.value

    async def every_secret(self, component: str) -> Mapping[str, Secret]:
        """Return what the bulk file of a store holds: see `StoreView.every_secret`."""
        with shared_deadline(bulk=True):
            return (await self._contents.ask(component, lambda view: view.every_secret())).value
