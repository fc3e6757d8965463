"""The supervisor with workers of its own kind: small programs that speak its protocol and end in every possible way."""

import os
import resource
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from secretfs.daemon.processes import clear_failure, last_failure
from tests.support.command import ROOT
from tests.support.shell import wait_until
from tests.support.waiting import PATIENCE

PRELUDE = """
import os, signal, socket, sys, time
sys.path.insert(0, {root!r})
from secretfs.linux.sd_notify import stored_descriptors, service_manager
kept = stored_descriptors()
manager = service_manager(channel=kept.pop("supervisor"))
life = open({lives!r}, "a"); life.write("x"); life.close()
lives = os.path.getsize({lives!r})
"""


NO_PAUSES = "from secretfs.daemon import restarts as r; r.PAUSES = (0.0,)"


@dataclass(frozen=True)
class Supervised:
    """A supervisor and what its workers leave behind."""

    process: subprocess.Popen[bytes]
    lives: Path
    log: Path

    @property
    def count(self) -> int:
        """How many workers there were."""
        return self.lives.stat().st_size if self.lives.exists() else 0

    def signal_until(self, number: signal.Signals, file: Path) -> None:
        """Send a signal until the worker, which may not be that far yet, has made a file because of it."""

        def sent() -> bool:
            self.process.send_signal(number)
            return file.exists()

        wait_until(sent)


@contextmanager
def supervised(
    directory: Path, worker: str, *, settings: str = "pass", cwd: Path | None = None, options: Sequence[str] = ()
) -> Iterator[Supervised]:
    """Run a supervisor in the foreground; ``worker`` is the program of its workers."""
    lives, log, script = directory / "lives", directory / "log", directory / "worker.py"
    script.write_text(PRELUDE.format(root=str(ROOT), lives=str(lives)) + textwrap.dedent(worker), encoding="utf-8")
    program = f"import sys; from secretfs.daemon import supervisor as s; {settings}; sys.exit(s.main(sys.argv[1:]))"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-c", program, *options, "-1", "-", str(directory / "mnt"), sys.executable, str(script)],
            cwd=cwd or directory, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=stderr, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    try:
        yield Supervised(process, lives, log)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(("end", "status"), [("sys.exit(4)", 4), ("os.kill(os.getpid(), 9)", 137), ("sys.exit(0)", 0)])
def test_a_first_worker_that_never_was_ready_is_the_end(tmp_path: Path, end: str, status: int) -> None:
    with supervised(tmp_path, end) as s:
        assert s.process.wait(PATIENCE) == status
        assert s.count == 1


def test_what_a_worker_has_kept_the_next_one_gets(tmp_path: Path) -> None:
    worker = f"""
        if lives == 1:
            for name in ("connection", "journal"):
                file = os.memfd_create(name); os.write(file, name.encode()); manager.store(name, file)
            again = os.memfd_create("again"); os.write(again, b"newer"); manager.store("journal", again)
        manager.notify(READY=1)
        if lives < 4:
            os.kill(os.getpid(), signal.SIGSEGV if lives % 2 else signal.SIGKILL)
        told = {{name: os.pread(held, 99, 0).decode() for name, held in kept.items()}}
        open({str(tmp_path / "told")!r}, "w").write(repr(told) + os.getcwd())
        manager.remove("connection")
        manager.remove("journal")
    """
    with supervised(tmp_path, worker) as s:
        assert s.process.wait(PATIENCE) == 0
        told = (tmp_path / "told").read_text(encoding="utf-8")
        assert told == "{'connection': 'connection', 'journal': 'newer'}" + str(tmp_path)
        assert s.count == 4
        assert "killed by SIGSEGV" in s.log.read_text(encoding="utf-8")


def test_a_worker_that_does_not_answer_is_replaced(tmp_path: Path) -> None:
    worker = """
        if lives == 1:
            manager.store("connection", os.memfd_create("x"))
        manager.notify(READY=1)
        assert manager.watchdog == 1.0
        manager.notify(WATCHDOG=1)
        if lives == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        manager.remove("connection")
    """
    with supervised(tmp_path, worker, settings="s.WATCHDOG = 1.0") as s:
        assert s.process.wait(PATIENCE) == 0
        assert s.count == 2
        assert "does not answer: it is killed" in s.log.read_text(encoding="utf-8")


