"""`secretfs status` as people see it: of one mount, and of all."""

from copy import deepcopy
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from secretfs.cli import status
from secretfs.cli.status import Health, StatusReport, show, show_all
from secretfs.errors import MountError
from tests.support.command import in_namespace

NOW = 1_800_000_000.0


def moment(seconds: float) -> str:
    return datetime.fromtimestamp(NOW + seconds, UTC).isoformat(timespec="seconds")


WELL: dict[str, Any] = {
    "type": "secretstores.local.env",
    "state": "ok",
    "last_success": moment(-30),
    "last_error": None,
    "names": 12,
    "cached_values": 3,
    "stale_values": 0,
    "breaker": {"open": False, "next_try": None},
    "calls": {"check": {"made": 1, "failed": 0}, "names": {"made": 2, "failed": 0}, "fetch": {"made": 30, "failed": 0}},
}
DOWN = deepcopy(WELL) | {
    "state": "down",
    "last_success": moment(-7300),
    "last_error": {"at": moment(-5), "class": "StoreUnavailable", "message": "connection refused"},
    "stale_values": 2,
    "breaker": {"open": True, "next_try": moment(20)},
}
MOUNT = {
    "version": "1.2",
    "app_id": "shop",
    "pid": 42,
    "started": moment(-90000),
    "inodes": 7,
    "takeovers": 2,
}


FILES: dict[str, Any] = {
    "files": {
        "declared": 5,
        "rendered": 1,
        "failing": 1,
        "last_error": None,
        "known": {
            "sub/a": {"rendered": moment(-5), "error": None},
            "z": {
                "rendered": None,
                "error": {
                    "at": moment(-12),
                    "class": "PartMissing",
                    "message": "a secret that a file asks for is not there, or hidden",
                },
            },
        },
    },
    "tls": {
        "declared": 1,
        "rendered": 1,
        "failing": 0,
        "last_error": None,
        "known": {"site": {"rendered": moment(-90), "error": None}},
    },
}


def shown(**stores: dict[str, Any]) -> StatusReport:
    return show({"mount": MOUNT, "stores": stores}, Path("/mnt/secrets"), NOW)


