"""`secretfs run`: a command with secrets that nobody else sees; everything else is as it would be without."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.canary import secret
from tests.support.command import SECRETFS, Done, environment, in_namespace
from tests.support.command import secretfs as ended_secretfs
from tests.support.manifests import component, configuration, scope
from tests.support.mounted import fuse_mounts
from tests.support.secrets_file import SecretsFile, file
from tests.support.shell import wait_for, wait_until
from tests.support.waiting import PATIENCE

__all__ = ["file"]

pytestmark = pytest.mark.mount

OLD, NEW = secret("old"), secret("new, and longer")
STAY = "while :; do sleep 0.02; done"


@pytest.fixture
def manifests(file: SecretsFile, tmp_path: Path) -> Path:
    """Declare a secrets file whose changes show quickly."""
    file.write({"a": OLD, "b": OLD})
    annotations = {"secretfs/ttl": "200ms"}
    component(tmp_path / "components", "file", "local.file", {"secretsFile": file.path}, annotations=annotations)
    return tmp_path / "components"


def secretfs_run(manifests: Path, *arguments: str, env: dict[str, str] | None = None) -> Done:
    """Run a command to its end."""
    return ended_secretfs("run", "--resources-path", manifests, *arguments, env=env)


class Running:
    """A command that goes on, and what it has printed so far."""

    def __init__(self, process: subprocess.Popen[bytes], directory: Path) -> None:
        self.process = process
        self._directory = directory

    @property
    def lines(self) -> list[str]:
        """What it has printed."""
        return (self._directory / "out").read_text().splitlines()

    @property
    def said(self) -> str:
        """What it, and we, have said on standard error."""
        return (self._directory / "err").read_text()

    def wait_for(self, *lines: str) -> None:
        """Wait until it has printed exactly this."""
        wait_until(lambda: self.lines == list(lines) or self.process.poll() is not None)
        assert self.lines == list(lines)


@contextmanager
def running(manifests: Path, script: str, *options: str) -> Iterator[Running]:
    """Run a shell script that goes on."""
    command = [*SECRETFS, "run", "--resources-path", str(manifests), *options, "--", "sh", "-c", script]
    with (
        (manifests.parent / "out").open("wb") as out,
        (manifests.parent / "err").open("wb") as err,
        subprocess.Popen(command, env=environment(), stdout=out, stderr=err) as process,
    ):
        try:
            yield Running(process, manifests.parent)
        finally:
            process.terminate()


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_nobody_else_sees_it(manifests: Path) -> None:
    """run-1: `secretfs run` mounts for one command and its children; nobody else sees the mount; nothing is left."""
    script = 'echo "$SECRETFS"; if [ "$(cat "$SECRETFS/file/a")" = "$1" ]; then echo same; fi; ' + STAY
    with running(manifests, script.replace("$1", OLD)) as command:
        wait_until(lambda: len(command.lines) == 2)
        place, same = command.lines
        assert same == "same"
        assert place not in fuse_mounts()
        assert os.listdir(place) == []  # noqa: PTH208
        beside = children(command.process.pid)
        assert len(beside) == 2  # the command and the daemon
        command.process.terminate()
        command.process.wait(PATIENCE)
    assert [pid for pid in beside if Path(f"/proc/{pid}").exists()] == []
    assert os.listdir(place) == []  # noqa: PTH208


UNPRIVILEGED = """
    env_component
    export TOKEN=visible
