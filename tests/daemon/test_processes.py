"""The processes that serve a mount, real ones: how they are found, and how a mount is taken from them."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from secretfs.daemon.processes import daemon_pids, force_unmount
from secretfs.errors import MountError
from secretfs.linux.mountinfo import is_mounted, require_mounted
from secretfs.linux.mountpoint import abort, is_dead
from tests.support.command import Done, background, environment, in_namespace, secretfs
from tests.support.mount_fixtures import components, point
from tests.support.mounted import mounted, supervisor
from tests.support.shell import stop, wait_until
from tests.support.waiting import PATIENCE

__all__ = ["components", "point"]

pytestmark = pytest.mark.mount

AS_ROOT = pytest.mark.root("without root only where fusectl is mounted")
COMPONENT = """
    mkdir m
    env_component
    chown 65534 m
"""


@pytest.fixture
def reader(point: Path) -> Iterator["Reader"]:
    with Reader(point) as reader:
        yield reader


class Reader:
    """A program that reads a file of a mount when it is told to, and says how that ended."""

    def __init__(self, point: Path) -> None:
        code = f"import sys; input(); print('now', flush=True); open({str(point / 'env/HOME')!r}).read()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def hang(self) -> None:
        """Let it read, and wait until it waits for the daemon."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "now\n"
        wait_until(lambda: Path(f"/proc/{self._process.pid}/wchan").read_text() == "request_wait_answer")

    def end(self) -> str:
        """Wait for its end, and return the last line that it says."""
        _, said = self._process.communicate(timeout=PATIENCE)
        return said.splitlines()[-1]


