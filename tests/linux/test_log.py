"""Where the log goes, what is in it, and that nobody ever waits for it."""

import contextlib
import io
import json
import logging
import os
import re
import shutil
import signal
import stat
import subprocess
import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from secretfs.errors import ConfigurationError
from secretfs.linux import log_destinations
from secretfs.linux.log import line_format, log_to, printable
from secretfs.linux.log_destinations import log_in_thread, open_log, open_syslog
from secretfs.linux.runtime_directory import runtime_file
from tests.support import fake_type
from tests.support.canary import leaked, secret
from tests.support.command import SECRETFS, background, end_daemons, environment, in_namespace, secretfs
from tests.support.fake_type import Fakes
from tests.support.manifests import component
from tests.support.mounted import daemons, fuse_mounts, supervisor, wait_for_end
from tests.support.shell import wait_until
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.mount


@pytest.fixture
def components(tmp_path: Path) -> Path:
    """A store with one secret in a file."""
    directory = tmp_path / "components"
    (tmp_path / "secrets.json").write_text(f'{{"password": "{secret("password")}"}}', encoding="utf-8")
    component(directory, "file", "local.file", {"secretsFile": str(tmp_path / "secrets.json")})
    return directory


@pytest.fixture
def fakes(tmp_path: Path) -> Iterator[Fakes]:
    with fake_type.installed(tmp_path / "site") as site:
        yield Fakes(tmp_path / "components", site, {"PYTHONPATH": str(site)})


class Pipe:
    """A pipe that is full, and that nobody reads until a test does."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()
        os.set_blocking(self.read_end, False)
        os.set_blocking(self.write_end, False)
        with contextlib.suppress(BlockingIOError):
            while os.write(self.write_end, b"." * 4096):
                pass
        os.set_blocking(self.write_end, True)
        self.text = ""

    def holds(self, text: str) -> bool:
        """Take out what is in it, and tell whether a text has come."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.read_end, 65536):
                self.text += data.decode()
        return text in self.text

    def close(self) -> None:
        """Let go of both ends."""
        for end in (self.read_end, self.write_end):
            with contextlib.suppress(OSError):
                os.close(end)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    full = Pipe()
    yield full
    full.close()


def read(path: Path) -> str:
    """Read a file in a process that can be killed if it hangs."""
    return subprocess.run(["cat", path], capture_output=True, text=True, timeout=PATIENCE, check=True).stdout


class TestNobodyWaits:
    """Standard error is a pipe that is full: the line that does not fit is lost, and nothing else."""

    def test_a_mount_and_its_supervisor(self, components: Path, tmp_path: Path, pipe: Pipe) -> None:
        point = tmp_path / "mnt"
        point.mkdir()
        process = subprocess.Popen(
            [*SECRETFS, "mount", "--foreground", "--resources-path", str(components), str(point)],
            env=environment(), stdin=subprocess.DEVNULL, stderr=pipe.write_end,
        )  # fmt: skip
        try:
            wait_until(lambda: str(point) in fuse_mounts())
            assert read(point / "file/password") == secret("password")
            (worker,) = daemons(point)
            os.kill(worker, signal.SIGKILL)
            wait_until(lambda: daemons(point) not in ([], [worker]))
            assert read(point / "file/password") == secret("password")
            assert not pipe.holds("takes over")
            (worker,) = daemons(point)
            os.kill(worker, signal.SIGKILL)
            about = f"mountpoint={point} worker={worker}"
            wait_until(lambda: pipe.holds(f"takes over {about} [lines lost before this one: 1]"))
            wait_until(lambda: pipe.holds("INFO took over the mount"))
        finally:
            process.terminate()
            process.wait(PATIENCE)
            end_daemons(point)

    @pytest.mark.parametrize("reader_leaves", [False, True])
    def test_a_command_under_run(self, fakes: Fakes, pipe: Pipe, *, reader_leaves: bool) -> None:
        secrets = {"down": {"k": secret()}, "well": {"k": secret()}}
        fakes.add("a", {"secrets": {"value": secrets}, "fail": "fetch:down=StoreUnavailable"})
        script = "cat $SECRETFS/a/down/k 2> /dev/null; cat $SECRETFS/a/well/k"
        process = subprocess.Popen(
            [*SECRETFS, "run", "--resources-path", str(fakes.directory), "--", "sh", "-c", script],
            env=environment(fakes.env), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=pipe.write_end, text=True,
        )  # fmt: skip
        try:
            if reader_leaves:
                pipe.close()
            assert process.communicate(timeout=PATIENCE)[0] == secret()
        finally:
            process.kill()
            process.wait()

    def test_an_error_is_the_last_word_and_not_waited_for_either(self, tmp_path: Path, pipe: Pipe) -> None:
        done = subprocess.run(
            [*SECRETFS, "mount", tmp_path / "none"],
            env=environment(), stdin=subprocess.DEVNULL, stderr=pipe.write_end, timeout=PATIENCE, check=False,
        )  # fmt: skip
        assert done.returncode == 3
        assert not runtime_file(tmp_path / "none", ".log").exists()