"""


@pytest.mark.parametrize("options", ["", "--no-new-privs"])
def test_without_rights(options: str) -> None:
    """run-2: It needs no right except to open `/dev/fuse`, works with `no_new_privs`, and keeps your user and group."""
    done = in_namespace(f"""{UNPRIVILEGED}
        mkdir at
        mounts() {{ awk '$5 ~ "^/(mnt|media|srv|opt)"' /proc/self/mountinfo; }}
        mounts > before
        as_nobody {options} secretfs run --resources-path c -- sh -c 'cat "$SECRETFS/env/TOKEN"; echo; id -u; id -g'
        as_nobody {options} secretfs run --resources-path c --at at -- cat at/env/TOKEN
        mounts | diff before -
        ls at
        pgrep -c python || true
    """)
    assert (done.status, done.out, done.err) == (0, "visible\n65534\n65534\nvisible0\n", "")


def test_the_place(manifests: Path, tmp_path: Path) -> None:
    """run-3: `$SECRETFS` is the mount point: the directory that `--at` names, or else one that was empty."""
    (tmp_path / "at").mkdir()
    for options, place in ([], None), (["--at", str(tmp_path / "at")], tmp_path / "at"):
        done = secretfs_run(manifests, *options, "--", "sh", "-c", 'echo "$SECRETFS"; ls "$SECRETFS" "$SECRETFS/file"')
        told, *listed = done.out.splitlines()
        assert listed == [f"{told}:", "file", "", f"{told}/file:", "a", "b"]
        assert place is None or told == str(place)
        assert os.listdir(told) == []  # noqa: PTH208


def test_for_many_apps(manifests: Path, tmp_path: Path) -> None:
    """With `--apps` each app has a directory there too (app-1)."""
    (tmp_path / "apps").mkdir()
    for app in ("orders", "billing"):
        document = {"apiVersion": "secretfs/v1alpha1", "kind": "App", "metadata": {"name": app}}
        (tmp_path / f"apps/{app}.yaml").write_text(json.dumps(document), encoding="utf-8")
    script = 'ls "$SECRETFS"; test "$(cat "$SECRETFS/billing/file/a")" = "$0" && echo same'
    done = secretfs_run(manifests, "--apps", str(tmp_path / "apps"), "--", "sh", "-c", script, OLD)
    assert (done.status, done.out, done.err) == (0, "billing\norders\nsame\n", "")


@pytest.mark.parametrize(
    ("command", "status"),
    [
        *((["sh", "-c", f"exit {code}"], code) for code in (0, 1, 2, 4, 126, 127, 128, 255)),
        *((["sh", "-c", f"kill -{name} $$"], -signal.Signals[f"SIG{name}"]) for name in ("TERM", "INT", "KILL")),
        (["secretfs-test-no-such-command"], 127),
        (["/etc/passwd"], 126),
    ],
    ids=str,
)
def test_the_exit_code(manifests: Path, command: Sequence[str], status: int) -> None:
    """run-4: It ends as the command does, by exit code or by signal; with 126 or 127 if the command cannot be run."""
    assert secretfs_run(manifests, "--", *command).status == status


def test_never_started(manifests: Path, tmp_path: Path) -> None:
    """run-5: After a mistake (exit code 2), without a mount (3) or a store (4) the command is never started."""
    started = tmp_path / "started"
    command = ["--", "touch", str(started)]
    assert secretfs_run(manifests, "--on-change=HUUP", *command).status == 2
    assert secretfs_run(manifests, "--app-id=x", "--config=/nowhere", *command).status == 2
    assert secretfs_run(manifests, "--at", "/nowhere", *command).status == 3
    properties = {"vaultAddr": "http://127.0.0.1:1", "vaultToken": "t"}
    component(manifests, "vault", "hashicorp.vault", properties)
    assert secretfs_run(manifests, *command).status == 4
    assert not started.exists()


def test_signals(manifests: Path) -> None:
    """run-6: A signal that is sent to `secretfs run` is passed on to the command."""
    numbers = [signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH]
    names = [number.name.removeprefix("SIG") for number in numbers]
    traps = "".join(f"trap 'echo {name}' {name}; " for name in names)
    with running(manifests, f"{traps} trap 'echo TERM; exit 7' TERM; echo up; {STAY}") as command:
        expected = ["up"]
        command.wait_for(*expected)
        for number, name in zip(numbers, names, strict=True):
            command.process.send_signal(number)
            expected.append(name)
            command.wait_for(*expected)
        command.process.terminate()
        assert command.process.wait(PATIENCE) == 7
        assert command.lines == [*expected, "TERM"]


SEEN = (
    "ls -l /proc/self/fd | awk '{print $9, $11}' | grep -v /proc/; cat /proc/self/status | grep ^Sig[BIC];"
    " ulimit -Sa; ulimit -Ha; pwd; umask; nice; env | grep -v -e SECRETFS -e ^_= | sort"
)


def as_seen(*prefix: str) -> list[str]:
    """List what a command finds that is started with a pipe and a device, and ignores SIGHUP."""
    with open(os.devnull) as extra:  # noqa: PTH123 - a descriptor
        printed = subprocess.run(
            ["nohup", *prefix, "bash", "-c", SEEN],
            stdin=extra, capture_output=True, pass_fds=[extra.fileno()], env=environment(), text=True, check=True,
        ).stdout  # fmt: skip
    # A program that posix_spawn(3) has started ignores two signals that glibc keeps for itself.
    ignored = re.sub(r"SigIgn:\t(\w+)", lambda found: f"ignored {int(found[1], 16) & ~(3 << 31)}", printed)
    return re.sub(r"pipe:\[\d+\]", "pipe", ignored).splitlines()


def test_as_without_us(manifests: Path) -> None:
    """run-7: Descriptors, limits, signals and everything else are as they would be without it, also in a pipe."""
    run = [*SECRETFS, "run", "--resources-path", str(manifests), "--"]
    assert as_seen(*run) == as_seen()
    pipe = "printf 'one\\ntwo\\n' | {0} cat | wc -l; {0} yes | head -n 1; echo ${{PIPESTATUS[0]}}".format(" ".join(run))
    done = subprocess.run(["bash", "-c", pipe], env=environment(), capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("2\ny\n141\n", "")


def test_a_signal_at_a_change(manifests: Path, file: SecretsFile) -> None:
    """run-8: With `--on-change=SIGNAL` the command gets it when what it has read changes, once for all changes."""
    told = (
        f'case "$(cat "$SECRETFS/file/a" "$SECRETFS/file/b")" in "{OLD}{OLD}") echo old;; "{NEW}{NEW}") echo new; esac'
    )
    with running(manifests, f"told() {{ {told}; }}; trap told USR1; told; {STAY}", "--on-change=USR1") as command:
        command.wait_for("old")
        file.write({"a": NEW, "b": NEW})
        command.wait_for("old", "new")
        file.write({"a": OLD, "b": OLD})
        command.wait_for("old", "new", "old")


def test_a_signal_when_something_comes(manifests: Path, file: SecretsFile, tmp_path: Path) -> None:
    """What comes and goes in a directory that it has listed counts, but not what its scope hides (run-8)."""
    config = configuration(tmp_path, scope("file", denied=["hidden"]))
    again = 'trap \'echo "*" > "$SECRETFS/.secretfs/refresh"; echo again\' USR2'
    script = f'trap "echo told" USR1; {again}; ls "$SECRETFS/file"; {STAY}'
    with running(manifests, script, "--on-change=USR1", "--config", str(config)) as command:
        command.wait_for("a", "b")
        file.write({"a": OLD, "b": OLD, "hidden": NEW})
        command.process.send_signal(signal.SIGUSR2)
        command.wait_for("a", "b", "again")
        wait_for(time.monotonic() + 1)  # twice as long as it takes from a change to the signal
        file.write({"a": OLD, "b": OLD, "hidden": NEW, "c": NEW})
        command.process.send_signal(signal.SIGUSR2)
        wait_until(lambda: sorted(command.lines) == ["a", "again", "again", "b", "told"])  # whichever trap is first


def test_a_hook_at_a_change(manifests: Path, file: SecretsFile) -> None:
    """run-14: With `--on-change=exec:COMMAND` COMMAND is run once for each change; its failure is a warning."""
    hook = f"""exec:sh -c 'if [ "$(cat "$SECRETFS/file/a")" = "{NEW}" ]; then echo new; else echo old; exit 3; fi'"""
    script = f'cat "$SECRETFS/file/a" "$SECRETFS/file/b" > /dev/null; echo up; {STAY}'
    with running(manifests, script, f"--on-change={hook}") as command:
        command.wait_for("up")
        file.write({"a": NEW, "b": NEW})
        wait_until(lambda: command.said == "new\n")
        file.write({"a": OLD, "b": OLD})
        wait_until(lambda: "3" in command.said)
        assert command.said == "new\nold\nWARNING --on-change: sh failed with exit code 3\n"
        assert (command.lines, command.process.poll()) == (["up"], None)


def test_a_delay_and_an_interval(manifests: Path, file: SecretsFile) -> None:
    """run-15: A step waits for `--on-change-delay` after a change, and `--on-change-interval` after the last step."""
    script = f'trap "echo told" USR1; cat "$SECRETFS/file/a" > /dev/null; echo up; {STAY}'
    flags = ("--on-change=USR1", "--on-change-delay=1s", "--on-change-interval=3s", "--on-change-splay=1ms")
    with running(manifests, script, *flags) as command:
        command.wait_for("up")
        begun = time.monotonic()
        file.write({"a": NEW, "b": OLD})
        command.wait_for("up", "told")
        assert time.monotonic() - begun >= 1
        file.write({"a": OLD, "b": OLD})
        command.wait_for("up", "told", "told")
        assert time.monotonic() - begun >= 1 + 3


@pytest.fixture
def multi(manifests: Path, tmp_path: Path) -> SecretsFile:
    """Declare a file of secrets that have keys; returns it."""
    several = SecretsFile(tmp_path / "several.json")
    several.write({"db": {"user": OLD, "password": NEW}})
    properties = {"secretsFile": several.path, "multiValued": "true"}
    component(manifests, "several", "local.file", properties, annotations={"secretfs/ttl": "200ms"})
    return several


def test_variables(manifests: Path, multi: SecretsFile) -> None:
    """run-16: `--env NAME=STORE/SECRET[/KEY]` and `--env-from STORE/SECRET` set variables of the command."""
    assert multi.path.exists()
    flags = [
        "--env",
        "A=file/a",
        "--env",
        "PASSWORD=several/db/password",
        "--env-from",
        "several/db",
        "--env-prefix=DB_",
    ]
    expected = {"A": OLD, "PASSWORD": NEW, "DB_user": OLD, "DB_password": NEW}
    tests = " && ".join(f'[ "${name}" = {value!r} ]' for name, value in expected.items())
    done = secretfs_run(
        manifests, *flags, "--", "sh", "-c", f'{tests} && [ -d "$SECRETFS" ] && echo "$B"', env={"B": "b"}
    )
    assert (done.status, done.out, done.err) == (0, "b\n", "")


def test_variables_that_cannot_be_set(manifests: Path, multi: SecretsFile, tmp_path: Path) -> None:
    """run-17: If a variable cannot be set, the command is not started; the message names flag and nearest name."""
    multi.write({"db": {"pass-word": OLD}, "binary": {"nul": "a\0b"}, "hidden": {"key": OLD}})
    config = configuration(tmp_path, scope("several", denied=["hidden"]))
    for flag, status, message in (
        ("--env=A=file/aa", 2, "--env A=file/aa: there is no file/aa (did you mean file/a?)"),
        ("--env=A=fil/a", 2, "--env A=fil/a: there is no fil/a (did you mean file?)"),
        ("--env=A=several/db/pass", 2, "there is no several/db/pass (did you mean several/db/pass-word?)"),
        ("--env=A=several/hidden/key", 2, "--env A=several/hidden/key: there is no several/hidden/key"),
        ("--env=A=several/db", 2, "several/db is a directory, no file; its files are set by --env-from several/db"),
        ("--env=A=file/a/b", 2, "--env A=file/a/b: file/a is a file, no directory"),
        ("--env-from=file/a", 2, "--env-from file/a: file/a is a file, no directory"),
        (
            "--env-from=several/db",
            2,
            "'pass-word' cannot be the name of a variable; use --env NAME=several/db/pass-word",
        ),
        ("--env=A=several/binary/nul", 4, "--env A=several/binary/nul: several/binary/nul contains a NUL byte"),
        ("--env=A=.secretfs/nothing", 2, "there is no .secretfs/nothing"),
    ):
        done = secretfs_run(manifests, "--config", str(config), flag, "--", "touch", str(tmp_path / "started"))
        assert message in done.err
        assert (done.status, (tmp_path / "started").exists()) == (status, False), flag


def test_variables_are_nowhere_else(manifests: Path, tmp_path: Path) -> None:
    """run-18: Values of variables are never in our arguments, nor in the log."""
    flags = ("--env=A=file/a", "--env-from=file", f"--log-file={tmp_path}/log", "--on-change=restart")
    script = f'[ "$A" = "$(cat "$SECRETFS/file/a")" ] && [ "$A" = "$a" ] && echo up; {STAY}'
    with running(manifests, script, *flags) as command:
        command.wait_for("up")
        daemon, _ = children(command.process.pid)
        for pid in (command.process.pid, daemon):
            for what in ("cmdline", "environ"):
                assert OLD.encode() not in Path(f"/proc/{pid}/{what}").read_bytes()
    assert "mounted at" in (tmp_path / "log").read_text()
    assert OLD not in (tmp_path / "log").read_text() + command.said


def test_variables_of_a_restart(manifests: Path, file: SecretsFile) -> None:
    """run-19: A restart sets the variables anew; if that is impossible, the command goes on without a restart."""
    script = f'case "$A" in "{OLD}") echo old;; "{NEW}") echo new; esac; {STAY}'
    with running(manifests, script, "--env=A=file/a", "--on-change=restart") as command:
        command.wait_for("old")
        file.write({"a": NEW})
        command.wait_for("old", "new")
        _, pid = children(command.process.pid)
        file.write({"b": NEW})
        wait_until(lambda: "sh is not restarted: --env A=file/a: there is no file/a" in command.said)
        assert children(command.process.pid)[1:] == [pid]
        file.write({"a": OLD})
        command.wait_for("old", "new", "old")


def test_masked_output(manifests: Path) -> None:
    """run-20: With `--mask` values of variables are `***` in the command's output, written at once or in parts."""
    half = len(OLD) // 2
    script = (
        f'printf %s "${{A%{OLD[half:]}}}"; printf %s\\\\n "{OLD[half:]}"; echo "err $A" >&2;'
        " head -c 200000 /dev/zero; printf '\\377%s\\377' \"$A\"; kill -USR1 $$"
    )
    command = [
        *SECRETFS,
        "run",
        "--resources-path",
        str(manifests),
        "--env=A=file/a",
        "--mask",
        "--",
        "sh",
        "-c",
        script,
    ]
    done = subprocess.run(command, env=environment(), capture_output=True, check=False)
    assert done.stdout == b"***\n" + bytes(200000) + b"\xff***\xff"
    assert (done.returncode, done.stderr) == (-signal.SIGUSR1, b"err ***\n")
    yes = f"{' '.join(command[:-3])} yes | head -n 1; echo ${{PIPESTATUS[0]}}"
    assert subprocess.run(["bash", "-c", yes], env=environment(), capture_output=True, check=True).stdout == b"y\n141\n"


