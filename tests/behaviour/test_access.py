"""Access: nobody may write, and only the owner may read unless the mount says otherwise."""

import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.canary import secret
from tests.support.command import NOBODY
from tests.support.manifests import component
from tests.support.mounted import Mounted, mounted
from tests.support.shell import errno_of, output, refused_mount, run

pytestmark = pytest.mark.mount

as_root = pytest.mark.root("needs to be another user, which only root can")


@pytest.fixture(scope="module")
def manifests(scratch: Path) -> Path:
    (scratch / "secrets.json").write_text(json.dumps({"folder/secret": secret(), "team": secret("team")}))
    component(scratch / "manifests", "file", "local.file", {"secretsFile": scratch / "secrets.json"})
    return scratch / "manifests"


@pytest.fixture(scope="module")
def mount(manifests: Path) -> Iterator[Mounted]:
    with mounted(manifests) as mount:
        yield mount


# --- nobody may write ---


def writes(mount: Path) -> dict[str, Callable[[], object]]:
    """List every way to change something, by name."""
    file, folder = mount / "file/folder/secret", mount / "file/folder"
    return {
        "open for writing": lambda: os.open(file, os.O_WRONLY),
        "open for both": lambda: os.open(file, os.O_RDWR),
        "open for appending": lambda: os.open(file, os.O_WRONLY | os.O_APPEND),
        "truncate on open": lambda: os.open(file, os.O_RDONLY | os.O_TRUNC),
        "truncate": lambda: os.truncate(file, 0),
        "create": lambda: os.open(folder / "new", os.O_WRONLY | os.O_CREAT),
        "create in the root": lambda: os.open(mount / "new", os.O_WRONLY | os.O_CREAT),
        "mkdir": (folder / "new").mkdir,
        "mkdir in the root": (mount / "new").mkdir,
        "rmdir": folder.rmdir,
        "unlink": file.unlink,
        "rename": lambda: file.rename(folder / "new"),
        "exchange": lambda: file.rename(mount / "file/team"),
        "link": lambda: (folder / "new").hardlink_to(file),
        "symlink": lambda: (folder / "new").symlink_to("secret"),
        "mknod": lambda: os.mkfifo(folder / "new"),
        "chmod": lambda: file.chmod(0o777),
        "chown": lambda: os.chown(file, os.getuid(), os.getgid()),
        "utime": lambda: os.utime(file),
        "set an attribute": lambda: os.setxattr(file, "user.new", b"x"),
        "remove an attribute": lambda: os.removexattr(file, "user.secretfs.version"),
    }


@pytest.mark.parametrize("name", writes(Path()))
def test_read_only(mount: Mounted, name: str) -> None:
    """ro-1: Every attempt to change something is EROFS, even for root."""
    assert errno_of(writes(mount.path)[name]) == "EROFS"
    assert (mount.path / "file/folder/secret").read_text() == secret()


def test_programs_that_write(mount: Mounted) -> None:
    """Programs report it in their own words (ro-1)."""
    for command in (["touch", "file/new"], ["rm", "-f", "file/team"], ["sh", "-c", "echo x > file/team"]):
        done = run(*command, cwd=mount.path)
        assert done.returncode != 0
        assert b"Read-only file system" in done.stderr


def test_no_execution(mount: Mounted) -> None:
    """ro-2: Nothing in the mount can be executed, act as a device or run as another user (noexec, nodev, nosuid)."""
    assert errno_of(lambda: run(mount.path / "file/folder/secret")) == "EACCES"
    options = mount_options(mount.path)
    assert {"nosuid", "nodev", "noexec"} <= set(options)


