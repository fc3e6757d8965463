"""Who reads what: the table of docs/permissions.md, cell by cell, as real users on a real mount."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.app_host import BILLING, NOBODY, ORDERS, Host, host
from tests.support.canary import secret
from tests.support.command import ROOT
from tests.support.mounted import mounted
from tests.support.secrets_file import file
from tests.support.shell import output, run

__all__ = ["file", "host"]

pytestmark = [pytest.mark.mount, pytest.mark.root("needs to mount for other users, which only root can")]

MODES = ("0400", "0440", "0444")

IN_A_NAMESPACE = """
import ctypes, errno, os, sys
path, uid, gid = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
if ctypes.CDLL(None, use_errno=True).unshare(0x10000000):  # CLONE_NEWUSER
    sys.exit(f"unshare: {os.strerror(ctypes.get_errno())}")
print("ready", flush=True)
if sys.stdin.readline() == "mapped\\n":
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
try:
    print(open(path).read(), end="")
except OSError as error:
    print(os.strerror(error.errno), end="")
"""
"""Reads a file in a user namespace of its own, as a user of that namespace if it gets a map."""

Reader = Callable[[Path], str]


def as_user(uid: int, gid: int, *groups: int) -> Reader:
    """Read as a user with a group and supplementary groups."""
    more = ["--groups", ",".join(map(str, groups))] if groups else ["--clear-groups"]
    return lambda path: _cat("setpriv", "--reuid", str(uid), "--regid", str(gid), *more, path=path)


def as_root_without(*capabilities: str) -> Reader:
    """Read as root that has lost capabilities for good."""
    dropped = ",".join(f"-{capability}" for capability in capabilities)
    return lambda path: _cat("setpriv", "--bounding-set", dropped, "--inh-caps", dropped, path=path)


def in_namespace(user: int, inside: int = 0, first: int | None = None) -> Reader:
    """Read in a user namespace that ``user`` has made.

    ``first`` is the host id of its id 0, of 65,536 that are mapped; None maps nothing. ``inside`` is who reads there.
    """

    def read(path: Path) -> str:
        command = ["setpriv", "--reuid", str(user), "--regid", str(user), "--clear-groups"]
        command += [sys.executable, "-c", IN_A_NAMESPACE, str(path), str(inside), str(inside)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
            if first is not None:
                for kind in ("uid", "gid"):
                    Path(f"/proc/{process.pid}/{kind}_map").write_text(f"0 {first} 65536\n", encoding="ascii")
            process.stdin.write("mapped\n" if first is not None else "not mapped\n")
            process.stdin.close()
            return process.stdout.read()

    return read


def _cat(*command: str, path: Path) -> str:
    done = run(*command, "cat", path)
    return done.stdout.decode() if done.returncode == 0 else done.stderr.decode().rpartition(": ")[2].strip()


REMAPPED = 100_000
"""The first host id of a container with remapped ids."""

READERS: dict[str, Sequence[Reader]] = {
    "`orders`": [as_user(ORDERS, ORDERS), as_user(ORDERS, NOBODY)],
    "a user in the group `orders`, also as a supplementary group": [
        as_user(NOBODY, ORDERS),
        as_user(NOBODY, NOBODY, ORDERS),
        as_user(NOBODY, BILLING, BILLING, ORDERS),
    ],
    "any other user": [as_user(NOBODY, NOBODY), as_user(BILLING, BILLING, BILLING)],
    "root with CAP_DAC_OVERRIDE or CAP_DAC_READ_SEARCH": [
        as_user(0, 0),
        as_root_without("dac_override"),
        as_root_without("dac_read_search"),
    ],
    "root without both (some containers)": [as_root_without("dac_override", "dac_read_search")],
    "`orders` in a user namespace of its own (`unshare -U`)": [in_namespace(ORDERS)],
    "root of a user namespace that maps the ids of `orders`": [in_namespace(0, inside=0, first=0)],
    "root, and the user with the number of `orders`, in a container with remapped ids": [
        in_namespace(0, inside=0, first=REMAPPED),
        in_namespace(0, inside=ORDERS, first=REMAPPED),
    ],
}


CONTAINED = 1000
"""The owner of an app, in a container with remapped ids."""


class User(NamedTuple):
    """Who a program in a container is."""

    uid: int
    gid: int
    groups: Sequence[int] = ()
    capabilities: Sequence[str] = ()


USERS: dict[str, Sequence[User]] = {
    "user 1000": [User(CONTAINED, CONTAINED), User(CONTAINED, 1)],
    "a user in the group 1000, also as a supplementary group": [User(1, CONTAINED), User(1, 1, [CONTAINED])],
    "any other user": [User(1, 1, [2])],
    "root with CAP_DAC_OVERRIDE, which Docker gives it": [User(0, 0, capabilities=["CAP_DAC_OVERRIDE"])],
    "root without CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH": [User(0, 0)],
}


def table(column: str) -> dict[str, list[str]]:
    """Return the rows of a table, by its first column: who, and what becomes of a read with each mode."""
    text = (ROOT / "docs/permissions.md").read_text(encoding="utf-8")
    rows = text.partition(f"| {column} |")[2].partition("\n\n")[0].splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert tuple(cells[0]) == MODES
    return {who: answers for who, *answers in cells[2:]}


def answer(text: str) -> str:
    return {"Permission denied": "EACCES", secret("db"): "reads"}.get(text, text)


def test_the_table(host: Host) -> None:
    """app-14: `docs/permissions.md` has a table of who reads what; it is what the kernel does."""
    for mode in MODES:
        host.add(f"m{mode}", {"owner": str(ORDERS), "group": str(ORDERS), "mode": mode})
    with mounted(host.components, options=host.options, mountpoint=host.mountpoint) as mount:
        rows = table("Who")
        assert rows.keys() == READERS.keys()
        for who, readers in READERS.items():
            for reader in readers:
                found = [reader(mount.path / f"m{mode}/file/db/password") for mode in MODES]
                assert [answer(text) for text in found] == rows[who], who


READ_ALL = """
import os, sys
for path in sys.argv[1:]:
    try:
        print(open(path).read())
    except OSError as error:
        print(os.strerror(error.errno))
