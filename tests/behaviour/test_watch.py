"""``secretfs watch``: a program that is run when secrets change, whatever happens to the mount meanwhile."""

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.canary import leaked, secret
from tests.support.command import SECRETFS, environment, secretfs
from tests.support.mounted import mounted
from tests.support.secrets_file import SecretsFile, file
from tests.support.waiting import PATIENCE, wait_until

__all__ = ["file"]

pytestmark = pytest.mark.mount

ONE, TWO, THREE = (secret("watched") + "x" * longer for longer in range(3))


@pytest.fixture
def components(file: SecretsFile, tmp_path: Path) -> Path:
    """Declare a secrets file, looked at every 200 ms."""
    file.write({"token": ONE, "other": ONE})
    return file.declare(tmp_path / "components", "200ms")


class Watch:
    """``secretfs watch``, and what its program has seen."""

    def __init__(self, log: Path) -> None:
        self._log = log

    def has_run(self, *values: str) -> None:
        """Wait until the program has been run once for each of these values, and for no other."""
        expected = [str(len(value)) for value in values]
        wait_until(lambda: self._log.exists() and len(self._log.read_text().splitlines()) >= len(expected))
        assert self._log.read_text().splitlines() == expected


@contextmanager
def watch(directory: Path, path: Path, *, token: Path, command: str = "") -> Iterator[Watch]:
    """Watch a path; the program writes down the length of a file. Begins when the path has been read."""
    command = f"wc -c < {token} >> runs; {command}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind("")  # the kernel chooses an abstract name
        told.settimeout(PATIENCE)
        process = subprocess.Popen(
            [*SECRETFS, "watch", "--on-change-delay=0s", f"--on-change=exec:sh -c '{command}'", str(path)],
            env=environment({"NOTIFY_SOCKET": f"@{told.getsockname()[1:].decode()}"}),
            cwd=directory, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert told.recv(4096) == b"READY=1"
            yield Watch(directory / "runs")
            process.terminate()
            _, said = process.communicate(timeout=PATIENCE)
            assert process.returncode == 0, said
            assert not leaked(said)
        finally:
            process.kill()
            process.wait()


def test_a_change(components: Path, file: SecretsFile, tmp_path: Path) -> None:
    """watch-1: `secretfs watch` runs a program when the content of a file at or below one of its paths changes."""
    with mounted(components) as mount:
        token = mount.path / "file/token"
        with watch(tmp_path, mount.path, token=token) as watched:
            file.write({"token": TWO, "other": ONE})
            watched.has_run(TWO)
            file.write({"token": TWO, "other": TWO})
            watched.has_run(TWO, TWO)


def test_what_comes_again_as_it_was(components: Path, file: SecretsFile, tmp_path: Path) -> None:
    """watch-2: A mount may come and go meanwhile: files that are there again as they were have not changed."""
    token = tmp_path / "mnt/file/token"
    with watch(tmp_path, token, token=token) as watched:
        for value, seen in (
            (ONE, [ONE]),
            (ONE, [ONE]),
            (TWO, [ONE, TWO]),
            (TWO, [ONE, TWO]),
            (THREE, [ONE, TWO, THREE]),
        ):
            file.write({"token": value})
            with mounted(components, mountpoint=tmp_path / "mnt"):
                watched.has_run(*seen)


def test_a_daemon_that_is_killed(components: Path, file: SecretsFile, tmp_path: Path) -> None:
    """watch-3: It notices changes that happen while a daemon is killed and replaced, and takes nothing else for one."""
    with mounted(components, expect_log=[r"process \d+ ended"]) as mount:
        token = mount.path / "file/token"
        with watch(tmp_path, token, token=token) as watched:
            for number, value in enumerate((TWO, THREE), start=1):
                os.kill(mount.worker, signal.SIGKILL)
                file.write({"token": value})
                mount.said("took over", number)
                watched.has_run(*(TWO, THREE)[:number])


def test_its_end(components: Path, tmp_path: Path, file: SecretsFile) -> None:
    """watch-4: SIGTERM ends it with exit code 0, after the program that it has started."""
    command = 'sleep 1000 & trap "kill $!; echo ended > ended; exit" TERM; touch running; wait'
    with mounted(components) as mount:
        token = mount.path / "file/token"
        with watch(tmp_path, token, token=token, command=command):
            file.write({"token": TWO})
            wait_until((tmp_path / "running").exists)
    assert (tmp_path / "ended").read_text() == "ended\n"


def test_a_watch_that_could_do_nothing(tmp_path: Path) -> None:
    """Without a program it is a mistake (watch-1)."""
    done = secretfs("watch", tmp_path)
    assert (done.status, done.err) == (2, "secretfs: say what to run: --on-change=exec:COMMAND\n")
