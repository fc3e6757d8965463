"""A mount that root makes is read-only by itself: the kernel refuses to write before any byte is anywhere."""

import mmap
import os
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.support.canary import secret
from tests.support.command import ROOT, in_namespace, secretfs
from tests.support.manifests import component
from tests.support.mounted import Mounted, fuse_mounts, mounted
from tests.support.readers import Readers
from tests.support.seccomp import filtered
from tests.support.secrets_file import SecretsFile, file
from tests.support.shell import errno_of, lines, output, run, wait_until
from tests.support.waiting import PATIENCE
from tests.support.watching import watching

__all__ = ["file"]

pytestmark = [pytest.mark.mount, pytest.mark.root("only a mount of root is read-only by itself")]

OLD, NEW = secret("old"), secret("new, and longer")


@pytest.fixture
def mount(file: SecretsFile, tmp_path: Path) -> Iterator[Mounted]:
    file.write({"token": OLD, "other": OLD})
    component(tmp_path / "components", "file", "local.file", {"secretsFile": file.path})
    with mounted(tmp_path / "components", expect_log=[r"process \d+ ended", "a helper|helper process"]) as mount:
        yield mount


def options(path: Path) -> list[str]:
    return output("findmnt", "-n", "-o", "VFS-OPTIONS", "-M", path).decode().strip().split(",")


def test_the_kernel_refuses(mount: Mounted) -> None:
    """ro-4: A mount made by root has the option `ro`: not even root gets a byte into it that others could read."""
    path = mount.path / "file/token"
    assert path.read_text() == OLD
    assert "ro" in options(mount.path)
    calls: list[Callable[[], object]] = [
        *(partial(os.open, path, flags) for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDWR | os.O_APPEND)),
        *(partial(os.open, path, flags | os.O_TRUNC) for flags in (os.O_RDONLY, os.O_WRONLY)),
        lambda: os.truncate(path, 0),
        lambda: path.chmod(0o666),
        lambda: os.utime(path),
        lambda: os.setxattr(path, "user.x", b"x"),
    ]
    os.kill(mount.worker, signal.SIGSTOP)  # so nobody but the kernel can refuse
    try:
        assert [errno_of(call) for call in calls] == ["EROFS"] * len(calls)
    finally:
        os.kill(mount.worker, signal.SIGCONT)


def test_no_reader_sees_what_somebody_tries_to_write(mount: Mounted) -> None:
    """Neither by a write, nor by truncating, nor through a mapping (ro-4)."""
    path = mount.path / "file/token"
    seen: set[bytes] = set()

    def write() -> None:
        for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDWR | os.O_TRUNC):
            descriptor = -1
            try:
                descriptor = os.open(path, flags)
                os.pwrite(descriptor, b"EVIL", 0)
                mmap.mmap(descriptor, len(OLD), prot=mmap.PROT_WRITE)[:4] = b"EVIL"
            except OSError:
                pass
            finally:
                if descriptor >= 0:
                    os.close(descriptor)

    with Readers(lambda: seen.add(path.read_bytes()), write) as readers:
        wait_until(lambda: readers.done > 3000)
    assert readers.failures == []
    assert seen == {OLD.encode()}


def test_changes_are_published_all_the_same(mount: Mounted, file: SecretsFile, tmp_path: Path) -> None:
    """Watchers see a new value, a new secret and a deleted one (ro-4)."""
    directory = mount.path / "file"
    for name in ("token", "other"):
        (directory / name).read_bytes()
    assert len(list(directory.iterdir())) == 2
    with watching(tmp_path / "watch", directory) as watch:
        file.write({"token": NEW, "third": NEW})
        watch.wait_for(f"token MOVED_TO {directory}/", f"third MOVED_TO {directory}/", f"other DELETE {directory}/")
    assert (directory / "token").read_text() == NEW
    assert "ro" in options(mount.path)


