"""Calls that are made in one mount and nowhere else: here in a file system that has no daemon, and in a real mount."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from secretfs.linux import beneath
from secretfs.linux.mount_api import make_read_only, new_mount, place
from secretfs.linux.own_mount import OwnMount, device_of
from tests.support.command import ROOT, environment, run
from tests.support.mounted import Mounted
from tests.support.open_fixtures import mount
from tests.support.shell import errno_of

__all__ = ["mount"]

pytestmark = pytest.mark.root("only root mounts")


@pytest.fixture(params=["openat2", "walk"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Follow paths in either way: a kernel that does not know the system call has another one take its place."""
    if request.param == "walk":
        monkeypatch.setattr(beneath, "_OPENAT2", 100_000)


@pytest.fixture
def point(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system, read-only, at ``parent/point``, with directories and links in it."""
    point = tmp_path / "parent/point"
    point.mkdir(parents=True)
    mount = new_mount("tmpfs", {})
    try:
        os.mkdir("store", dir_fd=mount)
        os.mkdir("store/deep", dir_fd=mount)
        os.mkdir("covered", dir_fd=mount)
        os.symlink("/", "link", dir_fd=mount)
        os.symlink(tmp_path, "store/link", dir_fd=mount)
        make_read_only(mount)
        place(mount, os.fsencode(point))
    finally:
        os.close(mount)
    yield point
    while subprocess.run(["umount", "--recursive", point], check=False, capture_output=True).returncode == 0:
        pass


@pytest.fixture
def calls(point: Path) -> OwnMount:
    return OwnMount(os.fsencode(point), fstype="tmpfs")


def minor(point: Path) -> int:
    return os.minor(point.stat().st_dev)


def test_each_is_made_through_a_writable_mount(calls: OwnMount, point: Path) -> None:
    path, device = os.fsencode(point), minor(point)
    calls.mkdir(device, path + b"/store/deep/one")
    calls.rename(device, path + b"/store/deep/one", path + b"/store/deep/\xfftwo")
    assert os.listdir(os.fsencode(point / "store/deep")) == [b"\xfftwo"]  # noqa: PTH208 - bytes
    for each in (path, path + b"/", path + b"/store", path + b"/store/deep/\xfftwo"):
        calls.statvfs(device, each)
        calls.statvfs(None, each)
    calls.lstat(None, path + b"/store/deep/\xfftwo")
    calls.rmdir(device, path + b"/store/deep/\xfftwo")
    assert os.listdir(point / "store/deep") == []  # noqa: PTH208
    assert errno_of(lambda: calls.mkdir(None, path + b"/store/three")) == "EROFS"
    calls.unlink(device, path + b"/link")  # of the mount itself
    assert not (point / "link").is_symlink()


OUTSIDE = {
    "/etc/new": "EPERM",
    "{point}2/new": "EPERM",
    "{parent}/new": "EPERM",
    "/proc/self/root{point}/new": "EPERM",
    "relative": "EPERM",
    "{point}": "EPERM",
    "{point}/..": "EPERM",
    "{point}/.": "EPERM",
    "{point}/../new": "EXDEV",
    "{point}/store/../../new": "EXDEV",
    "{point}/link/new": ("ELOOP", "ENOTDIR"),
    "{point}/store/link/new": ("ELOOP", "ENOTDIR"),
    "{point}/store/link/../new": ("ELOOP", "EXDEV"),
    "{point}//etc/new": ("ENOENT", "EXDEV"),
}


@pytest.mark.parametrize("path", OUTSIDE)
def test_no_path_leads_out_of_it(calls: OwnMount, point: Path, tmp_path: Path, path: str) -> None:
    """A path is what the one who asks has chosen, and so are the links in the mount (safe-7)."""
    named = os.fsencode(path.format(point=point, parent=point.parent))
    device = minor(point)
    for call in (calls.mkdir, calls.unlink, calls.rmdir, calls.lstat):
        for through in (None, device):
            assert errno_of(lambda call=call, through=through: call(through, named)) in OUTSIDE[path]
    assert errno_of(lambda: calls.rename(device, named, named)) in OUTSIDE[path]
    inside = os.fsencode(point / "store")
    assert errno_of(lambda: calls.rename(device, inside, named)) in ("EPERM", "EXDEV")
    assert errno_of(lambda: calls.rename(device, named, inside)) in ("EPERM", "EXDEV")
    assert sorted(os.listdir(tmp_path)) == ["parent"]  # noqa: PTH208
    assert sorted(os.listdir(point.parent)) == ["point"]  # noqa: PTH208


def test_another_mount_in_it_is_none_of_ours(calls: OwnMount, point: Path) -> None:
    other = new_mount("tmpfs", {})
    try:
        place(other, os.fsencode(point / "covered"))
    finally:
        os.close(other)
    new = os.fsencode(point / "covered/new")
    assert errno_of(lambda: calls.mkdir(None, new)) in ("EXDEV", "ENOENT")
    calls.mkdir(minor(point), new)  # below it, in ours
    assert os.listdir(point / "covered") == []  # noqa: PTH208


def cover(point: Path) -> None:
    mount = new_mount("ramfs", {})
    try:
        place(mount, os.fsencode(point))
    finally:
        os.close(mount)


def unmount(point: Path) -> None:
    assert run(["umount", str(point)]).status == 0


def lead_elsewhere(point: Path) -> None:
    """Have the directory above lead to another one, as whoever may write to it can."""
    point.parent.rename(point.parent.with_name("moved"))
    elsewhere = point.parent.with_name("elsewhere")
    (elsewhere / point.name).mkdir(parents=True)
    point.parent.symlink_to(elsewhere)


def bring_another_directory(point: Path) -> None:
    point.parent.rename(point.parent.with_name("moved"))
    point.mkdir(parents=True)


@pytest.mark.parametrize("change", [cover, unmount, lead_elsewhere, bring_another_directory])
@pytest.mark.parametrize("known", ["known", ""])
def test_what_has_come_to_its_place(
    calls: OwnMount, point: Path, tmp_path: Path, change: Callable[[Path], None], known: str
) -> None:
    """Is not touched, whether the mount has been seen before or not (safe-7)."""
    path, device = os.fsencode(point), minor(point)
    if known:
        calls.statvfs(None, path)
    change(point)
    for through in (None, device):
        assert errno_of(lambda through=through: calls.mkdir(through, path + b"/new")) == "ENOENT"
        assert errno_of(lambda through=through: calls.statvfs(through, path)) == "ENOENT"
    assert os.listdir(point) == []  # noqa: PTH208
    moved = tmp_path / "moved/point"
    if moved.exists():
        assert run(["umount", str(moved)]).status == 0


def test_a_mount_of_another_type_or_device(point: Path) -> None:
    path = os.fsencode(point)
    assert errno_of(lambda: OwnMount(path).statvfs(None, path)) == "ENOENT"
    ours = OwnMount(path, fstype="tmpfs")
    assert errno_of(lambda: ours.statvfs(minor(point) + 1, path)) == "ENOENT"
    ours.statvfs(minor(point), path)


def test_the_device_of_a_file_system_that_does_not_answer(mount: Mounted) -> None:
    """Nothing waits for it (unkillable-1)."""
    os.kill(mount.worker, 19)  # SIGSTOP
    try:
        root = os.open(mount.path, os.O_PATH)
        assert device_of(root)[0] == 0
        os.close(root)
    finally:
        os.kill(mount.worker, 18)


TAKEN_OVER = """
import ctypes, os, sys
from pathlib import Path
from secretfs.linux.confinement import confine_helper, restrict_helper
from secretfs.linux.own_mount import OwnMount

point, outside, victim = sys.argv[1:]
confine_helper()
OwnMount(os.fsencode(point), found=restrict_helper).statvfs(None, os.fsencode(point))
libc = ctypes.CDLL(None, use_errno=True)

def mount():
    if libc.mount(b"none", b"/mnt", b"tmpfs", 0, None) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

def enter():
    if libc.setns(os.open("/proc/self/ns/mnt", os.O_RDONLY), 0) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

for name, attempt in {
    "mkdir": lambda: os.mkdir(f"{outside}/new"),
    "write": lambda: os.open(f"{outside}/file", os.O_WRONLY),
    "unlink": lambda: os.unlink(f"{outside}/file"),
    "rename": lambda: os.rename(f"{outside}/file", f"{outside}/other"),
    "look": lambda: os.open(f"/proc/{victim}/mem", os.O_RDONLY),
    "chown": lambda: os.chown(f"{outside}/file", 1, 1),
    "mount": mount,
    "setns": enter,
    "mkdir in the mount": lambda: os.mkdir(f"{point}/new"),
}.items():
    try:
        attempt()
        print(name)
    except OSError as error:
        print(name, error.strerror)
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status"))
print(status["CapPrm"].strip(), status["CapBnd"].strip(), status["NoNewPrivs"].strip(), status["Seccomp"].strip())
"""


def test_what_a_helper_can_do_that_is_taken_over(mount: Mounted, tmp_path: Path) -> None:
    """It has given up what its calls do not take, and keeps two rights of root (safe-7)."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/file").touch()
    with subprocess.Popen(["sleep", "infinity"]) as victim:
        command = [sys.executable, "-c", TAKEN_OVER, str(mount.path), str(tmp_path / "outside"), str(victim.pid)]
        done = run(command, env=environment(), cwd=ROOT)
        victim.kill()
    denied, forbidden = os.strerror(errno.EACCES), os.strerror(errno.EPERM)
    assert (done.status, done.err) == (0, "")
    assert done.out.splitlines() == [
        *(f"{name} {denied}" for name in ("mkdir", "write", "unlink", "rename", "look")),
        *(f"{name} {forbidden}" for name in ("chown", "mount", "setns")),
        f"mkdir in the mount {os.strerror(errno.EROFS)}",
        "0000000000200002 0000000000200002 1 2",
    ]