def test_who_ends_at_once_again_and_again_is_given_up_with_the_reason(tmp_path: Path) -> None:
    worker = """
        if lives == 1:
            manager.store("connection", os.memfd_create("x"))
            manager.notify(READY=1); time.sleep(0.1); os.kill(os.getpid(), 9)
        manager.notify(STATUS="it is Tuesday"); sys.exit(4)
    """
    mountpoint = str(tmp_path / "mnt")
    try:
        with supervised(tmp_path, worker, settings=NO_PAUSES) as s:
            assert s.process.wait(PATIENCE) == 4
            assert s.count == 1 + 6
            assert "giving up, trying again in 30 s or at SIGHUP: it is Tuesday" in s.log.read_text("utf-8")
        assert last_failure(mountpoint) == "it is Tuesday"
    finally:
        clear_failure(mountpoint)
    assert last_failure(mountpoint) == ""


def test_a_signal_that_comes_before_the_program_does_is_not_lost(tmp_path: Path) -> None:
    """The supervisor passes it on while its child is no worker yet."""
    settings = (
        "import signal; from secretfs.daemon import worker_process as w; become = w._become_worker; "
        "w._become_worker = lambda *a: (w.os.kill(w.os.getpid(), signal.SIGTERM), become(*a))"
    )
    with supervised(tmp_path, "time.sleep(60)", settings=settings) as s:
        assert s.process.wait(PATIENCE) == 128 + signal.SIGTERM
        assert s.count == 0


@pytest.mark.root("only root mounts anything, which makes a supervisor look what has become of its mount")
def test_a_worker_that_starts_after_an_unmount_has_the_time_to_find_out(tmp_path: Path) -> None:
    """On a busy machine it takes longer than a worker that serves has, to end: that one may hang."""
    place = tmp_path / "place"
    place.mkdir()
    worker = f"""
        if lives == 1:
            ours, theirs = socket.socketpair()
            manager.store("connection", ours.fileno())
            manager.notify(READY=1)
            os.kill(os.getpid(), 9)
        os.system("mount -t tmpfs none {place} && umount {place}")
        time.sleep(1)
        manager.remove("connection")
    """
    with supervised(tmp_path, worker, settings="s.UNMOUNT_TIMEOUT = 0.1") as s:
        assert s.process.wait(PATIENCE) == 0
        assert s.count == 2


def test_who_is_killed_from_outside_is_never_given_up(tmp_path: Path) -> None:
    worker = """
        if lives == 1:
            manager.store("connection", os.memfd_create("x"))
        manager.notify(READY=1)
        if lives < 20:
            os.kill(os.getpid(), 9)
        manager.remove("connection")
    """
    with supervised(tmp_path, worker, settings=NO_PAUSES) as s:
        assert s.process.wait(PATIENCE) == 0
        assert s.count == 20


def test_who_is_killed_before_it_is_ready_is_never_given_up_either(tmp_path: Path) -> None:
    """As by the kernel, in a minute in which it lacks memory."""
    worker = """
        if lives == 1:
            manager.store("connection", os.memfd_create("x"))
            manager.notify(READY=1)
        if lives < 20:
            os.kill(os.getpid(), 9)
        assert "connection" in kept
        manager.notify(READY=1)
        manager.remove("connection")
    """
    with supervised(tmp_path, worker, settings=NO_PAUSES) as s:
        assert s.process.wait(PATIENCE) == 0
        assert s.count == 20


def test_giving_up_loses_the_mount_and_not_what_its_stores_were_lent(tmp_path: Path) -> None:
    """A later worker goes on with it, and can give it back."""
    worker = f"""
        if lives == 1:
            for name in ("connection", "api", "leases"):
                file = os.memfd_create(name); os.write(file, name.encode()); manager.store(name, file)
            manager.notify(READY=1)
        if lives < 8:
            os.kill(os.getpid(), signal.SIGSEGV)
        held = {{name: os.pread(held, 99, 0).decode() for name, held in kept.items()}}
        open({str(tmp_path / "held")!r}, "w").write(repr(held))
        manager.notify(READY=1)
    """
    settings = f"{NO_PAUSES}; r.RETRIES = (0.01, 0.01); s.Supervisor._is_there = lambda self: True"
    with supervised(tmp_path, worker, settings=settings) as s:
        assert s.process.wait(PATIENCE) == 0
        assert "giving up, trying again" in s.log.read_text(encoding="utf-8")
    assert (tmp_path / "held").read_text(encoding="utf-8") == "{'leases': 'leases'}"


