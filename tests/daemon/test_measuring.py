"""A mount is measured without a name in it, and as cheaply with 100,000 secrets as with 10."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from secretfs.cache.change import Change, discard
from secretfs.cache.freshness import Freshness
from secretfs.cache.measures import SLICE
from secretfs.cache.ttl_cache import CachedAnswer
from secretfs.daemon.measuring import Measurer
from secretfs.dapr.declaration import load
from secretfs.fs.attributes import PermissionPolicy
from secretfs.fs.content import views_of
from secretfs.fs.control_files import UNDECLARED
from secretfs.fs.publish import Publisher
from secretfs.fs.vfs import SecretVFS
from secretfs.fuse.messages import MessageStats
from secretfs.linux.syscall_helper import SyscallHelper, start_program
from secretfs.observe.audit import AuditLog
from secretfs.registry.opening import open_registry
from secretfs.registry.store_set import StoreSet
from secretfs.store import Secret
from tests.support.canary import leaked, secret
from tests.support.manifests import component
from tests.support.work import counted


@asynccontextmanager
async def measured(components: Path) -> AsyncIterator[tuple[Measurer, StoreSet, SecretVFS]]:
    """Serve stores as a mount does, without the mount."""
    declaration = load([components], [], "", {})
    async with (
        open_registry(declaration.components, declaration.context, Freshness()) as registry,
        trio.open_nursery() as nursery,
    ):
        stores = StoreSet(registry, Freshness(), nursery, discard)
        _, announced = trio.open_memory_channel[Change](1)
        vfs = SecretVFS(views_of(await stores.start(declaration)), PermissionPolicy(), nursery, "shop")
        with closing(SyscallHelper.started_when_needed(partial(start_program, Path("/nowhere")))) as helper:
            publisher = Publisher(vfs, Path("/nowhere"), helper, announced)
            yield (
                Measurer(Path("/nowhere"), vfs, stores, publisher, MessageStats(), UNDECLARED, AuditLog()),
                stores,
                vfs,
            )
        nursery.cancel_scope.cancel()


def fill(stores: StoreSet, number: int) -> None:
    """Let a store have so many values in memory, as if they had been read."""
    cached, now = stores.running["env"].cached, trio.current_time()
    for each in range(number):
        value = Secret({"k": secret(str(each)).encode()})
        cached._secrets.keep(f"team/secret-{each}", CachedAnswer(value, now, now + 60, time.time()), used=now)


@pytest.fixture
def components(tmp_path: Path) -> Path:
    component(tmp_path / "components", "env", "local.env", {"prefix": "SFS_"})
    component(tmp_path / "components", "other", "local.env", {"prefix": "OTHER_"})
    return tmp_path / "components"


async def test_100_000_secrets_have_the_series_of_10(components: Path, mock_clock: MockClock) -> None:
    pages = []
    for number in (10, 100_000):
        async with measured(components) as (measurer, stores, _):
            fill(stores, number)
            pages.append((await measurer.page("openmetrics")).decode())
    few, many = ([line.rpartition(" ")[0] for line in page.splitlines()] for page in pages)
    assert few == many
    assert 'secretfs_values{mountpoint="/nowhere",store="env"} 100000.0' in pages[1]
    assert not any(leaked(page) or "secret-" in page for page in pages)


async def test_nobody_waits_for_a_scrape(components: Path, mock_clock: MockClock) -> None:
    """Between two slices of the count others run, and the page is made in a thread."""
    async with measured(components) as (measurer, stores, _):
        await measurer.page("openmetrics")  # imports what makes pages
        largest = []
        for slices in (1, 50):
            fill(stores, slices * SLICE)
            with counted() as work:
                await measurer.page("openmetrics")
            largest.append(work.largest_step)
        assert largest[1] < 3 * largest[0]
