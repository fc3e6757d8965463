"""``..data``: the keys of a secret, all of one version, for as long as somebody holds the directory."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.support.app_host import BILLING, ORDERS, TLS, Host, host, list_as, read_as
from tests.support.canary import secret
from tests.support.command import secretfs
from tests.support.manifests import component, configuration, scope
from tests.support.mounted import Mounted, mounted
from tests.support.secrets_file import SecretsFile, file
from tests.support.shell import errno_of, lines, wait_until
from tests.support.watching import watching

__all__ = ["file", "host"]

pytestmark = pytest.mark.mount

PAIR = ("tls.crt", "tls.key")
KILLED = ["killed by SIGKILL"]
ROTATIONS = int(os.environ.get("SECRETFS_TEST_ROTATIONS", "50"))
"""How often the pair of `test_pairs_match` is rotated."""


def pair(number: int) -> dict[str, str]:
    """Return the two keys of one version."""
    return {key: secret(f"{key} {number}") for key in PAIR}


def write(file: SecretsFile, number: int, **others: dict[str, str]) -> None:
    file.write({"site": pair(number), **others})


@pytest.fixture
def components(file: SecretsFile, tmp_path: Path) -> Path:
    write(file, 1, other={"..data": secret("not ours"), "plain": secret("plain")})
    properties = {"secretsFile": file.path, "multiValued": "true"}
    component(tmp_path / "components", "file", "local.file", properties)
    (tmp_path / "single.json").write_text(json.dumps({"password": secret("single")}), encoding="utf-8")
    component(tmp_path / "components", "single", "local.file", {"secretsFile": tmp_path / "single.json"})
    return tmp_path / "components"


@pytest.fixture
def mount(components: Path) -> Iterator[Mounted]:
    with mounted(components, expect_log=KILLED) as mount:
        yield mount


@pytest.fixture
def site(mount: Mounted) -> Path:
    return mount.path / "file/site"


@contextmanager
def holding(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    """Hold a directory open."""
    descriptor = os.open(path, flags | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def read_in(directory: int, key: str) -> str:
    descriptor = os.open(key, os.O_RDONLY, dir_fd=directory)
    try:
        return os.read(descriptor, 1 << 16).decode()
    finally:
        os.close(descriptor)


def versions_in(directory: int) -> dict[str, str]:
    return {key: read_in(directory, key) for key in PAIR}


def is_shown(site: Path, number: int) -> bool:
    return all((site / key).read_text() == value for key, value in pair(number).items())


def test_a_directory_of_all_keys(site: Path) -> None:
    """pin-1: `..data` in the directory of a multi-valued secret is a directory of its keys, all of one version."""
    data = site / "..data"
    assert lines("ls", data) == sorted(PAIR)
    assert {key: (data / key).read_text() for key in PAIR} == pair(1)
    assert {key: (data / key).stat().st_size for key in PAIR} == {key: len(value) for key, value in pair(1).items()}
    assert errno_of((data / "no").stat) == "ENOENT"
    assert errno_of((data / "tls.crt").write_text, "x") in ("EROFS", "EACCES")


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_PATH], ids=["open", "O_PATH"])
def test_who_holds_it_reads_that_version(site: Path, file: SecretsFile, flags: int) -> None:
    """pin-2: Who holds `..data`, by a descriptor or as a working directory, reads that version until the end."""
    with holding(site / "..data", flags) as held:
        assert read_in(held, "tls.crt") == pair(1)["tls.crt"]
        for number in (2, 3):
            write(file, number)
            wait_until(partial(is_shown, site, number))
            assert versions_in(held) == pair(1)  # tls.key is looked up only now
            with holding(site / "..data", flags) as current:
                assert versions_in(current) == pair(number)
        file.write({})
        wait_until(lambda: errno_of(site.stat) == "ENOENT")
        assert versions_in(held) == pair(1)


def test_a_working_directory(site: Path, file: SecretsFile) -> None:
    """A working directory in `..data` stays at its version (pin-2)."""
    command = ["sh", "-c", "cat tls.crt; read -r line; cat tls.key"]
    with subprocess.Popen(command, cwd=site / "..data", stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.read(len(pair(1)["tls.crt"])).decode() == pair(1)["tls.crt"]
        write(file, 2)
        wait_until(lambda: is_shown(site, 2))
        process.stdin.write(b"\n")
        process.stdin.close()
        assert process.stdout.read().decode() == pair(1)["tls.key"]


def test_inode_numbers(site: Path, file: SecretsFile) -> None:
    """pin-3: Each version has a `..data` with a number of its own; the path leads to the current version at once."""
    first = (site / "..data").stat().st_ino
    assert (site / "..data").stat().st_ino == first
    write(file, 1)
    assert (site / "..data").stat().st_ino == first
    write(file, 2)
    wait_until(lambda: is_shown(site, 2))
    assert (site / "..data").stat().st_ino != first
    assert {key: (site / "..data" / key).read_text() for key in PAIR} == pair(2)


def test_it_is_not_listed(mount: Mounted) -> None:
    """pin-4: `..data` is never listed, so a program that walks the tree sees each key once."""
    site = mount.path / "file/site"
    (site / "..data/tls.key").read_bytes()
    assert lines("ls", "-a", site) == sorted(PAIR)
    assert not any("..data" in path for path in lines("find", mount.path))


def test_names_that_look_like_it(mount: Mounted) -> None:
    """pin-5: A key that is named `..data` is `%2E.data`. Nothing else is named `..data`, and no value has one."""
    other = mount.path / "file/other"
    assert (other / "%2E.data").read_text() == secret("not ours")
    assert lines("ls", other / "..data") == ["%2E.data", "plain"]
    assert (other / "..data/%2E.data").read_text() == secret("not ours")
    assert errno_of((other / "..data/..data").stat) == "ENOENT"
    assert errno_of((mount.path / "single/password/..data").stat) == "ENOTDIR"
    for directory in (mount.path, mount.path / "single", mount.path / "file"):
        assert errno_of((directory / "..data").stat) == "ENOENT"


def test_watchers(site: Path, file: SecretsFile, tmp_path: Path) -> None:
    """pin-6: When all keys show a new version, watchers of the secret's directory get IN_CREATE of `..data`, once."""
    (site / "tls.key").read_bytes()
    with watching(tmp_path / "log", site) as watch, holding(site / "..data") as held:
        for number in (2, 3):
            write(file, number)
            wait_until(partial(watch.has, 3 * (number - 1)))
            assert {key: (site / key).read_text() for key in PAIR} == pair(number)
        moved = [f"{key} MOVED_TO {site}/" for key in PAIR]
        assert watch.events() == [*moved, f"..data CREATE,ISDIR {site}/"] * 2
        assert versions_in(held) == pair(1)


