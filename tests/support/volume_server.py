"""A process that serves volumes to something that runs containers, such as the CSI driver."""

import contextlib
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.canary import leaked
from tests.support.command import environment
from tests.support.waiting import PATIENCE, wait_until


@dataclass(frozen=True)
class VolumeServer:
    """The process, and what it has said."""

    process: subprocess.Popen[bytes]
    log_file: Path

    @property
    def log(self) -> str:
        return self.log_file.read_text(encoding="utf-8")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def volume_server(command: Sequence[str], env: Mapping[str, str] | None = None) -> Iterator[VolumeServer]:
    """Run a command until the end, in which SIGTERM ends it unless the test has killed it."""
    with tempfile.NamedTemporaryFile(prefix="secretfs-test-") as stderr:
        process = subprocess.Popen(command, env=environment(env), stdin=subprocess.DEVNULL, stderr=stderr)
        server = VolumeServer(process, Path(stderr.name))
        try:
            wait_until(lambda: process.poll() is not None or "serving volumes at" in server.log)
            assert process.poll() is None, server.log
            yield server
        finally:
            ended = process.poll() is not None
            process.send_signal(signal.SIGTERM)
            try:
                status = process.wait(PATIENCE)
            finally:
                server.kill()  # else the next one finds its socket
        assert ended or status == 0, server.log
        assert not leaked(server.log)
