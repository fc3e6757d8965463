"""A program on a terminal of its own."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tests.support.command import SECRETFS, environment
from tests.support.waiting import PATIENCE

_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]")


class Terminal:
    """What a program shows, and the keys that it is sent."""

    def __init__(self, process: subprocess.Popen[bytes], descriptor: int, slave: int) -> None:
        self.process = process
        self.raw = ""
        self._descriptor = descriptor
        self._slave = slave
        self._before = termios.tcgetattr(slave)

    @property
    def text(self) -> str:
        """All that was shown so far, without what moves the cursor."""
        while select.select([self._descriptor], [], [], 0)[0]:
            try:
                data = os.read(self._descriptor, 65536)
            except OSError:  # the other end is closed
                break
            self.raw += data.decode(errors="replace")
        return _ESCAPE.sub("", self.raw)

    def shows(self, text: str) -> None:
        """Wait until it shows a text that it has not shown before."""
        end, seen = time.monotonic() + PATIENCE, 0
        while text not in self.text[seen:]:
            assert time.monotonic() < end, f"expected {text!r} in:\n{self.text}"
            assert self.process.poll() is None, f"it ended:\n{self.text}"
            time.sleep(0.01)
        self.raw = ""

    def press(self, keys: str) -> None:
        """Press keys."""
        os.write(self._descriptor, keys.encode())

    def ends(self) -> int:
        """Wait for its end. Returns its exit status; the terminal is as it was."""
        end = time.monotonic() + PATIENCE
        while self.process.poll() is None:
            assert time.monotonic() < end, "it did not end"
            _ = self.text  # it may wait for somebody to read
            time.sleep(0.01)
        assert termios.tcgetattr(self._slave) == self._before
        return int(self.process.returncode)


@contextmanager
def on_terminal(*arguments: str, env: Mapping[str, str] | None = None, columns: int = 80) -> Iterator[Terminal]:
    """Run ``secretfs`` on a terminal, as the leader of its session."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        ["setsid", "--ctty", *SECRETFS, *arguments],
        stdin=slave, stdout=slave, stderr=slave, env=environment({"TERM": "xterm", **(env or {})}),
    )  # fmt: skip
    try:
        yield Terminal(process, master, slave)
    finally:
        process.kill()
        process.wait()
        os.close(master)
        os.close(slave)
