import grp
import os
import pwd
from pathlib import Path

import pytest

from secretfs.dapr.app import App, load_apps
from secretfs.dapr.component import load_manifests
from secretfs.errors import ConfigurationError, Notice
from secretfs.permissions import PermissionRule

FULL = """\
apiVersion: secretfs/v1alpha1
kind: App
metadata: {name: orders}
spec:
  appId: shop
  configuration: strict
  owner: daemon
  group: "7"
  mode: "0440"
  permissions:
    - {match: "/vault/tls/*", group: bin, mode: 0444}
    - {match: "vault/ssh/id_*", mode: "0400"}
"""
EXAMPLES = "such as payments or payments/shared"
COMPONENT = """\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: env}
spec: {type: secretstores.local.env, version: v1}
"""


def app(spec: str = "", name: str = "orders", head: str = "") -> str:
    return f"apiVersion: secretfs/v1alpha1\nkind: App\nmetadata: {{name: {name}}}\n{head}spec: {{{spec}}}\n"


def load(directory: Path, *texts: str) -> tuple[App, ...]:
    for number, text in enumerate(texts):
        (directory / f"{number}.yaml").write_text(text, encoding="utf-8")
    return load_apps([directory], [])


def mistake(directory: Path, text: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(directory, text)
    return str(caught.value).replace(f"{directory}/0.yaml", "FILE")


def test_everything_that_an_app_can_say(tmp_path: Path) -> None:
    (found,) = load(tmp_path, FULL)
    assert found == App(
        name="orders",
        app_id="shop",
        configuration="strict",
        uid=pwd.getpwnam("daemon").pw_uid,
        gid=7,
        mode=0o440,
        rules=(
            PermissionRule("vault/tls/*", gid=grp.getgrnam("bin").gr_gid, mode=0o444),
            PermissionRule("vault/ssh/id_*", mode=0o400),
        ),
    )
    assert str(found.source) == f"{tmp_path}/0.yaml:1"
    assert str(found.rules[1].source) == f"{tmp_path}/0.yaml:12"


def test_an_app_names_a_set(tmp_path: Path) -> None:
    assert load(tmp_path, app("resources: team-a/shared_1.x"))[0].resources == "team-a/shared_1.x"
    assert load(tmp_path, app("objects: team-a"))[0].objects == "team-a"


def test_a_name_is_enough(tmp_path: Path) -> None:
    assert load(tmp_path, app()) == (App("orders"),)


def test_apps_and_components_may_share_a_file(tmp_path: Path) -> None:
    assert [found.name for found in load(tmp_path, f"{COMPONENT}---\n{app(name='b')}---\n{app(name='a')}")] == [
        "a",
        "b",
    ]
    manifests = load_manifests([tmp_path], namespace="").visible_to("a")
    assert [component.name for component in manifests.components] == ["env"]
    assert manifests.notices == ()


def test_the_group_is_that_of_the_owner(tmp_path: Path) -> None:
    games = pwd.getpwnam("games")
    (found,) = load(tmp_path, app("owner: games"))
    assert (found.uid, found.gid) == (games.pw_uid, games.pw_gid)


def test_an_owner_of_a_remapped_container_is_an_id(tmp_path: Path) -> None:
    (found,) = load(tmp_path, app("owner: 100999"))
    assert (found.uid, found.gid) == (100999, 100999)


@pytest.mark.parametrize("mode", ["0440", '"0440"', '"440"'])
def test_a_mode_needs_no_quotes(tmp_path: Path, mode: str) -> None:
    assert load(tmp_path, app(f"mode: {mode}"))[0].mode == 0o440


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (app("owner: daemn"), "FILE:4: spec.owner: there is no user 'daemn' on this host (did you mean daemon?)"),
        (app("group: nogrup"), "FILE:4: spec.group: there is no group 'nogrup' on this host (did you mean nogroup?)"),
        (app("owner: 4294967295"), "FILE:4: spec.owner: 4294967295 is not the id of a user: ids end at 4294967294"),
        (app("mode: 0600"), "FILE:4: spec.mode: '0600': a file here can be read and nothing else (0400, 0440, 0444)"),
        (app("mode: rw"), "FILE:4: spec.mode: 'rw' is not an octal mode such as 0440"),
        (app("ownr: daemon"), "FILE:4: unknown field spec.ownr (did you mean owner?)"),
        (app(head="scopes: [a]\n"), "FILE:4: unknown field scopes (did you mean spec?)"),
        (
            app("permissions: [{mode: 0400}]"),
            "FILE:4: spec.permissions[0].match is missing: a glob such as vault/tls/*",
        ),
        (
            app("permissions: [{match: a, mod: 0400}]"),
            "FILE:4: unknown field spec.permissions[0].mod (did you mean mode?)",
        ),
        (app("permissions: {match: a}"), "FILE:4: spec.permissions must be a list, not a map"),
        (
            app("resources: ../b"),
            f"FILE:4: spec.resources: '../b' is not the name of a set, {EXAMPLES}",
        ),
        *(
            (app(f"objects: '{name}'"), f"FILE:4: spec.objects: {name!r} is not the name of a set, {EXAMPLES}")
            for name in ("/a", "a//b", "a/", "a/../b", ".a", "a/..data", "a:b", "a b", "..")
        ),
        (
            app("resources: a, objects: b"),
            "FILE:4: spec.resources and spec.objects both say what the app sees",
        ),
        (app(name=".hidden"), "FILE:3: metadata.name '.hidden' cannot be the name of a directory here"),
        (app(name="a/b"), "FILE:3: metadata.name 'a/b' cannot be the name of a directory here"),
        (app(name='""'), "FILE:3: metadata.name is missing"),
    ],
)
def test_a_mistake_names_file_line_and_the_nearest_right_name(tmp_path: Path, text: str, message: str) -> None:
    assert mistake(tmp_path, text) == message


def test_an_app_is_declared_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"1\.yaml:1: app orders is declared twice, first at .*0\.yaml:1$"):
        load(tmp_path, app(), app())


def test_other_files_are_passed_over_with_a_notice(tmp_path: Path) -> None:
    (tmp_path / "README").write_text("", encoding="utf-8")
    notices: list[Notice] = []
    assert load_apps([tmp_path], notices) == ()
    assert [str(notice) for notice in notices] == [f"{tmp_path}/README: not a YAML file, passed over"]
    with pytest.raises(ConfigurationError, match=f"no-such-directory: cannot be read: {os.strerror(2)}"):
        load_apps([tmp_path / "no-such-directory"], [])
