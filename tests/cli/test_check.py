"""``secretfs check``: the tree an app would see, by name alone, what is wrong, and the exit code that sums it up."""

import os
import pty
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from secretfs.cache.freshness import Freshness
from secretfs.cli.check import Report, examine
from secretfs.dapr.declaration import load
from tests.conftest import ExpectLog
from tests.support import fake_type
from tests.support.canary import leaked, secret
from tests.support.command import SECRETFS, environment, secretfs
from tests.support.fake_type import Fakes, reference
from tests.support.manifests import component, configuration, scope
from tests.support.vault_fixtures import Folder, kv, openbao_server

__all__ = ["kv", "openbao_server"]

IGNORED = {"ignoreErrors": True}


@pytest.fixture
def fakes(tmp_path: Path) -> Iterator[Fakes]:
    with fake_type.installed(tmp_path / "site") as site:
        yield Fakes(tmp_path / "components", site, {"PYTHONPATH": str(site)})


def checked(
    fakes: Fakes, *, connect: bool, app_id: str = "", config: tuple[Path, ...] = (), steps: list[None] | None = None
) -> Report:
    declaration = load([fakes.directory], config, app_id, {})
    taken: list[None] = [] if steps is None else steps
    work = examine(declaration, Freshness(), connect=connect, step=lambda: taken.append(None))

    async def run() -> Report:
        return await work

    report = trio.run(run)
    assert not leaked("\n".join(report.tree))
    return report


def told(report: Report, fakes: Fakes) -> list[str]:
    return [str(one).replace(f"{fakes.directory}/", "") for one in (*report.notices, *report.failures)]


def stored(*names: str) -> dict[str, object]:
    return {"value": {name: {"user": secret("u"), "pass/word": secret("p")} for name in names}}


class TestTree:
    def test_as_tree_draws_it(self, fakes: Fakes, tmp_path: Path) -> None:
        (tmp_path / "s.json").write_text(
            f'{{"db": {{"password": "{secret()}", "user": "{secret()}"}}, "top": "{secret()}"}}', encoding="utf-8"
        )
        fakes.add("multi", {"secrets": stored("team/db", "team/cache", "zoo", "app")})
        fakes.add("flat", {"secretsFile": tmp_path / "s.json", "nestedSeparator": "/"}, type="local.file")
        fakes.add("empty", {"secrets": {"value": {}}})
        report = checked(fakes, connect=True)
        assert report.tree == [
            "/",
            "├── empty/",
            "├── flat/",
            "│   ├── db/",
            "│   │   ├── password",
            "│   │   └── user",
            "│   └── top",
            "└── multi/",
            "    ├── app/",
            "    ├── team/",
            "    │   ├── cache/",
            "    │   └── db/",
            "    └── zoo/",
        ]
        assert (told(report, fakes), report.exit_code(strict=False)) == (["empty.yaml:1: empty is empty"], 1)

    def test_without_connecting_the_stores_alone(self, fakes: Fakes) -> None:
        fakes.add("b", {"secrets": stored("x")})
        fakes.add("a", {"fail": "check=StoreUnavailable"})
        report = checked(fakes, connect=False)
        assert report.tree == ["/", "├── a/", "└── b/"]
        assert report.exit_code(strict=True) == 0
        assert "check a" not in fake_type.events

    def test_what_the_scope_hides_is_not_shown(self, fakes: Fakes, tmp_path: Path) -> None:
        fakes.add("a", {"secrets": stored("hidden/one", "shown/one", "shown/two")})
        config = configuration(tmp_path, scope("a", default="deny", allowed=["shown/one"]))
        report = checked(fakes, connect=True, config=(config,))
        assert report.tree == ["/", "└── a/", "    └── shown/", "        └── one/"]

    def test_a_store_out_of_scope_is_not_shown_nor_opened(self, fakes: Fakes) -> None:
        fakes.add("a", {"secrets": stored("x")}, scopes=("other",))
        fakes.add("b", {"multiValued": "no", "secrets": stored("x")})
        assert checked(fakes, connect=True, app_id="shop").tree == ["/", "└── b/", "    └── x"]
        assert "open a" not in fake_type.events

    def test_every_store_opened_is_closed(self, fakes: Fakes) -> None:
        fakes.add("a", {"secrets": stored("x")})
        fakes.add("b", {"fail": "check=AccessDenied"})
        for connect in (True, False):
            fake_type.events.clear()
            checked(fakes, connect=connect)
            assert sorted(event for event in fake_type.events if event.startswith("close")) == ["close a", "close b"]