def test_whoever_makes_it_writable_gets_no_further(mount: Mounted) -> None:
    """`mount -o remount,rw,bind` is for root; what is written then is refused by us, as in a user's mount (ro-1)."""
    output("mount", "-o", "remount,rw,bind", mount.path)
    path = mount.path / "file/token"
    calls: list[Callable[[], object]] = [
        lambda: path.write_text("x"),
        lambda: os.truncate(path, 0),
        path.unlink,
        lambda: path.rename(mount.path / "file/other"),
        (mount.path / "file/new").mkdir,
        lambda: (mount.path / "file/new").write_text("x"),
    ]
    assert [errno_of(call) for call in calls] == ["EROFS"] * len(calls)
    assert path.read_text() == OLD


REQUESTS = {"file": "", "file/token": "", "*": "", "nothing/here": "No such file or directory"}


@pytest.mark.parametrize("way", [">", ">>"])
def test_requests_are_taken(mount: Mounted, file: SecretsFile, way: str) -> None:
    """control-12: In a read-only mount, `refresh` and `reload` are links that lead to where they can be written to."""
    control = mount.path / ".secretfs"
    for request, error in REQUESTS.items():
        done = run("bash", "-c", f"echo '{request}' {way} '{control}/refresh'")
        assert error in done.stderr.decode()
        assert bool(done.returncode) == bool(error)
    assert run("sh", "-c", f"echo {way} reload", cwd=control).returncode == 0
    assert lines("stat", "-c", "%a %F", control / "refresh") == ["200 symbolic link"]
    assert lines("stat", "-L", "-c", "%a %F", control / "refresh") == ["200 regular empty file"]
    assert lines("ls", "-A", control) == ["refresh", "reload", "status.json"]
    assert errno_of((control / ".refresh").write_text, "file") == "EROFS"  # only by its link


def test_a_request_does_not_keep_a_mount(mount: Mounted) -> None:
    """Right after it, `umount` works and the daemon ends (life-4, control-12)."""
    (mount.path / ".secretfs/refresh").write_text("*")
    (mount.path / ".secretfs/refresh").stat()  # follows the link, and writes nothing
    assert run("umount", mount.path).returncode == 0
    assert mount.process.wait(PATIENCE) == 0


def test_after_a_takeover(mount: Mounted, file: SecretsFile, tmp_path: Path) -> None:
    """The next daemon takes requests and publishes changes (ro-4, control-12, takeover-1)."""
    directory = mount.path / "file"
    (directory / "token").read_bytes()
    (mount.path / ".secretfs/refresh").write_text("*")
    os.kill(mount.worker, signal.SIGKILL)
    mount.said("took over")
    (mount.path / ".secretfs/refresh").write_text("*")
    with watching(tmp_path / "watch", directory) as watch:
        file.write({"token": NEW})
        watch.wait_for(f"token MOVED_TO {directory}/")
    assert "ro" in options(mount.path)


def test_nothing_is_done_to_what_is_mounted_over_it(mount: Mounted, file: SecretsFile) -> None:
    """What is published is not done to another file system that has come to the same path (takeover-17)."""
    for name in ("token", "other"):
        (mount.path / "file" / name).read_bytes()
    output("mount", "-t", "tmpfs", "none", mount.path)
    try:
        (mount.path / "file").mkdir()
        (mount.path / "file/other").write_text("of somebody else")
        file.write({"token": NEW})  # so `other` is deleted
        mount.said("values changed: ")
        file.write({"token": OLD})
        mount.said("values changed: ", 2)  # what came before is published by now
        assert (mount.path / "file/other").read_text() == "of somebody else"
    finally:
        output("umount", mount.path)
    assert (mount.path / "file/token").read_text() == OLD


def test_helpers_that_die_are_replaced(mount: Mounted, file: SecretsFile, tmp_path: Path) -> None:
    """Also the one that holds where requests are written to (takeover-22, control-12)."""
    directory = mount.path / "file"
    (directory / "token").read_bytes()
    (mount.path / ".secretfs/refresh").write_text("*")
    (mounter,) = lines("pgrep", "-P", str(mount.worker), "secretfs-mount")
    for pid in lines("pgrep", "-P", f"{mount.worker},{mounter}", "secretfs-helper"):
        os.kill(int(pid), signal.SIGKILL)
    (mount.path / ".secretfs/refresh").write_text("*")
    with watching(tmp_path / "watch", directory) as watch:
        file.write({"token": NEW})
        watch.wait_for(f"token MOVED_TO {directory}/")


