"""`.secretfs/` in the root of the mount: the health of the mount, and how to fetch again at once."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.behaviour.test_rotation import look_at
from tests.support.canary import leaked, secret
from tests.support.command import NOBODY, in_namespace, secretfs
from tests.support.manifests import component, configuration, scope
from tests.support.mounted import mounted
from tests.support.servers.openbao import OpenBao
from tests.support.shell import errno_of, lines, output, run, wait_until
from tests.support.vault_fixtures import Folder
from tests.support.waiting import wchan
from tests.support.watching import watching

pytestmark = pytest.mark.mount

OLD, NEW = secret("old"), secret("new, and longer")
DEADLINE = 1.0
LONG = {"secretfs/ttl": "1h", "secretfs/deadline": "1s"}


@pytest.fixture
def shop(kv: Folder, tmp_path: Path) -> Iterator[Path]:
    """Mount a folder of a real server whose values are good for an hour; gives the mount point."""
    kv.put("db", {"user": OLD, "password": OLD})
    kv.put("team/api", {"key": OLD})
    component(tmp_path / "components", "vault", "hashicorp.vault", kv.metadata(), annotations=LONG)
    component(tmp_path / "components", "env", "local.env", {"prefix": "CONTROL_"})
    with mounted(tmp_path / "components", env={"CONTROL_TOKEN": secret("env")}) as mount:
        yield mount.path


def tell(mount: Path, text: str | bytes) -> str:
    """Write to refresh, in one write; returns the errno."""
    descriptor = os.open(mount / ".secretfs/refresh", os.O_WRONLY)
    try:
        return errno_of(os.write, descriptor, text.encode() if isinstance(text, str) else text)
    finally:
        os.close(descriptor)


def status(mount: Path) -> dict[str, Any]:
    text = (mount / ".secretfs/status.json").read_text()
    assert not leaked(text)
    told: dict[str, Any] = json.loads(text)
    return told


def state(mount: Path, store: str = "vault") -> str:
    return str(status(mount)["stores"][store]["state"])


def test_refresh_shows_a_rotation(shop: Path, kv: Folder, tmp_path: Path) -> None:
    """control-1: A path written to `.secretfs/refresh` is fetched again at once: a change shows, whatever `ttl` is."""
    look_at(shop / "vault")
    password = shop / "vault/db/password"
    with watching(tmp_path / "log", shop / "vault/db") as watch:
        for number, request in enumerate(("vault/db", "vault", "", "*", "env\nvault/db/password")):
            new = f"{NEW} {number}"
            kv.put("db", {"user": OLD, "password": new})
            assert password.read_text() != new
            output("sh", "-c", 'printf "%s\\n" "$1" > "$2/.secretfs/refresh"', "sh", request, shop)
            assert output("cat", password) == new.encode()
            wait_until(partial(watch.has, 2 * (number + 1)))
        shown = [f"password MOVED_TO {shop}/vault/db/", f"..data CREATE,ISDIR {shop}/vault/db/"]
        assert watch.events() == shown * 5


def test_refresh_by_command(shop: Path, kv: Folder) -> None:
    """control-2: `secretfs refresh MOUNTPOINT [PATH...]` does the same, and reports what fails."""
    look_at(shop / "vault")
    kv.put("db", {"user": NEW, "password": NEW})
    kv.put("added", {"key": NEW})
    kv.delete("team/api")
    assert secretfs("refresh", shop, "vault/db").status == 0
    assert (shop / "vault/db/user").read_text() == NEW
    assert secretfs("refresh", shop, shop / "vault/added").status == 0
    assert (shop / "vault/added/key").read_text() == NEW
    done = secretfs("refresh", shop, "vault/team/api", "vault/never")
    assert (done.status, [line.split(";")[0] for line in done.lines]) == (
        4,
        [f"secretfs: vault/{name}: No such file or directory" for name in ("team/api", "never")],
    )
    assert errno_of((shop / "vault/team/api").stat) == "ENOENT"
    assert secretfs("refresh", shop).status == 0


def test_outage(scratch: Path, own_server: OpenBao) -> None:
    """control-3: `status.json` shows the state of each store, its last failure, and when it is tried again."""
    folder = Folder(own_server, "control")
    folder.put("db", {"password": OLD})
    component(scratch / "outage", "vault", "hashicorp.vault", folder.metadata(), annotations=LONG)
    component(scratch / "outage", "env", "local.env", {"prefix": "CONTROL_"})
    with mounted(scratch / "outage", expect_log=["vault: "]) as mount:
        assert (mount.path / "vault/db/password").read_text() == OLD
        assert state(mount.path) == "ok"
        assert secretfs("status", mount.path).status == 0
        with own_server.hanging():
            begin = time.monotonic()
            assert tell(mount.path, "vault") == "ETIMEDOUT"
            assert time.monotonic() - begin >= DEADLINE
            wait_until(lambda: state(mount.path) in ("in doubt", "down"))  # the call itself may end a little later
            told = status(mount.path)["stores"]["vault"]
            assert (told["last_error"]["class"], told["stale_values"]) == ("DeadlineExceeded", 1)
            assert (mount.path / "vault/db/password").read_text() == OLD
            assert state(mount.path, "env") == "ok"
        wait_until(lambda: tell(mount.path, "vault") == "")
        assert state(mount.path) == "ok"
        own_server.kill()
        while state(mount.path) != "down":
            assert tell(mount.path, "vault/db") == "EIO"
        told = status(mount.path)["stores"]["vault"]
        assert told["breaker"]["open"]
        assert told["breaker"]["next_try"]
        done = secretfs("status", mount.path)
        assert done.status == 1
        assert done.out.startswith("vault is down: StoreUnavailable, ")
        own_server.start()
        folder.put("db", {"password": NEW})
        wait_until(lambda: tell(mount.path, "vault/db") == "")
        assert state(mount.path) == "ok"
        assert (mount.path / "vault/db/password").read_text() == NEW
        assert secretfs("status", mount.path).status == 0


def test_status_is_a_file(shop: Path) -> None:
    """control-4: Each open of `status.json` gets a new snapshot with its true size, and asks no store."""
    path = shop / ".secretfs/status.json"
    before = status(shop)["stores"]["vault"]["calls"]
    assert not any(kind["made"] for name, kind in before.items() if name != "check")
    with path.open("rb") as opened:
        look_at(shop / "vault")
        assert status(shop)["stores"]["vault"]["cached_values"] == 3
        old = opened.read()
        assert os.fstat(opened.fileno()).st_size == len(old)
    assert json.loads(old)["stores"]["vault"]["cached_values"] == 0
    for _ in range(20):
        assert path.stat().st_size == len(path.read_bytes()) == len(output("cat", path))
    output("cp", path, "/dev/null")


def test_never_listed(shop: Path, tmp_path: Path) -> None:
    """control-5: `.secretfs` exists only in the root of the mount, and is never listed."""
    assert [name for name in lines("ls", "-a", shop) if name.strip(".")] == ["env", "vault"]
    assert not [path for path in lines("find", shop) if "secretfs" in path.removeprefix(str(shop))]
    output("tar", "-cf", tmp_path / "all.tar", "-C", shop, ".")
    assert not [name for name in lines("tar", "-tf", tmp_path / "all.tar") if "secretfs" in name]
    assert lines("ls", shop / ".secretfs") == ["refresh", "reload", "status.json"]
    for elsewhere in ("vault/.secretfs", "vault/db/.secretfs", "vault/team/.secretfs", "env/.secretfs", ".secretfs-x"):
        assert errno_of((shop / elsewhere).stat) == "ENOENT"


def test_whose_it_is() -> None:
    """control-6: Only the user who runs the mount can enter `.secretfs`, despite `--allow-other`, `--uid`, `--mode`."""
    done = in_namespace(f"""
        mkdir m
        env_component
        A=b secretfs mount --resources-path c --allow-other --mode 0444 --uid {NOBODY} m
        stat -c '%a %u %g' m/.secretfs m/.secretfs/status.json m/.secretfs/refresh
        as_nobody cat m/env/A && echo
        as_nobody ls m/.secretfs || true
        as_nobody cat m/.secretfs/status.json || true
        as_nobody sh -c 'echo env > m/.secretfs/refresh' || true
        echo env > m/.secretfs/refresh
        secretfs unmount m
    """)
    assert done.out.splitlines() == ["500 0 0", "400 0 0", "200 0 0", "b"]
    assert done.err.count("Permission denied") == 3


def test_a_user_who_is_not_root() -> None:
    """A user's own mount answers to that user; root's commands ask as that user (control-6)."""
    done = in_namespace("""
        mkdir m && chown 65534 m
        env_component
        A=b as_nobody secretfs mount --resources-path c m
        as_nobody stat -c '%a %u' m/.secretfs/refresh
        as_nobody sh -c 'echo env/A > m/.secretfs/refresh' && as_nobody secretfs refresh m env && echo refreshed
        as_nobody secretfs status m | head -1
        as_nobody touch m/.secretfs/new || cat m/.secretfs/status.json || secretfs status m | head -1
        as_nobody secretfs unmount m
    """)
    assert done.out.splitlines()[:2] == ["200 65534", "refreshed"]
    assert done.out.splitlines()[2].startswith("STORE ")
    assert done.out.splitlines()[3].startswith("STORE ")
    assert "m/.secretfs/status.json: Permission denied" in done.err


def test_what_it_tells(kv: Folder, tmp_path: Path) -> None:
    """control-7: `status.json` contains no name of a secret and no value, and counts nothing that the scope hides."""
    for name in ("seen", "hidden-one", "hidden-two"):
        kv.put(name, {"password": OLD})
    component(tmp_path / "components", "vault", "hashicorp.vault", kv.metadata(), annotations=LONG)
    config = configuration(tmp_path, scope("vault", denied=["hidden-one", "hidden-two"]))
    with mounted(tmp_path / "components", config=[config]) as mount:
        look_at(mount.path)
        assert tell(mount.path, "vault/hidden-one") == "ENOENT"
        text = (mount.path / ".secretfs/status.json").read_text()
        assert not any(word in text for word in ("seen", "hidden", "password", OLD))
        told = status(mount.path)["stores"]["vault"]
        assert (told["names"], told["cached_values"]) == (1, 1)


def test_the_status_of_a_failure_names_no_secret(kv: Folder, tmp_path: Path) -> None:
    """The last error says what kind of failure it was, and not of which secret (control-7)."""
    kv.put("not-for-us", {"password": OLD})
    listing = f"{kv.engine}/metadata/{kv.prefix}"
    token = kv.server.limited_token(**{listing: "list", f"{listing}/": "list"})
    component(tmp_path / "components", "vault", "hashicorp.vault", kv.metadata(vaultToken=token), annotations=LONG)
    with mounted(tmp_path / "components", expect_log=["not-for-us"]) as mount:
        assert errno_of(os.listdir, mount.path / "vault/not-for-us") == "EACCES"
        text = (mount.path / ".secretfs/status.json").read_text()
        assert json.loads(text)["stores"]["vault"]["last_error"]["class"] == "AccessDenied"
        assert "not-for-us" not in text
        assert "not-for-us" not in secretfs("status", mount.path).out


NONSENSE = {
    "a store that is not there": (b"nope", "ENOENT"),
    "a secret that is not there": (b"vault/nope", "ENOENT"),
    "a key that is not there": (b"vault/db/nope", "ENOENT"),
    "bytes": (bytes(range(11, 256)), "ENOENT"),
    "zeros": (bytes(1000), "ENOENT"),
    "the way up": (b"../../etc/passwd", "ENOENT"),
    "itself": (b".secretfs/refresh", "ENOENT"),
    "a long name": (b"vault/" + b"x" * 5000, "ENOENT"),
    "too much": (b"x" * 65537, "EFBIG"),
    "far too much": (b"vault/db\n" * 1_000_000, "EFBIG"),
}


@pytest.mark.parametrize("what", NONSENSE)
def test_nonsense(shop: Path, what: str) -> None:
    """control-8: For `refresh`, a path that is missing or hidden is ENOENT; more than 64 KiB in one write is EFBIG."""
    text, error = NONSENSE[what]
    assert tell(shop, text) == error
    assert (shop / "vault/db/user").read_text() == OLD


def test_many_at_once(shop: Path, kv: Folder) -> None:
    """Requests of many programs succeed side by side (control-1)."""
    look_at(shop / "vault")
    kv.put("db", {"user": NEW, "password": NEW})
    kv.server.forget()
    ended: list[str] = []
    threads = [
        threading.Thread(target=lambda n=number: ended.append(tell(shop, ("vault/db", "vault", "", "env")[n % 4])))
        for number in range(40)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ended == [""] * 40
    assert (shop / "vault/db/user").read_text() == NEW


def test_nothing_else_is_written(shop: Path) -> None:
    """control-9: `refresh` and `reload` accept writes and nothing else, and are the only files that do."""
    control = shop / ".secretfs"
    refresh = control / "refresh"
    calls: list[Callable[[], object]] = [
        lambda: (control / "status.json").write_text("x"),
        lambda: os.truncate(control / "status.json", 0),
        lambda: (control / "new").write_text("x"),
        (control / "new").mkdir,
        refresh.unlink,
        lambda: refresh.rename(control / "other"),
        control.rmdir,
        lambda: refresh.chmod(0o666),
        lambda: os.truncate(refresh, 1),
        lambda: os.utime(refresh),
        lambda: os.setxattr(refresh, "user.x", b"x"),
        lambda: (shop / "vault/db/user").write_text("x"),
        lambda: (shop / ".secretfs-new").write_text("x"),
    ]
    assert [errno_of(call) for call in calls] == ["EROFS"] * len(calls)
    assert run("sh", "-c", "echo vault >> .secretfs/refresh", cwd=shop).returncode == 0


def test_a_hung_store_delays_nobody(scratch: Path, own_server: OpenBao) -> None:
    """A request to one store does not wait for a request to another one that hangs (control-1)."""
    folder = Folder(own_server, "control")
    wait_until(lambda: errno_of(lambda: folder.put("db", {"password": OLD})) == "")
    component(scratch / "hung", "vault", "hashicorp.vault", folder.metadata(), annotations={"secretfs/deadline": "1m"})
    component(scratch / "hung", "env", "local.env", {"prefix": "CONTROL_"})
    with mounted(scratch / "hung", expect_log=["vault: "]) as mount:
        look_at(mount.path)
        ended: list[str] = []
        waiting = threading.Thread(target=lambda: ended.append(tell(mount.path, "vault")))
        with own_server.hanging():
            waiting.start()
            wait_until(lambda: "request_wait_answer" in wchan(waiting))
            assert tell(mount.path, "env") == ""
            assert ended == []
        waiting.join()
        assert ended == [""]