def test_poll(site: Path, file: SecretsFile) -> None:
    """pin-7: `poll` on a file that is open in `..data` reports POLLPRI when its secret has another version."""
    with (site / "..data/tls.key").open("rb") as held:
        poll = select.poll()
        poll.register(held, select.POLLPRI)
        assert poll.poll(0) == []
        write(file, 2)
        ((_, events),) = poll.poll(10_000)
        assert events & select.POLLPRI
        assert held.read().decode() == pair(1)["tls.key"]
    with (site / "..data/tls.key").open("rb") as held:
        poll = select.poll()
        poll.register(held, select.POLLPRI)
        file.write({})
        assert poll.poll(10_000) != []


@pytest.mark.root("needs to mount for other users, which only root can")
def test_permissions_and_scopes(host: Host, file: SecretsFile) -> None:
    """pin-8: `..data` and what is in it have the owner, group and mode of the secret and its keys; scopes hold."""
    file.write({"site": pair(1), "hidden": pair(2)})
    properties = {"secretsFile": file.path, "multiValued": "true"}
    component(host.components, "file", "local.file", properties)
    rules = [{"match": "file/site/tls.crt", "group": str(TLS), "mode": "0440"}]
    host.add("orders", {"owner": str(ORDERS), "permissions": rules})
    config = configuration(host.configs, scope("file", denied=["hidden"]))
    with mounted(host.components, config=[config], options=host.options, mountpoint=host.mountpoint) as mount:
        site = mount.path / "orders/file/site"
        data = site / "..data"
        for path, same in [(data, site), *((data / key, site / key) for key in PAIR)]:
            one, other = path.stat(), same.stat()
            assert (one.st_uid, one.st_gid, one.st_mode) == (other.st_uid, other.st_gid, other.st_mode)
        assert read_as(ORDERS, data / "tls.key") == pair(1)["tls.key"]
        assert read_as(TLS, data / "tls.crt") == pair(1)["tls.crt"]
        assert read_as(TLS, data / "tls.key") == "Permission denied"
        assert list_as(TLS, data) == "Permission denied"
        assert read_as(BILLING, data / "tls.key") == "Permission denied"
        assert errno_of((mount.path / "orders/file/hidden/..data").stat) == "ENOENT"
        with holding(data) as held:
            configuration(host.configs, scope("file", denied=["hidden", "site"]))
            (mount.path / ".secretfs/reload").write_text("*")
            wait_until(lambda: errno_of(site.stat) == "ENOENT")
            assert errno_of(read_in, held, "tls.key") == "ENOENT"  # was never open: open files stay readable


def test_a_takeover(site: Path, mount: Mounted, file: SecretsFile) -> None:
    """pin-9: What holds `..data` survives a daemon that is killed, also when the store has another version by then."""
    with holding(site / "..data") as held, (site / "..data/tls.key").open("rb", buffering=0) as key:
        inode = os.fstat(held).st_ino
        os.kill(mount.worker, signal.SIGKILL)
        assert versions_in(held) == pair(1)
        assert key.read().decode() == pair(1)["tls.key"]
        assert (site / "..data").stat().st_ino == inode
        os.kill(mount.worker, signal.SIGKILL)
        write(file, 2)
        wait_until(lambda: (site / "tls.key").read_text() == pair(2)["tls.key"])
        assert read_in(held, "tls.crt") == pair(1)["tls.crt"]
        assert {key: (site / "..data" / key).read_text() for key in PAIR} == pair(2)