def test_they_are_found_by_the_mount_they_serve(components: Path, point: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with background(point, "--resources-path", components) as first:
        with background(other, "--resources-path", components) as second:
            assert daemon_pids(require_mounted(point)) == [supervisor(point), first]
            assert daemon_pids(require_mounted(other)) == [supervisor(other), second]
        gone = require_mounted(point)
        served = daemon_pids(gone)
    assert daemon_pids(gone, served) == []


LATE = """
import signal, sys
from pathlib import Path
from secretfs.daemon.processes import set_name
while sys.argv[1] in Path("/proc/self/mountinfo").read_text():
    pass
set_name(sys.argv[2])
print("named", flush=True)
signal.pause()
"""


@AS_ROOT
def test_a_mount_that_gets_the_same_number_afterwards_is_left_alone(components: Path, point: Path) -> None:
    with background(point, "--resources-path", components) as worker:
        mount = require_mounted(point)
        served, name = daemon_pids(mount), Path(f"/proc/{worker}/comm").read_text(encoding="ascii").strip()
        command = [sys.executable, "-c", LATE, str(point), name]
        with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as other:
            try:
                assert secretfs("unmount", point).status == 0
                assert other.stdout
                assert other.stdout.readline() == "named\n"
                assert other.pid in daemon_pids(mount)  # it is found by the number ...
                assert daemon_pids(mount, served) == []  # ... and did not serve the mount that is gone
                assert other.poll() is None
            finally:
                other.kill()


FORKING = """
import os, signal, sys
from pathlib import Path
from secretfs.linux.mountinfo import MountInfo
from secretfs.daemon.processes import _name, set_name
set_name(_name(MountInfo("/x", "fuse.secretfs", int(sys.argv[1]), 0, False)))
ignored = signal.signal(signal.SIGINT, signal.SIG_IGN)
children = []
for _ in range(2):
    child = os.fork()
    if child == 0:
        signal.pause()
    children.append(child)
print(os.getpid(), *children, flush=True)
while True:  # what a supervisor does: one that ends is replaced
    os.wait()
    if os.fork() == 0:
        signal.pause()
"""


@AS_ROOT
def test_all_are_ended_the_one_first_that_would_start_others(components: Path, point: Path) -> None:
    with mounted(components, mountpoint=point) as mount:
        minor = require_mounted(point).minor
        other = subprocess.Popen(
            [sys.executable, "-c", FORKING, str(minor)], env=environment(), stdout=subprocess.PIPE, text=True
        )
        assert other.stdout
        pids = [int(pid) for pid in other.stdout.readline().split()]
        assert daemon_pids(require_mounted(point)) == [
            *sorted([mount.process.pid, pids[0]]),
            *sorted([mount.worker, *pids[1:]]),
        ]
        there = require_mounted(point)
        force_unmount(point)
        assert other.wait(PATIENCE) == -signal.SIGKILL
        assert daemon_pids(there, pids) == []
        assert mount.process.wait(PATIENCE) == 0, "it was asked to end, and has had the time"
        other.stdout.close()


@AS_ROOT
def test_an_abort_frees_who_waits_and_leaves_the_mount(components: Path, point: Path, reader: Reader) -> None:
    with mounted(components, mountpoint=point) as mount:
        stop(mount.worker)
        reader.hang()
        abort(point)
        assert reader.end().startswith("ConnectionAbortedError")
        assert is_mounted(point)
        assert is_dead(point)
        abort(point)  # twice is no error
        os.kill(mount.worker, signal.SIGCONT)
        assert mount.process.wait(PATIENCE) == 0


def test_an_abort_of_nothing(point: Path) -> None:
    with pytest.raises(MountError, match="has no secretfs mounted"):
        abort(point)


def test_where_fusectl_is_mounted_a_user_aborts_his_own() -> None:
    done = in_namespace(
        COMPONENT
        + """
        mount -t fusectl none /sys/fs/fuse/connections
        as_nobody secretfs mount --resources-path c m
        pkill --signal STOP secretfs:
        as_nobody /mnt/python/bin/python -c '
from pathlib import Path
from secretfs.linux.mountpoint import abort, is_dead
abort(Path("/mnt/nobody/m"))
print(is_dead(Path("/mnt/nobody/m")))'
        as_nobody secretfs unmount --force m
        ls m; pgrep secretfs: || echo none
    """
    )
    assert (done.out, done.err) == ("True\nnone\n", "")


class TestForce:
    def test_dead_ones_go_all_at_once(self) -> None:
        done = in_namespace(
            COMPONENT
            + """
            for i in 1 2 3; do
                exec 3<>/dev/fuse
                mount -i -t fuse.secretfs -o fd=3,rootmode=40000,user_id=0,group_id=0 sfs m
                exec 3>&-
            done
            secretfs unmount --force m
            grep -c "$PWD/m .*fuse.secretfs" /proc/self/mountinfo
        """
        )
        assert (done.out, done.err) == ("0\n", "")

    def test_a_dead_one_as_a_user(self) -> None:
        done = in_namespace(
            COMPONENT
            + """
            as_nobody secretfs mount --resources-path c m
            pkill --signal KILL secretfs:
            while as_nobody ls m 2> /dev/null; do :; done
            as_nobody secretfs unmount --force m; ls m
        """
        )
        assert (done.status, done.out, done.err) == (0, "", "")

    def test_that_of_somebody_else(self) -> None:
        done = in_namespace(
            COMPONENT
            + """
            secretfs mount --resources-path c m
            as_nobody secretfs unmount --force m || echo $?
            ls m; secretfs unmount m
        """
        )
        assert (done.out, done.lines) == (
            "3\nenv\n",
            ["secretfs: the secretfs at /mnt/nobody/m was mounted by user 0; become that user, or root"],
        )

    def test_a_server_that_cannot_be_found_is_not_passed_over(self) -> None:
        done = in_namespace(
            COMPONENT
            + """
            exec 3<>/dev/fuse
            mount -i -t fuse.secretfs -o fd=3,rootmode=40000,user_id=65534,group_id=65534 sfs m
            as_nobody sh -c 'exec 3>&-; secretfs unmount --force m || echo $?'
        """
        )
        assert done.out == "3\n"
        assert "m is unmounted, but its process was not found" in done.err

    def test_root_ends_the_hung_mount_of_a_user(self) -> None:
        done = in_namespace(
            COMPONENT
            + """
            as_nobody secretfs mount --resources-path c m
            pkill --signal STOP secretfs:
            secretfs unmount --force m
            ls m; pgrep secretfs: || echo none
        """
        )
        assert (done.status, done.out, done.err) == (0, "none\n", "")

    def test_what_is_not_mounted(self, point: Path) -> None:
        assert secretfs("unmount", "--force", point) == Done(3, "", f"secretfs: {point} has no secretfs mounted\n")


def test_a_mount_that_hangs_is_told_apart_from_a_dead_one(components: Path, point: Path) -> None:
    with mounted(components, mountpoint=point) as mount:
        assert not is_dead(point)
        stop(mount.worker)
        with pytest.raises(MountError, match=r"does not answer; unmount it by force, .* secretfs unmount"):
            is_dead(point)
        mount.kill()
        assert is_dead(point)


def test_the_directory_of_reasons_stays() -> None:
    """A daemon may write to it, and to no other that has its name later (landlock(7))."""
    done = in_namespace("""
        /mnt/python/bin/python -c 'from secretfs.daemon import processes as p; p.record_failure("/a", "of a test")'
        ls /run/secretfs
        /mnt/python/bin/python -c 'from secretfs.daemon import processes as p; p.clear_failure("/a")'
        ls -d /run/secretfs; ls /run/secretfs
    """)
    assert done.out.splitlines() == ["%2Fa", "/run/secretfs"]
