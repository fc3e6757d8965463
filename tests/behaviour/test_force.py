"""The way out of a mount that hangs: ``secretfs unmount --force``."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.canary import secret
from tests.support.command import Done, background, in_namespace, secretfs
from tests.support.manifests import component
from tests.support.mounted import daemons, fuse_mounts, mounted, wait_for_end
from tests.support.shell import errno_of, stop, wait_until
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.mount

ENVIRONMENT = {"FORCE_TOKEN": secret("force")}


@pytest.fixture(scope="module")
def manifests(scratch: Path) -> Path:
    return component(scratch / "manifests", "env", "local.env", {"prefix": "FORCE_"}).parent


@contextmanager
def hanging(file: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a program that reads a file of a mount whose daemon is stopped, from when it hangs."""
    code = f"print('now', flush=True); open({os.fspath(file)!r}).read()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as reader:
        assert reader.stdout
        assert reader.stdout.readline() == "now\n"
        wait_until(lambda: Path(f"/proc/{reader.pid}/wchan").read_text() == "request_wait_answer")
        try:
            yield reader
        finally:
            reader.kill()


@pytest.mark.root("only root sees what a process waits for")
def test_a_hung_daemon(manifests: Path, tmp_path: Path) -> None:
    """force-1: `secretfs unmount --force` ends a mount that hangs: readers get an error, no process is left."""
    point = tmp_path / "mnt"
    with background(point, "--resources-path", manifests, env=ENVIRONMENT) as daemon:
        stop(daemon)
        with hanging(point / "env/TOKEN") as reader:
            assert secretfs("unmount", "--force", point) == Done(0, "", "")
            assert "Software caused connection abort" in reader.communicate(timeout=PATIENCE)[1]
        assert str(point) not in fuse_mounts()
        wait_for_end(point)
        assert daemons(point) == []
        assert list(point.iterdir()) == []


def test_one_of_a_user() -> None:
    """force-2: It does the same for the user who mounted, without root."""
    done = in_namespace("""
        mkdir m
        env_component
        chown 65534 m
        as_nobody secretfs mount --resources-path c m
        pkill --signal STOP secretfs:
        setpriv --reuid 65534 --regid 65534 --clear-groups cat m/env/HOME & reader=$!
        until [ "$(cat /proc/$reader/wchan)" = request_wait_answer ]; do :; done
        as_nobody secretfs unmount --force m
        wait $reader || echo "reader $?"
        ls m; pgrep 'secretfs' || echo none
    """)
    assert done.out == "reader 1\nnone\n"
    (said,) = done.lines
    assert said in (f"cat: m/env/HOME: {reason}" for reason in map(os.strerror, (103, 107)))  # ECONNABORTED, ENOTCONN


def test_one_in_use(manifests: Path) -> None:
    """force-3: It also unmounts what is in use: open files are lost. The daemon gets time to end cleanly."""
    with mounted(manifests, env=ENVIRONMENT) as mount:
        with (mount.path / "env/TOKEN").open() as file:
            assert secretfs("unmount", "--force", mount.path) == Done(0, "", "")
            assert errno_of(os.fstatvfs, file.fileno()) == "ENOTCONN"
        assert mount.process.wait(PATIENCE) == 0
        assert str(mount.path) not in fuse_mounts()


def test_others_go_on(manifests: Path) -> None:
    """force-4: Other mounts, and the processes that serve them, are left alone."""
    with mounted(manifests, env=ENVIRONMENT) as other, mounted(manifests, env=ENVIRONMENT) as mount:
        assert secretfs("unmount", "--force", mount.path).status == 0
        assert mount.process.wait(PATIENCE) == 0
        assert (other.path / "env/TOKEN").read_text() == secret("force")
        assert secretfs("unmount", "--force", mount.path).status == 3