def test_when_everything_is_killed_nothing_is_left(mount: Mounted) -> None:
    """A dead mount is what is left, which the next one replaces (life-7, life-8)."""
    (mount.path / ".secretfs/refresh").write_text("*")
    (mounter,) = lines("pgrep", "-P", str(mount.worker), "secretfs-mount")
    helpers = [int(pid) for pid in lines("pgrep", "-P", f"{mount.worker},{mounter}")]
    assert len(helpers) == 4
    mount.kill()
    wait_until(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in helpers))
    assert errno_of((mount.path / "file").stat) in ("ENOTCONN", "")  # or the kernel answers from its cache
    assert errno_of((mount.path / "file/nothing").stat) == "ENOTCONN"
    assert secretfs("unmount", mount.path).status == 0
    assert str(mount.path) not in fuse_mounts()


def test_other_namespaces_get_it_read_only() -> None:
    """A mount that propagates to a container's namespace is read-only there, from the first moment (ro-4)."""
    done = in_namespace("""
        mkdir shared shared/m
        mount --bind shared shared
        mount --make-shared shared
        mkfifo go
        printf "cat go; findmnt -n -o VFS-OPTIONS -M $PWD/shared/m; cat shared/m/env/A" > look
        unshare --mount --propagation slave sh look &
        env_component
        A=b secretfs mount --resources-path c shared/m
        echo > go
        wait $!
        echo
        secretfs unmount shared/m
    """)
    assert done.out.split() == ["ro,nosuid,nodev,noexec,relatime", "b"]


def test_a_users_mount_is_not() -> None:
    """fusermount3 cannot do it: such a mount has the option `rw`, and we refuse each write (ro-1)."""
    done = in_namespace("""
        mkdir m && chown 65534 m
        env_component
        A=b as_nobody secretfs mount --resources-path c m
        findmnt -n -o VFS-OPTIONS -M "$PWD/m" | cut -d, -f1
        as_nobody sh -c 'echo x > m/env/A' || true
        as_nobody sh -c 'echo env > m/.secretfs/refresh' && as_nobody stat -c %F m/.secretfs/refresh
        as_nobody secretfs unmount m
    """)
    assert done.out.splitlines() == ["rw", "regular empty file"]
    assert "denied" in done.err


@pytest.mark.parametrize("answer", ["ENOSYS", "EPERM"])
def test_where_the_kernel_or_a_filter_forbids_it(file: SecretsFile, tmp_path: Path, answer: str) -> None:
    """Such a mount has the option `rw`, and all else is as in a user's mount (ro-1, control-1)."""
    file.write({"token": OLD})
    component(tmp_path / "components", "file", "local.file", {"secretsFile": file.path})
    (tmp_path / "mnt").mkdir()
    python = (sys.executable, "-m", "secretfs", "mount")
    flags = ("--resources-path", tmp_path / "components", "--log-file", tmp_path / "log")
    done = run(*filtered("mount_setattr", answer, *python, *flags, tmp_path / "mnt"), cwd=ROOT)
    assert done.returncode == 0
    try:
        assert b"not read-only for root" in done.stderr
        assert "rw" in options(tmp_path / "mnt")
        token = tmp_path / "mnt/file/token"
        assert token.read_text() == OLD
        assert errno_of(token.write_text, "x") == "EROFS"
        file.write({"token": NEW})
        (tmp_path / "mnt/.secretfs/refresh").write_text("file")
        assert token.read_text() == NEW
    finally:
        assert secretfs("unmount", tmp_path / "mnt").status == 0


def test_a_mount_for_one_command() -> None:
    """Root's is read-only as well, and takes requests (ro-4, run-1)."""
    script = (
        'findmnt -n -o VFS-OPTIONS -M "$SECRETFS"; echo env > "$SECRETFS/.secretfs/refresh" && cat "$SECRETFS/env/A"'
    )
    done = in_namespace(f"env_component; mkdir at; A=b secretfs run --resources-path c --at at -- sh -c '{script}'")
    assert done.out.split() == ["ro,nosuid,nodev,noexec,relatime", "b"]