class TestUnlistable:
    def test_a_store_that_may_not_be_listed(self, fakes: Fakes, expect_log: ExpectLog) -> None:
        expect_log("a: the fake says so")
        fakes.add("a", {"secrets": stored("x"), "fail": "names:=AccessDenied"})
        fakes.add("b", {"secrets": stored("z")})
        report = checked(fakes, connect=True)
        assert report.tree == ["/", "├── a/", "└── b/", "    └── z/"]
        assert told(report, fakes) == [
            "a.yaml:1: the names in a may not be listed; a secret can still be read by its name"
        ]
        assert (report.exit_code(strict=False), report.exit_code(strict=True)) == (1, 2)

    def test_a_folder_that_may_not_be_listed_hides_nothing_else(self, fakes: Fakes, expect_log: ExpectLog) -> None:
        expect_log("a: the fake says so")
        fakes.add(
            "a", {"secrets": stored("mine/x", "theirs/w", "z"), "folders": "yes", "fail": "names:theirs=AccessDenied"}
        )
        report = checked(fakes, connect=True)
        assert report.tree == ["/", "└── a/", "    ├── mine/", "    │   └── x/", "    ├── theirs/", "    └── z/"]
        assert told(report, fakes) == [
            "a.yaml:1: the names in a/theirs may not be listed; a secret can still be read by its name"
        ]


class TestTrouble:
    def test_a_store_that_cannot_be_listed_fails(self, fakes: Fakes, expect_log: ExpectLog) -> None:
        expect_log("a: the fake says so")
        fakes.add("a", {"fail": "names:=StoreUnavailable"})
        report = checked(fakes, connect=True)
        assert told(report, fakes) == ["a.yaml:1: component a: the fake says so"]
        assert report.exit_code(strict=False) == 4

    @pytest.mark.parametrize(
        ("fails", "ignored", "codes"),
        [
            ("check=StoreUnavailable", False, (4, 4)),
            ("check=AccessDenied", False, (4, 4)),
            ("open=ConfigurationError", False, (2, 2)),
            ("check=StoreUnavailable", True, (1, 2)),
            ("open=ConfigurationError", True, (1, 2)),
            ("", False, (0, 0)),
        ],
    )
    def test_exit_codes(self, fakes: Fakes, fails: str, codes: tuple[int, int], *, ignored: bool) -> None:
        fakes.add("a", {"fail": fails, "secrets": stored("x")}, spec={"ignoreErrors": ignored})
        fakes.add("b", {"secrets": stored("x")})
        report = checked(fakes, connect=True)
        assert (report.exit_code(strict=False), report.exit_code(strict=True)) == codes

    def test_a_warning_is_an_error_when_strict(self, fakes: Fakes) -> None:
        fakes.add("a", {"tokn": "x", "secrets": stored("x")})
        for connect in (True, False):
            report = checked(fakes, connect=connect)
            assert told(report, fakes) == ["a.yaml:9: unknown property tokn is ignored (did you mean token?)"]
            assert (report.exit_code(strict=False), report.exit_code(strict=True)) == (1, 2)

    def test_broken_references_are_found_without_connecting(self, fakes: Fakes) -> None:
        fakes.add("a", {"token": reference("x")}, secret_store="b")
        fakes.add("b", {"token": reference("x")}, secret_store="a")
        fakes.add("c", {"token": reference("x"), "tokn": "x"}, secret_store="d")
        report = checked(fakes, connect=False)
        assert [line.split(" (component")[0] for line in told(report, fakes)] == [
            "c.yaml:12: unknown property tokn is ignored (did you mean token?)",
            "a.yaml:1: a -> b -> a: these stores wait for each other's secrets",
            "b.yaml:1: b -> a -> b: these stores wait for each other's secrets",
            "c.yaml:1: c -> d: there is no secret store d for this app id to take a secret from",
        ]
        assert report.exit_code(strict=False) == 2

    @pytest.mark.parametrize("connect", [True, False])
    def test_a_bad_annotation_is_found(self, fakes: Fakes, *, connect: bool) -> None:
        fakes.add("a", annotations={"secretfs/ttl": "never"})
        assert told(checked(fakes, connect=connect), fakes) == [
            "a.yaml:6: secretfs/ttl: not a duration such as 30s, 5m or 1h30m (component a)"
        ]

    @pytest.mark.parametrize("connect", [True, False])
    @pytest.mark.parametrize("exception", ["ValueError", "SystemExit"])
    def test_a_defect_in_one_store_keeps_nothing_from_the_others(
        self, fakes: Fakes, expect_log: ExpectLog, exception: str, *, connect: bool
    ) -> None:
        expect_log("a defect in secretfs or in a store")
        fakes.add("a", {"fail": f"open={exception}"})
        fakes.add("b", {"secrets": stored("x")})
        report = checked(fakes, connect=connect)
        assert told(report, fakes) == [f"a.yaml:1: component a: unexpected {exception}; the log has the place"]
        assert report.tree[-1].strip() == ("└── x/" if connect else "└── b/")