class Blocked(logging.StreamHandler[io.StringIO]):
    """A disk that hangs until it is released."""

    def __init__(self) -> None:
        super().__init__(io.StringIO())
        self.busy, self.released = threading.Event(), threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.busy.set()
        self.released.wait(PATIENCE)
        super().emit(record)


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, with the handlers of nobody; those of pytest come back."""
    logger = logging.getLogger()
    handlers, level, logger.handlers = logger.handlers, logger.level, []
    yield logger
    log_to(logging.NullHandler())
    logger.handlers = handlers
    logger.setLevel(level)


def test_lines_that_the_thread_has_no_room_for_are_counted(
    root: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_destinations, "QUEUE", 2)
    disk = Blocked()
    log_to(disk)
    disk.setFormatter(logging.Formatter("%(message)s %(lost)d"))
    log_in_thread()
    root.info("0")
    assert disk.busy.wait(PATIENCE)
    for number in range(1, 6):
        root.info("%d", number)
    disk.released.set()
    wait_until(lambda: disk.stream.getvalue().count("\n") == 3)
    root.info("6")
    wait_until(lambda: disk.stream.getvalue() == "0 0\n1 0\n2 0\n6 3\n")


def test_a_traceback_is_text_before_the_thread_has_it(root: logging.Logger, tmp_path: Path) -> None:
    log_to(open_log(tmp_path / "log"))
    log_in_thread()
    try:
        int("no number")
    except ValueError:
        root.exception("it failed\nbadly")
    log_to(logging.NullHandler())  # waits for the thread
    first, second, *_, last = (tmp_path / "log").read_text(encoding="utf-8").splitlines()
    assert first.endswith(r"ERROR it failed\nbadly")
    assert (second, last) == (
        "Traceback (most recent call last):",
        "ValueError: invalid literal for int() with base 10: 'no number'",
    )


class TestFile:
    """A log file is a regular file, and one that was meant."""

    @pytest.fixture
    def theirs(self, tmp_path: Path) -> Path:
        """A directory in which everybody may put links."""
        directory = tmp_path / "theirs"
        directory.mkdir()
        directory.chmod(0o777)
        return directory

    def refused(self, log: Path) -> str:
        with pytest.raises(ConfigurationError, match=r"^cannot log to ") as refused:
            open_log(log)
        return str(refused.value).removeprefix(f"cannot log to {log}: ")

    def test_a_fifo_is_refused_at_once(self, components: Path, tmp_path: Path) -> None:
        (tmp_path / "mnt").mkdir()
        os.mkfifo(tmp_path / "log")
        done = secretfs("mount", "--resources-path", components, "--log-file", tmp_path / "log", tmp_path / "mnt")
        assert (done.status, done.err) == (2, f"secretfs: cannot log to {tmp_path}/log: it is not a regular file\n")

    @pytest.mark.parametrize("device", ["/dev/null", "/dev/full"])
    def test_a_device_is_refused(self, device: str) -> None:
        assert self.refused(Path(device)) == "it is not a regular file"

    def test_a_link_that_others_may_have_made_is_refused(self, theirs: Path, tmp_path: Path) -> None:
        (tmp_path / "victim").write_text("", encoding="utf-8")
        (theirs / "log").symlink_to(tmp_path / "victim")
        (theirs / "directory").symlink_to(tmp_path)
        assert self.refused(theirs / "log") == "another user may have made a link that leads there"
        assert self.refused(theirs / "directory/victim") == "another user may have made a link that leads there"
        (tmp_path / "ours").symlink_to(theirs / "log")
        assert self.refused(tmp_path / "ours") == "another user may have made a link that leads there"
        assert (tmp_path / "victim").read_text(encoding="utf-8") == ""

    def test_a_file_in_a_directory_of_others_will_do(self, theirs: Path) -> None:
        open_log(theirs / "log").close()
        assert stat.S_IMODE((theirs / "log").stat().st_mode) == 0o600

    def test_links_of_our_own_are_followed(self, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "absolute").symlink_to(tmp_path / "real")
        (tmp_path / "relative").symlink_to("absolute")
        (tmp_path / "real/log").symlink_to("../real/./log.1")
        handler = open_log(tmp_path / "relative/log")
        handler.close()
        assert (tmp_path / "real/log.1").is_file()

    def test_a_circle_of_links_and_a_directory_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a").symlink_to("b")
        (tmp_path / "b").symlink_to("a")
        assert self.refused(tmp_path / "a") == os.strerror(40)
        assert self.refused(tmp_path) == "it is not a regular file"


class TestLog:
    def test_a_file_gets_a_line_with_the_time_for_each_message(self, fakes: Fakes, tmp_path: Path) -> None:
        log = tmp_path / "log"
        log.write_text("what was there\n", encoding="utf-8")
        fakes.add("a", {"secrets": {"value": {"x": {"k": secret()}}}, "fail": "fetch:x=StoreUnavailable"})
        point = tmp_path / "mnt"
        arguments = ("--resources-path", str(fakes.directory), "--log-file", str(log))
        with background(point, *arguments, env=fakes.env), pytest.raises(OSError, match="Input/output"):
            os.listdir(point / "a" / "x")  # noqa: PTH208
        first, *lines = log.read_text(encoding="utf-8").splitlines()
        assert first == "what was there"
        stamp = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (INFO|WARNING) \S")
        assert [line for line in lines if not stamp.match(line)] == []
        about = "store=a error=StoreUnavailable operation=fetch"
        assert any(line.endswith(f"WARNING a: the fake says so {about}") for line in lines)
        assert not leaked("\n".join(lines))

    def test_what_becomes_of_a_mount_is_in_it(self, components: Path, tmp_path: Path) -> None:
        point, log = tmp_path / "mnt", tmp_path / "log"
        arguments = ("--resources-path", components, "--log-file", log, "--app-id", "shop")
        with background(point, *arguments) as pid:
            assert read(point / "file/password") == secret("password")
            (tmp_path / "new.json").write_text(f'{{"password": "{secret("rotated")}"}}', encoding="utf-8")
            (tmp_path / "new.json").rename(tmp_path / "secrets.json")
            wait_until(lambda: "values changed" in log.read_text(encoding="utf-8"))
            assert secretfs("refresh", point, "file/password").status == 0
            assert secretfs("unmount", point).status == 0
        lines = [line.partition(" INFO ")[2] for line in log.read_text(encoding="utf-8").splitlines()]
        assert [line for line in lines if not line.startswith("serving")] == [
            f"mounted at {point}: app id shop, process {pid} mountpoint={point} worker={pid}",
            "file: values changed: 1 store=file values=1",
            "a refresh is asked for: file",
            f"unmounted {point} mountpoint={point}",
        ]

    def test_a_file_that_is_moved_away_is_followed_by_a_new_one(self, components: Path, tmp_path: Path) -> None:
        """As logrotate does it; and while no file can be made, what is read is still answered."""
        logs, point = tmp_path / "logs", tmp_path / "mnt"
        logs.mkdir()
        log = logs / "log"
        with background(point, "--resources-path", components, "--log-file", log, cwd=tmp_path):
            log.rename(logs / "log.1")
            component(components, "second", "local.env")
            wait_until(lambda: log.exists() and "INFO serving file, second" in log.read_text(encoding="utf-8"))
            assert stat.S_IMODE(log.stat().st_mode) == 0o600
            assert "serving" not in (logs / "log.1").read_text(encoding="utf-8")
            shutil.rmtree(logs)
            component(components, "third", "local.env")
            wait_until((point / "third").exists)
            assert (point / "file/password").read_text(encoding="utf-8") == secret("password")
            logs.mkdir()
            os.kill(supervisor(point), signal.SIGTERM)
            wait_for_end(point)
        assert "INFO ending after" in log.read_text(encoding="utf-8")

    def test_syslog_is_the_default(self) -> None:
        done = in_namespace("""
            mkdir m
            env_component
            bare_dev
            cat > listen.py <<-'END'
