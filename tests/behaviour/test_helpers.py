"""The helper processes of the daemon, which make system calls on its mount, are killed."""

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.support.canary import secret
from tests.support.command import SECRETFS, end_daemons, environment
from tests.support.lacking import require_fuse
from tests.support.manifests import component
from tests.support.mounted import mounted, named_children
from tests.support.secrets_file import SecretsFile, file
from tests.support.servers.openbao import OpenBao
from tests.support.shell import wait_until
from tests.support.waiting import PATIENCE
from tests.support.watching import Watch, watching

__all__ = ["file"]

pytestmark = pytest.mark.mount

OLD, NEW = secret("old"), secret("new, and longer")


@pytest.fixture
def components(file: SecretsFile, tmp_path: Path) -> Path:
    """Declare a secrets file, looked at every 200 ms."""
    file.write({"token": OLD})
    return file.declare(tmp_path / "components", "200ms")


def helpers(worker: int) -> list[int]:
    """Return the process ids of a daemon's helpers, those that took the place of another included."""
    return [pid for parent in (worker, *mounters(worker)) for pid in named_children(parent, "secretfs-helper")]


def mounters(worker: int) -> list[int]:
    """Return the process that mounts for a daemon and starts helpers, if it has its name by now."""
    return named_children(worker, "secretfs-mount")


def kill_helpers(worker: int) -> None:
    """Kill both helpers of a daemon."""
    wait_until(lambda: len(helpers(worker)) == 2)
    for pid in helpers(worker):
        os.kill(pid, signal.SIGKILL)


def has_told(watch: Watch, events: int) -> bool:
    return len(watch.events()) == events


class Service:
    """A daemon that tells a service manager how it does; the service manager is the test."""

    def __init__(self, process: subprocess.Popen[bytes], manager: socket.socket) -> None:
        self.process = process
        self._manager = manager

    def wait_for(self, state: str) -> None:
        """Wait until the daemon notifies of a state."""
        while state not in self._manager.recv(4096).decode().splitlines():
            pass


@contextmanager
def service(components: Path, directory: Path) -> Iterator[Service]:
    """Start a daemon as systemd does, with a watchdog of 400 ms."""
    require_fuse()
    point, log = directory / "mnt", directory / "log"
    point.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, log.open("wb") as stderr:
        manager.bind(str(directory / "notify"))
        manager.settimeout(20)
        env = environment({"NOTIFY_SOCKET": str(directory / "notify"), "WATCHDOG_USEC": "400000"})
        command = [*SECRETFS, "mount", "--foreground", "--resources-path", str(components), str(point)]
        with subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stderr=stderr) as process:
            try:
                yield Service(process, manager)
            finally:
                process.terminate()
                process.wait(PATIENCE)
                end_daemons(point)


def test_changes_are_published(components: Path, file: SecretsFile, tmp_path: Path) -> None:
    """takeover-22: A helper process that dies is replaced: watchers see the next change; the daemon goes on."""
    # The second helper may be killed when it has renamed a file, and has not said so.
    with mounted(components, expect_log=["helper process", "rename: Broken pipe"]) as mount:
        directory, worker = mount.path / "file", mount.worker
        assert (directory / "token").read_text() == OLD
        with watching(tmp_path / "log", directory) as watch:
            for count, value in enumerate((NEW, OLD), 1):
                kill_helpers(worker)
                file.write({"token": value})
                wait_until(partial(has_told, watch, count))
            assert watch.events() == [f"token MOVED_TO {directory}/"] * 2
        assert mount.worker == worker
        mount.said("another is started", 2)


def test_the_process_that_mounts_is_killed(components: Path, file: SecretsFile) -> None:
    """takeover-33: When the process that mounts dies, another daemon takes over; no reader sees an error."""
    with ExitStack() as stack:
        mount = stack.enter_context(mounted(components, expect_log=["which mounts for us, has ended"]))
        held = stack.enter_context((mount.path / "file/token").open())
        worker = mount.worker
        (mounter,) = mounters(worker)
        os.kill(mounter, signal.SIGKILL)
        wait_until(lambda: mount.log.count("took over the mount at"))
        assert mount.worker != worker
        assert held.read() == (mount.path / "file/token").read_text() == OLD


def test_the_watchdog_is_fed(components: Path, tmp_path: Path) -> None:
    """A helper that dies does not keep the daemon from feeding its watchdog (takeover-22)."""
    with service(components, tmp_path) as daemon:
        daemon.wait_for("READY=1")
        kill_helpers(daemon.process.pid)
        for _ in range(20):  # more than a socket queues: most of these are sent afterwards
            daemon.wait_for("WATCHDOG=1")


def test_the_mount_gets_ready(tmp_path: Path, own_server: OpenBao) -> None:
    """A helper that dies before the daemon has asked it anything does not keep it from being ready (takeover-22)."""
    properties = {"vaultAddr": own_server.address, "vaultToken": own_server.token}
    component(tmp_path / "components", "vault", "hashicorp.vault", properties)
    with ExitStack() as stack:
        with own_server.hanging():
            daemon = stack.enter_context(service(tmp_path / "components", tmp_path))
            kill_helpers(daemon.process.pid)
        daemon.wait_for("READY=1")