def test_what_changes_while_nobody_serves(site: Path, mount: Mounted, file: SecretsFile, tmp_path: Path) -> None:
    """The next daemon tells watchers of `..data` what has changed meanwhile (pin-9, pin-6)."""
    (site / "..data/tls.key").read_bytes()
    with watching(tmp_path / "log", site) as watch:
        os.kill(mount.worker, signal.SIGKILL)
        write(file, 2)
        watch.wait_for(f"..data CREATE,ISDIR {site}/")
    assert (site / "..data/tls.key").read_text() == pair(2)["tls.key"]


def test_extended_attributes(site: Path) -> None:
    """pin-10: `user.secretfs.version` in `..data` is that of its version; the other attributes are not there."""
    assert set(os.listxattr(site / "..data")) <= {"user.secretfs.version"}
    assert set(os.listxattr(site / "..data/tls.key")) <= {"user.secretfs.version"}
    assert errno_of(os.getxattr, site / "..data", "user.secretfs.fetched") == "ENODATA"


def test_what_nobody_holds_is_forgotten(components: Path, file: SecretsFile) -> None:
    """pin-11: A version that nobody holds leaves memory, as every value does that nobody uses."""
    properties = {"secretsFile": file.path, "multiValued": "true"}
    component(components, "file", "local.file", properties, annotations={"secretfs/ttl": "1s", "secretfs/idle": "1s"})
    with mounted(components) as mount:

        def inodes() -> int:
            count: int = json.loads((mount.path / ".secretfs/status.json").read_text())["mount"]["inodes"]
            return count

        site = mount.path / "file/site"
        with holding(site / "..data") as held:
            before = inodes()
            (site / "..data/tls.key").read_bytes()
            assert inodes() == before + 1
            time.sleep(2.5)  # more than twice `idle`
            assert versions_in(held) == pair(1)
            write(file, 2)
            wait_until(lambda: (site / "..data/tls.key").read_text() == pair(2)["tls.key"])
            assert versions_in(held) == pair(1)
        wait_until(lambda: inodes() < before, within=30)


@pytest.mark.root("needs to mount for other users, which only root can")
def test_an_app_that_is_removed(host: Host, file: SecretsFile) -> None:
    """pin-12: When an app is removed, its `..data` fails with ESTALE, for ever, also after another takeover."""
    file.write({"site": pair(1)})
    component(host.components, "file", "local.file", {"secretsFile": file.path, "multiValued": "true"})
    with mounted(host.components, options=host.options, mountpoint=host.mountpoint, expect_log=KILLED) as mount:
        data = mount.path / "billing/file/site/..data"
        with holding(data) as held, (data / "tls.key").open("rb", buffering=0) as key:
            assert secretfs("apps", "remove", mount.path, "billing").status == 0
            for _ in range(2):
                assert errno_of(read_in, held, "tls.crt") == "ESTALE"
                assert errno_of(os.listdir, held) == "ESTALE"
                assert errno_of(key.read) == "ESTALE"
                host.add("billing", {"owner": str(BILLING)})
                (mount.path / ".secretfs/reload").write_text("*")
                assert (data / "tls.key").read_text() == pair(1)["tls.key"]
                os.kill(mount.worker, signal.SIGKILL)
            assert errno_of(read_in, held, "tls.crt") == "ESTALE"


READER = """
import os, sys
path, keys, read, torn = sys.argv[1], ("tls.crt", "tls.key"), 0, 0
print("ready", flush=True)
while os.stat(sys.argv[2]).st_size == 0:
    directory = os.open(path + "/..data", os.O_DIRECTORY | (os.O_PATH if read % 2 else os.O_RDONLY))
    numbers = set()
    for key in keys:
        file = os.open(key, os.O_RDONLY, dir_fd=directory)
        numbers.add(os.read(file, 1 << 16).split()[-1])
        os.close(file)
    os.close(directory)
    read, torn = read + 1, torn + (len(numbers) != 1)
print(read, torn)
"""
"""Reads pairs until a file is not empty; prints how many, and how many were of two versions."""


@pytest.mark.timeout(3600)
def test_pairs_match(site: Path, file: SecretsFile, tmp_path: Path) -> None:
    """pin-13: Two keys that are read from one `..data` are never of two versions, however often they are rotated."""
    over = tmp_path / "over"
    over.write_bytes(b"")
    command = [sys.executable, "-c", READER, str(site), str(over)]
    readers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        for reader in readers:
            assert reader.stdout
            assert reader.stdout.readline() == "ready\n"
        for number in range(2, ROTATIONS + 2):
            write(file, number)
            wait_until(partial(is_shown, site, number))
        over.write_bytes(b"over")
        results = [tuple(map(int, reader.communicate()[0].split())) for reader in readers]
    finally:
        for reader in readers:
            reader.kill()
            reader.wait()
    assert [torn for _, torn in results] == [0, 0]
    assert all(read > 0 for read, _ in results)
