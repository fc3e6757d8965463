"""Two apps on one mount learn nothing of each other, and nothing of what their scopes hide from them."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.app_host import BILLING, ORDERS, SECRETS, Host, host
from tests.support.canary import CANARY, secret
from tests.support.manifests import component, configuration, scope
from tests.support.mounted import Mounted, mounted, processes
from tests.support.secrets_file import SecretsFile, file
from tests.support.shell import wait_until

__all__ = ["file", "host"]

pytestmark = [pytest.mark.mount, pytest.mark.root("needs to mount for other users, which only root can")]

LOOK = """
import errno, json, os, sys

def outcome(call, *arguments):
    try:
        return repr(call(*arguments))
    except OSError as error:
        return errno.errorcode[error.errno]

calls = {
    "stat": lambda path: os.stat(path).st_size,
    "number": lambda path: os.stat(path).st_ino,
    "lstat": lambda path: os.lstat(path).st_size,
    "open": lambda path: os.close(os.open(path, os.O_RDONLY)),
    "open a path": lambda path: os.close(os.open(path, os.O_PATH)),
    "open a directory": lambda path: os.close(os.open(path, os.O_DIRECTORY)),
    "list": lambda path: sorted(os.listdir(path)),
    "read": lambda path: open(path, "rb").read().decode(),
    "getxattr": lambda path: os.getxattr(path, "user.secretfs.version").decode(),
    "listxattr": lambda path: os.listxattr(path),
    "statfs": lambda path: os.statvfs(path).f_files,
    "access": lambda path: os.access(path, os.F_OK),
    "chdir": os.chdir,
    "write": lambda path: os.open(path, os.O_WRONLY),
    "create": lambda path: os.open(path, os.O_CREAT | os.O_RDONLY),
    "unlink": os.unlink,
    "mkdir": os.mkdir,
    "rename": lambda path: os.rename(path, path + ".other"),
}
print(json.dumps({path: {name: outcome(call, path) for name, call in calls.items()} for path in sys.argv[1:]}))
"""
"""Does all that a program can do to paths, and prints how each call ends."""


def look(user: int, *paths: Path) -> list[Mapping[str, str]]:
    """Return how each call on each path ends for a user."""
    command = ["setpriv", "--reuid", str(user), "--regid", str(user), "--clear-groups", sys.executable, "-c", LOOK]
    done = subprocess.run([*command, *map(str, paths)], stdout=subprocess.PIPE, cwd="/", check=True)
    outcomes: Mapping[str, Mapping[str, str]] = json.loads(done.stdout)
    return [outcomes[str(path)] for path in paths]


@pytest.fixture
def mount(host: Host) -> Iterator[Mounted]:
    """Hide a folder from `orders`; `billing` sees everything."""
    narrow = configuration(host.configs, scope("file", default="deny", allowed=["tls/key"]), name="narrow")
    wide = configuration(host.configs, name="wide")
    host.add("orders", {"owner": str(ORDERS), "configuration": "narrow"})
    host.add("billing", {"owner": str(BILLING), "configuration": "wide"})
    with mounted(host.components, config=[narrow, wide], options=host.options, mountpoint=host.mountpoint) as mount:
        yield mount


def test_of_another_app_everything_is_refused_alike(mount: Mounted) -> None:
    """app-15: In the directory of another app, what exists and what does not end with the same error."""
    billing = mount.path / "billing"
    (billing / "file/db/password").read_bytes()  # the kernel has its entries, and we have its values
    exist = ("file", "file/db", "file/db/password", "file/.bulk.json", "file/.bulk.env")
    missing = ("other", "file/no", "file/db/no", "file/.bulk.no", "no/no/no")
    outcomes = look(ORDERS, *(billing / path for path in (*exist, *missing)))
    assert [one for one in outcomes if one != outcomes[0]] == []
    refused = {"EACCES", "False"}
    assert set(outcomes[0].values()) == refused
    (directory,) = look(ORDERS, billing)
    assert {directory[call] for call in ("list", "open a directory", "chdir")} == {"EACCES"}


def test_what_the_scope_hides_is_as_if_it_were_not_there(mount: Mounted) -> None:
    """What the scope of an app hides ends with the same error as what is nowhere, whatever others see (app-15)."""
    own = mount.path / "orders/file"
    (mount.path / "billing/file/db/password").read_bytes()
    hidden, missing = look(ORDERS, own / "db", own / "no")
    assert hidden == missing
    assert hidden["stat"] == "ENOENT"
    hidden, missing = look(ORDERS, own / "db/password", own / "no/password")
    assert hidden == missing
    hidden, missing = look(ORDERS, own / "tls/key", own / "tls/no")
    assert (hidden["read"], missing["read"]) == (repr(secret("key")), "ENOENT")
    (bulk,) = look(ORDERS, own / ".bulk.json")
    assert json.loads(eval(bulk["read"])) == {"tls/key": {"tls/key": secret("key")}}


def test_directories_and_the_file_system_count_nothing(mount: Mounted) -> None:
    """What stat and statfs say of an app's directory does not depend on what is in it (app-15)."""
    for path in ("billing/file/db/password", "billing/file/tls/key"):
        (mount.path / path).read_bytes()
    known = {"st_mode", "st_size", "st_nlink", "st_blocks", "st_mtime_ns", "st_ctime_ns"}
    orders, billing = ((mount.path / app).stat() for app in ("orders", "billing"))
    assert {name: getattr(orders, name) for name in known} == {name: getattr(billing, name) for name in known}
    assert os.statvfs(mount.path / "orders") == os.statvfs(mount.path / "billing") == os.statvfs(mount.path)
    assert os.statvfs(mount.path).f_files == 0


