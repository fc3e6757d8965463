"""The command line as a person meets it: help, exit codes, messages."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import secretfs as package
from secretfs.cli import main as commands
from secretfs.cli.main import main
from tests.support import fake_type
from tests.support.canary import secret
from tests.support.command import ROOT, SECRETFS, Done, end_daemons, environment, in_namespace, run, secretfs
from tests.support.fake_type import Fakes, reference
from tests.support.manifests import component, configuration, scope
from tests.support.mount_fixtures import components
from tests.support.mounted import daemons, fuse_mounts
from tests.support.waiting import PATIENCE

__all__ = ["components"]

COMMANDS: tuple[list[str], ...] = (
    *([], *([name] for name in commands.COMMANDS)),
    *(["apps", name] for name in ("apply", "list", "remove")),
)
SOURCES = [
    "--resources-path",
    "--config",
    "--app-id",
    "--apps",
    "--app-resources",
    "--app-objects",
    "--disable-builtin-k8s-secret-store",
]


Inside = Callable[..., Done]
"""Runs the command line in this process: quicker, where nothing but its words count."""


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Inside:
    def call(*arguments: str | Path, **env: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["secretfs", *map(str, arguments)])
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, int)
        return Done(ended.value.code, *capfd.readouterr())

    return call


@pytest.fixture
def mountpoint(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "mnt"
    path.mkdir()
    yield path
    assert str(path) not in fuse_mounts(), "something is mounted after an error"
    assert daemons(path) == []


@pytest.fixture
def fakes(tmp_path: Path) -> Iterator[Fakes]:
    with fake_type.installed(tmp_path / "site") as site:
        yield Fakes(tmp_path / "components", site, {"PYTHONPATH": str(site)})


class TestHelp:
    @pytest.mark.parametrize("columns", [80, 100])
    @pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
    def test_fits_the_terminal_and_shows_no_markup(self, inside: Inside, command: list[str], columns: int) -> None:
        done = inside(*command, "--help", COLUMNS=str(columns))
        assert (done.status, done.err) == (0, "")
        assert max(map(len, done.out.splitlines())) <= columns
        assert not re.search(r"\w-$", done.out, re.MULTILINE), "a flag or another word is broken"
        assert "\\b" not in done.out
        assert "\b" not in done.out

    @pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
    def test_short_flag_is_the_same(self, inside: Inside, command: list[str]) -> None:
        assert inside(*command, "-h") == inside(*command, "--help")

    def test_shows_what_to_type(self, inside: Inside) -> None:
        lines = [line.strip() for line in inside("--help").out.splitlines()]
        assert "secretfs mount --resources-path components --app-id shop /mnt/secrets" in lines
        assert "cat /mnt/secrets/vault/db/password" in lines

    @pytest.mark.parametrize(
        ("command", "codes"),
        [
            *(("mount", "0 2 3 4"), ("check", "0 1 2 4"), ("status", "0 1 2 3"), ("refresh", "0 2 3 4")),
            *(("doctor", "0 1 2 3 4"), ("unmount", "0 2 3"), ("", "0 1 2 3 4 70 74 130")),
            *(("run", "2 3 4 126 127"), ("top", "0 2 3"), ("volume-plugin", "0 2 3"), ("csi", "0 2 3")),
            ("render", "0 2 4"),
            *(("cat", "0 1 2 4"), ("get", "0 1 2 4"), ("tree", "0 1 2 4"), ("init", "0 1 2 4")),
            *(("install-units", "0 2"), ("watch", "0 2")),
            *(("apps apply", "0 2 3"), ("apps list", "0 2 3"), ("apps remove", "0 2 3")),
        ],
    )
    def test_lists_every_exit_code(self, inside: Inside, command: str, codes: str) -> None:
        after = inside(*command.split(), "--help").out.partition("Exit codes")[2].partition("\n\n")[0]
        assert re.findall(r"^ +(\d+) {2,}\S", after, re.MULTILINE) == codes.split()

    @pytest.mark.parametrize(
        ("command", "flags"),
        [
            (
                "mount",
                [
                    *(*SOURCES, "--ttl", "--max-stale", "--deadline", "--idle", "--foreground", "--log-file"),
                    *("--log-format", "--metrics-listen", "--metrics-file"),
                    *("--nonempty", "--kernel-answers", "--api", "--allow-other", "--uid", "--gid", "--mode", "--help"),
                    *("--audit", "--audit-to", "--audit-fail-closed", "--audit-names"),
                ],
            ),
            (
                "run",
                [
                    *(*SOURCES, "--ttl", "--max-stale", "--deadline", "--idle", "--on-change", "--at", "--log-file"),
                    *("--on-change-delay", "--on-change-interval", "--on-change-splay"),
                    *("--env", "--env-from", "--env-prefix", "--mask"),
                    *(
                        "--log-format",
                        "--nonempty",
                        "--kernel-answers",
                        "--api",
                        "--allow-other",
                        "--uid",
                        "--gid",
                        "--mode",
                        "--help",
                    ),
                ],
            ),
            ("check", [*SOURCES, "--strict", "--connect", "--help"]),
            ("cat", [*SOURCES, "--help"]),
            ("get", [*SOURCES, "--format", "--help"]),
            ("tree", [*SOURCES, "--help"]),
            ("init", ["--store", "--name", "--set", "--no-connect", "--help"]),
            ("unmount", ["--force", "--help"]),
            ("status", ["--json", "--watch", "--help"]),
            ("top", ["--help"]),
            ("refresh", ["--help"]),
        ],
    )
    def test_lists_every_flag(self, inside: Inside, command: str, flags: list[str]) -> None:
        told = set(re.findall(r"^ +(?:-\w, )?(--[\w-]+)", inside(command, "--help").out, re.MULTILINE))
        assert told == set(flags)

    def test_version(self) -> None:
        assert secretfs("--version").out == f"secretfs, version {package.__version__}\n"

    def test_a_command_that_reads_no_further_is_no_trouble(self) -> None:
        read_end, write_end = os.pipe()
        os.close(read_end)
        done = subprocess.run(
            [*SECRETFS, "--help"], env=environment(), stdout=write_end, stderr=subprocess.PIPE, check=False
        )
        os.close(write_end)
        assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Usage:"),
        (["mont"], "No such command 'mont'. (Did you mean one of: 'mount', 'unmount'?)"),
        (["mount"], "Missing argument 'MOUNTPOINT'."),
        (["mount", "a", "b"], "Got unexpected extra argument (b)"),
        (["unmount"], "Missing argument 'MOUNTPOINT'."),
        (
            ["mount", "--resource-path", "c", "m"],
            "No such option '--resource-path'. (Did you mean one of: '--app-resources', '--resources-path'?)",
        ),
        (["check", "--appid", "x"], "No such option '--appid'. (Did you mean one of: '--app-id', '--apps'?)"),
        (["check", "extra"], "Got unexpected extra argument (extra)"),
        (["mount", "--mode", "rw", "m"], "Invalid value for '--mode': 'rw' is not an octal mode such as 0440"),
        (["mount", "--mode", "0640", "m"], "'0640': files here can be read and nothing else (0400, 0440, 0444)"),
        (["mount", "--uid", "-1", "m"], "'-1' is neither a user of this machine nor an id"),
        (["mount", "--uid", "4294967295", "m"], "'4294967295' is more than the largest id, 4294967294"),
        (
            ["mount", "--gid", "stuff", "m"],
            "Invalid value for '--gid': 'stuff' is neither a group of this machine nor an id",
        ),
        (["run", "--uid", "a\0b", "true"], "is neither a user of this machine nor an id"),
    ],
)
def test_usage_errors(inside: Inside, arguments: list[str], message: str) -> None:
    done = inside(*arguments)
    assert done.status == 2
    assert message in done.err
    assert done.out == ""


class TestDefaults:
    def test_what_dapr_uses_is_used(self, tmp_path: Path) -> None:
        component(tmp_path / ".dapr" / "components", "env", "local.env")
        configuration(tmp_path / ".dapr", scope("elsewhere"), name="config")
        done = secretfs("check", env={"HOME": str(tmp_path)})
        assert done.out.splitlines() == ["/", "└── env/"]
        assert "'elsewhere', but no matching secret store was found" in done.err

    def test_naming_the_components_leaves_daprs_configuration_aside(self, tmp_path: Path, components: Path) -> None:
        configuration(tmp_path / ".dapr", scope("elsewhere"), name="config")
        assert secretfs("check", "--resources-path", components, env={"HOME": str(tmp_path)}).status == 0

    def test_missing_it_is_named_with_the_flag_for_another(self, tmp_path: Path) -> None:
        done = secretfs("check", env={"HOME": str(tmp_path)})
        assert done == Done(
            2, "", f"secretfs: {tmp_path}/.dapr/components does not exist; --resources-path names another directory\n"
        )

    def test_a_configuration_that_leads_nowhere_is_not_overlooked(self, tmp_path: Path) -> None:
        component(tmp_path / ".dapr" / "components", "env", "local.env")
        (tmp_path / ".dapr" / "config.yaml").symlink_to("missing")
        done = secretfs("check", env={"HOME": str(tmp_path)})
        assert (done.status, done.lines) == (
            2, [f"secretfs: {tmp_path}/.dapr/config.yaml: cannot be read: No such file or directory"],
        )  # fmt: skip

    def test_nobody_at_home(self) -> None:
        done = in_namespace("env -u HOME setpriv --reuid 54321 --clear-groups secretfs check")
        assert (done.status, done.lines) == (
            2, ["secretfs: there is no home directory for the default ~/.dapr/components; use --resources-path"],
        )  # fmt: skip

    def test_a_home_of_somebody_else(self) -> None:
        done = in_namespace("mkdir -m 700 /mnt/other; HOME=/mnt/other as_nobody secretfs check")
        assert (done.status, len(done.lines)) == (2, 1)
        assert done.err.startswith("secretfs: /mnt/other/.dapr/components ")


def _yaml(directory: Path, text: str) -> None:
    directory.mkdir(exist_ok=True)
    (directory / "x.yaml").write_text(text, encoding="utf-8")


HEADER = "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: x}\n"


class TestMistakes:
    """Whatever a user got wrong is one line with the place, exit code 2, and nothing mounted: `check` says it too."""

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("a: [\n", "x.yaml:2: not valid YAML"),
            ("a: b\n\x01\n", "x.yaml"),
            (HEADER, "x.yaml:1: spec.type is missing"),
            (HEADER + "spec: {type: secretstore.local.env}\n", "x.yaml:4: incorrect type secretstore.local.env"),
            (HEADER + "spec: {type: secretstores.local.evn}\n", "did you mean secretstores.local.env?"),
            (
                HEADER + "spec: {type: secretstores.local.env, version: v2}\n",
                "secretstores.local.env/v2: the version is v1",
            ),
            (HEADER + "spec: {type: secretstores.local.file}\n", "secretsFile is required"),
            (
                HEADER
                + "spec:\n  type: secretstores.local.file\n  metadata:\n  - {name: secretsFile, value: missing.json}\n",
                "missing.json: No such file or directory",
            ),
            (HEADER + "spec: {type: secretstores.local.env, ignoreErrors: 'true'}\n", "x.yaml:4: spec.ignoreErrors"),
            (
                HEADER.replace("x}", "x, annotations: {secretfs/tll: 5s}}") + "spec: {type: secretstores.local.env}\n",
                "x.yaml:3: unknown annotation secretfs/tll (did you mean secretfs/ttl?)",
            ),
            ("", "no secret store for an app without an id (--app-id)"),
        ],
    )
    def test_in_a_manifest(self, inside: Inside, tmp_path: Path, mountpoint: Path, text: str, expected: str) -> None:
        _yaml(tmp_path / "components", text)
        done = secretfs("mount", "--resources-path", tmp_path / "components", mountpoint)
        assert (done.status, done.out, len(done.lines)) == (2, "", 1), done.err
        assert expected in done.err
        checked = inside("check", "--resources-path", tmp_path / "components")
        assert checked.status == 2
        assert expected in checked.err

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            (
                "spec: {secrets: {scopes: [{storeName: env}, {storeName: env}]}}",
                "config.yaml:1: env storeName is repeated",
            ),
            (
                "spec: {secrets: {scopes: [{storeName: env, defaultAccess: maybe}]}}",
                "config.yaml:1: defaultAccess maybe can",
            ),
            ("[", "config.yaml:"),
        ],
    )
    def test_in_a_configuration(
        self, tmp_path: Path, components: Path, mountpoint: Path, text: str, expected: str
    ) -> None:
        config = tmp_path / "config.yaml"
        config.write_text(text, encoding="utf-8")
        done = secretfs("mount", "--resources-path", components, "--config", config, mountpoint)
        assert done.status == 2
        assert expected in done.lines[-1]

    def test_files_that_are_not_there(self, tmp_path: Path, components: Path, mountpoint: Path) -> None:
        done = secretfs("mount", "--resources-path", tmp_path / "nope", mountpoint)
        assert done == Done(2, "", f"secretfs: {tmp_path}/nope: cannot be read: No such file or directory\n")
        done = secretfs("mount", "--resources-path", components, "--config", tmp_path / "c.yaml", mountpoint)
        assert done == Done(2, "", f"secretfs: {tmp_path}/c.yaml: cannot be read: No such file or directory\n")
        done = secretfs("mount", "--resources-path", components, "--log-file", tmp_path / "a" / "b", mountpoint)
        assert done == Done(2, "", f"secretfs: cannot log to {tmp_path}/a/b: No such file or directory\n")

    def test_files_that_may_not_be_read(self) -> None:
        done = in_namespace("""
            mkdir c; echo x > c/x.yaml; chmod 600 c/x.yaml
            as_nobody secretfs check --resources-path c || echo $?
            chmod 700 c
            as_nobody secretfs check --resources-path c || echo $?
        """)
        assert done.out.split() == ["2", "2"]
        assert done.lines == [
            "secretfs: c/x.yaml: cannot be read: Permission denied",
            "secretfs: c: cannot be read: Permission denied",
        ]

    def test_a_typo_in_an_address_is_loud(self, components: Path, mountpoint: Path) -> None:
        component(components, "vault", "hashicorp.vault", {"vaultAdr": "https://vault", "vaultToken": secret("token")})
        expected = "unknown property vaultAdr is ignored (did you mean vaultAddr?): vaultAddr has its default"
        done = secretfs("mount", "--foreground", "--resources-path", components, mountpoint)
        assert any(line.startswith("ERROR ") and line.endswith(expected) for line in done.lines), done.err
        checked = secretfs("check", "--strict", "--resources-path", components)
        assert checked.status == 2
        assert "vaultAdr" in checked.err

    def test_an_app_without_any_store(self, components: Path, mountpoint: Path) -> None:
        component(components, "env", "local.env", scopes=["web", "other"])
        done = secretfs("mount", "--resources-path", components, "--app-id", "shop", mountpoint)
        reason = f"no secret store for app id shop in {components}: env is scoped to web and other"
        assert done == Done(2, "", f"secretfs: {reason}\n")

    def test_a_kind_that_nobody_knows(self, inside: Inside, tmp_path: Path) -> None:
        """As in Dapr it may be anything; but where nothing else is, it is told what is looked for."""
        _yaml(
            tmp_path / "components", HEADER.replace("Component", "Componnt") + "spec: {type: secretstores.local.env}\n"
        )
        reason = "no document there has kind: Component and a spec.type secretstores.*"
        done = inside("check", "--resources-path", tmp_path / "components", "--app-id", "shop")
        where = f"no secret store for app id shop in {tmp_path}/components"
        assert done == Done(2, "", f"secretfs: {where}: {reason}\n")

    def test_a_name_cannot_steer_the_terminal(self, tmp_path: Path) -> None:
        _yaml(
            tmp_path / "components",
            HEADER + 'spec: {type: secretstores.local.env, metadata: [{name: "a\\e[31m\\nb", value: x}]}\n',
        )
        done = secretfs("check", "--resources-path", tmp_path / "components")
        assert done.lines == [rf"warning: {tmp_path}/components/x.yaml:4: unknown property a\x1b[31m\nb is ignored"]


@pytest.mark.mount
class TestStoresThatFail:
    """`mount` in the background says what is wrong before it returns."""

    def test_one_that_refuses_us(self, fakes: Fakes, mountpoint: Path) -> None:
        fakes.add("bad", {"fail": "check=AccessDenied"})
        done = secretfs("mount", "--resources-path", fakes.directory, mountpoint, env=fakes.env)
        assert done == Done(4, "", f"secretfs: {fakes.directory}/bad.yaml:1: component bad: the fake says so\n")

    def test_one_that_refuses_us_in_the_foreground(self, fakes: Fakes, mountpoint: Path) -> None:
        fakes.add("bad", {"fail": "check=AccessDenied"})
        done = secretfs("mount", "-f", "--resources-path", fakes.directory, mountpoint, env=fakes.env)
        assert done == Done(4, "", f"secretfs: {fakes.directory}/bad.yaml:1: component bad: the fake says so\n")

    def test_ignored_it_is_told_and_mounted(self, fakes: Fakes, tmp_path: Path) -> None:
        fakes.add("bad", {"fail": "check=AccessDenied", "tokn": "x"}, spec={"ignoreErrors": True})
        point = tmp_path / "there"
        point.mkdir()
        try:
            done = secretfs(
                "mount", "--resources-path", fakes.directory, "--log-file", tmp_path / "log", point, env=fakes.env
            )
            assert [child.name for child in point.iterdir()] == ["bad"]
        finally:
            end_daemons(point)
        assert (done.status, done.out) == (0, "")
        assert done.lines == [
            f"WARNING {fakes.directory}/bad.yaml:11: unknown property tokn is ignored (did you mean token?)",
            f"WARNING {fakes.directory}/bad.yaml:1: component bad: the fake says so (ignoreErrors)",
        ]

    def test_several(self, fakes: Fakes, mountpoint: Path) -> None:
        fakes.add("a", {"token": reference("x")}, secret_store="b")
        fakes.add("c", {"fail": "check=StoreUnavailable"})
        done = secretfs("mount", "--resources-path", fakes.directory, mountpoint, env=fakes.env)
        assert done.status == 2
        assert [line.partition(f"{fakes.directory}/")[2][:9] for line in done.lines] == ["a.yaml:1:", "c.yaml:1:"]

    def test_one_that_does_not_answer_in_time(self, fakes: Fakes, mountpoint: Path) -> None:
        fakes.add("slow", {"fail": "check=hang"}, spec={"initTimeout": "50ms"})
        done = secretfs("mount", "--resources-path", fakes.directory, mountpoint, env=fakes.env)
        assert (done.status, done.lines) == (
            4,
            [
                (
                    f"secretfs: {fakes.directory}/slow.yaml:1: component slow:"
                    " init timeout for component slow (secretstores.fake/v1): no answer within 50ms (initTimeout)"
                )
            ],
        )

    @pytest.mark.parametrize("where", ["open", "check"])
    @pytest.mark.parametrize("command", ["mount", "check"])
    def test_a_defect_in_a_store_shows_its_place_and_not_its_text(
        self, fakes: Fakes, mountpoint: Path, where: str, command: str
    ) -> None:
        fakes.add("bad", {"fail": f"{where}=ValueError"})
        arguments = [str(mountpoint)] if command == "mount" else ["--connect"]
        done = subprocess.run(
            [*SECRETFS, command, "--resources-path", str(fakes.directory), *arguments],
            env=environment(fakes.env), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 4
        assert "component bad: unexpected ValueError; the log has the place" in done.stderr
        assert "fake_type.py" in done.stderr
        assert secret("in-an-error") not in done.stderr

    def test_a_defect_found_without_connecting(self, fakes: Fakes) -> None:
        fakes.add("bad", {"fail": "open=ValueError"})
        done = subprocess.run(
            [*SECRETFS, "check", "--resources-path", str(fakes.directory)],
            env=environment(fakes.env), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 4
        assert secret("in-an-error") not in done.stderr


class TestCompletion:
    """``eval "$(_SECRETFS_COMPLETE=bash_source secretfs)"`` and its like."""

    @pytest.fixture
    def script(self, tmp_path: Path) -> Path:
        path = tmp_path / "bin" / "secretfs"
        path.parent.mkdir()
        path.write_text(
            f"#!{sys.executable}\nfrom secretfs.cli.main import main\nmain()\n",
            encoding="utf-8",
        )
        path.chmod(0o755)
        return path

    @pytest.mark.parametrize(
        ("shell", "expected"),
        [
            ("bash", "complete -o nosort -F _secretfs_completion secretfs"),
            ("zsh", "#compdef secretfs"),
            ("fish", "complete --no-files --command secretfs"),
        ],
    )
    def test_source(self, script: Path, shell: str, expected: str) -> None:
        done = run([str(script)], env=environment({"_SECRETFS_COMPLETE": f"{shell}_source"}))
        assert (done.status, done.err) == (0, "")
        assert expected in done.out

    def test_flags_are_completed(self, script: Path) -> None:
        env = {"_SECRETFS_COMPLETE": "bash_complete", "COMP_WORDS": "secretfs mount --re", "COMP_CWORD": "2"}
        assert run([str(script)], env=environment(env)).out.split() == ["plain,--resources-path"]


def test_interrupted_it_ends_without_a_traceback(fakes: Fakes, mountpoint: Path) -> None:
    fifo = fakes.site / "fifo"
    os.mkfifo(fifo)
    fakes.add("slow", {"fail": "check=hang", "record": fifo})
    process = subprocess.Popen(
        [*SECRETFS, "mount", "--resources-path", str(fakes.directory), str(mountpoint)],
        env=environment(fakes.env), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    fifo.read_text(encoding="ascii")  # the store is being opened
    os.killpg(process.pid, 2)  # as a terminal does for Ctrl-C
    _, said = process.communicate(timeout=PATIENCE)
    assert (process.returncode, said.strip()) == (130, "")


def test_a_locale_without_the_lines_of_a_tree_is_no_error(components: Path) -> None:
    env = {"PYTHONIOENCODING": "latin-1"}
    done = secretfs("check", "--resources-path", components, env=env)
    assert (done.status, done.err) == (0, "")
    assert "env/" in done.out


def test_the_root_of_the_project_is_what_runs() -> None:
    assert Path(package.__file__).parent == ROOT / "secretfs"
