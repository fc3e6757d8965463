"""``secretfs doctor``: every finding, met for real. The promises are in tests/behaviour/test_doctor.py."""

import contextlib
import json
import os
import pty
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path

import pytest

from secretfs.cli.diagnose import Finding, Level, _kernel, _warm_reads, exit_code, summary
from secretfs.fuse.inode_for_handle import Hook
from tests.support import fake_type
from tests.support.canary import leaked, secret
from tests.support.command import SECRETFS, Done, environment, in_namespace, secretfs
from tests.support.fake_type import Fakes, reference
from tests.support.manifests import configuration, scope
from tests.support.mount_fixtures import components, point
from tests.support.mounted import mounted
from tests.support.servers.faulty import Faulty
from tests.support.shell import stop
from tests.support.vault_fixtures import Folder, kv, openbao_server
from tests.support.waiting import PATIENCE

__all__ = ["components", "kv", "openbao_server", "point"]

COMPONENT = """
    mkdir m
    env_component
    chown 65534 m
"""


@dataclass(frozen=True)
class Diagnosis:
    """What the doctor said."""

    code: int
    findings: list[dict[str, str]]

    @classmethod
    def of(cls, done: Done, code: int | None = None) -> "Diagnosis":
        document = json.loads(done.out)
        assert document["exit_code"] == (done.status if code is None else code)
        return cls(document["exit_code"], document["findings"])

    def __getitem__(self, check: str) -> tuple[str, str]:
        """Level and text of the only finding of a check."""
        (found,) = [one for one in self.findings if one["check"] == check]
        return found["level"], found["finding"]

    def fix(self, check: str) -> str:
        (found,) = [one for one in self.findings if one["check"] == check]
        return found["fix"]


def doctor(*arguments: str | Path, env: dict[str, str] | None = None) -> Diagnosis:
    return Diagnosis.of(secretfs("doctor", "--json", *arguments, env=env))


def doctor_inside(script: str) -> list[Diagnosis]:
    """Run a script in a namespace, where ``doctor`` is the command with ``--json``, as nobody."""
    prelude = COMPONENT + '\ndoctor() { as_nobody secretfs doctor --json --resources-path c "$@" || true; echo ---; }\n'
    done = in_namespace(prelude + script)
    assert done.err == ""
    texts = done.out.split("---\n")[:-1]
    return [Diagnosis.of(Done(0, text, ""), json.loads(text)["exit_code"]) for text in texts]


@pytest.fixture
def fakes(tmp_path: Path) -> Iterator[Fakes]:
    with fake_type.installed(tmp_path / "site") as site:
        yield Fakes(tmp_path / "components", site, {"PYTHONPATH": str(site)})


