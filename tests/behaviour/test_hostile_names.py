"""Names that steer terminals, forge lines, climb out of directories or are no text at all, from real stores."""

import json
import os
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.support.canary import secret
from tests.support.command import Done, secretfs
from tests.support.manifests import component
from tests.support.mounted import Mounted, mounted
from tests.support.servers.keep_alive import Answer, KeepAlive
from tests.support.shell import errno_of

pytestmark = pytest.mark.mount

NAMES = [
    "nul\0byte",
    "line\nINFO forged",
    "carriage\rreturn",
    "escape\x1b[31m\x1b]0;title\x07",
    "c1\x9b31m",
    "bidi\u202egnp.exe",
    "isolate\u2066x\u2069",
    "zero\u200bwidth",
    "separator\u2028x",
    "..",
    ".",
    "a/../../../etc/passwd",
    "/absolute",
    "double//slash",
    ".bulk.json",
    ".secretfs",
    "..data",
    "100%00",
    "fine",
]
LEFT_OUT = ["d/" * 70 + "deep", "long" * 2000]
FAILING = "escape"
"""A part of the name of a secret that the server fails to read."""
BYTES = [b"line\nbreak", b"escape\x1b[31m", "bidi\u202e".encode()]
"""Names of files; the store leaves out those that are not UTF-8."""
INVALID = [b"INVALID\xff\xfe", b"OVERLONG\xc0\xaf", b"LINE\nBREAK"]
"""Names of variables."""
STEERING = {"Cc", "Cf", "Cs", "Zl", "Zp", "Co", "Cn"}
"""Categories of characters that must not reach a terminal or a log."""


@dataclass(frozen=True)
class Hostile:
    """A mount of stores with such names, and its manifests."""

    mount: Mounted
    manifests: Path


def answer(target: str) -> Answer:
    """Answer as Vault does."""
    plain = "Content-Type: application/json"
    if "/ui/mounts/" in target:
        return 200, b'{"data": {"path": "secret/", "type": "kv", "options": {"version": "2"}}}', plain
    if "/metadata/" in target:
        return 200, json.dumps({"data": {"keys": [*NAMES, *LEFT_OUT]}}).encode(), plain
    if target.endswith("/lookup-self"):
        return 200, b'{"data": {"ttl": 0, "renewable": false}}', plain
    if FAILING in unquote(target):
        return 500, b"{}", plain
    values = {"key": secret("value"), **dict.fromkeys(NAMES, "x")}
    return 200, json.dumps({"data": {"data": values, "metadata": {"version": 1}}}).encode(), plain


def variables() -> dict[str, str]:
    return {os.fsdecode(name): secret("variable") for name in INVALID}


@pytest.fixture
def hostile(tmp_path: Path) -> Iterator[Hostile]:
    files, manifests = tmp_path / "files", tmp_path / "res"
    files.mkdir()
    for name in (*BYTES, b"invalid\xff"):
        Path(os.fsdecode(bytes(files) + b"/" + name)).write_bytes(secret("file").encode())
    component(manifests, "env", "local.env")
    component(manifests, "directory", "secretfs.directory", {"path": files})
    with KeepAlive(answer) as server:
        properties = {"vaultAddr": server.address, "vaultToken": secret("token")}
        vault = component(manifests, "vault", "hashicorp.vault", properties, annotations={"secretfs/deadline": "100s"})
        text = vault.read_text("utf-8")
        assert "version: v1\n" in text
        vault.write_text(text.replace("version: v1\n", "version: v1\n  initTimeout: 100s\n"), "utf-8")
        expected = ["2 names are left out", "vault: .*(500|server error)"]
        with mounted(manifests, expect_log=expected, env=variables()) as mount:
            yield Hostile(mount, manifests)


def entries(directory: bytes) -> list[bytes]:
    """List a directory. As bytes, which pathlib does not have."""
    return os.listdir(directory)  # noqa: PTH208


def steers(text: str) -> list[str]:
    """Return the characters of a text that a terminal would obey, or that hide what is there."""
    return [char for char in text if char != "\n" and unicodedata.category(char) in STEERING]


def test_each_can_be_opened_and_none_leads_elsewhere(hostile: Hostile) -> None:
    """hostile-1: A name with NUL, a line break, `..`, bidi or invalid UTF-8 can be read, and leads nowhere else."""
    root = os.fsencode(hostile.mount.path)
    for name in BYTES:
        assert Path(os.fsdecode(root + b"/directory/" + name)).read_text() == secret("file")
    assert sorted(entries(root + b"/directory")) == sorted(BYTES)
    for name in INVALID:
        assert Path(os.fsdecode(root + b"/env/" + name)).read_text() == secret("variable")
    assert {*INVALID} <= {*entries(root + b"/env")}
    listed = entries(root + b"/vault")
    assert b"fine" in listed
    assert len(listed) == len({*listed})
    assert not any(b"\0" in name or b"/" in name or name in (b".", b"..") for name in listed)
    assert {b"nul%00byte", b"%2E", b"%2E%2E", b"%2Ebulk.json", b"%2Esecretfs", b"100%2500", b"a"} <= {*listed}
    assert b"d" not in listed
    for name in listed:
        outcome = errno_of(entries, root + b"/vault/" + name)
        assert outcome in ("", "EIO" if FAILING.encode() in name else "ENOENT"), name
    keys = entries(root + b"/vault/fine")
    assert b"key" in keys
    assert not any(b"\0" in name or b"/" in name or name in (b".", b"..") for name in keys)
    climbed = os.fsdecode(root + b"/vault/a/%2E%2E/%2E%2E/%2E%2E/etc")
    assert os.path.realpath(climbed) == climbed