import socket
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
    log.bind("/dev/log")
    print("listening", flush=True)
    log.settimeout(20)
    print(log.recv(4096))
END
            mkfifo listening
            /mnt/python/bin/python listen.py > listening & listener=$!
            exec 3< listening
            read -r line <&3; echo "$line"
            secretfs mount --resources-path c m
            kill "$(pgrep -f 'secretfs[.]daemon[.]supervisor')"
            cat <&3
            wait $listener
        """)
        assert done.err == ""
        assert re.fullmatch(r"listening\nb'<30>secretfs\[\d+\]: INFO mounted at .*\\x00'\n", done.out), done.out

    @pytest.mark.parametrize("log", ["rm -f /dev/log", "mknod -m 666 /dev/log p", "/mnt/python/bin/python bind.py"])
    def test_without_a_syslog_it_says_so_and_logs_to_a_file_in_the_runtime_directory(self, log: str) -> None:
        done = in_namespace(
            f"""
            mkdir m
            env_component
            bare_dev
            echo 'import socket; socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).bind("/dev/log")' > bind.py
            {log}
            secretfs mount --resources-path c m && ls m && secretfs unmount m
            cat /run/secretfs/*; stat -c %a /run/secretfs /run/secretfs/*
        """,
            says_where_it_logs=True,
        )
        file = "/run/secretfs/%2Fmnt%2Fnobody%2Fm.log"
        assert done.lines == [f"WARNING there is no syslog at /dev/log: logging to {file}; --log-file names another"]
        said = r"env\n\S+ \S+ INFO mounted at /mnt/nobody/m.*\n(.*\n)*700\n600\n"
        assert (done.status, re.fullmatch(said, done.out) is not None) == (0, True), done.out

    def test_without_a_runtime_directory_either_it_says_so_and_mounts(self) -> None:
        done = in_namespace(
            """
            mkdir m
            env_component
            bare_dev
            as_nobody mkdir /mnt/nobody/n
            as_nobody secretfs mount --resources-path c n && as_nobody ls n && as_nobody secretfs unmount n
        """,
            says_where_it_logs=True,
        )
        assert done.lines == [
            "WARNING there is no syslog at /dev/log, and no runtime directory: nothing is logged; give --log-file"
        ]
        assert (done.status, done.out) == (0, "env\n")

    def test_a_file_in_the_runtime_directory_does_not_grow_for_ever(
        self, root: logging.Logger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(log_destinations, "LIMIT", 200)
        monkeypatch.setattr(log_destinations, "_SYSLOG", str(tmp_path / "none"))
        monkeypatch.setattr(log_destinations, "runtime_file", lambda _, suffix: tmp_path / f"run/m{suffix}")
        log_to(open_syslog(tmp_path / "m"))
        for number in range(20):
            root.info("line %02d of a log", number)
        assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["m.log", "m.log.1"]
        text = "".join((tmp_path / "run" / name).read_text(encoding="utf-8") for name in ("m.log.1", "m.log"))
        assert text.endswith("line 19 of a log\n")
        assert len(text) <= 2 * (200 + 60)

    def test_the_runtime_directory_may_go_before_the_first_line(
        self, root: logging.Logger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """The last file of another mount takes the directory along. A supervisor must not end of that."""
        monkeypatch.setattr(log_destinations, "_SYSLOG", str(tmp_path / "none"))
        monkeypatch.setattr(log_destinations, "runtime_file", lambda _, suffix: tmp_path / f"run/m{suffix}")
        log_to(open_syslog(tmp_path / "m"))
        (tmp_path / "run").rmdir()
        (tmp_path / "run").write_text("", encoding="ascii")
        root.info("there is no place for this one")
        (tmp_path / "run").unlink()
        root.info("the next one")
        (line,) = (tmp_path / "run/m.log").read_text(encoding="utf-8").splitlines()
        assert line.endswith("INFO the next one [lines lost before this one: 1]")
        assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text ├── grün", "plain text ├── grün"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x1b[2J\x07\x7f\x9b", r"\x1b[2J\x07\x7f\x9b"),
        ("\u202e\u2028\ud800", r"\u202e\u2028\ud800"),
    ],
)
def test_control_characters_are_shown_as_escapes(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_a_syslog_that_hangs_holds_up_nobody() -> None:
    done = in_namespace("""
        mkdir m
        env_component TOKEN_
        bare_dev
        cat > deaf.py <<-'END'
import socket, time
log = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
log.bind("/dev/log")
time.sleep(60)
END
        /mnt/python/bin/python deaf.py & deaf=$!
        until [ -S /dev/log ]; do :; done
        TOKEN_A=value secretfs mount --resources-path c m
        for i in $(seq $(($(cat /proc/sys/net/unix/max_dgram_qlen) + 5))); do
            pkill -HUP -f 'secretfs[.]daemon[.]supervisor'
            timeout 5 cat m/env/A > /dev/null || echo "hangs"
            sleep 0.05
        done
        pkill -KILL -n secretfs:
        timeout 10 cat m/env/A; echo
        secretfs unmount m; kill $deaf
    """)
    assert (done.status, done.out, done.err) == (0, "value\n", "")


class Lines(logging.StreamHandler[io.StringIO]):
    """What is logged, as a handler writes it."""

    def __init__(self, *, as_json: bool) -> None:
        super().__init__(io.StringIO())
        self.setFormatter(line_format(as_json=as_json))


CONTEXTS = [
    ({"store": "vault"}, "store=vault"),
    ({"store": "my vault", "app": "shop"}, 'store="my vault" app=shop'),
    ({"store": 'a"b\\', "values": 3}, r'store="a\"b\\" values=3'),
    ({"store": "", "app": "x=y"}, 'store="" app="x=y"'),
    ({"store": "a\nERROR forged"}, r'store="a\nERROR forged"'),
    ({"secret": "name"}, ""),
    ({}, ""),
]


@pytest.mark.parametrize(("context", "text"), CONTEXTS)
def test_a_line_ends_with_what_it_is_about(root: logging.Logger, context: dict[str, object], text: str) -> None:
    lines = Lines(as_json=False)
    log_to(lines)
    root.warning("it %s", "failed", extra=context)
    assert lines.stream.getvalue() == f"WARNING it failed {text}".rstrip() + "\n"


@pytest.mark.parametrize(("context", "text"), CONTEXTS)
def test_a_line_of_json_has_the_same_in_it(root: logging.Logger, context: dict[str, object], text: str) -> None:
    lines = Lines(as_json=True)
    log_to(lines)
    root.warning("it %s\nbadly", "failed", extra=context)
    (line,) = lines.stream.getvalue().splitlines()
    said = json.loads(line)
    assert datetime.fromisoformat(said.pop("time")).tzinfo is not None
    expected = {"level": "WARNING", "logger": "root", "pid": os.getpid(), "message": "it failed\nbadly"}
    assert said == expected | (context if text else {})


def test_a_traceback_is_in_its_line_of_json(root: logging.Logger, tmp_path: Path) -> None:
    log_to(open_log(tmp_path / "log", as_json=True))
    log_in_thread()
    try:
        int("no number")
    except ValueError:
        root.exception("it failed")
    log_to(logging.NullHandler())  # waits for the thread
    (line,) = (tmp_path / "log").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["traceback"].endswith("ValueError: invalid literal for int() with base 10: 'no number'")


@pytest.mark.parametrize("foreground", [True, False])
def test_a_mount_that_logs_json(components: Path, tmp_path: Path, *, foreground: bool) -> None:
    """Every line of the worker and of the supervisor is an object."""
    log, point = tmp_path / "log", tmp_path / "mnt"
    point.mkdir()
    place = ["-f"] if foreground else ["--log-file", str(log)]
    with log.open("ab") as stderr:
        command = [*SECRETFS, "mount", *place, "--log-format=json", "--resources-path", str(components), str(point)]
        process = subprocess.Popen(command, env=environment(), stdin=subprocess.DEVNULL, stderr=stderr)
    try:
        wait_until(lambda: "mounted at" in log.read_text(encoding="utf-8"))
        if not foreground:
            assert process.wait(PATIENCE) == 0
        (worker,) = daemons(point)
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: "took over the mount" in log.read_text(encoding="utf-8"))
        if foreground:
            process.terminate()
        process.wait(PATIENCE)
    finally:
        process.terminate()
        process.wait(PATIENCE)
        end_daemons(point)
    said = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    (mounted,) = [line for line in said if line["message"].startswith("mounted at")]
    assert (mounted["level"], mounted["mountpoint"], mounted["worker"]) == ("INFO", str(point), worker)
    (ended,) = [line for line in said if "another takes over" in line["message"]]
    assert (ended["logger"], ended["worker"]) == ("__main__", worker)