def mount_options(path: Path) -> list[str]:
    """Return the options of a mount as the kernel tells them."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[4] == str(path):
            assert fields[fields.index("-") + 1 : fields.index("-") + 3] == ["fuse.secretfs", "secretfs"]
            return fields[5].split(",")
    raise AssertionError("it is not mounted")


def test_statfs(mount: Mounted) -> None:
    """ro-3: `df` and `statfs` work, and report a size of 0 with nothing free."""
    answer = os.statvfs(mount.path / "file")
    assert (answer.f_blocks, answer.f_bfree, answer.f_bavail) == (0, 0, 0)
    assert answer.f_namemax == 255
    assert b"secretfs" in output("df", "-a", mount.path)
    assert output("stat", "-f", "-c", "%T", mount.path) in (b"fuseblk\n", b"fuse\n", b"UNKNOWN (0x65735546)\n")


# --- who may read ---


def test_owner_and_modes(mount: Mounted) -> None:
    """perm-1: Files are 0400 and directories 0700, and belong to the user who mounted them."""
    for path, mode in {
        "": stat.S_IFDIR | 0o700,
        "file": stat.S_IFDIR | 0o700,
        "file/folder": stat.S_IFDIR | 0o700,
        "file/folder/secret": stat.S_IFREG | 0o400,
        "file/.bulk.json": stat.S_IFREG | 0o400,
    }.items():
        status = (mount.path / path).stat()
        assert (status.st_mode, status.st_uid, status.st_gid) == (mode, os.getuid(), os.getgid())


def seen_by(user: int, path: Path, group: int | None = None) -> str:
    """Read a file as somebody else; returns its text, or what went wrong."""
    ids = ["--reuid", str(user), "--regid", str(user if group is None else group), "--clear-groups"]
    done = run("setpriv", *ids, "cat", path)
    return done.stdout.decode() if done.returncode == 0 else done.stderr.decode().rpartition(": ")[2].strip()


@pytest.fixture
def open_place(tmp_path: Path) -> Path:
    """Make a mount point that everybody can reach."""
    for directory in (tmp_path, *tmp_path.parents):
        if directory.stat().st_mode & 0o011 != 0o011:
            directory.chmod(directory.stat().st_mode | 0o011)
    (tmp_path / "mnt").mkdir()
    return tmp_path / "mnt"


@as_root
def test_others_may_not_even_look(manifests: Path, open_place: Path) -> None:
    """perm-2: Without `--allow-other` only the user who mounted can enter the mount."""
    options = ["--uid", str(NOBODY), "--mode", "0444"]
    expected = ["cannot get at them without --allow-other"]
    with mounted(manifests, mountpoint=open_place, options=options, expect_log=expected) as mount:
        assert seen_by(NOBODY, mount.path / "file/team") == "Permission denied"
        assert seen_by(NOBODY, mount.path) == "Permission denied"


@as_root
def test_allow_other(manifests: Path, open_place: Path) -> None:
    """perm-3: With `--allow-other` the kernel admits users by `--uid`, `--gid` and `--mode`, and nobody else."""
    options = ["--allow-other", "--uid", "4001", "--gid", "4002", "--mode", "0440"]
    with mounted(manifests, mountpoint=open_place, options=options) as mount:
        path = mount.path / "file/folder/secret"
        status = path.stat()
        assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (4001, 4002, 0o440)
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o750
        assert seen_by(4001, path) == secret()
        assert seen_by(NOBODY, path, group=4002) == secret()
        assert seen_by(NOBODY, path) == "Permission denied"


@as_root
def test_allow_other_alone(manifests: Path, open_place: Path) -> None:
    """`--allow-other` alone gives nobody access: the files are still 0400 (perm-3)."""
    with mounted(manifests, mountpoint=open_place, options=["--allow-other"]) as mount:
        assert seen_by(NOBODY, mount.path / "file/team") == "Permission denied"


@as_root
def test_everybody(manifests: Path, open_place: Path) -> None:
    """`--mode 0444` admits everybody (perm-3)."""
    with mounted(manifests, mountpoint=open_place, options=["--allow-other", "--mode", "0444"]) as mount:
        assert seen_by(NOBODY, mount.path / "file/team") == secret("team")
        assert stat.S_IMODE((mount.path / "file").stat().st_mode) == 0o755


@pytest.mark.parametrize("mode", ["0600", "0555", "0777", "rw", "9"])
def test_modes_that_make_no_sense(manifests: Path, mode: str) -> None:
    """perm-4: `--mode` accepts read bits only: 0400, 0440, 0444."""
    code, told = refused_mount(manifests, "--mode", mode)
    assert code == 2
    assert mode in told
