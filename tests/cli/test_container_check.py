"""Why a container does not see a mount, from the tables of mounts of both sides."""

from pathlib import Path

import pytest

from secretfs.cli.container_check import examine_container, explain
from secretfs.cli.diagnose import Level
from secretfs.errors import MountError
from secretfs.linux.mountinfo import FSTYPE, MountInfo

POINT = Path("/srv/secrets")
PARENT = "bind the parent directory: -v /srv:/run/secrets:ro,rslave"


def on_disk(path: str, root: str, *, shared: bool = False, receives: bool = False) -> MountInfo:
    return MountInfo(path, "ext4", 1, None, shared, device="8:1", root=root, receives=receives)


def secrets(path: str, device: str = "0:50", root: str = "/") -> MountInfo:
    return MountInfo(path, FSTYPE, int(device[2:]), 0, shared=False, device=device, root=root)


HOST = on_disk("/", "/", shared=True)
ROOT = MountInfo("/", "overlay", 9, None, shared=False, device="0:9")
CASES = {
    "bound": (HOST, [secrets("/run/secrets", root="/orders")], "it sees the secrets at /run/secrets", ""),
    "earlier mount": (
        HOST, [secrets("/run/secrets", "0:49")],
        "at /run/secrets it keeps an earlier mount, whose daemon is gone",
        f"restart the container; for it to see every later mount, {PARENT}",
    ),
    "another mount": (
        HOST, [secrets("/run/secrets", "0:60")],
        "at /run/secrets it has another secretfs, that of /srv/other", f"bind /srv/secrets, or {PARENT}",
    ),
    "older than the mount": (
        HOST, [on_disk("/run/secrets", "/srv/secrets", receives=True)],
        "/run/secrets is the directory under the mount: the container is older than the mount",
        f"restart the container; for it to see every later mount, {PARENT}",
    ),
    "private bind": (
        HOST, [on_disk("/run/secrets", "/srv")],
        "the bind at /run/secrets is private: it does not receive what is mounted after its start",
        "bind it with rslave (Compose: propagation: rslave)",
    ),
    "private host": (
        on_disk("/", "/"), [on_disk("/run/secrets", "/srv", receives=True)],
        "/ is private on the host: no container receives what is mounted in it",
        "mount --make-rshared /, and start the container again",
    ),
    "another namespace": (
        HOST, [on_disk("/run/secrets", "/srv", receives=True)],
        "the bind at /run/secrets receives from another mount namespace than this one",
        "rootless Podman keeps the namespace of its first start: podman system migrate",
    ),
    "nothing": (
        HOST, [on_disk("/etc/hosts", "/var/lib/docker/hosts")],
        "nothing of the mount is bound in it", f"use a volume, or {PARENT}",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_it_says(case: str) -> None:
    around, inside, text, fix = CASES[case]
    mount = secrets(str(POINT))
    found = explain(POINT, mount, around, [around, mount, secrets("/srv/other", "0:60")], [ROOT, *inside])
    assert (found.text, found.fix) == (text, fix)
    assert found.level is (Level.WARN if fix else Level.PASS)


def test_a_mount_point_on_a_file_system_of_its_own() -> None:
    """What a container has bound is named as the file system has it, not as the host does."""
    around = on_disk("/srv", "/data", shared=True)
    found = explain(POINT, secrets(str(POINT)), around, [around], [ROOT, on_disk("/x", "/data/secrets/orders")])
    assert "older than the mount" in found.text


def test_a_container_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("secretfs.cli.container_check.require_mounted", lambda _: secrets(str(POINT)))
    found = examine_container("orders", POINT)
    assert (found.level, found.text) == (Level.FAIL, "neither Docker nor Podman runs a container orders")
    assert found.exit_code == MountError.exit_code
    found = examine_container("4194305", POINT)
    assert found.text == "cannot see the mounts of process 4194305: No such file or directory"
