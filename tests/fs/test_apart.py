"""What a scope hides is as if it were not there: the same error, the same calls of the store, the same work of ours.

Work is counted in calls of functions. How long it takes is in `benchmarks.apart`.
"""

import errno
from collections import Counter
from typing import NamedTuple

import pytest
import trio
from trio.testing import MockClock

from secretfs.cache.freshness import Freshness
from secretfs.errors import AccessDenied, SecretFSError
from secretfs.fs.attributes import PermissionPolicy
from secretfs.fs.inodes import ROOT_INODE
from secretfs.fs.vfs import SecretVFS
from secretfs.fs.view import StoreView
from secretfs.scopes import Access, SecretScope
from tests.conftest import ExpectLog
from tests.support.at_once import AtOnce
from tests.support.memory_store import WatchingMemoryStore
from tests.support.work import counted

SECRETS = ("shown", "team/shown", "hidden", "team/hidden")
SCOPES = {
    "denied": SecretScope(denied_secrets=frozenset({"hidden", "team/hidden", "masked", "team/masked"})),
    "not allowed": SecretScope(default_access=Access.DENY, allowed_secrets=frozenset({"shown", "team/shown"})),
}


class Options(NamedTuple):
    """What is looked up where."""

    exists: bool
    folders: bool = True
    """Whether the store lists one folder at a time."""
    listed: bool = True
    """Whether it lists anything."""
    multi_valued: bool = True


class Cost(NamedTuple):
    """How a look-up ends, and what it takes."""

    error: str
    calls: Counter[str]
    work: int


async def cost(clock: MockClock, name: str, scope: SecretScope, options: Options) -> Cost:
    """Look a name up, in a file system that has been in use, where a secret of that name exists or not."""
    secrets = [secret if options.exists or secret != name else name.replace("hidden", "masked") for secret in SECRETS]
    store = WatchingMemoryStore({secret: {secret: b"value"} for secret in secrets}, folders=options.folders)
    store.multi_valued = options.multi_valued
    if not options.listed:
        store.refused |= dict.fromkeys(("names:", "names:team", f"names:{name}"), AccessDenied("no listing"))
    async with trio.open_nursery() as nursery:
        view = StoreView(AtOnce("s", store, Freshness(), nursery), scope)
        vfs = SecretVFS({"s": view}, PermissionPolicy(), nursery)
        for path in ("s/shown", "s/team/shown", f"s/{name}", f"s/{name}"):
            await outcome(vfs, path)
            clock.jump(view._store.negative_ttl + 1)  # the next one asks again
        store.calls.clear()
        with counted() as work:
            error = await outcome(vfs, f"s/{name}")
        nursery.cancel_scope.cancel()
    return Cost(error, store.calls, work.total)


async def outcome(vfs: SecretVFS, path: str) -> str:
    inode = ROOT_INODE
    try:
        for segment in path.encode().split(b"/"):
            inode = (await vfs.lookup(inode, segment)).inode
    except SecretFSError as error:
        return errno.errorcode[error.errno]
    return ""


@pytest.mark.parametrize("name", ["hidden", "team/hidden"])
@pytest.mark.parametrize("scope", SCOPES.values(), ids=SCOPES.keys())
@pytest.mark.parametrize("folders", [False, True], ids=["flat listing", "folder by folder"])
@pytest.mark.parametrize("listed", [True, False], ids=["listed", "no listing"])
@pytest.mark.parametrize("multi_valued", [True, False], ids=["directories", "files"])
async def test_whether_what_is_hidden_exists_cannot_be_told(
    mock_clock: MockClock,
    expect_log: ExpectLog,
    name: str,
    scope: SecretScope,
    *,
    folders: bool,
    listed: bool,
    multi_valued: bool,
) -> None:
    if not listed:
        expect_log("no listing")
    there, missing = [
        await cost(mock_clock, name, scope, Options(exists, folders, listed, multi_valued)) for exists in (True, False)
    ]
    assert there == missing
    assert there.error == "ENOENT"
    assert f"fetch:{name}" not in there.calls  # Dapr refuses it before it asks, too


@pytest.mark.parametrize("name", ["hidden", "team/hidden"])
@pytest.mark.parametrize("scope", SCOPES.values(), ids=SCOPES.keys())
@pytest.mark.parametrize("folders", [False, True], ids=["flat listing", "folder by folder"])
async def test_what_is_hidden_costs_what_is_missing(
    mock_clock: MockClock, name: str, scope: SecretScope, *, folders: bool
) -> None:
    """Where the store lists its names, a hidden one is looked for as one that is nowhere."""
    hidden = await cost(mock_clock, name, scope, Options(exists=True, folders=folders))
    absent = name.replace("hidden", "absent")
    nowhere = await cost(mock_clock, absent, scope, Options(exists=False, folders=folders))
    assert hidden == nowhere


async def test_the_work_is_counted(mock_clock: MockClock) -> None:
    """A look-up that does more is seen to do more."""
    scope = SCOPES["denied"]
    shown = await cost(mock_clock, "shown", scope, Options(exists=True))
    hidden = await cost(mock_clock, "hidden", scope, Options(exists=True))
    assert shown.work != hidden.work
