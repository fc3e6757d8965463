"""Permission rules that match nothing are a warning with file and line."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from secretfs.cli.rule_check import _leads_to
from tests.support import fake_type
from tests.support.canary import secret
from tests.support.command import secretfs
from tests.support.fake_type import Fakes
from tests.support.manifests import configuration, scope


@pytest.fixture
def fakes(tmp_path: Path) -> Iterator[Fakes]:
    with fake_type.installed(tmp_path / "site") as site:
        yield Fakes(tmp_path / "components", site, {"PYTHONPATH": str(site)})


@pytest.mark.parametrize(
    ("glob", "path", "expected"),
    [
        ("vault/tls/*", "vault", True),
        ("vault/tls/*", "vault/tls", True),
        ("vault/tls/*", "vault/tls/key", True),
        ("vault/tls/*", "vault/ssh", False),
        ("vault/tls/*", "other", False),
        ("v*/tls", "vault", True),
        ("vault", "vault/any/thing", True),
        ("vault/**/key", "vault/a/b", True),
        ("**/key", "vault", True),
        ("vault/team/**", "vault/tls", False),
        ("vault/team/**", "vault/team", True),
    ],
)
def test_where_a_glob_leads(glob: str, path: str, *, expected: bool) -> None:
    assert _leads_to(glob, path.split("/")) is expected


def test_a_key_of_a_single_valued_secret_is_nothing() -> None:
    assert not _leads_to("env/TOKEN/key", ["env", "TOKEN"], below=False)


@pytest.mark.parametrize("command", [("check", "--connect"), ("doctor",)])
def test_rules_that_match_nothing(fakes: Fakes, tmp_path: Path, command: tuple[str, ...]) -> None:
    many = {name: {"k": secret()} for name in ("tls/key", "team/deep/db", "top", "hidden/one")}
    annotations = {"secretfs/permissions": '[{match: "tree/top", mode: "0440"}, {match: "tree/topp", mode: "0440"}]'}
    fakes.add("tree", {"folders": "true", "secrets": {"value": many}}, annotations=annotations)
    fakes.add("shut", {"fail": "names:=AccessDenied"})
    config = configuration(tmp_path, scope("tree", denied=["hidden/one"]))
    rules = ["tree/tls/*", "tree/team/**", "tree/*/deep/db/k", "shut/any", "**/key", "**/nothing"]
    rules += ["tree/tsl/*", "tree/hidden/*", "treee/tls/*", "tree/top/k"]
    permissions = "".join(f"    - {{match: {json.dumps(rule)}, mode: '0440'}}\n" for rule in rules)
    (tmp_path / "apps").mkdir()
    app = tmp_path / "apps/orders.yaml"
    app.write_text(
        "apiVersion: secretfs/v1alpha1\nkind: App\nmetadata: {name: orders}\nspec:\n  permissions:\n" + permissions,
        encoding="utf-8",
    )
    sources = ("--resources-path", fakes.directory, "--config", config, "--apps", app.parent)
    done = secretfs(*command, *sources, env=dict(fakes.env))
    said = re.findall(r"(\S+:\d+): permissions: (\S+) matches no secret", done.out + done.err)
    unused = ("tree/tsl/*", "tree/hidden/*", "treee/tls/*")
    manifest = next(fakes.directory.glob("tree*"))
    assert said == [
        *((f"{app}:{6 + rules.index(rule)}", rule) for rule in unused),
        (f"{manifest}:{line_of('secretfs/permissions', manifest)}", "tree/topp"),
    ]
    assert done.status == 1


def line_of(text: str, path: Path) -> int:
    lines = path.read_text(encoding="utf-8").splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)