def test_a_working_directory_that_is_gone_costs_nothing(tmp_path: Path) -> None:
    worker = """
        if lives == 1:
            manager.store("connection", os.memfd_create("x"))
            os.rmdir(os.getcwd())
        manager.notify(READY=1)
        if lives == 1:
            os.kill(os.getpid(), 9)
        manager.remove("connection")
    """
    (tmp_path / "gone").mkdir()
    with supervised(tmp_path, worker, cwd=tmp_path / "gone") as s:
        assert s.process.wait(PATIENCE) == 0
        assert s.count == 2


def test_a_machine_without_room_for_a_worker_costs_nobody_the_mount(tmp_path: Path) -> None:
    """Descriptors run out here, because a test may take them away from a process, and give them back."""
    worker = f"""
        if lives == 1:
            manager.store("connection", os.memfd_create("x"))
        manager.notify(READY=1)
        if lives == 1:
            open({str(tmp_path / "up")!r}, "w").close()
            time.sleep(60)
        manager.remove("connection")
    """
    with supervised(tmp_path, worker, settings="s.SPAWN_RETRY = 0.05") as s:
        wait_until((tmp_path / "up").exists)
        (pid,) = map(int, Path(f"/proc/{s.process.pid}/task/{s.process.pid}/children").read_text("ascii").split())
        limits = resource.prlimit(s.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(s.process.pid, resource.RLIMIT_NOFILE, (4, limits[1]))
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: s.log.read_text("utf-8").count("cannot start a process: ") > 2)
        assert s.process.poll() is None
        resource.prlimit(s.process.pid, resource.RLIMIT_NOFILE, limits)
        assert s.process.wait(PATIENCE) == 0
        assert s.count == 2


def test_signals_reach_the_worker_and_a_last_one_ends_both(tmp_path: Path) -> None:
    worker = f"""
        signal.signal(signal.SIGHUP, lambda *_: open({str(tmp_path / "hup")!r}, "w").close())
        manager.notify(READY=1)
        open({str(tmp_path / "up")!r}, "w").close()
        while True: time.sleep(0.05)
    """
    with supervised(tmp_path, worker) as s:
        wait_until((tmp_path / "up").exists)
        s.signal_until(signal.SIGHUP, tmp_path / "hup")
        s.process.send_signal(signal.SIGTERM)
        assert s.process.wait(PATIENCE) == 0
        assert s.count == 1


def test_a_worker_that_does_not_end_when_asked_is_killed(tmp_path: Path) -> None:
    worker = f"""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        manager.notify(READY=1)
        open({str(tmp_path / "up")!r}, "w").close()
        while True: time.sleep(0.05)
    """
    with supervised(tmp_path, worker, settings="s.STOP_TIMEOUT = 0.3") as s:
        wait_until((tmp_path / "up").exists)
        s.process.send_signal(signal.SIGTERM)
        assert s.process.wait(PATIENCE) == 0


def test_a_worker_that_goes_on_talking_gets_no_more_time_to_end(tmp_path: Path) -> None:
    worker = f"""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        manager.notify(READY=1)
        open({str(tmp_path / "up")!r}, "w").close()
        while True:
            manager.notify(WATCHDOG=1)
            time.sleep(0.05)
    """
    with supervised(tmp_path, worker, settings="s.STOP_TIMEOUT = 1.0") as s:
        wait_until((tmp_path / "up").exists)
        s.process.send_signal(signal.SIGTERM)
        assert s.process.wait(PATIENCE) == 0
        assert "does not answer: it is killed" in s.log.read_text(encoding="utf-8")


def test_a_worker_that_would_wait_for_the_next_one_ends_when_there_is_to_be_none(tmp_path: Path) -> None:
    worker = f"""
        signal.signal(signal.SIGTERM, lambda *_: None)
        open({str(tmp_path / "up")!r}, "w").close()
        signal.pause()
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        manager.notify(os.memfd_create("modules"), FDNAME="modules", RENEW=1)
        while True: time.sleep(0.05)
    """
    with supervised(tmp_path, worker) as s:
        wait_until((tmp_path / "up").exists)
        s.process.send_signal(signal.SIGTERM)
        assert s.process.wait(PATIENCE) == 0
        assert "is killed" not in s.log.read_text(encoding="utf-8")


