"""What it takes to add, change or remove one app does not depend on how many others there are, or on what they see."""

from collections.abc import Callable
from pathlib import Path

import pytest

from secretfs.cache.change import discard
from secretfs.dapr import configuration, documents
from secretfs.fs.catch_up import catch_up
from secretfs.fs.content import Contents
from secretfs.fs.inode_table import InodeTable
from secretfs.fs.listing import FolderTree
from secretfs.fs.view import StoreView
from secretfs.registry.store_set import StoreSet
from tests.support.counting import counting
from tests.support.many_apps import ManyApps
from tests.support.work import counted

FEW, SOME, MANY = 10, 200, 1000
CALLS_PER_APP = 100
"""Of functions, for each other app: it is found to be the same as before."""

COUNTED = {
    "documents parsed": (documents, "parse"),
    "configurations parsed": (configuration, "parse"),
    "configurations merged": (configuration, "_merge"),
    "views made": (StoreView, "__init__"),
    "listings arranged": (FolderTree, "__init__"),
    "stores whose inodes are looked at": (InodeTable, "of_store"),
    "stores whose files are looked at": (InodeTable, "files"),
    "stores whose bulk files expire": (Contents, "_expire_bulks"),
    "stores opened": (StoreSet, "_start"),
}


def add(apps: ManyApps) -> None:
    apps.add()


def change(apps: ManyApps) -> None:
    apps.declare(3, mode="0440")


def limit_otherwise(apps: ManyApps) -> None:
    apps.declare(3, configuration="app-4")


def remove(apps: ManyApps) -> None:
    apps.file(3).unlink()


Edit = Callable[[ManyApps], None]
EDITS: dict[Edit, dict[str, int]] = {
    add: {"documents parsed": 1, "views made": 1, "stores whose inodes are looked at": 1},
    change: {"documents parsed": 1},
    limit_otherwise: {
        "documents parsed": 1,
        "views made": 1,
        "stores whose inodes are looked at": 1,
        "stores whose files are looked at": 1,
        "stores whose bulk files expire": 1,
    },
    remove: {
        "stores whose inodes are looked at": 2,
        "stores whose files are looked at": 1,
        "stores whose bulk files expire": 1,
    },
}


def many(edit: Edit) -> int:
    return MANY if edit is add else SOME


Sites = dict[tuple[str, int, int], ManyApps]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("apps")


@pytest.fixture(scope="module")
def sites(directory: Path) -> Sites:
    """Write all that is declared first: then there is one wait until it counts as written long ago."""
    written = {
        (name, apps, visible): ManyApps(directory / f"{name}-{apps}-{visible}", apps, visible, own=["app-0"])
        for name, apps, visible in [
            *((edit.__name__, apps, 2) for edit in EDITS for apps in (FEW, many(edit))),
            *(("work", apps, visible) for apps in (FEW, SOME) for visible in (2, 20)),
        ]
    }
    for site in written.values():
        site.settle()
    return written


async def done(site: ManyApps, edit: Edit, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Edit what is declared, when all apps have read all they see. Returns how often what is counted was done."""
    async with site.served() as served:
        await served.read_everything()
        edit(site)
        with monkeypatch.context() as patch:
            calls = {name: counting(patch, *place) for name, place in COUNTED.items()}
            await served.reload()
        return {name: len(made) for name, made in calls.items() if made}


@pytest.mark.parametrize("edit", EDITS, ids=[edit.__name__ for edit in EDITS])
async def test_an_edit_costs_what_is_edited(sites: Sites, edit: Edit, monkeypatch: pytest.MonkeyPatch) -> None:
    few, more = [await done(sites[edit.__name__, apps, 2], edit, monkeypatch) for apps in (FEW, many(edit))]
    assert few == more
    assert more == EDITS[edit]


async def test_the_others_cost_a_few_calls_each(sites: Sites) -> None:
    """As much for one that sees much as for one that sees little."""
    work: dict[tuple[int, int], int] = {}
    for apps in (FEW, SOME):
        for visible in (2, 20):
            site = sites["work", apps, visible]
            async with site.served() as served:
                await served.read_everything()
                site.add()
                with counted() as counter:
                    await served.reload()
                work[apps, visible] = counter.total
    for visible in (2, 20):
        assert work[SOME, visible] - work[FEW, visible] <= (SOME - FEW) * CALLS_PER_APP
    assert work[SOME, 20] - work[SOME, 2] <= work[FEW, 20] - work[FEW, 2] + SOME


async def test_a_takeover_looks_at_each_app_once(sites: Sites) -> None:
    """What each has in use is compared with what its store says."""
    work: dict[int, int] = {}
    for apps in (FEW, SOME):
        async with sites["change", apps, 2].served() as served:
            await served.read_everything()
            with counted() as counter:
                await catch_up(served.successor().changes, discard)
            work[apps] = counter.total
    assert work[SOME] <= 1.5 * work[FEW] * SOME / FEW