class TestShow:
    def test_all_is_well(self) -> None:
        numbers = "7 inodes, taken over 2 times"
        told = shown(env=WELL)
        assert told.exit_code == 0
        assert [line.text for line in told.lines] == [
            "STORE  STATE  NAMES  CACHED  STALE  CALLS  FAILED  SUCCESS  ERROR",
            "env    ok        12       3      0     33       0  30s ago  -",
            "",
            f"/mnt/secrets: secretfs 1.2, app id shop, process 42, since {MOUNT['started']}, {numbers}",
        ]
        assert not any(line.severity for line in told.lines)

    @pytest.mark.parametrize(
        ("by", "who"), [("kernel", "the kernel"), ("secretfs", "this daemon, by two messages each")]
    )
    def test_who_answers_warm_reads(self, by: str, who: str) -> None:
        mount = {**MOUNT, "warm_reads": {"answered_by": by, "reason": "it is so"}}
        told = show({"mount": mount, "stores": {"env": WELL}}, Path("/mnt/secrets"), NOW)
        assert told.lines[-2].text == f"warm reads are answered by {who}: it is so"

    def test_what_is_wrong_comes_first(self) -> None:
        told = shown(env=WELL, vault=DOWN)
        assert told.exit_code == 1
        assert [line.text for line in told.lines][:6] == [
            "vault is down: StoreUnavailable, 5s ago: connection refused",
            "vault serves 2 of 3 values although they have expired",
            "vault is tried again in 20s; at once with secretfs refresh",
            "",
            "STORE  STATE  NAMES  CACHED  STALE  CALLS  FAILED  SUCCESS   ERROR",
            "vault  down      12       3      2     33       0  2h1m ago  5s ago",
        ]
        assert [line.severity for line in told.lines] == [2, 2, 2, 0, 0, 2, 0, 0, 0]

    @pytest.mark.parametrize("change", [{"state": "in doubt"}, {"state": "refused"}, {"stale_values": 1}])
    def test_what_is_in_doubt_is_no_success(self, change: dict[str, Any]) -> None:
        told = shown(env=WELL | change)
        assert (told.exit_code, told.lines[0].severity) == (1, 1)

    def test_a_store_nobody_has_asked(self) -> None:
        assert "never" in shown(env=WELL | {"last_success": None}).lines[1].text

    @pytest.mark.parametrize(
        ("seconds", "text"), [(59, "59s"), (90, "1m30s"), (7265, "2h1m"), (90000, "25h"), (-1, "0s")]
    )
    def test_an_age_is_the_rougher_the_longer_it_is(self, seconds: float, text: str) -> None:
        assert f" {text} ago" in shown(env=WELL | {"last_success": moment(-seconds)}).lines[1].text

    def test_apps_that_wait_have_a_line_the_worst_first(self) -> None:
        apps = {"idle": (0, 4), "orders": (3, 1), "billing": (90, 2)}
        calls = {"apps": {app: {"waiting": waiting, "running": running} for app, (waiting, running) in apps.items()}}
        told = show({"mount": MOUNT, "stores": {"env": WELL}, "calls": calls}, Path("/mnt/secrets"), NOW)
        assert [line.text for line in told.lines[2:-1]] == [
            "",
            "app billing: 90 calls wait for their turn, 2 run",
            "app orders: 3 calls wait for their turn, 1 run",
            "",
        ]
        assert told.exit_code == 0

    def test_rendered_files_have_lines_those_that_fail_first(self) -> None:
        told = show({"mount": MOUNT, "stores": {"env": WELL}, "files": FILES}, Path("/mnt/secrets"), NOW)
        assert told.exit_code == 1
        assert [line.text for line in told.lines[:-2]] == [
            "files/z cannot be rendered: PartMissing, 12s ago: a secret that a file asks for is not there, or hidden",
            "",
            "STORE  STATE  NAMES  CACHED  STALE  CALLS  FAILED  SUCCESS  ERROR",
            "env    ok        12       3      0     33       0  30s ago  -",
            "",
            "FILE         STATE    RENDERED   ERROR",
            "files/z      failing  never      12s ago",
            "files/sub/a  ok       5s ago     -",
            "tls/site     ok       1m30s ago  -",
            "rendered files that nobody has read lately: 3",
        ]
        assert [line.severity for line in told.lines[:-2]] == [1, 0, 0, 0, 0, 0, 1, 0, 0, 0]

    def test_of_many_rendered_files_there_are_some(self) -> None:
        error = {"at": moment(-1), "class": "PartMissing", "message": "it is so"}
        known: dict[str, Any] = {
            f"f{number:02}": {"rendered": moment(-5), "error": error} for number in range(status.MOST_FILES)
        }
        known |= {f"g{number}": {"rendered": moment(-5), "error": None} for number in range(3)}
        files = {"files": {"declared": len(known), "rendered": 3, "failing": 20, "last_error": None, "known": known}}
        told = show({"mount": MOUNT, "stores": {"env": WELL}, "files": files}, Path("/mnt/secrets"), NOW)
        texts = [line.text for line in told.lines]
        assert (
            sum(" failing " in text for text in texts) == sum(" cannot be " in text for text in texts) == len(known) - 3
        )
        assert "3 more rendered files, 0 of them failing: secretfs status --json" in texts

    def test_a_status_without_rendered_files_says_nothing_of_them(self) -> None:
        told = show({"mount": MOUNT, "stores": {"env": WELL}, "files": {}}, Path("/mnt/secrets"), NOW)
        assert not any("FILE" in line.text or "rendered" in line.text for line in told.lines)

    def test_a_table_of_names_of_ten_characters_fits_a_terminal(self) -> None:
        assert len(shown(store_name=WELL | {"state": "in doubt"}).lines[3].text) <= 80


