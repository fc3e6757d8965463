"""Dynamic secrets on a real mount: a real OpenBao issues users of a real PostgreSQL, where they are counted."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command import secretfs
from tests.support.database_engine import Engine, database
from tests.support.manifests import component
from tests.support.mounted import Mounted, daemons, mounted
from tests.support.servers.openbao import OpenBao
from tests.support.servers.postgres import Postgres
from tests.support.shell import errno_of, lines, output, run, wait_until
from tests.support.vault_auth import count, logins
from tests.support.waiting import PATIENCE
from tests.support.watching import watching

__all__ = ["database"]

pytestmark = pytest.mark.mount

ROLES = ("app", "reader", "writer")


@pytest.fixture
def engine(openbao_server: OpenBao, database: Postgres) -> Engine:
    engine = Engine(openbao_server, database)
    for role in ROLES:
        engine.role(role, "1h", "24h")
    return engine


@pytest.fixture
def mount(engine: Engine, tmp_path: Path) -> Iterator[Mounted]:
    component(tmp_path / "m", "database", "hashicorp.vault", engine.login(), annotations={"secretfs/ttl": "1s"})
    with mounted(tmp_path / "m", expect_log=[r"process \d+ ended .*: another takes over"]) as mount:
        yield mount


def cat(path: Path) -> str:
    return output("cat", path).decode()


def works(engine: Engine, role: Path) -> bool:
    return engine.database.accepts(cat(role / "username"), cat(role / "password"))


def fetches(mount: Mounted) -> int:
    """Count how often the store was asked for a secret, by us or from what it holds."""
    status = json.loads((mount.path / ".secretfs/status.json").read_text())
    made: int = status["stores"]["database"]["calls"]["fetch"]["made"]
    return made


def revocations(engine: Engine) -> int:
    """Count what was given back since the server was told to forget."""
    return count(engine.server, "sys/leases/revoke") + count(engine.server, "auth/token/revoke-self")


def test_listing(mount: Mounted, engine: Engine) -> None:
    """dynamic-1: The roles of a dynamic engine are listed; their keys are not listed, but each can be read by name."""
    assert lines("ls", mount.path / "database") == list(ROLES)
    assert lines("ls", "-A", mount.path / "database/app") == []
    assert works(engine, mount.path / "database/app")
    assert lines("ls", "-A", mount.path / "database/app") == []
    assert errno_of(os.stat, mount.path / "database/app/no-such-key") == "ENOENT"
    assert errno_of(os.stat, mount.path / "database/no-such-role") == "ENOENT"


WALKS = (
    ("find", ".", "-type", "f", "-size", "+0"),
    ("du", "-a", "."),
    ("ls", "-laR", "."),
    ("grep", "-r", "password", "."),
    ("tar", "--create", "--xattrs", "--exclude-caches", "--exclude-ignore=.nobackup", "--file=/dev/null", "."),
    ("getfattr", "-R", "-d", "-m", "-", "."),
    ("cp", "-a", ".", "{copy}"),
    ("cat", "database/.bulk.json"),
    ("cat", "database/.bulk.env"),
    ("stat", "database/app/.hidden", "database/app/CACHEDIR.TAG", "database/.git"),
)


def test_walks(mount: Mounted, engine: Engine, tmp_path: Path) -> None:
    """dynamic-2: No listing, no walk, no `.bulk.*` of a store and no refresh issues a credential."""
    for command in WALKS:
        run(*(part.format(copy=tmp_path / "copy") for part in command), cwd=mount.path)
        assert (command, engine.users()) == (command, [])
    for path in ("*", "database", "database/app", "database/app/password"):
        (mount.path / ".secretfs/refresh").write_text(f"{path}\n")
    assert engine.users() == []


def test_walks_do_not_issue_what_has_ended(openbao_server: OpenBao, database: Postgres, tmp_path: Path) -> None:
    """No walk and no background task replaces a credential that has been read once and has ended (dynamic-2)."""
    engine = Engine(openbao_server, database, ttl="4s", most="4s")
    component(tmp_path / "m", "database", "hashicorp.vault", engine.login(), annotations={"secretfs/ttl": "1s"})
    with mounted(tmp_path / "m") as mount:
        cat(mount.path / "database/app/username")
        assert engine.made() == 1
        wait_until(lambda: engine.users() == [])
        for command in WALKS:
            run(*(part.format(copy=tmp_path / "copy") for part in command), cwd=mount.path)
        assert engine.made() == 1


@pytest.mark.parametrize("name", ["username", ".bulk.env"])
def test_a_stat_or_an_open_by_name(mount: Mounted, engine: Engine, name: str) -> None:
    """dynamic-3: The first stat or open of a key, or of the `.bulk.*` in its role, issues; its size is true."""
    size = (mount.path / "database/app" / name).stat().st_size
    assert len(engine.users()) == 1
    assert size == len((mount.path / "database/app" / name).read_bytes()) > 0
    assert len(engine.users()) == 1


def test_a_pair_of_one_credential(mount: Mounted, engine: Engine) -> None:
    """dynamic-9: A stat or an open of `..data` in a role issues too; who holds it has the pair of one credential."""
    role = mount.path / "database/app"
    assert lines("ls", "-A", role) == []
    assert errno_of(os.getxattr, role, "user.secretfs.version") == "ENODATA"
    assert engine.users() == []
    held = os.open(role / "..data", os.O_PATH | os.O_DIRECTORY)
    try:
        pair = [Path(f"/proc/self/fd/{held}", key).read_text(encoding="utf-8") for key in ("username", "password")]
    finally:
        os.close(held)
    assert engine.users() == pair[:1]
    assert engine.database.accepts(*pair)
    assert pair == [cat(role / "username"), cat(role / "password")]
    assert engine.users() == pair[:1]


def test_everybody_shares_one_credential(mount: Mounted, engine: Engine) -> None:
    """dynamic-4: All readers of a role share one credential until its lease ends, however often `ttl` is over."""
    role = mount.path / "database/app"
    first = cat(role / "username")
    bulk = json.loads(cat(role / ".bulk.json"))
    assert (bulk["username"], bulk["password"]) == (first, cat(role / "password"))
    wait_until(lambda: cat(role / "username") == first and fetches(mount) >= 3)
    assert engine.users() == [first]


def test_single_valued(engine: Engine, tmp_path: Path) -> None:
    """dynamic-5: With `vaultValueType: text` a role is a file: it is not listed, and can be read by its name."""
    component(tmp_path / "m", "database", "hashicorp.vault", {**engine.login(), "vaultValueType": "text"})
    with mounted(tmp_path / "m") as mount:
        assert lines("ls", "-A", mount.path / "database") == []
        output("tar", "--create", "--file=/dev/null", ".", cwd=mount.path)
        assert engine.users() == []
        assert json.loads(cat(mount.path / "database/app"))["username"] in engine.users()
        assert errno_of(os.stat, mount.path / "database/no-such-role") == "ENOENT"


def test_the_end_of_a_lease(openbao_server: OpenBao, database: Postgres, tmp_path: Path) -> None:
    """dynamic-6: When a lease is about to end for good, watchers see the file replaced; the next open issues anew."""
    engine = Engine(openbao_server, database, ttl="6s", most="6s")
    component(tmp_path / "m", "database", "hashicorp.vault", engine.login())
    with mounted(tmp_path / "m") as mount:
        role = mount.path / "database/app"
        with watching(tmp_path / "events", role) as watch:
            first = cat(role / "username")
            watch.wait_for(f"username MOVED_TO {role}/")
        assert engine.made() == 1
        assert cat(role / "username") != first
        assert works(engine, role)
        assert engine.made() == 2


def test_without_the_right_to_list(engine: Engine, tmp_path: Path) -> None:
    """A role that cannot be listed is a directory by its name; a look at it issues nothing (dynamic-1, dynamic-2)."""
    token = engine.server.limited_token(**{f"{engine.path}/creds/app": "read", "sys/leases/revoke": "update"})
    component(tmp_path / "m", "database", "hashicorp.vault", engine.given(token))
    with mounted(tmp_path / "m", expect_log=[r"database: .*permission denied \(403\)"]) as mount:
        assert errno_of(os.listdir, mount.path / "database") == "EACCES"
        assert lines("ls", "-A", mount.path / "database/app") == []
        assert errno_of(os.stat, mount.path / "database/.git") == "ENOENT"
        assert engine.users() == []
        assert errno_of(os.stat, mount.path / "database/other/username") == "EACCES"
        assert works(engine, mount.path / "database/app")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart(mount: Mounted, engine: Engine, number: signal.Signals) -> None:
    """dynamic-7: A daemon that is restarted, upgraded or killed passes its leases on: readers keep the credential."""
    role = mount.path / "database/app"
    first, password = cat(role / "username"), cat(role / "password")
    for _ in range(2):
        worker = mount.worker
        os.kill(worker, number)
        wait_until(lambda worker=worker: daemons(mount.path) not in ([], [worker]))  # type: ignore[misc]
        assert (cat(role / "username"), cat(role / "password")) == (first, password)
    assert engine.users() == [first]
    assert (logins(engine.server), engine.made(), revocations(engine)) == (1, 1, 0)
    assert works(engine, mount.path / "database/writer")
    assert logins(engine.server) == 1


@pytest.mark.parametrize("end", ["unmount", "stop", "force"])
@pytest.mark.parametrize("restarted", [False, True])
def test_the_real_end(mount: Mounted, engine: Engine, end: str, *, restarted: bool) -> None:
    """dynamic-8: When a mount is unmounted or stopped, all that it was issued is revoked, also before a restart."""
    assert works(engine, mount.path / "database/app")
    if restarted:
        worker = mount.worker
        os.kill(worker, signal.SIGTERM)
        wait_until(lambda: daemons(mount.path) not in ([], [worker]))
        assert works(engine, mount.path / "database/writer")
    match end:
        case "unmount":
            assert secretfs("unmount", mount.path).status == 0
        case "force":
            assert secretfs("unmount", "--force", mount.path).status == 0
        case "stop":
            mount.process.send_signal(signal.SIGTERM)
    wait_until(lambda: engine.users() == [])
    assert mount.process.wait(PATIENCE) == 0
    assert count(engine.server, "auth/token/revoke-self") == 1


@pytest.mark.root("needs to mount for other users, which only root can")
def test_an_app_that_is_removed(engine: Engine, tmp_path: Path) -> None:
    """What was issued for an app is revoked when it is removed, unless another app shares the store (app-13)."""
    apps = tmp_path / "apps"
    apps.mkdir()
    for app in ("orders", "billing"):
        document = {"apiVersion": "secretfs/v1alpha1", "kind": "App", "metadata": {"name": app}}
        (apps / f"{app}.yaml").write_text(json.dumps(document), encoding="utf-8")
    component(tmp_path / "m", "shared", "hashicorp.vault", engine.login(), annotations={"secretfs/deadline": "1s"})
    own = {"secretfs/deadline": "1s"}
    component(tmp_path / "m", "own", "hashicorp.vault", engine.login(), annotations=own, scopes=["billing"])
    with mounted(tmp_path / "m", options=["--apps", str(apps)]) as mount:
        shared = cat(mount.path / "billing/shared/app/username")
        own_user = cat(mount.path / "billing/own/app/username")
        assert sorted(engine.users()) == sorted([shared, own_user])
        assert secretfs("apps", "remove", mount.path, "billing").status == 0
        wait_until(lambda: engine.users() == [shared])
        assert cat(mount.path / "orders/shared/app/username") == shared
