"""Many apps, and what `secretfs.daemon.serve.serve` composes for them without the kernel: the tests play its part."""

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from secretfs.cache.change import Change
from secretfs.cache.freshness import Freshness
from secretfs.daemon.audience import permissions_of
from secretfs.daemon.reload import Reloader
from secretfs.daemon.request import MountOptions
from secretfs.daemon.store_records import record_stores
from secretfs.dapr.declaration import Declaration
from secretfs.dapr.load import declare
from secretfs.dapr.sources import Sources
from secretfs.fs.content import views_of
from secretfs.fs.inodes import ROOT_INODE
from secretfs.fs.journal import Journal
from secretfs.fs.vfs import SecretVFS
from secretfs.registry.opening import open_registry
from secretfs.registry.store_set import ReloadResult, StoreSet
from tests.support.canary import secret
from tests.support.manifests import component, scope
from tests.support.waiting import wait_until_settled

FIRST_USER = 5000
SPARE = 3
"""Configurations of apps that may be added."""


class ManyApps:
    """Apps that see one secrets file, each with a Configuration that allows it some secrets; neighbours share half."""

    def __init__(self, root: Path, apps: int, visible: int, own: Sequence[str] = ()) -> None:
        """Declare ``apps`` apps that see ``visible`` secrets each, and those in ``own`` a component of their own."""
        self._directory = root / "apps"
        (root / "configs").mkdir(parents=True)
        self._directory.mkdir()
        self._visible = visible
        self._count = 0
        """The apps that have been declared."""
        configs = [self._configuration(root / "configs", number) for number in range(apps + SPARE)]
        names = {name: secret(name) for number in range(apps + SPARE) for name in self.visible_to(number)}
        self.secrets = root / "secrets.json"
        self.secrets.write_text(json.dumps(names), encoding="utf-8")
        component(root / "components", "file", "local.file", {"secretsFile": self.secrets})
        for app in own:
            component(root / "components", f"of-{app}", "local.file", {"secretsFile": self.secrets}, scopes=[app])
        self.sources = Sources((root / "components",), tuple(configs), apps=(self._directory,))
        for _ in range(apps):
            self._last = self.add()

    def _configuration(self, directory: Path, number: int) -> Path:
        limit = scope("file", default="deny", allowed=self.visible_to(number))
        document = {
            "apiVersion": "dapr.io/v1alpha1",
            "kind": "Configuration",
            "metadata": {"name": f"app-{number}"},
            "spec": {"secrets": {"scopes": [limit]}},
        }
        path = directory / f"{number}.yaml"
        path.write_text(json.dumps(document), encoding="utf-8")
        return path

    def visible_to(self, number: int) -> Sequence[str]:
        """Return what an app may see."""
        first = number * self._visible // 2
        return [f"secret-{place}" for place in range(first, first + self._visible)]

    @property
    def visible(self) -> dict[str, Sequence[str]]:
        """What each app may see that has been declared."""
        return {f"app-{number}": self.visible_to(number) for number in range(self._count)}

    def add(self, **spec: object) -> Path:
        """Declare one more app."""
        self.declare(self._count, **spec)
        self._count += 1
        return self.file(self._count - 1)

    def file(self, number: int) -> Path:
        """Return where an app is declared."""
        return self._directory / f"app-{number}.yaml"

    def declare(self, number: int, **spec: object) -> None:
        """Declare an app, or declare it anew."""
        name = f"app-{number}"
        document = {
            "apiVersion": "secretfs/v1alpha1",
            "kind": "App",
            "metadata": {"name": name},
            "spec": {"owner": str(FIRST_USER + number), "configuration": name, **spec},
        }
        self.file(number).write_text(json.dumps(document), encoding="utf-8")

    def settle(self) -> None:
        """Wait until nothing was written so recently that it may change again and look the same."""
        wait_until_settled(self._last)

    @asynccontextmanager
    async def served(self) -> AsyncIterator["ServedApps"]:
        """Serve them."""
        declaration, origin = declare(self.sources)
        async with (
            open_registry(declaration.components, declaration.context, Freshness()) as registry,
            trio.open_nursery() as nursery,
        ):
            announced: list[Change] = []
            stores = StoreSet(registry, Freshness(), nursery, announced.append)
            journal, apps = Journal(), declaration.apps
            views, permissions = views_of(await stores.start(declaration)), permissions_of(_OPTIONS, declaration)
            vfs = SecretVFS(views, permissions, nursery, journal=journal, apps=apps)
            record_stores(journal, stores.shown)

            def show(declared: Declaration, result: ReloadResult) -> frozenset[str]:
                views = views_of(result.stores, vfs.views)
                changed = vfs.replace(views, result.replaced, declared.apps, permissions_of(_OPTIONS, declared))
                record_stores(journal, stores.shown)
                return changed

            def successor() -> SecretVFS:
                return SecretVFS(vfs.views, permissions, nursery, journal=journal, apps=apps)

            yield ServedApps(self, Reloader(origin, stores, show, announced.append, apps), vfs, successor)
            nursery.cancel_scope.cancel()


_OPTIONS = MountOptions(Path("/nowhere"))


class ServedApps:
    """Apps that are served."""

    def __init__(self, apps: ManyApps, reloader: Reloader, vfs: SecretVFS, successor: Callable[[], SecretVFS]) -> None:
        self._apps = apps
        self._reloader = reloader
        self.vfs = vfs
        self.successor = successor
        """Makes the file system of a process that takes over."""

    async def reload(self) -> None:
        """Read everything again. A mistake fails the test."""
        await self._reloader.reload()
        assert self._reloader.status().error == ""

    async def inode(self, *path: str) -> int:
        """Look a path up."""
        number = ROOT_INODE
        for segment in path:
            number = (await self.vfs.lookup(number, segment.encode())).inode
        return number

    async def read_everything(self) -> None:
        """Let each app read all that it may see."""
        for app, visible in self._apps.visible.items():
            for name in visible:
                file = await self.inode(app, "file", name)
                await self.vfs.getattr(file)
                assert await self.vfs.read(await self.vfs.open(file), 0, 99) == secret(name).encode()