class TestShowAll:
    def test_what_is_wrong_comes_first(self) -> None:
        dead = MountError("the secretfs at /mnt/dead was killed", "mount again")
        report = show_all(
            [
                Health(Path("/mnt/dead"), error=dead),
                Health(Path("/mnt/doubt"), {"mount": MOUNT, "stores": {"a": WELL, "b": WELL | {"stale_values": 1}}}),
                Health(Path("/mnt/well"), {"mount": MOUNT | {"app_id": ""}, "stores": {"a": WELL}}),
            ]
        )
        assert [line.text for line in report.lines] == [
            "the secretfs at /mnt/dead was killed; mount again",
            "",
            "MOUNT POINT  STATE      APP ID  STORES  NOT WELL",
            "/mnt/dead    no answer  -            -  -",
            "/mnt/doubt   in doubt   shop         2  b",
            "/mnt/well    ok         -            1  -",
        ]
        assert [line.severity for line in report.lines] == [2, 0, 0, 2, 1, 0]
        assert report.exit_code == 3

    def test_directories_of_files_that_fail_are_not_well(self) -> None:
        report = show_all([Health(Path("/m"), {"mount": MOUNT, "stores": {"a": WELL}, "files": FILES})])
        assert report.lines[-1].text.split() == ["/m", "in", "doubt", "shop", "1", "files"]
        assert report.exit_code == 1

    @pytest.mark.parametrize(("store", "code"), [(WELL, 0), (DOWN, 1)])
    def test_the_worst_decides(self, store: dict[str, Any], code: int) -> None:
        mounts = [Health(Path("/m"), {"mount": MOUNT, "stores": {"a": one}}) for one in (WELL, store)]
        assert show_all(mounts).exit_code == code

    @pytest.mark.parametrize(
        "answer",
        [b"", b"\xff", b"[]", b"{}", b'{"stores": 1}', b'{"stores": {"a": {}}}', b'{"stores": {}, "files": {"a": 1}}'],
    )
    def test_an_answer_that_is_no_status(self, answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
        """A program of any user may call itself secretfs: it must not keep root from seeing the other mounts."""
        monkeypatch.setattr(status, "read_status", lambda _: answer)
        report = show_all(status.fetch_all([Path("/m")]))
        assert report.lines[0].text == "what /m answers is not a status that we can read"
        assert report.exit_code == 3

    def test_none_is_no_error(self) -> None:
        assert ([line.text for line in show_all([]).lines], show_all([]).exit_code) == (["no secretfs is mounted"], 0)


@pytest.mark.mount
class TestStatusOfAll:
    def test_a_user_sees_his_own_mounts_and_root_sees_all(self) -> None:
        done = in_namespace("""
            grep -F ' fuse.secretfs ' /proc/self/mountinfo | cut -d' ' -f5 | xargs --no-run-if-empty umount --lazy
            env_component SFS_
            mkdir m; as_nobody mkdir a b
            secretfs mount --resources-path c m
            as_nobody secretfs mount --resources-path c --app-id shop a
            as_nobody secretfs mount --resources-path c b
            as_nobody secretfs status
            pkill -KILL -n -f 'secretfs[.]daemon[.]supervisor .*/b '; pkill -KILL -n -u 65534 secretfs:
            as_nobody secretfs status || echo "status $?"
            secretfs status --json > all.json || echo "status $?"
            jq -c '.[] | select(.mountpoint[:5] == "/mnt/") | [.mountpoint, .status.mount.app_id, .error]' all.json
            secretfs status a | tail -1
            secretfs unmount m; as_nobody secretfs unmount a; as_nobody secretfs unmount b
            as_nobody secretfs status
        """)
        dead = "the secretfs at /mnt/nobody/b was killed; mount again: secretfs mount ... /mnt/nobody/b"
        assert done.err == ""
        assert done.out.splitlines()[:-2] == [
            "MOUNT POINT    STATE  APP ID  STORES  NOT WELL",
            "/mnt/nobody/a  ok     shop         1  -",
            "/mnt/nobody/b  ok     -            1  -",
            dead,
            "",
            "MOUNT POINT    STATE      APP ID  STORES  NOT WELL",
            "/mnt/nobody/a  ok         shop         1  -",
            "/mnt/nobody/b  no answer  -            -  -",
            "status 3",
            "status 3",
            '["/mnt/nobody/a","shop",null]',
            f'["/mnt/nobody/b",null,"{dead}"]',
            '["/mnt/nobody/m","",null]',
        ]
        assert done.out.splitlines()[-2].startswith("/mnt/nobody/a: secretfs ")
        assert done.out.splitlines()[-1] == "no secretfs is mounted"

    def test_root_reads_the_status_of_others_with_nothing_of_its_own(self) -> None:
        """The user may trace the process that reads for root: it has no terminal, and is in a session of its own."""
        done = in_namespace("""
            env_component SFS_
            as_nobody mkdir a
            as_nobody secretfs mount --resources-path c --app-id shop a
            head=$(readlink -f "$(command -v head)")
            cp "$head" head
            cat > spy <<-'END'
#!/bin/sh
( id -u; readlink /proc/$$/fd/0; tr '\\0' '\\n' < /proc/$$/environ | cut -d= -f1 | sort | tr '\\n' ' '; echo
  read -r stat < /proc/$$/stat; set -- $stat; test "$6" = "$1" && echo 'a session of its own' ) > seen
exec ./head "$@"
END
            chmod 755 spy head
            as_nobody touch seen
            mount --bind spy "$head"
            secretfs status a > status
            umount "$head"
            grep -c 'app id shop' status
            cat seen
            as_nobody secretfs unmount a
        """)
        assert done.err == ""
        assert done.out.splitlines() == ["1", "65534", "/dev/null", "LC_ALL PATH ", "a session of its own"]