class TestMachine:
    @pytest.mark.parametrize(
        ("release", "level"),
        [
            ("6.9.0", "PASS"),
            ("6.18.44-custom", "PASS"),
            ("7.0-rc1", "PASS"),
            ("6.8.12-amd64", "WARN"),
            ("5.10", "WARN"),
        ],
    )
    def test_kernel(self, release: str, level: str) -> None:
        found = _kernel(release)
        assert (found.level.value, release in found.text) == (level, True)

    @pytest.mark.parametrize(
        ("hook", "kernel_answers", "is_root", "level", "text"),
        [
            (Hook("compiled", int), True, True, "PASS", "the kernel answers them"),
            (
                Hook("compiled", int),
                True,
                False,
                "PASS",
                "the daemon answers each, by two messages; the kernel answers",
            ),
            (
                Hook("compiled", int),
                False,
                True,
                "PASS",
                "the daemon answers each, by two messages: --no-kernel-answers",
            ),
            (None, False, True, "PASS", "by two messages: --no-kernel-answers"),
            (None, True, False, "PASS", "where root mounts"),
            (None, True, True, "WARN", "neither a compiled step nor a patched one"),
        ],
    )
    def test_warm_reads(self, hook: Hook | None, level: str, text: str, *, kernel_answers: bool, is_root: bool) -> None:
        found = _warm_reads(hook, kernel_answers=kernel_answers, is_root=is_root)
        assert (found.level.value, text in found.text, bool(found.fix)) == (level, True, level == "WARN")

    def test_what_a_user_lacks(self) -> None:
        whole, closed, without = doctor_inside("""
            doctor m
            chmod 600 /dev/fuse
            doctor m
            mount -t tmpfs none /dev
            doctor --allow-other m
        """)
        assert [whole[check][0] for check in ("device", "permission", "mount point")] == ["PASS"] * 3
        assert whole["permission"] == ("PASS", "fusermount3 mounts for user 65534")
        assert closed["device"] == ("FAIL", "/dev/fuse may not be opened by this user: its mode is 0600")
        assert without["device"] == ("FAIL", "/dev/fuse is missing")
        assert without["allow_other"][0] == "FAIL"
        assert (closed.code, without.code) == (3, 3)

    def test_without_allow_other_nothing_is_said_of_it(self, components: Path) -> None:
        found = doctor("--resources-path", components)
        assert "allow_other" not in [one["check"] for one in found.findings]

    def test_namespaces(self) -> None:
        ours, own, hidden = doctor_inside("""
            doctor
            unshare --mount secretfs doctor --json --resources-path c || true; echo ---
            mount -o remount,hidepid=invisible /proc
            doctor
        """)
        assert ours["namespace"][0] == "PASS"
        assert own["namespace"] == (
            "WARN",
            "this process has a mount namespace of its own: nobody outside of it will see the mount",
        )
        assert hidden["namespace"][0] == "WARN"
        assert hidden.fix("namespace") == "run it as root"

    def test_swap(self) -> None:
        (found,) = doctor_inside(r"""
            printf 'Filename Type Size Used Priority\n/dev/sda2 partition 1 0 -2\n' > swaps
            mount --bind swaps /proc/swaps
            ulimit -l 8192
            doctor
        """)
        assert found["memory"] == ("WARN", "memory may be swapped out")
        assert "LimitMEMLOCK=infinity" in found.fix("memory")

    def test_versions_for_a_bug_report(self, components: Path) -> None:
        level, text = doctor("--resources-path", components)["packages"]
        assert level == "PASS"
        assert re.fullmatch(r"secretfs [\d.]+, Python 3[\d.]+, pyfuse3 [\d.]+, trio [\d.]+(, [a-z-]+ [\d.]+)*", text)


@pytest.mark.mount
class TestMountPoint:
    def test_every_state_that_it_can_be_in(self, components: Path, point: Path) -> None:
        def found() -> Diagnosis:
            return doctor("--resources-path", components, point)

        assert found()["mount point"] == ("PASS", f"{point} is there, and nothing in it")
        (point / "x").touch()
        assert (found().code, found()["mount point"]) == (3, ("FAIL", f"cannot mount at {point}: it is not empty"))
        assert doctor("--nonempty", "--resources-path", components, point)["mount point"][0] == "WARN"
        (point / "x").unlink()
        with mounted(components, mountpoint=point) as mount:
            assert found()["mount point"] == ("PASS", f"{point} has a secretfs mounted, which answers")
            stop(mount.worker)
            hung = found()
            assert (hung.code, hung["mount point"]) == (
                3,
                ("FAIL", f"{point} has a secretfs mounted that does not answer"),
            )
            assert hung.fix("mount point").endswith(f"secretfs unmount --force {point}")
            mount.kill()
            mount.process.wait()
            dead = found()
            assert dead["mount point"] == ("WARN", f"{point} has the dead mount of a secretfs that was killed")
        point.rmdir()
        missing = found()
        assert (missing.code, missing["mount point"][0]) == (3, "FAIL")
        assert missing.fix("mount point") == f"make it: mkdir -p {point}"

    def test_propagation(self) -> None:
        private, shared = doctor_inside("""
            doctor m
            mount --make-rshared /mnt
            doctor m
        """)
        assert private["propagation"][0] == "WARN"
        assert private.fix("propagation") == "mount --make-rshared /mnt, or start them after it"
        assert shared["propagation"][0] == "PASS"

    def test_without_one_nothing_is_said_of_it(self, components: Path) -> None:
        checks = [one["check"] for one in doctor("--resources-path", components).findings]
        assert not {"mount point", "propagation"} & set(checks)


