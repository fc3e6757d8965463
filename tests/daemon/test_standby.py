"""A process that stands by, without a mount."""

import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from secretfs.daemon.standby import Standby
from secretfs.daemon.worker_process import WorkerProcess
from tests.conftest import ExpectLog
from tests.support.command import ROOT
from tests.support.waiting import PATIENCE

COMMAND = [sys.executable, "-P", "-m", "secretfs"]

STARTED = """
import os, socket, sys
ours, turn = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
given = {"turn": turn.fileno(), "modules": os.memfd_create("modules"), "supervisor": int(sys.argv[1])}
high = [os.dup(descriptor) for descriptor in given.values()]
os.set_inheritable(os.dup2(ours.fileno(), 50), True)
for target, descriptor in enumerate(high, 3):
    os.dup2(descriptor, target)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "3", "LISTEN_FDNAMES": ":".join(given)}
os.execv(sys.executable, [sys.executable, "-m", "secretfs.cli.standby", "mount"])
"""


@contextmanager
def no_more_descriptors() -> Iterator[None]:
    """Have none left for this process."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def started(*_: object) -> WorkerProcess:
    raise AssertionError


def test_a_supervisor_without_descriptors_goes_on_without_one(expect_log: ExpectLog) -> None:
    expect_log("no process stands by: Too many open files")
    standby = Standby(COMMAND, started)
    with no_more_descriptors():
        assert not standby.start(0, 1, renew=True)
    assert standby.become_worker({}) is None


def test_ctrl_c_ends_it_without_a_word() -> None:
    """Who stops a mount in the foreground that way stops all processes of the terminal, and wants no traceback."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        ours.settimeout(PATIENCE)
        process = subprocess.Popen(
            [sys.executable, "-c", STARTED, str(theirs.fileno())],
            cwd=ROOT, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            assert ours.recv(100) == b"STANDS_BY=1"
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=PATIENCE)[1] == b""
            assert process.returncode == -signal.SIGINT
        finally:
            process.kill()
            process.wait()