"""


def test_every_combination(host: Host) -> None:
    """Each user, group, set of supplementary groups, mode and app: owner, else group, else others (app-14)."""
    apps = list(product({"orders": ORDERS, "billing": BILLING}.items(), MODES))
    for (name, owner), mode in apps:
        host.add(f"{name}-m{mode}", {"owner": str(owner), "group": str(owner + 1), "mode": mode})
    users, own = (ORDERS, ORDERS + 1, BILLING, NOBODY), (ORDERS, ORDERS + 1, BILLING + 1, NOBODY)
    more: list[list[int]] = [[], [ORDERS + 1], [BILLING + 1], [ORDERS + 1, BILLING + 1]]
    with mounted(host.components, options=host.options, mountpoint=host.mountpoint) as mount:
        paths = [mount.path / f"{name}-m{mode}/file/db/password" for (name, _), mode in apps]
        for uid, gid, groups in product(users, own, more):
            allowed = ["--groups", ",".join(map(str, groups))] if groups else ["--clear-groups"]
            command = ("setpriv", "--reuid", str(uid), "--regid", str(gid), *allowed)
            found = output(*command, "/usr/bin/python3", "-ISc", READ_ALL, *paths).decode().splitlines()
            expected = [
                "reads" if bits(uid, {gid, *groups}, owner, int(mode, 8)) & 0o4 else "EACCES"
                for (_, owner), mode in apps
            ]
            assert [answer(text) for text in found] == expected, (uid, gid, groups)


def bits(uid: int, groups: set[int], owner: int, mode: int) -> int:
    """Return the permission bits that count for a user: the group of an app is one more than its owner."""
    return mode >> 6 if uid == owner else mode >> 3 if owner + 1 in groups else mode


class Container:
    """A container with remapped ids, in which runc shows one directory for each mode: that of an app."""

    def __init__(self, directory: Path, mountpoint: Path) -> None:
        self._directory = directory
        root = directory / "rootfs"
        root.mkdir(parents=True)
        os.chown(root, REMAPPED, REMAPPED)
        for link in ("bin", "lib", "lib64"):
            (root / link).symlink_to(f"usr/{link}")
        output("runc", "spec", cwd=directory)
        self._config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        mapping = [{"containerID": 0, "hostID": REMAPPED, "size": 65536}]
        linux = self._config["linux"]
        linux["namespaces"].append({"type": "user"})
        linux |= {"uidMappings": mapping, "gidMappings": mapping}
        del self._config["process"]["rlimits"]
        flags = ["rbind", "ro", "nosuid", "nodev", "noexec"]  # as the mount has them
        shown = [("/usr", "/usr", flags[:2]), *((f"/m{mode}", mountpoint / f"m{mode}", flags) for mode in MODES)]
        self._config["mounts"] += [
            {"destination": inside, "type": "bind", "source": str(outside), "options": options}
            for inside, outside, options in shown
        ]

    def read_as(self, user: User) -> list[str]:
        """Read the file of each mode."""
        program = "for mode; do cat /m$mode/file/db/password 2>&1 || :; echo; done"
        self._config["process"] |= {
            "terminal": False,
            "args": ["sh", "-c", program, "sh", *MODES],
            "env": ["PATH=/usr/bin", "LC_ALL=C"],
            "user": {"uid": user.uid, "gid": user.gid, "additionalGids": list(user.groups)},
            "capabilities": {kind: list(user.capabilities) for kind in ("bounding", "effective", "permitted")},
        }
        (self._directory / "config.json").write_text(json.dumps(self._config), encoding="utf-8")
        name = f"secretfs-{os.getpid()}"
        text = output("runc", "--root", self._directory / "runc", "run", "--bundle", self._directory, name).decode()
        return [line.rpartition(": ")[2] for line in text.splitlines() if line]


def test_the_table_of_remapped_containers(host: Host, tmp_path: Path) -> None:
    """The owner of an app in a container with remapped ids is an id on the host (app-14)."""
    for mode in MODES:
        host.add(f"m{mode}", {"owner": str(REMAPPED + CONTAINED), "group": str(REMAPPED + CONTAINED), "mode": mode})
    with mounted(host.components, options=host.options, mountpoint=host.mountpoint) as mount:
        container, rows = Container(tmp_path / "container", mount.path), table("Who in the container")
        assert rows.keys() == USERS.keys()
        for who, users in USERS.items():
            for user in users:
                assert [answer(text) for text in container.read_as(user)] == rows[who], who