@pytest.mark.parametrize("connect", [True, False])
def test_two_steps_for_each_component_whatever_becomes_of_it(
    fakes: Fakes, expect_log: ExpectLog, *, connect: bool
) -> None:
    if connect:
        expect_log("unlistable: the fake says so")
    fakes.add("broken", {"token": reference("x")}, secret_store="missing")
    fakes.add("failing", {"fail": "check=AccessDenied"})
    fakes.add("good")
    fakes.add("unlistable", {"fail": "names:=AccessDenied"})
    steps: list[None] = []
    checked(fakes, connect=connect, steps=steps)
    assert len(steps) == 8


class TestCommand:
    def test_prints_the_tree_and_what_is_wrong_apart(self, fakes: Fakes) -> None:
        fakes.add("a", {"secrets": stored("x")})
        fakes.add("b", {"fail": "check=StoreUnavailable"}, spec=IGNORED)
        fakes.add("c", {"fail": "check=StoreUnavailable"})
        done = secretfs("check", "--connect", "--resources-path", fakes.directory, env=fakes.env)
        assert done.status == 4
        unread = "  (cannot be read, see below)"
        assert done.out.splitlines() == ["/", "├── a/", "│   └── x/", f"├── b/{unread}", f"└── c/{unread}"]
        assert done.lines == [
            f"warning: {fakes.directory}/b.yaml:1: component b: the fake says so (ignoreErrors)",
            f"error: {fakes.directory}/c.yaml:1: component c: the fake says so",
        ]

    def test_control_characters_in_names_are_escaped(self, fakes: Fakes) -> None:
        fakes.add("a", {"secrets": {"value": {"bell\a\x1b[2J\nline\u202e": {"k": secret()}, "grün": {"k": secret()}}}})
        done = secretfs("check", "--connect", "--resources-path", fakes.directory, env=fakes.env)
        assert done.out.splitlines() == ["/", "└── a/", r"    ├── bell\x07\x1b[2J\nline\u202e/", "    └── grün/"]

    @pytest.mark.parametrize(("flags", "status"), [([], 1), (["--strict"], 2), (["--strict", "--connect"], 2)])
    def test_strict(self, fakes: Fakes, flags: list[str], status: int) -> None:
        fakes.add("a", {"tokn": "x"})
        assert secretfs("check", *flags, "--resources-path", fakes.directory, env=fakes.env).status == status

    def test_progress_is_shown_on_a_terminal_and_taken_back(self, fakes: Fakes) -> None:
        fakes.add("a", {"secrets": stored("x")})
        command = [*SECRETFS, "check", "--connect", "--resources-path", str(fakes.directory)]
        assert secretfs(*command[3:], env=fakes.env).err == ""
        ours, terminal = pty.openpty()
        with os.fdopen(ours, "rb", buffering=0) as screen:
            done = subprocess.run(
                command,
                env=environment(fakes.env),
                stdin=terminal,
                stdout=subprocess.PIPE,
                stderr=terminal,
                check=False,
            )
            os.close(terminal)
            shown = _until_hung_up(screen.fileno()).decode()
        assert (done.returncode, done.stdout.decode().splitlines()) == (0, ["/", "└── a/", "    └── x/"])
        assert shown.startswith("\rconnecting to the stores: 0 %\r")
        assert shown.endswith("\rconnecting to the stores: 100 %\r\x1b[K")

    def test_without_connecting_there_is_no_progress(self, fakes: Fakes) -> None:
        fakes.add("a")
        ours, terminal = pty.openpty()
        with os.fdopen(ours, "rb", buffering=0) as screen:
            subprocess.run(
                [*SECRETFS, "check", "--resources-path", str(fakes.directory)],
                env=environment(fakes.env), stdout=subprocess.PIPE, stderr=terminal, check=True,
            )  # fmt: skip
            os.close(terminal)
            assert _until_hung_up(screen.fileno()) == b""