class TestDeclared:
    def test_nothing_to_look_at_is_no_mistake_of_who_asks_for_the_machine(self, tmp_path: Path) -> None:
        found = doctor(env={"HOME": str(tmp_path)})
        assert (found.code, found["manifests"]) == (1, ("WARN", "no stores are looked at"))
        assert "--resources-path names another directory" in found.fix("manifests")

    def test_a_directory_that_is_named_has_to_be_there(self, tmp_path: Path) -> None:
        found = doctor("--resources-path", tmp_path / "none")
        assert (found.code, found["manifests"][0]) == (2, "FAIL")
        assert f"{tmp_path}/none: cannot be read" in found["manifests"][1]

    def test_what_check_would_warn_of(self, fakes: Fakes) -> None:
        fakes.add("a", {"tokn": "x", "secrets": {"value": {"db": {"k": secret()}}}})
        found = doctor("--resources-path", fakes.directory, env=dict(fakes.env))
        warnings = [one["finding"] for one in found.findings if one["level"] == "WARN"]
        assert (found.code, len(warnings)) == (1, 1)
        assert warnings[0].endswith("a.yaml:9: unknown property tokn is ignored (did you mean token?)")

    def test_an_owner_who_cannot_get_in(self, components: Path) -> None:
        found = doctor("--resources-path", components, "--uid", "4711")
        assert found["flags"][0] == "WARN"
        assert "without --allow-other" in found["flags"][1]


