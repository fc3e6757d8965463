"""The life of a command: as its parent leads it, mostly without a mount, and in front of a terminal."""

import math
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from secretfs.cache.freshness import Freshness
from secretfs.cli import main as cli_main
from secretfs.cli import run as command_line
from secretfs.cli.run import run_command
from secretfs.daemon.command import ParentPipe
from secretfs.daemon.on_change import Hook
from secretfs.daemon.request import Request
from tests.support import fake_type
from tests.support.canary import secret
from tests.support.command import SECRETFS, environment, in_namespace, secretfs
from tests.support.fake_type import Fakes
from tests.support.manifests import component
from tests.support.proc import opened
from tests.support.shell import wait_for, wait_until
from tests.support.waiting import PATIENCE

STAY = "while :; do sleep 0.02; done"

HARNESS = """
import os, select, sys
from pathlib import Path
from secretfs.cli.on_change import read_step
from secretfs.daemon import command as daemon_command
from secretfs.daemon.on_change import OnChange
from secretfs.daemon.variables import Variables
from secretfs.errors import CommandError

step, changes, *command = sys.argv[1:]
daemon_command.GRACE = float(os.environ.get("GRACE", "0.3"))
on_change = OnChange(read_step(step), 0.1, float(os.environ.get("INTERVAL", "0")))

def work(line):
    told = os.open(changes, os.O_RDWR)
    line.ready()
    while line._socket not in select.select([line._socket, told], [], [])[0]:
        os.read(told, 1)
        line.changed()
    return 0

try:
    status = daemon_command.run(work, command, Path("/nowhere"), on_change, Variables())
except CommandError as error:
    sys.exit(error.exit_code)
daemon_command.end_as(status)
"""
"""Runs a command with a daemon that serves nothing, and says that secrets change when it reads a byte from a pipe."""