def test_no_terminal_and_no_log_obeys_them(hostile: Hostile) -> None:
    """hostile-2: What secretfs prints or logs of such names has escapes in the place of characters that steer."""
    root = os.fsencode(hostile.mount.path)
    for name in entries(root + b"/vault"):
        errno_of(entries, root + b"/vault/" + name)
    found = secretfs("check", "--connect", "--resources-path", hostile.manifests, env=variables())
    assert "bidi\\u202egnp.exe" in found.out
    assert "INVALID\\xff\\xfe" in found.out
    assert "line\\nINFO forged" in found.out
    for done in (
        found,
        secretfs("status", hostile.mount.path),
        secretfs("status", "--json", hostile.mount.path),
        secretfs("top", hostile.mount.path),
        secretfs("refresh", hostile.mount.path),
        secretfs("doctor", hostile.mount.path),
    ):
        assert_quiet(done)
    hostile.mount.said("2 names are left out")
    hostile.mount.said("escape")
    assert steers(hostile.mount.log) == []
    assert "\nINFO forged" not in hostile.mount.log


def assert_quiet(done: Done) -> None:
    assert steers(done.out) == []
    assert steers(done.err) == []


def test_audit_records_have_them_as_escapes(tmp_path: Path) -> None:
    """A record is a line of JSON whatever a name holds, and names in it can be got back (hostile-2)."""
    files, log = tmp_path / "files", tmp_path / "audit"
    files.mkdir()
    for name in BYTES:
        Path(os.fsdecode(bytes(files) + b"/" + name)).write_bytes(b"x")
    component(tmp_path / "res", "directory", "secretfs.directory", {"path": files})
    with mounted(tmp_path / "res", options=["--audit=strict", f"--audit-to={log}"]) as mount:
        for name in BYTES:
            Path(os.fsdecode(os.fsencode(mount.path) + b"/directory/" + name)).read_bytes()
        text = log.read_text("ascii")
        records = [json.loads(line) for line in text.splitlines()]
    assert steers(text) == []
    assert [os.fsencode(record["secret"]) for record in records if record["event"] == "open"] == BYTES


def test_what_no_path_can_carry_is_left_out(hostile: Hostile) -> None:
    """hostile-3: Names longer than 4,096 bytes or in more than 64 folders are left out; the log says how many."""
    vault = hostile.mount.path / "vault"
    listed = [path.name for path in vault.iterdir()]
    assert "fine" in listed
    assert "d" not in listed
    assert not any(name.startswith("long") for name in listed)
    assert errno_of((vault / "d").stat) == "ENOENT"
    hostile.mount.said("vault: 2 names are left out, which are longer than 4096 bytes or deeper than 64 folders")


def test_an_answer_that_is_too_much(tmp_path: Path) -> None:
    """hostile-4: More names than `secretfs/max-names`, or a secret larger than `secretfs/max-size`, is EBADMSG."""
    file = tmp_path / "secrets.json"
    values = {name: secret(name) for name in "abcd"}
    file.write_text(json.dumps(values))
    size = len(secret("a"))
    for name, annotations in (
        ("few", {"secretfs/max-names": "3"}),
        ("enough", {"secretfs/max-names": "4", "secretfs/max-size": str(size)}),
        ("small", {"secretfs/max-size": str(size - 1)}),
    ):
        component(tmp_path / "res", name, "local.file", {"secretsFile": file}, annotations=annotations)
    expected = [
        "few: .*4 names are listed: secretfs/max-names of few allows 3",
        f"small: .*it has {size} bytes: secretfs/max-size of small allows {size - 1}",
    ]
    with mounted(tmp_path / "res", expect_log=expected) as mount:
        assert errno_of(entries, bytes(mount.path / "few")) == "EBADMSG"
        assert errno_of((mount.path / "few/a").read_bytes) == "EBADMSG"
        assert sorted(entries(bytes(mount.path / "small"))) == [b"a", b"b", b"c", b"d"]
        assert errno_of((mount.path / "small/a").read_bytes) == "EBADMSG"
        assert {path.name: path.read_text() for path in (mount.path / "enough").iterdir()} == values
        metrics = (mount.path / ".secretfs/metrics").read_text("utf-8").splitlines()
    beyond = [
        line for line in metrics if line.startswith("secretfs_limits_exceeded_total") and not line.endswith(" 0.0")
    ]
    assert len(beyond) == 2, beyond
    assert any('limit="names"' in line and 'store="few"' in line for line in beyond)
    assert any('limit="size"' in line and 'store="small"' in line for line in beyond)


def test_a_mistake_in_a_limit_stops_the_mount(tmp_path: Path) -> None:
    """The message names file, line and what would be right (hostile-4)."""
    component(tmp_path / "res", "env", "local.env", annotations={"secretfs/max-size": "16MB"})
    done = secretfs("check", "--resources-path", tmp_path / "res")
    assert done.status == 2
    assert "env.yaml:6: secretfs/max-size: not a whole number such as 200000 or 64Mi" in done.err