def test_times(host: Host, mount: Mounted, file: SecretsFile) -> None:
    """No time that an app sees depends on what is rotated for another, or on the stores of another (app-15)."""
    own = [mount.path, mount.path / "orders", mount.path / "orders/file", mount.path / "orders/file/tls"]
    other = mount.path / "billing/file/db/password"
    other.read_bytes()
    before, listed = [times(path) for path in own], times(other.parent)
    file.write({**SECRETS, "db": {"password": secret("new"), "user": secret("user"), "more": secret("more")}})
    wait_until(lambda: other.read_text() == secret("new"))
    wait_until(lambda: times(other.parent) != listed)
    component(host.components, "second", "local.file", {"secretsFile": file.path}, scopes=["billing"])
    (mount.path / ".secretfs/reload").write_text("*")
    assert os.listdir(mount.path / "billing") == ["file", "second"]  # noqa: PTH208 - names are what counts
    assert [times(path) for path in own] == before


def times(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_ctime_ns, status.st_atime_ns


def test_the_status_is_for_who_mounted(mount: Mounted) -> None:
    """An app cannot read the status, which counts for all apps, and cannot tell which control files exist (app-15)."""
    controls = mount.path / ".secretfs"
    status, missing, refresh = look(ORDERS, controls / "status.json", controls / "no", controls / "refresh")
    assert status == missing == refresh
    assert status["read"] == "EACCES"


def test_inode_numbers(mount: Mounted) -> None:
    """app-19: The inode numbers that an app sees do not depend on what others look up."""
    own = mount.path / "orders/file"
    (first,) = look(ORDERS, own / "tls")
    for path in ("billing/file/db/password", "billing/file/db/user", "billing/file/tls/key"):
        (mount.path / path).read_bytes()
    (second,) = look(ORDERS, own / "tls/key")
    (mount.path / "billing/file/.bulk.json").read_bytes()
    (third,) = look(ORDERS, own / ".bulk.json")
    numbers = [int(one["number"]) for one in (first, second, third)]
    assert numbers == list(range(numbers[0], numbers[0] + 3))
    apps = [(mount.path / app).stat().st_ino for app in ("orders", "billing")]
    assert abs(apps[0] - apps[1]) > 1


PROC = """
import os, sys
for process in sys.argv[1:]:
    for directory, _, files in os.walk(f"/proc/{process}"):
        for name in files:
            try:
                with open(f"{directory}/{name}", "rb") as file:
                    sys.stdout.buffer.write(file.read(1 << 20))
            except OSError:
                pass
with open("/proc/self/mountinfo") as table:
    print(*(line for line in table if "secretfs" in line))
"""
"""Prints all that a user can read of some processes, and what the table of mounts says of us."""


def test_the_processes_tell_nothing(mount: Mounted) -> None:
    """app-20: What other users can read of the daemon's processes names no app and no secret."""
    pids = [str(pid) for pid, _ in processes(mount.path)]
    assert len(pids) > 3
    for app in ("orders", "billing"):
        (mount.path / app / "file/tls/key").read_bytes()
    command = ["setpriv", "--reuid", str(ORDERS), "--regid", str(ORDERS), "--clear-groups", sys.executable, "-c", PROC]
    seen = subprocess.run([*command, *pids], stdout=subprocess.PIPE, cwd="/", check=True).stdout
    assert os.fsencode(mount.path) in seen  # it is in their command lines
    for hidden in (b"orders", b"billing", b"tls", b"password", CANARY.encode()):
        assert hidden not in seen
    for pid in pids:
        for name in ("environ", "maps", "mem", "fd", "cwd", "root", "io", "map_files"):
            (outcome,) = look(ORDERS, Path("/proc", pid, name))
            assert {outcome["read"], outcome["list"]} <= {"EACCES", "EPERM", "ENOTDIR", "EISDIR"}, name
