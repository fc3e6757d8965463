"""Who reads what: the table of docs/permissions.md, cell by cell, as real users on a real mount."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.support.app_host import BILLING, NOBODY, ORDERS, Host, host
from tests.support.canary import secret
from tests.support.command import ROOT
from tests.support.mounted import mounted
from tests.support.secrets_file import file
from tests.support.shell import run

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


def table() -> dict[str, list[str]]:
    """Return the rows of the table: who, and what becomes of a read with each mode."""
    text = (ROOT / "docs/permissions.md").read_text(encoding="utf-8")
    section = text.partition("## Who reads what\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    assert tuple(rows[0]) == ("Who", *MODES)
    return {who: cells for who, *cells in rows[2:]}


def test_the_table(host: Host) -> None:
    """app-14: `docs/permissions.md` has a table of who reads what; it is what the kernel does."""
    for mode in MODES:
        host.add(f"m{mode}", {"owner": str(ORDERS), "group": str(ORDERS), "mode": mode})
    with mounted(host.components, options=host.options, mountpoint=host.mountpoint) as mount:
        rows = table()
        assert rows.keys() == READERS.keys()
        answers = {"Permission denied": "EACCES", secret("db"): "reads"}
        for who, readers in READERS.items():
            for reader in readers:
                found = [reader(mount.path / f"m{mode}/file/db/password") for mode in MODES]
                assert [answers.get(answer, answer) for answer in found] == rows[who], who
