"""``secretfs doctor``, and what ``secretfs mount`` says when it is refused."""

import json
import os
import re
from pathlib import Path

import pytest

from tests.support.canary import secret
from tests.support.command import in_namespace, secretfs
from tests.support.manifests import component
from tests.support.mount_fixtures import point
from tests.support.mounted import fuse_mounts
from tests.support.vault_fixtures import Folder

__all__ = ["point"]

pytestmark = pytest.mark.mount

CHECKS = (
    *("kernel", "device", "permission", "namespace", "core dumps", "memory", "packages", "warm reads"),
    *("mount point", "propagation"),
    *("manifests", "store env"),
)
COMPONENT = """
    mkdir m
    env_component
    chown 65534 m
"""


@pytest.fixture
def manifests(tmp_path: Path) -> Path:
    return component(tmp_path / "components", "env", "local.env").parent


def test_what_it_says(manifests: Path, point: Path) -> None:
    """doctor-1: `secretfs doctor` reports PASS, WARN or FAIL for all that a mount needs; WARN and FAIL have a fix."""
    (point / "in the way").touch()
    done = secretfs("doctor", "--nonempty", "--resources-path", manifests, point)
    *lines, summary = done.out.splitlines()
    findings = [line for line in lines if not line.lstrip().startswith("fix: ")]
    assert tuple(line[6:].split("  ")[0] for line in findings) == CHECKS
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if line in findings:
            assert re.match(r"PASS|WARN|FAIL", line)
            assert following.lstrip().startswith("fix: ") == (not line.startswith("PASS"))
    assert "WARN  mount point  " in done.out
    assert re.fullmatch(r"\d WARN", summary)
    assert done.err == ""


def test_exit_codes(manifests: Path, point: Path, tmp_path: Path) -> None:
    """doctor-2: It exits with 0 if all is well, with 1 for warnings, else as `mount` would: with 2, 3 or 4."""
    done = in_namespace(f"""
        {COMPONENT}
        mount --make-rshared /mnt
        secretfs doctor --resources-path c m > said || echo "$?"; grep -v '^PASS' said
    """)
    newest = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2])) >= (6, 9)
    assert done.out == ("all is well\n" if newest else done.out)
    assert newest or done.out.startswith("1\nWARN  kernel")
    component(tmp_path / "down", "vault", "hashicorp.vault", {"vaultAddr": "http://127.0.0.1:9", "vaultToken": "x"})
    component(tmp_path / "wrong", "env", "local.evn")
    for code, resources, place in (
        (3, manifests, point / "x"),
        (2, tmp_path / "wrong", point),
        (4, tmp_path / "down", point),
    ):
        assert secretfs("doctor", "--resources-path", resources, place).status == code
        assert secretfs("mount", "--resources-path", resources, place).status == code
    (point / "x").touch()
    assert secretfs("doctor", "--resources-path", manifests, point).status == 3
    assert secretfs("doctor", "--nonempty", "--resources-path", manifests, point).status == 1


def test_for_programs(manifests: Path, point: Path) -> None:
    """doctor-3: `secretfs doctor --json` reports the same for programs."""
    (point / "in the way").touch()
    arguments = ("--nonempty", "--resources-path", manifests, point)
    plain, document = secretfs("doctor", *arguments), secretfs("doctor", "--json", *arguments)
    assert document.status == plain.status
    told = json.loads(document.out)
    assert told["exit_code"] == document.status
    assert tuple(one["check"] for one in told["findings"]) == CHECKS
    for one in told["findings"]:
        if one["check"] != "store env":  # which says how long it took
            assert f"{one['level']}  {one['check']:<12} {one['finding']}" in plain.out
        assert (one["fix"] is None) == (one["level"] == "PASS")


def test_it_changes_nothing(kv: Folder, tmp_path: Path, point: Path) -> None:
    """doctor-4: It takes every flag of `mount`, mounts nothing, and reads no secret except credentials of stores."""
    kv.put("db", {"password": secret()})
    component(tmp_path / "components", "vault", "hashicorp.vault", kv.metadata())
    kv.requests()
    flags = ["--mode", "0440", "--uid", "0", "--gid", "0", "--allow-other", "--ttl", "1s", "--foreground"]
    done = secretfs("doctor", "--resources-path", tmp_path / "components", *flags, point)
    assert "PASS  store vault  " in done.out
    assert "FAIL" not in done.out
    assert str(point) not in fuse_mounts()
    assert list(point.iterdir()) == []
    assert [path for operation, path in kv.requests() if operation == "read" and path.startswith("data/")] == []
    helps = (secretfs(name, "--help").out for name in ("mount", "doctor"))
    mount, doctor = (re.findall(r"^ +(?:-\w, )?(--[\w-]+)", text, re.MULTILINE) for text in helps)
    assert set(doctor) == {*mount, "--json", "--container"}


OBSTACLES = {
    "a device for root alone": "chmod 600 /dev/fuse",
    "a directory of somebody else": "chown 0 m",
    "no new privileges": 'as_nobody() { setpriv --reuid 65534 --regid 65534 --clear-groups --no-new-privs "$@"; }',
    "no sharing": "FLAG=--allow-other",
    "a hung mount": "as_nobody secretfs mount --resources-path c m; pkill --signal STOP secretfs:",
}


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_refusals(obstacle: str) -> None:
    """mount-1: The message about an obstacle to mounting (exit code 3) says what to do; `doctor` says the same."""
    done = in_namespace(f"""
        {COMPONENT}
        FLAG=--mode=0400
        {OBSTACLES[obstacle]}
        as_nobody secretfs doctor $FLAG --json --resources-path c m || echo "$?" >&2
        as_nobody secretfs mount $FLAG --resources-path c m || echo "$?" >&2
    """)
    diagnosed, reason, mounted = done.lines
    assert (diagnosed, mounted) == ("3", "3")
    (failure,) = [one for one in json.loads(done.out)["findings"] if one["level"] == "FAIL"]
    assert reason == f"secretfs: {failure['finding']}; {failure['fix']}"


def test_what_only_fusermount3_knows() -> None:
    """What shows at the mount itself is explained as well (mount-1)."""
    done = in_namespace(
        COMPONENT
        + """
        echo 'mount_max = 0' > fuse.conf; mount --bind fuse.conf /etc/fuse.conf
        as_nobody secretfs mount --resources-path c m || echo "$?"
    """
    )
    assert done.out == "3\n"
    assert "too many FUSE filesystems mounted" in done.err
    assert "; unmount some of yours, or raise mount_max in /etc/fuse.conf as root" in done.err
