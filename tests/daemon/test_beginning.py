"""The first worker, which is forked before the command has read its flags."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from secretfs.daemon.beginning import Beginning
from secretfs.daemon.standby import Standby
from secretfs.daemon.worker_process import WorkerProcess
from tests.support.command import ROOT, environment
from tests.support.waiting import PATIENCE, wait_until


@pytest.fixture
def waiting() -> Iterator[tuple[int, socket.socket]]:
    """A child that waits for its turn, and the socket that it waits at."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        child = os.posix_spawn("/bin/cat", ["cat"], {}, file_actions=[(os.POSIX_SPAWN_DUP2, theirs.fileno(), 0)])
        yield child, ours
        try:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


def test_a_request_that_is_too_long_for_a_message_is_left_to_the_next_worker(
    waiting: tuple[int, socket.socket],
) -> None:
    child, turn = waiting
    assert Beginning(None, child, turn).hand_over(b"." * (16 << 20)) == []
    with pytest.raises(ChildProcessError):
        os.waitpid(child, 0)


def test_one_that_was_killed_does_not_serve(waiting: tuple[int, socket.socket]) -> None:
    child, turn = waiting
    standby = Standby([sys.executable, "-P", "-m", "secretfs"], not_started)
    standby.adopt(child, os.dup(turn.fileno()))
    os.kill(child, signal.SIGKILL)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert standby.become_worker({}) is None


def not_started(*_: object) -> WorkerProcess:
    raise AssertionError


@pytest.mark.parametrize("foreground", [[], ["-f"]], ids=["background", "foreground"])
@pytest.mark.parametrize("words", [["--no-such-flag"], ["--mode", "9"], ["--log-file", "/"]], ids=" ".join)
def test_a_mistake_leaves_no_process(words: list[str], foreground: list[str], tmp_path: Path) -> None:
    """They are found by the command, while the first worker imports, and one of them by the supervisor."""
    command = [sys.executable, "-m", "secretfs", "mount", *foreground, *words, str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, env=environment(), process_group=0, stderr=subprocess.PIPE)
    said = process.communicate(timeout=PATIENCE)[1].decode()
    assert process.returncode == 2, said
    assert "Traceback" not in said
    wait_until(lambda: not is_there(process.pid))  # of the first worker a child may be left, which ldconfig(8) is


def is_there(group: int) -> bool:
    """Whether there are processes of a group."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