class TestStores:
    @pytest.mark.parametrize(
        ("fail", "code", "text", "fix"),
        [
            ("check=AccessDenied", 4, "the fake says so", "look at the credentials that the component names"),
            ("check=StoreUnavailable", 4, "the fake says so", "start the store, or correct its address"),
            ("check=SecretNotFound", 4, "the fake says so", "look whether the manifest names what is there"),
            ("check=MalformedAnswer", 4, "the fake says so", "check what answers at that address"),
            ("names:=DeadlineExceeded", 4, "the fake says so", "look at the store, and at proxies and firewalls"),
            ("names:=hang", 4, "no answer within 200ms", "look at the store, and at proxies and firewalls"),
            ("open=ConfigurationError", 2, "token: cannot be used", "correct that; `secretfs check` reads it again"),
        ],
    )
    def test_one_that_fails(self, fakes: Fakes, fail: str, code: int, text: str, fix: str) -> None:
        fakes.add("bad", {"fail": fail}, annotations={"secretfs/deadline": "200ms"})
        fakes.add("good", {"secrets": {"value": {"db": {"k": secret()}}}})
        found = doctor("--resources-path", fakes.directory, env=dict(fakes.env))
        assert (found.code, found["store bad"][0]) == (code, "FAIL")
        assert text in found["store bad"][1]
        assert found.fix("store bad").startswith(fix)
        assert found["store good"][0] == "PASS"

    def test_one_that_may_fail(self, fakes: Fakes) -> None:
        fakes.add("bad", {"fail": "check=StoreUnavailable"}, spec={"ignoreErrors": True})
        found = doctor("--resources-path", fakes.directory, env=dict(fakes.env))
        assert (found.code, found["store bad"][0]) == (1, "WARN")
        assert found["store bad"][1].endswith("the fake says so (ignoreErrors)")

    @pytest.mark.parametrize("exception", ["ValueError", "SystemExit"])
    def test_one_with_a_defect_shows_no_text_of_it(self, fakes: Fakes, exception: str) -> None:
        fakes.add("bad", {"fail": f"names:={exception}"})
        done = subprocess.run(
            [*SECRETFS, "doctor", "--resources-path", str(fakes.directory)],
            env=environment(fakes.env), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 4
        assert f"unexpected {exception}; the log has the place" in done.stdout
        assert "fake_type.py" in done.stderr
        assert not leaked(done.stdout + done.stderr)

    def test_those_that_are_well(self, fakes: Fakes) -> None:
        fakes.add("empty", {"secrets": {"value": {}}})
        fakes.add("full", {"secrets": {"value": {"db": {"k": secret()}}}})
        fakes.add("closed", {"secrets": {"value": {"db": {"k": secret()}}}, "fail": "names:=AccessDenied"})
        found = doctor("--resources-path", fakes.directory, env=dict(fakes.env))
        stores = {name: found[name] for name in ("store empty", "store full", "store closed")}
        said = {name: (level, text.partition("s, ")[2]) for name, (level, text) in stores.items()}
        assert said == {
            "store empty": ("WARN", "and is empty"),
            "store full": ("PASS", "1 name"),
            "store closed": ("WARN", "and does not let us list its names: the fake says so"),
        }
        assert found.code == 1

    def test_a_scope(self, fakes: Fakes, tmp_path: Path) -> None:
        """Names that the app may not see are not counted, and those that no secret has are a warning."""
        for name in ("some", "none"):
            fakes.add(name, {"secrets": {"value": {"db": {"k": secret()}, "mail": {"k": secret()}}}})
        fakes.add(
            "tree", {"folders": "true", "secrets": {"value": {"team/db": {"k": secret()}, "top": {"k": secret()}}}}
        )
        config = configuration(
            tmp_path,
            scope("some", allowed=["db", "dbb"]),
            scope("none", default="deny"),
            scope("tree", denied=["team/db", "team/dbb"]),
        )
        flags = ("--resources-path", fakes.directory, "--config", config)
        lines = secretfs("doctor", *flags, env=dict(fakes.env)).out.splitlines()
        found = [line[6:] for line in lines if " store " in line]
        assert [line.partition("s, ")[2] for line in found if "answers" in line] == [
            *("no name that this app may see", "1 name", "1 name and 1 folder at the top"),
        ]
        warnings = [
            "allowedSecrets of the store some: it has no secret dbb",
            "deniedSecrets of the store tree: it has no secret team/dbb",
        ]
        assert [line.partition("  ")[2].strip() for line in found if "answers" not in line] == warnings
        done = secretfs("check", "--connect", *flags, env=dict(fakes.env))
        assert [line for line in done.lines if "Secrets of" in line] == [f"warning: {text}" for text in warnings]
        assert done.status == 1

    def test_one_whose_package_is_not_installed(self, fakes: Fakes, tmp_path: Path) -> None:
        (tmp_path / "site" / "hvac").mkdir()
        (tmp_path / "site" / "hvac" / "__init__.py").write_text(
            "raise ModuleNotFoundError('No module named hvac', name='hvac')", encoding="utf-8"
        )
        fakes.add("vault", {"vaultAddr": "http://127.0.0.1:9", "vaultToken": secret()}, type="hashicorp.vault")
        found = doctor("--resources-path", fakes.directory, env=dict(fakes.env))
        assert (found.code, found["store vault"][0]) == (2, "FAIL")
        assert "needs the package hvac: pip install secretfs-fuse[vault]" in found["store vault"][1]

    def test_no_name_of_a_secret_is_shown(self, fakes: Fakes) -> None:
        fakes.add("full", {"secrets": {"value": {"a-name": {"k": secret()}}}})
        done = secretfs("doctor", "--resources-path", fakes.directory, env=fakes.env)
        assert "a-name" not in done.out


class TestVault:
    def test_one_that_is_well(self, fakes: Fakes, kv: Folder) -> None:
        kv.put("db", {"k": secret()})
        fakes.add("vault", kv.metadata(), type="hashicorp.vault")
        found = doctor("--resources-path", fakes.directory)
        level, text = found["store vault"]
        assert level == "PASS"
        assert re.fullmatch(r"answers in (less than )?[\d.]+m?s, 1 name", text)
        assert found["clock"] == ("PASS", "it agrees with that of vault")
        assert [path for operation, path in kv.requests() if operation == "read" and path.startswith("data/")] == []

    def test_a_bad_token(self, fakes: Fakes, kv: Folder, tmp_path: Path) -> None:
        (tmp_path / "boot.json").write_text(f'{{"token": "{secret("wrong")}"}}', encoding="utf-8")
        fakes.add("boot", {"secretsFile": tmp_path / "boot.json"}, type="local.file")
        fakes.add(
            "vault", kv.metadata() | {"vaultToken": reference("token")}, type="hashicorp.vault", secret_store="boot"
        )
        found = doctor("--resources-path", fakes.directory)
        assert (found.code, found["store vault"][0], found["store boot"][0]) == (4, "FAIL", "PASS")
        assert found["clock"] == ("PASS", "it agrees with that of vault")

    @pytest.mark.parametrize(("seconds", "text"), [(-600, "ahead of"), (600, "behind")])
    def test_a_clock_that_is_wrong(self, fakes: Fakes, seconds: int, text: str) -> None:
        body = b'{"data": {"type": "kv", "options": {"version": "2"}, "keys": ["db"]}}'
        with Faulty(9) as server:
            server.answer(200, body, f"Date: {formatdate(time.time() + seconds, usegmt=True)}")
            fakes.add("vault", {"vaultAddr": server.address, "vaultToken": secret()}, type="hashicorp.vault")
            found = doctor("--resources-path", fakes.directory)
        assert found["store vault"][0] == "PASS"
        assert (found.code, found["clock"][0]) == (1, "WARN")
        assert re.fullmatch(rf"the clock here is (9m5\d|10m\d?)s? {text} that of vault", found["clock"][1])

    def test_nobody_there(self, fakes: Fakes) -> None:
        fakes.add("vault", {"vaultAddr": "http://127.0.0.1:9", "vaultToken": secret()}, type="hashicorp.vault")
        found = doctor("--resources-path", fakes.directory)
        assert (found.code, found["store vault"][0]) == (4, "FAIL")
        assert "Connection refused" in found["store vault"][1]
        assert found.fix("store vault") == "start the store, or correct its address in the manifest"


def on_a_terminal(*arguments: str, columns: int = 80) -> list[str]:
    """Run a command on a terminal and return the lines that are on it in the end."""
    ours, terminal = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as screen:
        env = environment({"COLUMNS": str(columns)})
        process = subprocess.Popen([*SECRETFS, *arguments], env=env, stdin=terminal, stdout=terminal, stderr=terminal)
        os.close(terminal)
        said = b""
        with contextlib.suppress(OSError):  # nobody has the other end any more
            while data := screen.read(4096):
                said += data
        process.wait(PATIENCE)
    text = re.sub(r"\x1b\[[0-9;?]*[a-ln-zA-JL-Z]|\x1b\[[0-9;]*m", "", said.decode())
    rows = [row.removesuffix("\r") for row in text.split("\n")]
    return [row.rpartition("\r")[2].removeprefix("\x1b[K") for row in rows]


def test_progress_leaves_nothing_on_the_terminal(components: Path) -> None:
    assert secretfs("doctor", "--resources-path", components).err == ""
    rows = on_a_terminal("doctor", "--resources-path", str(components), columns=200)
    assert not [row for row in rows if "connecting" in row]
    assert [row for row in rows if row.startswith("PASS  store env")]


def test_no_line_breaks_inside_a_word(components: Path, point: Path) -> None:
    (point / "x").touch()
    arguments = ("doctor", "--resources-path", str(components), str(point))
    rows = on_a_terminal(*arguments)
    assert max(map(len, rows)) <= max(80, max(len(word) for row in rows for word in row.split()) + 19)
    words = " ".join(rows).split()
    assert words == " ".join(on_a_terminal(*arguments, columns=1000)).split()
    assert [row for row in rows if row.startswith(" " * 19)]


def test_the_worst_decides() -> None:
    fine, warning = Finding("a", "fine"), Finding.warn("b", "so so", "mend it")
    failures = [Finding("c", "bad", Level.FAIL, "mend it", code) for code in (4, 2)]
    assert (exit_code([]), exit_code([fine]), exit_code([fine, warning])) == (0, 0, 1)
    assert exit_code([warning, *failures]) == 4
    assert (summary([fine]), summary([fine, warning, *failures])) == ("all is well", "2 FAIL, 1 WARN")