class Running:
    """A process, and what it has said so far."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, changes: Path) -> None:
        self.process = process
        self._log = log
        self._changes = changes

    @property
    def lines(self) -> list[str]:
        return self._log.read_text(encoding="utf-8").splitlines()

    def change(self) -> None:
        """Let a secret change."""
        with self._changes.open("wb") as pipe:
            pipe.write(b".")

    def wait_for(self, *lines: str) -> None:
        """Wait until it has said exactly this."""
        wait_until(lambda: self.lines == list(lines) or self.process.poll() is not None)
        assert self.lines == list(lines)

    @property
    def children(self) -> tuple[int, int]:
        """Daemon and command."""
        daemon, command = children(self.process.pid)
        return daemon, command


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()]


def state(pid: int) -> str:
    """Return the letter that ps(1) shows."""
    return Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(") ")[2][0]


def ended(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists() or state(pid) == "Z"


Run = Callable[..., Running]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Run a shell script under the harness."""
    running = []

    def start(script: str, on_change: object = "ignore", grace: float = 0.3, interval: float = 0) -> Running:
        os.mkfifo(tmp_path / "changes")
        command = [sys.executable, "-c", HARNESS, str(on_change), str(tmp_path / "changes"), "sh", "-c", script]
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(
                command,
                env=environment({"GRACE": str(grace), "INTERVAL": str(interval)}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        running.append(process)
        return Running(process, tmp_path / "log", tmp_path / "changes")

    yield start
    for process in running:
        left = children(process.pid) if process.poll() is None else []
        process.kill()
        process.wait()
        for pid in left:  # the daemon may have seen the end of its line by now
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_every_exit_code(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "changes")
    script = HARNESS.partition("try:")[0] + (
        "for code in range(256):\n"
        "    assert daemon_command.run(work, ['sh', '-c', f'exit {code}'], Path('/'), on_change, Variables()) == code\n"
    )
    command = [sys.executable, "-c", script, "ignore", str(tmp_path / "changes")]
    assert subprocess.run(command, env=environment(), check=False).returncode == 0


@pytest.mark.parametrize("name", ["SEGV", "ABRT", "QUIT", "HUP", "USR1", "PIPE", "KILL", "RTMIN"])
def test_a_signal_that_ends_it_ends_us_without_a_core_dump(run: Run, name: str, tmp_path: Path) -> None:
    number = signal.Signals[f"SIG{name}"]
    running = run(f"ulimit -c 0; kill -{int(number)} $$")
    assert running.process.wait(PATIENCE) == -number
    assert not list(tmp_path.glob("core*"))


def test_what_has_stopped_it_is_no_end(run: Run) -> None:
    running = run("echo up; kill -STOP $$; echo on; exit 3")
    running.wait_for("up")
    _, command = running.children
    wait_until(lambda: state(command) == "T")
    os.kill(command, signal.SIGCONT)  # no terminal has stopped it: who has lets it go on, and would not let us
    assert running.process.wait(PATIENCE) == 3


def test_every_signal_that_can_be_caught_is_passed_on(run: Run) -> None:
    others = {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGCONT}  # the last one if it is stopped
    numbers = sorted(signal.valid_signals() - others)
    passed = run(
        f"""exec {sys.executable} -c '
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
print("up", flush=True)
while (number := signal.sigwait(signal.valid_signals())) != signal.SIGTERM:
    print(number.real, flush=True)
'"""
    )
    expected = ["up"]
    passed.wait_for(*expected)
    for number in numbers:
        if number != signal.SIGTERM:
            passed.process.send_signal(number)
            expected.append(str(int(number)))
            passed.wait_for(*expected)
    passed.process.terminate()
    assert passed.process.wait(PATIENCE) == 0


def test_a_signal_of_the_command_itself_does_not_come_back(run: Run) -> None:
    running = run("trap 'echo got' USR1; kill -USR1 $PPID; kill -USR1 $$; trap 'exit 4' TERM; echo up; " + STAY)
    running.wait_for("got", "up")
    running.process.terminate()
    assert running.process.wait(PATIENCE) == 4
    assert running.lines == ["got", "up"]


def test_a_caller_that_ignores_its_children_gets_the_exit_code(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "changes")
    command = [sys.executable, "-c", HARNESS, "ignore", str(tmp_path / "changes"), "sh", "-c", "exit 9"]
    ignoring = ["env", "--ignore-signal=CHLD", *command]
    assert subprocess.run(ignoring, env=environment(), check=False).returncode == 9


def test_it_goes_on_if_it_is_stopped_and_we_are_told_to(run: Run) -> None:
    running = run("echo up; kill -STOP $$; exit 3")
    running.wait_for("up")
    _, command = running.children
    wait_until(lambda: state(command) == "T")
    running.process.send_signal(signal.SIGCONT)
    assert running.process.wait(PATIENCE) == 3


class TestRestart:
    def test_one_that_does_not_end_is_killed(self, run: Run) -> None:
        running = run("trap '' TERM; echo $$; " + STAY, "restart")
        wait_until(lambda: running.lines)
        first = int(running.lines[0])
        running.change()
        wait_until(lambda: len(running.lines) == 3)
        assert running.lines[1] == "sh has not ended 0.3 s after SIGTERM, and is killed"
        assert ended(first)

    def test_one_that_is_stopped_is_ended_too(self, run: Run) -> None:
        running = run("trap 'exit 1' TERM; echo up; kill -STOP $$; " + STAY, "restart")
        running.wait_for("up")
        _, command = running.children
        wait_until(lambda: state(command) == "T")
        running.change()
        running.wait_for("up", "up")

    def test_changes_while_it_ends_are_one_with_the_first(self, run: Run, tmp_path: Path) -> None:
        tell = f"printf ... > {tmp_path / 'changes'}"
        script = f"if [ -e {tmp_path / 'again'} ]; then echo again; {STAY}; fi; touch {tmp_path / 'again'};"
        running = run(f"{script} trap '{tell}; echo bye; exit' TERM; echo up; {STAY}", "restart")
        running.wait_for("up")
        for _ in range(5):
            running.change()
        running.wait_for("up", "bye", "again")
        _, command = running.children
        running.change()  # the next restart is one by itself: there was none in between
        wait_until(lambda: ended(command))
        running.wait_for("up", "bye", "again", "again")

    @pytest.mark.parametrize("name", ["HUP", "INT", "QUIT", "TERM"])
    def test_a_signal_to_end_calls_it_off(self, run: Run, tmp_path: Path, name: str) -> None:
        go = tmp_path / "go"
        ending = f"trap 'echo heard' HUP INT QUIT TERM; echo bye; until [ -e {go} ]; do sleep 0.02; done; exit 6"
        running = run(f'trap "{ending}" TERM; echo up; {STAY}', "restart", grace=60)
        running.wait_for("up")
        running.change()
        running.wait_for("up", "bye")
        running.process.send_signal(signal.Signals[f"SIG{name}"])
        running.wait_for("up", "bye", "heard")
        go.touch()
        assert running.process.wait(PATIENCE) == 6
        assert running.lines == ["up", "bye", "heard"]

    def test_one_that_cannot_be_started_again(self, run: Run, tmp_path: Path) -> None:
        script = tmp_path / "script"
        script.write_text("#!/bin/sh\necho up; exec sleep 60\n", encoding="ascii")
        script.chmod(0o755)
        command = [sys.executable, "-c", HARNESS, "restart", str(tmp_path / "changes"), str(script)]
        os.mkfifo(tmp_path / "changes")
        with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            script.unlink()
            (tmp_path / "changes").write_bytes(b".")
            assert process.wait(PATIENCE) == 127


class TestHook:
    def test_it_runs_once_for_each_change_with_the_variable_and_without_input(self, run: Run) -> None:
        running = run(f"echo up; {STAY}", "exec:sh -c 'cat; echo hook $SECRETFS' x")
        running.wait_for("up")
        _, command = running.children
        running.change()
        running.wait_for("up", "hook /nowhere")
        running.change()
        running.wait_for("up", "hook /nowhere", "hook /nowhere")
        assert not ended(command)

    def test_its_output_goes_to_standard_error(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "changes")
        command = [sys.executable, "-c", HARNESS, "exec:sh -c 'echo out; echo err >&2'", str(tmp_path / "changes")]
        with subprocess.Popen(
            [*command, "sh", "-c", "echo up; exec sleep 600"],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline() == "up\n"
            (tmp_path / "changes").write_bytes(b".")
            assert [process.stderr.readline() for _ in range(2)] == ["out\n", "err\n"]
            process.terminate()
            assert process.stdout.read() == ""

    @pytest.mark.parametrize(
        ("hook", "warning"),
        [
            ("sh -c 'exit 3'", "--on-change: sh failed with exit code 3"),
            ("sh -c 'kill -USR1 $$'", "--on-change: sh was killed by signal 10"),
            ("/nowhere/hook", "--on-change: cannot run /nowhere/hook: No such file or directory"),
        ],
    )
    def test_a_failure_is_a_warning(self, run: Run, hook: str, warning: str) -> None:
        running = run(f"echo up; {STAY}", f"exec:{hook}")
        running.wait_for("up")
        for count in (1, 2):  # the first failure is not the end of it
            running.change()
            running.wait_for("up", *[warning] * count)
        running.process.terminate()
        assert running.process.wait(PATIENCE) == -signal.SIGTERM

    def test_changes_while_it_runs_are_one_run_afterwards(self, run: Run, tmp_path: Path) -> None:
        go = tmp_path / "go"
        hook = f"echo begin; until [ -e {go} ]; do sleep 0.02; done; echo end"
        running = run(f"trap 'echo change' USR1; echo up; {STAY}", f"exec:sh -c '{hook}'")
        running.wait_for("up")
        running.change()
        running.wait_for("up", "begin")
        for _ in range(3):
            running.change()
            wait_for(time.monotonic() + 0.3)  # three times as long as it takes from a change to its step
        assert running.lines == ["up", "begin"]
        go.touch()
        running.wait_for("up", "begin", "end", "begin", "end")

    def test_it_ends_with_the_command(self, run: Run, tmp_path: Path) -> None:
        go = tmp_path / "go"
        running = run(
            f"echo up; until [ -e {go} ]; do sleep 0.02; done; exit 5",
            "exec:sh -c 'trap \"\" TERM; echo $$; while :; do sleep 0.02; done'",
        )
        running.wait_for("up")
        running.change()
        wait_until(lambda: len(running.lines) == 2)
        hook = int(running.lines[1])
        go.touch()
        assert running.process.wait(PATIENCE) == 5
        assert not Path(f"/proc/{hook}").exists()
        assert running.lines[2:] == ["the program of --on-change does not end, and is killed"]


def test_steps_keep_their_interval(run: Run) -> None:
    running = run(f"trap 'echo told' USR1; echo up; {STAY}", signal.SIGUSR1.value, interval=600)
    running.wait_for("up")
    running.change()
    running.wait_for("up", "told")
    running.change()
    wait_for(time.monotonic() + 0.5)  # five times as long as it takes without
    assert running.lines == ["up", "told"]
    running.process.terminate()
    assert running.process.wait(PATIENCE) == -signal.SIGTERM  # and it does not have to be waited for


class Terminal:
    """An interactive shell with job control, in front of which somebody types."""

    def __init__(self, shell: subprocess.Popen[bytes], keyboard: int) -> None:
        self.shell = shell
        self.shown = ""
        self._keyboard = keyboard

    def type(self, text: str) -> None:
        os.write(self._keyboard, text.encode())

    def wait_for(self, text: str) -> None:
        """Wait until this is shown below all that was waited for before."""
        while text not in self.shown:
            assert select.select([self._keyboard], [], [], PATIENCE)[0], self.shown
            self.shown += os.read(self._keyboard, 4096).decode()
        self.shown = self.shown.partition(text)[2]

    @property
    def job(self) -> tuple[int, int, int]:
        """Our process, the daemon and the command."""
        (us,) = children(self.shell.pid)
        daemon, command = children(us)
        return us, daemon, command


@pytest.fixture
def manifests(tmp_path: Path) -> Path:
    component(tmp_path / "components", "env", "local.env", {"prefix": "RUN_"})
    return tmp_path / "components"


@pytest.fixture
def terminal(manifests: Path, tmp_path: Path) -> Iterator[Terminal]:
    (tmp_path / "alone").write_text(
        f'#!/bin/sh\nexec {" ".join(SECRETFS)} run --resources-path {manifests} -- "$@"\n', encoding="utf-8"
    )
    (tmp_path / "alone").chmod(0o755)
    keyboard, screen = os.openpty()
    env = environment(
        {"HISTFILE": "", "PS1": "", "PS2": "", "PATH": f"{tmp_path}:{os.environ['PATH']}", "RUN_A": secret()}
    )
    shell = subprocess.Popen(
        ["setsid", "--ctty", "bash", "--norc", "--noediting", "-i"],
        env=env, stdin=screen, stdout=screen, stderr=screen, cwd=tmp_path,
    )  # fmt: skip
    os.close(screen)
    try:
        terminal = Terminal(shell, keyboard)
        terminal.type("stty -echo; PS1=; echo read''y\n")
        terminal.wait_for("ready\r\n")
        yield terminal
    finally:
        os.close(keyboard)  # hangs up
        shell.kill()
        shell.wait()


@pytest.mark.mount
class TestInFrontOfATerminal:
    def test_ctrl_c_comes_once(self, terminal: Terminal) -> None:
        terminal.type('alone sh -c \'trap "echo got" INT; trap "exit 7" QUIT; echo up; ' + STAY + "'; echo =$?=\n")
        terminal.wait_for("up")
        terminal.type("\x03")
        terminal.wait_for("got\r\n")
        terminal.type("\x1c")
        terminal.wait_for("=7=")
        assert "got" not in terminal.shown

    def test_ctrl_c_ends_the_command_and_what_it_is_part_of(self, terminal: Terminal) -> None:
        """bash gives up a list of commands when the one that runs was killed by SIGINT."""
        terminal.type("bash -c 'alone sh -c \"echo up; exec sleep 60\"; echo not interrupted'\n")
        terminal.wait_for("up")
        terminal.type("\x03")
        terminal.type("echo =$?=\n")
        terminal.wait_for("=130=")
        assert "not interrupted" not in terminal.shown

    def test_ctrl_z_and_fg(self, terminal: Terminal) -> None:
        terminal.type("alone sh -c 'echo up; exec sleep 60'\n")  # dash cannot be stopped in the midst of a vfork(2)
        terminal.wait_for("up")
        us, daemon, command = terminal.job
        for _ in range(2):
            terminal.type("\x1a")
            terminal.wait_for("Stopped")
            wait_until(lambda: (state(us), state(command)) == ("T", "T"))
            assert state(daemon) != "T"
            terminal.type("fg\n")
            wait_until(lambda: "T" not in (state(us), state(command)))
        terminal.type("\x03")
        terminal.type("echo =$?=\n")
        terminal.wait_for("=130=")

    def test_reading_in_the_background_stops_it(self, terminal: Terminal) -> None:
        terminal.type("set -b; alone cat &\n")
        terminal.wait_for("Stopped")
        terminal.type("fg\n")
        terminal.wait_for("alone cat")
        terminal.type("a line\n")
        terminal.wait_for("a line\r\n")
        terminal.type("\x04")
        terminal.type("echo =$?=\n")
        terminal.wait_for("=0=")

    def test_a_terminal_that_is_gone_hangs_up(self, manifests: Path) -> None:
        """As the leader of a session we alone are told that the line is gone."""
        keyboard, screen = os.openpty()
        script = f"trap 'exit 0' HUP; echo up; {STAY}"
        process = subprocess.Popen(
            ["setsid", "--ctty", *SECRETFS, "run", "--resources-path", str(manifests), "--", "sh", "-c", script],
            env=environment(), stdin=screen, stdout=screen, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(screen)
        assert os.read(keyboard, 100) == b"up\r\n"
        os.close(keyboard)
        assert process.wait(PATIENCE) == 0


@contextmanager
def started(manifests: Path, *command: str, env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    whole = [*SECRETFS, "run", "--resources-path", str(manifests), "--", *command]
    with subprocess.Popen(
        whole, env=environment(env), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.mount
class TestTheDaemon:
    def test_it_holds_nothing_of_the_command_and_the_command_nothing_of_it(self, manifests: Path) -> None:
        with started(manifests, "sh", "-c", "echo up; " + STAY) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "up\n"
            daemon, command = children(process.pid)
            held = {pid: opened(pid).values() for pid in (daemon, command)}
            assert "/dev/fuse" in held[daemon]
            assert (
                Path(f"/proc/{daemon}/fd/0").readlink() == Path(f"/proc/{daemon}/fd/1").readlink() == Path(os.devnull)
            )
            assert "/dev/fuse" not in held[command]
            assert len(held[command]) == 3
            limits = Path(f"/proc/{daemon}/limits").read_text("ascii")
            assert re.search(r"Max core file size +0 +0 ", limits)
            process.terminate()
            assert process.wait(PATIENCE) == -signal.SIGTERM
            assert ended(daemon)

    def test_no_signal_but_kill_ends_it_before_the_command(self, manifests: Path) -> None:
        """systemd, for one, sends SIGTERM to all processes of a service."""
        script = "trap 'cat \"$SECRETFS/env/A\"; exit 0' USR1; echo up; " + STAY
        with started(manifests, "sh", "-c", script, env={"RUN_A": "here"}) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "up\n"
            daemon, _ = children(process.pid)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                os.kill(daemon, number)
            process.send_signal(signal.SIGUSR1)
            assert process.communicate(timeout=PATIENCE) == ("here", "")

    def test_it_ends_when_we_are_killed(self, manifests: Path) -> None:
        script = "trap 'cat \"$SECRETFS/env/A\" || exit 0' USR1; echo up; " + STAY
        with started(manifests, "sh", "-c", script, env={"RUN_A": "here"}) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline() == "up\n"
            daemon, command = children(process.pid)
            process.kill()
            process.wait()
            wait_until(lambda: ended(daemon))
            os.kill(command, signal.SIGUSR1)
            # No empty directory. The second is of a read that has begun before the last thread of the daemon is gone.
            expected = "Transport endpoint is not connected|Software caused connection abort"
            assert re.search(expected, process.stderr.read())

    def test_what_the_command_leaves_behind_loses_its_secrets(self, manifests: Path, tmp_path: Path) -> None:
        lost = 'cat "$SECRETFS/env/A" 2>&1 | grep -q "Transport endpoint is not connected"'  # and never "No such file"
        go_on = f"until {lost}; do sleep 0.02; done; touch {tmp_path}/over"
        with started(
            manifests, "sh", "-c", f"({go_on}) > /dev/null 2>&1 & echo left", env={"RUN_A": "here"}
        ) as process:
            assert process.communicate(timeout=PATIENCE) == ("left\n", "")
            wait_until((tmp_path / "over").exists)

    def test_a_signal_before_the_command_is_started(self, tmp_path: Path) -> None:
        with fake_type.installed(tmp_path / "site") as site:
            fakes = Fakes(tmp_path / "components", site, {"PYTHONPATH": str(site)})
            os.mkfifo(tmp_path / "fifo")
            fakes.add("slow", {"fail": "check=hang", "record": tmp_path / "fifo"})
            with started(fakes.directory, "touch", str(tmp_path / "started"), env=dict(fakes.env)) as process:
                (tmp_path / "fifo").read_text("ascii")
                process.terminate()
                assert process.communicate(timeout=PATIENCE) == ("", "")
                assert process.returncode == -signal.SIGTERM
        assert not (tmp_path / "started").exists()


@pytest.mark.mount
@pytest.mark.parametrize("closed", ["<&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"])
def test_without_standard_streams(manifests: Path, closed: str) -> None:
    run = f"{' '.join(SECRETFS)} run --resources-path {manifests}"
    script = f"exec {run} -- sh -c 'test -e \"$SECRETFS/env/A\" && exit 5' {closed}"
    assert subprocess.run(["bash", "-c", script], env=environment({"RUN_A": "x"}), check=False).returncode == 5


@pytest.mark.mount
def test_as_the_first_process_of_a_container(tmp_path: Path) -> None:
    """It reaps the orphans that it gets, and tells by 128+N of a signal by which it cannot die."""
    done = in_namespace("""
        env_component
        orphan='(sh -c "exec true" &); until [ $(pgrep -c -P 1) = 2 ]; do sleep 0.02; done; echo reaped; kill -TERM $$'
        unshare --pid --fork --mount-proc secretfs run --resources-path c -- bash -c "$orphan" || echo $?
    """)
    assert (done.status, done.out, done.err) == (0, "reaped\n143\n", "")


@pytest.mark.mount
def test_a_user_has_only_his_own_id_to_show_files_to() -> None:
    done = in_namespace("""
        env_component
        as_nobody secretfs run --uid 65534 --gid 65534 --resources-path c -- true && echo fine
        as_nobody secretfs run --uid 1 --resources-path c -- true || echo $?
        chmod 600 /dev/fuse
        as_nobody secretfs run --resources-path c -- true || echo $?
    """)
    assert done.out == "fine\n2\n3\n"
    fix = "as root: chmod 0666 /dev/fuse; or mount as root"
    assert done.lines == [
        "secretfs: --uid, --gid: without the right to mount, the files can belong to no other user",
        f"secretfs: /dev/fuse may not be opened by this user: its mode is 0600; {fix}",
    ]


@pytest.mark.mount
def test_the_log(manifests: Path, tmp_path: Path) -> None:
    """Standard error is for warnings only; a file gets everything."""
    arguments = ("run", "--resources-path", manifests, "--log-file", tmp_path / "log", "--", "true")
    done = secretfs(*arguments)
    assert (done.status, done.out, done.err) == (0, "", "")
    assert "INFO mounted at /" in (tmp_path / "log").read_text("utf-8")


@pytest.mark.parametrize(("flags", "idle"), [([], math.inf), (["--idle=1s"], 1.0), (["--idle=1h"], 3600.0)])
def test_values_stay_in_use_unless_a_flag_says_otherwise(
    manifests: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], idle: float
) -> None:
    served: list[Freshness] = []

    def work(request: Request, *_: object) -> int:
        served.append(request.options.default)
        return 0

    def run(work: Callable[[ParentPipe], int], *_: object, **_flags: object) -> int:
        with socket.socket() as end:
            return work(ParentPipe(end))

    monkeypatch.setattr(command_line, "_private_place", lambda *_, **_flags: Path("/nowhere"))
    monkeypatch.setattr(command_line, "work", work)
    monkeypatch.setattr(command_line, "run", run)
    monkeypatch.setattr(sys, "argv", ["secretfs", "run", "--resources-path", str(manifests), *flags, "--", "true"])
    with pytest.raises(SystemExit, match="0"):
        cli_main.main()
    assert served == [Freshness(idle=idle)]


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("ignore", "ignore"),
        ("restart", "restart"),
        ("HUP", 1),
        ("SIGHUP", 1),
        ("sigusr1", 10),
        ("15", 15),
        ("64", 64),
        ("exec:nginx -s 'two words'", Hook(("nginx", "-s", "two words"))),
    ],
)
def test_what_happens_at_a_change(text: str, meant: object) -> None:
    (read,) = (param.type for param in run_command.params if param.name == "step")
    assert read.convert(text, None, None) == meant


@pytest.mark.parametrize(
    ("text", "reason"),
    [("exec:", "names no command"), ("exec: ", "names no command"), ("exec:a 'b", "no closing quotation")],
)
def test_a_hook_that_is_none_is_refused(text: str, reason: str) -> None:
    done = secretfs("run", f"--on-change={text}", "--", "true")
    assert done.status == 2
    assert f"exec: {reason}" in done.err


@pytest.mark.parametrize(
    ("text", "hint"), [("HUPP", "HUP"), ("SIGUSER1", "USR1"), ("restrt", "restart"), ("0", ""), ("65", ""), ("-1", "")]
)
def test_a_signal_that_is_none_is_refused(text: str, hint: str) -> None:
    done = secretfs("run", f"--on-change={text}", "--", "true")
    assert done.status == 2
    assert f"{text!r} is not ignore, restart, exec:COMMAND or a signal such as HUP" in done.err
    assert not hint or f"(did you mean {hint}?)" in done.err
