"""The background process: when the caller gets its answer, and what the process leaves behind."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import fake_type
from tests.support.canary import leaked, secret
from tests.support.command import (
    SECRETFS,
    background,
    end_daemons,
    environment,
    secretfs,
)
from tests.support.fake_type import Fakes
from tests.support.manifests import component
from tests.support.mounted import daemons, fuse_mounts, supervisor, wait_for_end
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.mount


@pytest.fixture
def components(tmp_path: Path) -> Path:
    """A store with one secret in a file, and one whose secrets are in the environment."""
    directory = tmp_path / "components"
    (tmp_path / "secrets.json").write_text(f'{{"password": "{secret("password")}"}}', encoding="utf-8")
    component(directory, "file", "local.file", {"secretsFile": "secrets.json"})
    return directory


@pytest.fixture
def fakes(tmp_path: Path) -> Iterator[Fakes]:
    with fake_type.installed(tmp_path / "site") as site:
        yield Fakes(tmp_path / "components", site, {"PYTHONPATH": str(site)})


def session(pid: int) -> tuple[int, int, int]:
    """Return process group, session and terminal (proc_pid_stat(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return int(fields[2]), int(fields[3]), int(fields[4])


class TestOnceItIsUp:
    def test_it_has_left_session_terminal_and_directory(self, components: Path, tmp_path: Path) -> None:
        log = tmp_path / "log"
        with background(tmp_path / "mnt", "--resources-path", components, "--log-file", log, cwd=tmp_path) as pid:
            assert session(pid) == (pid, pid, 0)
            assert Path(f"/proc/{pid}/cwd").readlink() == Path("/")
            assert [Path(f"/proc/{pid}/fd/{stream}").readlink() for stream in (0, 1, 2)] == [Path(os.devnull)] * 3
            # A relative path in a manifest still means what it meant where the command was typed.
            assert (tmp_path / "mnt/file/password").read_text(encoding="utf-8") == secret("password")

    def test_the_mount_answers_when_the_command_returns(self, components: Path, tmp_path: Path) -> None:
        with background(tmp_path / "mnt", "--resources-path", components, cwd=tmp_path):
            assert os.listdir(tmp_path / "mnt") == ["file"]  # noqa: PTH208

    def test_nobody_waits_for_the_callers_pipe(self, components: Path, tmp_path: Path) -> None:
        point = tmp_path / "mnt"
        point.mkdir()
        line = f"{' '.join(SECRETFS)} mount --resources-path {components} --log-file {tmp_path}/log {point} 2>&1 | cat"
        try:
            done = subprocess.run(
                ["bash", "-c", f'{line}; echo "${{PIPESTATUS[0]}}"'],
                env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, check=True,
            )  # fmt: skip
            assert done.stdout == "0\n"
            assert len(daemons(point)) == 1
        finally:
            end_daemons(point)

    def test_unmounting_ends_it(self, components: Path, tmp_path: Path) -> None:
        point = tmp_path / "mnt"
        with background(point, "--resources-path", components, cwd=tmp_path) as pid:
            assert daemons(point) == [pid]
            assert secretfs("unmount", point).status == 0
            assert str(point) not in fuse_mounts()
            wait_for_end(point)

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_signal_unmounts(self, components: Path, tmp_path: Path, number: signal.Signals) -> None:
        point, log = tmp_path / "mnt", tmp_path / "log"
        with background(point, "--resources-path", components, "--log-file", log, cwd=tmp_path):
            os.kill(supervisor(point), number)
            wait_for_end(point)
            assert str(point) not in fuse_mounts()
        assert "INFO ending after" in log.read_text(encoding="utf-8")


class TestBeforeItIsUp:
    def test_it_is_still_in_the_session_and_group_of_the_caller(self, fakes: Fakes, tmp_path: Path) -> None:
        """An automount lets only the process group that asked for the mount through to the mount point."""
        fakes.add("a", {"record": tmp_path / "record"})
        point = tmp_path / "mnt"
        point.mkdir()
        try:
            process = subprocess.Popen(
                [*SECRETFS, "mount", "--resources-path", str(fakes.directory), str(point)],
                env=environment(fakes.env), stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
            assert process.wait(PATIENCE) == 0
            recorded = (tmp_path / "record").read_text(encoding="ascii")
            assert recorded == f"{process.pid} {process.pid}"
        finally:
            end_daemons(point)

    def test_a_child_that_is_killed_is_told_by_the_status(self, fakes: Fakes, tmp_path: Path) -> None:
        fifo, point = tmp_path / "fifo", tmp_path / "mnt"
        os.mkfifo(fifo)
        point.mkdir()
        fakes.add("a", {"record": fifo, "fail": "open=hang"})
        process = subprocess.Popen(
            [*SECRETFS, "mount", "--resources-path", str(fakes.directory), str(point)],
            env=environment(fakes.env), stdin=subprocess.DEVNULL,
        )  # fmt: skip
        fifo.read_text(encoding="ascii")
        (child,) = set(daemons(point)) - {process.pid}  # the worker: the supervisor has a name of its own
        os.kill(child, signal.SIGKILL)
        assert process.wait(PATIENCE) == 128 + signal.SIGKILL
        assert str(point) not in fuse_mounts()

    def test_a_caller_that_is_gone_does_not_take_the_mount_with_it(self, fakes: Fakes, tmp_path: Path) -> None:
        fifo, point, log = tmp_path / "fifo", tmp_path / "mnt", tmp_path / "log"
        os.mkfifo(fifo)
        point.mkdir()
        fakes.add("a", {"record": fifo})
        process = subprocess.Popen(
            [*SECRETFS, "mount", "--log-file", str(log), "--resources-path", str(fakes.directory), str(point)],
            env=environment(fakes.env), stdin=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            with fifo.open(encoding="ascii") as record:  # until it is read, the store is not open
                process.kill()
                process.wait(PATIENCE)
                record.read()
            while not point.joinpath("a").exists() and daemons(point):
                pass
            os.kill(supervisor(point), signal.SIGTERM)
            wait_for_end(point)
            assert str(point) not in fuse_mounts()
            assert "CRITICAL" not in log.read_text(encoding="utf-8")
        finally:
            end_daemons(point)


def test_neither_arguments_nor_environment_nor_log_hold_a_secret_that_was_read(
    components: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with background(tmp_path / "mnt", "--resources-path", components, "--log-file", log, cwd=tmp_path) as pid:
        for path in ("file/password", "file/.bulk.json", "file/.bulk.env"):
            assert leaked((tmp_path / "mnt" / path).read_text(encoding="utf-8"))
        for file in ("cmdline", "environ", "comm", "status"):
            assert not leaked(Path(f"/proc/{pid}/{file}").read_text(encoding="utf-8"))
    assert not leaked(log.read_text(encoding="utf-8"))