def test_nothing_at_a_change(manifests: Path, file: SecretsFile) -> None:
    """By default a change only shows in the files (run-8)."""
    script = (
        f'trap "echo told" HUP USR1; while [ "$(cat "$SECRETFS/file/a")" = "{OLD}" ]; do sleep 0.02; done; echo new'
    )
    with running(manifests, f"cat $SECRETFS/file/a > /dev/null; echo up; {script}") as command:
        command.wait_for("up")
        file.write({"a": NEW, "b": NEW})
        assert command.process.wait(PATIENCE) == 0
        assert command.lines == ["up", "new"]


def test_a_restart_at_a_change(manifests: Path, file: SecretsFile) -> None:
    """run-9: With `--on-change=restart` the command gets SIGTERM, after 10 s SIGKILL, and is started again."""
    script = f'echo up; cat "$SECRETFS/file/a" > /dev/null; trap "echo bye; exit 5" TERM; echo read; {STAY}'
    with running(manifests, script, "--on-change=restart") as command:
        command.wait_for("up", "read")
        file.write({"a": NEW, "b": NEW})
        command.wait_for("up", "read", "bye", "up", "read")
        command.process.terminate()
        assert command.process.wait(PATIENCE) == 5
        assert command.lines == ["up", "read", "bye", "up", "read", "bye"]


