"""`secretfs top` and `secretfs status --watch`: on a terminal, into a pipe, and when the daemon is gone."""

import json
import os
import select
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from secretfs.cli.top import Rates
from tests.support.canary import secret
from tests.support.command import SECRETFS, Done, environment, secretfs
from tests.support.manifests import component
from tests.support.mounted import Mounted, mounted
from tests.support.terminal import on_terminal
from tests.support.waiting import PATIENCE

STORE = "a-store-with-a-name-that-is-long"


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mounted]:
    component(tmp_path / "components", "env", "local.env", {"prefix": "SFS_"})
    component(tmp_path / "components", STORE, "local.env", {"prefix": "OTHER_"})
    with mounted(tmp_path / "components", env={"SFS_A": secret("a")}) as mount:
        assert (mount.path / "env/A").read_text() == secret("a")
        yield mount


@pytest.mark.mount
class TestTop:
    def test_into_a_pipe_it_is_printed_once(self, mount: Mounted) -> None:
        done = secretfs("top", mount.path, env={"COLUMNS": "80"})
        assert (done.status, done.err) == (0, "")
        first, second, header, *rows = done.out.splitlines()
        assert first == str(mount.path)
        assert second.startswith("up ")
        assert header.split() == [
            *("STORE", "STATE", "VALUES", "STALE", "HIT/s", "COLD/s", "WAIT", "CALL/s", "FAILED", "ROTATED", "LAST"),
        ]
        assert max(map(len, (header, *rows))) <= 80
        assert [row.split() for row in rows if row.startswith("env ")] == [
            ["env", "ok", "1", "0", "-", "-", "0", "-", "0", "0", "-"]
        ]
        assert "\x1b" not in done.out

    def test_on_a_terminal_until_q(self, mount: Mounted) -> None:
        with on_terminal("top", f"{mount.path}/") as terminal:
            terminal.shows("HIT/s")
            terminal.shows("HIT/s")  # it is drawn again
            terminal.press("xq")
            assert terminal.ends() == 0

    def test_control_c_ends_it(self, mount: Mounted) -> None:
        with on_terminal("top", f"{mount.path}/") as terminal:
            terminal.shows("HIT/s")
            terminal.press("\x03")
            assert terminal.ends() == 0
            assert "Traceback" not in terminal.text

    def test_no_colour(self, mount: Mounted) -> None:
        with on_terminal("top", f"{mount.path}/", env={"NO_COLOR": "1"}) as terminal:
            terminal.shows("HIT/s")
            terminal.press("q")
            assert terminal.ends() == 0
            assert "\x1b[3" not in terminal.raw

    def test_a_daemon_that_dies_is_shown(self, mount: Mounted) -> None:
        with on_terminal("top", f"{mount.path}/", columns=200) as terminal:
            terminal.shows("HIT/s")
            mount.kill()
            terminal.shows("was killed")
            terminal.press("q")
            assert terminal.ends() == 0
            assert "Traceback" not in terminal.text

    def test_without_a_mount_it_fails_as_status_does(self, tmp_path: Path) -> None:
        expected = Done(3, "", f"secretfs: {tmp_path} has no secretfs mounted\n")
        assert secretfs("top", tmp_path) == secretfs("status", tmp_path) == expected

    def test_without_a_mount_point(self, mount: Mounted) -> None:
        done = secretfs("top")
        assert done.status == 0
        assert str(mount.path) in done.out


@pytest.mark.mount
class TestWatch:
    def test_on_a_terminal_until_control_c(self, mount: Mounted) -> None:
        with on_terminal("status", "--watch", f"{mount.path}/", columns=200) as terminal:
            terminal.shows("STORE")
            terminal.shows("STORE")
            mount.kill()
            terminal.shows("was killed")
            terminal.press("\x03")
            assert terminal.ends() == 3
            assert "Traceback" not in terminal.text

    def test_json_is_a_line_each_time(self, mount: Mounted) -> None:
        command = [*SECRETFS, "status", "--watch", "--json", str(mount.path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as process:
            assert process.stdout
            told = [json.loads(process.stdout.readline()) for _ in range(2)]
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE) == 0
        assert [one["mount"]["pid"] for one in told] == [mount.worker] * 2

    def test_who_reads_it_may_go_away(self, mount: Mounted) -> None:
        reader, writer = os.pipe()
        process = subprocess.Popen([*SECRETFS, "status", "--watch", str(mount.path)], stdout=writer, env=environment())
        os.close(writer)
        assert select.select([reader], [], [], PATIENCE)[0]
        os.close(reader)
        assert process.wait(PATIENCE) != 0


def test_rates() -> None:
    rates = Rates()
    counter = ("/mnt", "vault", "hits")
    assert rates.per_second(counter, 100, 10.0) == "-"
    assert rates.per_second(counter, 105, 12.0) == "2.5"
    assert rates.per_second(counter, 105, 13.0) == "0"
    assert rates.per_second(counter, 1105, 14.0) == "1000"
    assert rates.per_second(counter, 3, 15.0) == "-"  # another worker began to count
    assert rates.per_second(("/mnt", "other", "hits"), 7, 15.0) == "-"
