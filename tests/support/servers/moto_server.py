"""moto as a process: Secrets Manager and the Parameter Store over HTTP."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import urllib3


class Moto:
    """A running moto."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._client = urllib3.PoolManager(maxsize=8, block=True)  # else it warns that it has too few

    def forward(self, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
        """Pass a request on."""
        answer = self._client.request("POST", f"{self.address}/", body=body, headers=headers, retries=False)
        return answer.status, answer.data

    def reset(self) -> None:
        """Forget everything."""
        assert self._client.request("POST", f"{self.address}/moto-api/reset").status == 200

    def close(self) -> None:
        """Close the connections."""
        self._client.clear()


@contextmanager
def moto(directory: Path) -> Iterator[Moto]:
    """Run moto until the end of the context."""
    environment = {"HOME": str(directory), "TMPDIR": str(directory), "PATH": os.defpath}
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, cwd=directory)
    assert process.stderr
    try:
        lines = iter(process.stderr.readline, "")
        found = next(filter(None, (re.search(r"http://127\.0\.0\.1:\d+", line) for line in lines)))
        drain = threading.Thread(target=process.stderr.read)  # it says every request, and must not block
        drain.start()
        server = Moto(found[0])
        try:
            yield server
        finally:
            server.close()
    finally:
        process.kill()
        process.wait()
        drain.join()
        process.stderr.close()