def test_the_end_of_a_restarted_command(manifests: Path, file: SecretsFile) -> None:
    """run-10: A command that ends by itself is not started again, nor is one that was sent SIGTERM or the like."""
    again = manifests.parent / "again"
    script = f'cat "$SECRETFS/file/a" > /dev/null; if [ -e {again} ]; then exit 3; fi; touch {again}; echo up; {STAY}'
    with running(manifests, script, "--on-change=restart") as command:
        command.wait_for("up")
        file.write({"a": NEW, "b": NEW})
        assert command.process.wait(PATIENCE) == 3
        assert command.lines == ["up"]


def test_what_has_been_read_is_watched(manifests: Path, file: SecretsFile) -> None:
    """run-11: What the command has read is watched until the command ends; with `--idle`, that long after a read."""
    forgotten = (
        'until grep -q "cached_values.: 0" "$SECRETFS/.secretfs/status.json"; do sleep 0.02; done; echo forgotten'
    )
    read = 'trap "echo changed" USR1; cat "$SECRETFS/file/a" > /dev/null; echo read;'
    with running(manifests, f"{read} {STAY}", "--on-change=USR1") as command:
        command.wait_for("read")
        file.write({"a": NEW, "b": OLD})
        command.wait_for("read", "changed")
    with running(manifests, f"{read} {forgotten}; {STAY}", "--on-change=USR1", "--idle=300ms") as command:
        command.wait_for("read", "forgotten")
        file.write({"a": OLD, "b": OLD})
        wait_for(time.monotonic() + 1.5)  # ttl and the time in which changes are taken together are 0.7 s
        assert command.lines == ["read", "forgotten"]