def _until_hung_up(terminal: int) -> bytes:
    """Read what was written to a terminal; at its end the kernel says EIO."""
    shown = b""
    try:
        while read := os.read(terminal, 4096):
            shown += read
    except OSError:
        pass
    return shown


class TestVault:
    """Against a real server."""

    def test_the_tree_of_a_vault(self, fakes: Fakes, kv: Folder) -> None:
        kv.put("db/creds", {"username": secret("u"), "password": secret("p")})
        kv.put("db/tls", {"key": secret()})
        kv.put("plain", {"value": secret()})
        kv.put("deep/er/still", {"value": secret()})
        fakes.add("vault", kv.metadata(), type="hashicorp.vault")
        done = secretfs("check", "--strict", "--connect", "--resources-path", fakes.directory)
        assert (done.status, done.err) == (0, "")
        assert done.out == (
            "/\n"
            "└── vault/\n"
            "    ├── db/\n"
            "    │   ├── creds/\n"
            "    │   └── tls/\n"
            "    ├── deep/\n"
            "    │   └── er/\n"
            "    │       └── still/\n"
            "    └── plain/\n"
        )
        assert [path for operation, path in kv.requests() if operation == "read" and path.startswith("data/")] == []

    def test_a_token_that_may_read_and_not_list(self, fakes: Fakes, kv: Folder) -> None:
        kv.put("db", {"k": secret()})
        token = kv.server.limited_token(**{f"secret/data/{kv.prefix}/*": "read"})
        fakes.add("vault", kv.metadata(vaultToken=token), type="hashicorp.vault")
        done = secretfs("check", "--connect", "--resources-path", fakes.directory)
        assert (done.status, done.out.splitlines()) == (1, ["/", "└── vault/"])
        assert "the names in vault may not be listed; a secret can still be read by its name" in done.err

    def test_a_bad_token(self, fakes: Fakes, kv: Folder) -> None:
        fakes.add("vault", kv.metadata(vaultToken="wrong"), type="hashicorp.vault")
        assert secretfs("check", "--strict", "--resources-path", fakes.directory).status == 0
        done = secretfs("check", "--connect", "--resources-path", fakes.directory)
        assert done.status == 4
        assert f"error: {fakes.directory}/vault.yaml:1: component vault: " in done.err

    def test_nobody_there(self, fakes: Fakes) -> None:
        properties = {"vaultAddr": "http://127.0.0.1:9", "vaultToken": secret("token")}
        fakes.add("vault", properties, type="hashicorp.vault")
        done = secretfs("check", "--connect", "--resources-path", fakes.directory)
        assert done.status == 4
        assert len(done.lines) == 1

    def test_a_token_from_another_store(self, fakes: Fakes, kv: Folder, tmp_path: Path) -> None:
        kv.put("db", {"k": secret()})
        (tmp_path / "boot.json").write_text(f'{{"token": "{kv.server.token}"}}', encoding="utf-8")
        fakes.add("boot", {"secretsFile": tmp_path / "boot.json"}, type="local.file")
        fakes.add(
            "vault", kv.metadata() | {"vaultToken": reference("token")}, type="hashicorp.vault", secret_store="boot"
        )
        done = secretfs("check", "--strict", "--connect", "--resources-path", fakes.directory)
        assert (done.status, done.err) == (0, "")
        assert done.out.splitlines() == ["/", "├── boot/", "│   └── token", "└── vault/", "    └── db/"]


class TestApps:
    def test_the_tree_has_a_directory_for_each_app(self, tmp_path: Path) -> None:
        (tmp_path / "secrets.json").write_text('{"a": "1", "b": "2"}', encoding="utf-8")
        component(tmp_path / "components", "file", "local.file", {"secretsFile": tmp_path / "secrets.json"})
        strict = configuration(tmp_path, scope("file", denied=["b"]), name="strict")
        (tmp_path / "apps").mkdir()
        for name in ("orders", "billing"):
            document = f"apiVersion: secretfs/v1alpha1\nkind: App\nmetadata: {{name: {name}}}\n"
            (tmp_path / f"apps/{name}.yaml").write_text(document, encoding="utf-8")
        sources = ("--resources-path", tmp_path / "components", "--config", strict, "--apps", tmp_path / "apps")
        done = secretfs("check", "--connect", *sources)
        assert (done.status, done.out.splitlines()) == (
            0,
            ["/", "├── billing/", "│   └── file/", "│       └── a", "└── orders/", "    └── file/", "        └── a"],
        )
        assert secretfs("check", *sources).out.splitlines()[:3] == ["/", "├── billing/", "│   └── file/"]