@pytest.mark.parametrize("last", ["os.memfd_create('modules'), FDNAME='modules', RENEW=1", "STANDS_BY=1"])
def test_a_worker_that_has_ended_before_its_last_words_are_read(tmp_path: Path, last: str) -> None:
    worker = f"""
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        manager.notify(READY=1)
        if lives > 1: sys.exit(1)
        supervisor = os.getppid()
        open({str(tmp_path / "pid")!r}, "w").write(str(os.getpid()))
        manager.notify(os.memfd_create("modules"), FDNAME="modules", RENEW=1)
        signal.sigwait({{signal.SIGTERM}})
        def wait_until(state):
            while f") {{state}} " not in open(f"/proc/{{supervisor}}/stat").read(): time.sleep(0.001)
        wait_until("S")
        os.kill(supervisor, signal.SIGSTOP)
        wait_until("T")
        manager.notify({last})
        os._exit(1)
    """
    with supervised(tmp_path, worker, settings=NO_PAUSES) as s:
        wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(encoding="ascii"))
        stat = Path(f"/proc/{(tmp_path / 'pid').read_text(encoding='ascii')}/stat")
        wait_until(lambda: ") Z" in stat.read_text(encoding="ascii"))
        s.process.send_signal(signal.SIGCONT)
        wait_until(lambda: s.count > 1 or s.process.poll() is not None)
        assert s.process.poll() is None, s.log.read_text(encoding="utf-8")


def test_nobody_else_is_listened_to(tmp_path: Path) -> None:
    worker = """
        manager.notify(READY=1)
        if lives == 1:
            manager.store("connection", os.memfd_create("x"))
            if not os.fork():
                manager.remove("connection")
                os._exit(0)
            os.wait()
            os.kill(os.getpid(), 9)
        manager.remove("connection")
    """
    with supervised(tmp_path, worker) as s:
        assert s.process.wait(PATIENCE) == 0
        assert s.count == 2


def test_it_is_small(tmp_path: Path) -> None:
    """It holds a connection for as long as a machine is up; what it never needs it never imports."""
    with supervised(tmp_path, "manager.notify(READY=1); time.sleep(60)") as s:
        wait_until(lambda: s.count)
        maps = Path(f"/proc/{s.process.pid}/smaps_rollup").read_text(encoding="ascii")
        (rss,) = [int(line.split()[1]) for line in maps.splitlines() if line.startswith("Pss:")]
        assert rss < 24 << 10
        s.process.send_signal(signal.SIGTERM)
        assert s.process.wait(PATIENCE) == 0


def test_one_that_has_given_up_is_followed_at_once(tmp_path: Path) -> None:
    """Not when it tries again, and not by one that has ended meanwhile: that is how a node is put right (csi-15)."""
    worker = """
        if lives == 1:
            for name in ("connection", "leases"):
                file = os.memfd_create(name); os.write(file, name.encode()); manager.store(name, file)
            manager.notify(READY=1)
        os.kill(os.getpid(), signal.SIGSEGV)
    """
    settings = f"{NO_PAUSES}; r.RETRIES = (3600.0, 3600.0); s.Supervisor._is_there = lambda self: True"
    place = tmp_path / "socket"
    with supervised(tmp_path, worker, settings=settings, options=["--follow", str(place)]) as s:
        wait_until(lambda: "giving up, trying again" in s.log.read_text(encoding="utf-8"))
        s.process.send_signal(signal.SIGSTOP)  # else it may send all to the one that is about to end
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as gone:
            gone.connect(str(place))
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as follows:
            follows.settimeout(PATIENCE)
            follows.connect(str(place))
            s.process.send_signal(signal.SIGCONT)
            names, descriptors, _, _ = socket.recv_fds(follows, 99, 9)
        assert s.process.wait(PATIENCE) == 0
        assert s.count == 6
    assert (names, [os.pread(held, 99, 0) for held in descriptors]) == (b"leases\n", [b"leases"])
    for held in descriptors:
        os.close(held)


def test_one_that_could_not_start_a_worker_is_followed(tmp_path: Path) -> None:
    """Who connects while the machine has no memory for a worker has not to wait until one ends by itself."""
    worker = """
        if lives == 1:
            manager.store("connection", os.memfd_create("connection"))
            manager.notify(READY=1)
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(3600)
    """
    settings = (
        "import itertools; starts, start = itertools.count(), s.Supervisor._start; "
        "s.SPAWN_RETRY = s.START_TIMEOUT = 3600.0; "
        "s.Supervisor._start = lambda self: s.os.close(-1) if next(starts) == 1 else start(self)"
    )
    place = tmp_path / "socket"
    with supervised(tmp_path, worker, settings=settings, options=["--follow", str(place)]) as s:
        wait_until(lambda: "cannot start a process" in s.log.read_text(encoding="utf-8"))
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as follows:
            follows.settimeout(PATIENCE)
            follows.connect(str(place))
            names, (descriptor,), _, _ = socket.recv_fds(follows, 99, 9)
        os.close(descriptor)
        assert (names, s.process.wait(PATIENCE)) == (b"connection\n", 0)