def test_a_killed_daemon(manifests: Path) -> None:
    """run-12: If the daemon is killed, the command goes on, its files are ENOTCONN, and standard error says so."""
    script = f'cat "$SECRETFS/file/a" > /dev/null; echo up; trap "cat $SECRETFS/file/b" USR1; {STAY}'
    with running(manifests, script) as command:
        command.wait_for("up")
        daemon, _ = children(command.process.pid)
        os.kill(daemon, signal.SIGKILL)
        wait_until(lambda: "ENOTCONN" in command.said)
        command.process.send_signal(signal.SIGUSR1)
        wait_until(lambda: "Transport endpoint is not connected" in command.said)
        assert command.process.poll() is None


def test_a_place_that_is_not_empty(manifests: Path, tmp_path: Path) -> None:
    """run-13: `secretfs run --at` refuses a directory that is not empty (exit code 3), unless `--nonempty` is given."""
    (tmp_path / "place").mkdir()
    (tmp_path / "place/a file").touch()
    flags = ("--at", f"{tmp_path}/place")
    done = secretfs_run(manifests, *flags, "--", "touch", f"{tmp_path}/started")
    assert (done.status, (tmp_path / "started").exists()) == (3, False)
    assert f"cannot mount at {tmp_path}/place: it is not empty; name an empty directory" in done.err
    done = secretfs_run(manifests, *flags, "--nonempty", "--", "ls", f"{tmp_path}/place")
    assert (done.status, done.out, done.err) == (0, "file\n", "")
